"""Many runs: the search space, the plan, the search itself. The only home of ray, optuna and mlflow."""

import os

# Read by Ray when it is imported, whichever module of ours imports it first.
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the display is ours
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "1"  # a trial that reserves no GPU sees none
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # a folder of logs per trial, which nobody reads
os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"  # each is shown in one line instead, see `SweepFolder.error`
os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # `interrupt.py` has its own
