"""`python -m benchmarks.chaos.driver WORDS`: the command `sweep.run` with the trainings of the fault campaign."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from rich.console import Console

from mmpkd.command import command_line
from mmpkd.machine.loading import loading
from sweep.interrupt import exit_process, requests_end_the_driver
from sweep.options import read_run_options, seconds_of
from sweep.supervisor import follow_supervisor, supervise

SILENT_SECONDS: Final = 100.0  # a sweep allows 600 s; epochs that are held back take 80 s at most
WITNESS: Final = "CHAOS_WITNESS"  # environment variable: folder of the workers' own log of epochs


def prepare(config: Any, cache: Path) -> Any:
    return SimpleNamespace(path=cache / "store", fingerprint="none", num_folds=4)


@requests_end_the_driver()
def main(words: Sequence[str]) -> None:
    options, mistakes = read_run_options(words)
    if not follow_supervisor() and options.num_restarts:
        command, patience = (
            [sys.executable, "-m", "benchmarks.chaos.driver", *words],
            seconds_of(options.patience) or 0.0,
        )
        exit_process(supervise(command, options.num_restarts, options.folder.path, patience))
    # The process that supervises the driver needs none of these, which take seconds.
    with loading():
        from benchmarks.chaos.training import TRAINING
        from benchmarks.witness import logged
        from sweep.driver import SweepFunctions, run_sweep
        from sweep.plan.plan import plan
        from sweep.space.space import load_space
        from sweep.workers import watchdog

    watchdog.SHORTEST_SECONDS = SILENT_SECONDS  # type: ignore[misc]
    space, space_mistakes = load_space(options.space, options.overrides)
    assert space is not None
    planned = plan(space, mistakes + space_mistakes)
    assert not planned.mistakes, planned.mistakes
    training = logged(TRAINING, Path(os.environ[WITNESS]))
    functions = SweepFunctions(prepare, lambda *_: [], lambda *_: None, training)
    exit_process(run_sweep(space, planned, options, Console(width=160), functions))


if __name__ == "__main__":
    with command_line() as words:
        main(words)
