"""Runs many trainings as one sweep: its search space, plan and search. No other package imports ray, optuna or
mlflow.
"""

import os

# Ray reads these variables when it is imported, so they are set before any module of ours imports it.
os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # we have a display of our own
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # or Tune's loggers write a folder of logs per trial
os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"  # error files hold them; the console shows a line each
os.environ["TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S"] = "0"
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # `interrupt.py` has its own handlers
