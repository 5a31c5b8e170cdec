"""Runs a sweep over a search space: `python -m sweep.run [space=NAME|FILE] [key=value ...]`; `--help` lists all
keys.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from textwrap import wrap

from mmpkd.command import asks_for_help, command_line, plain_console, warn
from mmpkd.machine.loading import loading
from mmpkd.types import ConfigError
from sweep.interrupt import exit_process, requests_end_the_driver
from sweep.options import RUN_KEYS, read_run_options, seconds_of
from sweep.space.loading import SHORTCUTS, shipped
from sweep.space.space import PATHS_OF_SPACE, load_space
from sweep.supervisor import follow_supervisor, supervise
from sweep.transfer.addresses import place

HELP = """\
usage: python -m sweep.run [space=NAME|FILE] [key=value ...]

Draws configurations from a search space, trains them, and keeps those that
classify and localise best. The same command again continues a sweep that was
stopped or killed, and never repeats a finished trial; a higher trials= adds to
it.

  space=demo        {spaces}
  name=SPACE        the sweep's name; its files go to STORAGE/NAME
  trials=N          configurations to start, over all arms (search.trials)
  budget_device_hours=H, deadline=WHEN   limits at which the sweep stops; a
                    higher limit continues it
  storage=runs      folder of all sweeps, or an address such as s3://BUCKET/runs
  cache=cache       folder or address of prepared images and teachers' outputs,
                    shared by all sweeps
  scratch=DIR       every node's disk, for copies and checkpoints in a cluster;
                    scratch_gb=N limits copies
  tracking=URI      MLflow; MLFLOW_TRACKING_URI, or sqlite:///STORAGE/mlflow.db
  patience=24h      how long the sweep waits while the disk of STORAGE is full,
                    read-only or away
  restarts=N        starts the driver again, at most N times, if it crashes;
                    with RAY_ADDRESS 20, else 0
  warm_start=SWEEP  begins with the results of another sweep of the same cohort,
                    by name or folder
  extend=true       continues though the space has changed, with the earlier
                    trials that lie in the new one
  repair=true       continues though the journal is damaged or has lost trials,
                    without what is lost
  show=true, schema=true   print the space as a tree, or a JSON schema of space
                    files for editors, and stop
  plan=true         checks every branch of the space, times some steps, prints
                    the price, and stops
  any.other=value   replaces that leaf of the space: epochs=8  seed=1
                    cohort.root=DIR  optimizer.lr=3e-4  arms.none=false
                    'optimizer.lr={{log_uniform: [1e-4, 1e-2]}}'
                    docs/search_spaces.md has a table of all keys with their
                    defaults, such as search.at_a_time and search.repeats

examples
  python -m sweep.run                       the demo, minutes on two cores
  python -m sweep.run space=breast cohort.root=DIR plan=true
  python -m sweep.run space=breast cohort.root=DIR trials=12 name=first-look
  RAY_ADDRESS=auto python -m sweep.run space=FILE search.trials_per_device=4
                                            four to a GPU, on a cluster

a sweep leaves in STORAGE/NAME (the first three also every 10 minutes)
  report.html       the front, learning curves, what each parameter did
  best.yaml         the best configuration by search.select; for
                    python -m mmpkd.train config=best.yaml
  trials.parquet    a row a trial; epochs.parquet a row an epoch
  space.yaml, plan.json, journal.log (Optuna), checkpoints of the best trials,
                    errors/ of failed trials

Ctrl-C, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU end it in good order
within about ten seconds, and the same command continues. A running trial trains
again what it trained since its last checkpoint: at most checkpoint_seconds [60]
and an epoch. A second Ctrl-C ends the sweep at once.
Without RAY_ADDRESS it uses the cores and the memory that taskset, control
groups (containers) or the batch system allow; Ray's sockets go below TMPDIR if
its path is short, else below /tmp, or below RAY_TMPDIR.

exit status: 0 done; 1 no trial succeeded; 2 a mistake, shown above; 130 stopped
before the end (by a signal or by sweep.stop), the same command continues
"""


@requests_end_the_driver()
def main(words: Sequence[str]) -> None:
    """Parses the command line. Then runs the sweep, or shows its plan, space or schema, as the command line asks.

    Ray, torch, Optuna and MLflow take seconds to import, so they are imported once the space is known to be sound.

    Raises:
        SystemExit: the command ends, with status 0 (done), 1 (no trial succeeded) or 130 (stopped before the end).
        UserError: the user made mistakes. The command then ends with status 2.
    """
    if asks_for_help(words):
        spaces = wrap(f"{', '.join(shipped())}, or the path of a .yaml file", 60)
        print(HELP.format(spaces=f"\n{' ' * 20}".join(spaces)), end="")
        return
    options, mistakes = read_run_options(words, (*SHORTCUTS, *PATHS_OF_SPACE))
    if options.schema and not mistakes:
        from sweep.space.schema import schema

        print(json.dumps(schema(), indent=2))
        return
    trains = not (mistakes or options.schema or options.show or options.plan)
    if trains and not follow_supervisor() and options.num_restarts:
        command, patience = [sys.executable, "-m", "sweep.run", *words], seconds_of(options.patience) or 0.0
        exit_process(supervise(command, options.num_restarts, options.folder.path, patience))
    space, space_mistakes = load_space(options.space, options.overrides, RUN_KEYS)
    mistakes += space_mistakes
    if space is None:
        raise ConfigError(mistakes)
    console = plain_console()
    if options.show:
        from sweep.space.show import tree

        console.print(tree(space))
        if mistakes:
            raise ConfigError(mistakes)
        return
    with loading():
        from sweep.plan.plan import plan

    planned = plan(space, mistakes)
    if planned.mistakes:
        raise ConfigError(planned.mistakes)
    with loading():
        from sweep.cluster import refuse_silent_cluster, refuse_too_many_cores
        from sweep.driver import run_sweep, show_plan
        from sweep.storage.continuation import with_earlier_rules

    for key, address in (("storage", options.storage), ("cache", options.cache)):
        place(address, key).check(key)
    assert planned.example is not None
    refuse_too_many_cores(space.search, planned.example.threads)
    if options.plan:
        show_plan(with_earlier_rules(options.folder, space), planned, console)
        return
    warn(planned.warnings, console)
    refuse_silent_cluster()  # before hours may be spent on preparing the cohort
    exit_process(run_sweep(space, planned, options, console))


if __name__ == "__main__":
    with command_line() as words:
        main(words)
