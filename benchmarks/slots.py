"""Which share of a cluster's slots is busy while trials are short, with and without our change to Ray Tune.

    python benchmarks/slots.py [--slots 8 40] [--rounds 8] [--seconds 4] [--start 0] [--json FILE]

Trials sleep for so many seconds in two epochs, in workers of a Ray that is started for each run, with so many slots
(fractions of its cores). So many rounds of trials are run: a round is one trial in each slot. A worker costs one to two
seconds of CPU time to start. `--start` makes each start that much longer by sleeping, as the import of torch on a busy
machine does. The sweep is the real one, without MLflow: driver, journal, spool and the sampler `random`.

A slot is busy while a trial is in its training function. The *start-up* ends when every slot has had a trial, or,
without our change, after as long as it takes with it. From then until the last trial begins, the share of busy slots is
measured. Without our change (`plain`) Ray Tune's own controller runs the same trials. The last line is the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from ray.tune.execution.tune_controller import TuneController
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks.trivial import GOALS, trivial_functions, words_of
from mmpkd.config import TrialConfig
from mmpkd.machine.resources import cores
from mmpkd.types import EpochReport
from sweep.driver import run_sweep
from sweep.tracking.mlflow import Tracker
from sweep.types import Job, Placement
from sweep.workers import tune
from sweep.workers.worker import TrainingFunctions

SIDES: Final = ("ours", "plain")
LEAST: Final = 0.9  # share of busy slots
EPOCHS: Final = 2
LOG: Final = "busy.txt"  # a line for each trial: process, begin, end


class Busy(NamedTuple):
    """A trial in a slot: the worker's process and the times of begin and end."""

    pid: int
    begin: float
    end: float


class PlainController(TuneController):
    """Ray Tune's own controller. The display that it fills is not looked at."""

    def placement(self) -> Placement:
        return Placement()


def run_training(job: Job, folder: Path, resume: Path | None, report: Callable[[EpochReport], None]) -> None:
    """Sleeps `SLOTS_SECONDS` in two epochs, and writes down when."""
    begin, seconds = time.time(), float(os.environ["SLOTS_SECONDS"]) / EPOCHS
    for epoch in range(1, EPOCHS + 1):
        time.sleep(seconds)
        if epoch == EPOCHS:
            with (folder.parents[2] / LOG).open("a") as log:
                log.write(f"{os.getpid()} {begin} {time.time()}\n")
        metrics = {goal: job["number"] % 97 / 97 for goal in GOALS}
        report(EpochReport(epoch, epoch, seconds, {"task": 1.0}, metrics))


class SlowFunctions(TrainingFunctions):
    """Functions whose arrival in a worker takes `SLOTS_START` seconds, as an import does."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        time.sleep(float(os.environ["SLOTS_START"]))
        self.__dict__.update(state)


def run_side(side: str, slots: int, trials: int, place: Path) -> list[Busy]:
    """Runs a sweep, and returns its trials in the order of their begin."""
    words = [f"trials={trials}", f"search.cpus={cores().amount / slots}", "search.sampler=random"]
    options, space = words_of(place, *words, "search.early_stopping=false", "arms.tabular=false")
    example = TrialConfig.model_validate({"cohort": {"reader": "synthetic"}, "epochs": EPOCHS})
    planned: Any = SimpleNamespace(goals=GOALS, facts=None, example=example, as_json=dict)
    console = Console(file=StringIO(), width=120)
    Tracker.start = lambda self: None  # type: ignore[method-assign]
    Tracker.close = lambda self, seconds: 0  # type: ignore[method-assign]
    if side == "plain":
        vars(tune).update(SlotController=PlainController, REQUESTS=slots)
    functions = replace(trivial_functions(), training=SlowFunctions(run_training))
    status = run_sweep(space, planned, options, console, functions)
    assert status == 0, console.file.getvalue()  # type: ignore[attr-defined]
    rows = [line.split() for line in (options.folder.path / LOG).read_text().splitlines()]
    return sorted((Busy(int(pid), float(begin), float(end)) for pid, begin, end in rows), key=lambda busy: busy.begin)


def start_up(trials: Sequence[Busy], slots: int) -> float:
    """Returns the seconds from the first trial until every slot has had one, or infinity."""
    seen: set[int] = set()
    for trial in trials:
        seen.add(trial.pid)
        if len(seen) >= slots:
            return trial.begin - trials[0].begin
    return float("inf")


def busy_share(trials: Sequence[Busy], slots: int, after: float) -> float:
    """Returns the share of busy slots from `after` seconds after the first trial's begin to the last trial's begin."""
    begin, end = trials[0].begin + after, trials[-1].begin
    overlap = (max(min(trial.end, end) - max(trial.begin, begin), 0.0) for trial in trials)
    return sum(overlap) / (slots * (end - begin)) if end > begin else float("nan")


def measure(side: str, slots: int, options: argparse.Namespace) -> list[Busy]:
    """Runs one side in a process and a folder of its own."""
    trials = slots * options.rounds
    with tempfile.TemporaryDirectory(prefix="slots-") as place:
        command = [sys.executable, __file__, "--side", side, str(slots), str(trials), place]
        variables = {"SLOTS_SECONDS": str(options.seconds), "SLOTS_START": str(options.start)}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | variables)
    return [Busy(*row) for row in json.loads(done.stdout.splitlines()[-1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, nargs="+", default=[8, 40])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--start", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", nargs=4, metavar=("SIDE", "SLOTS", "TRIALS", "FOLDER"), help="used by itself")
    options = parser.parse_args()
    if options.side:
        side, slots, trials, place = options.side
        print(json.dumps(run_side(side, int(slots), int(trials), Path(place))))
        return
    table = Table("slots", "side", "trials", "workers", "start-up, s", "busy slots", "load")
    runs: list[dict[str, Any]] = []
    for slots in options.slots:
        after = 0.0
        for side in SIDES:
            trials, load = measure(side, slots, options), os.getloadavg()[0]
            begins = start_up(trials, slots)
            after = begins if side == "ours" else after
            share, workers = busy_share(trials, slots, after), len({trial.pid for trial in trials})
            runs.append({"slots": slots, "side": side, "trials": len(trials), "workers": workers, "load": load})
            runs[-1] |= {"start_up": begins, "busy": share}
            print(runs[-1], file=sys.stderr, flush=True)
            table.add_row(
                *map(str, (slots, side, len(trials), workers)), f"{begins:.0f}", f"{share:.0%}", f"{load:.1f}"
            )
    console = Console(width=120)
    console.print(table)
    if options.json:
        versions = {"ray": version("ray"), "python": platform.python_version()}
        content = {"command": sys.argv, "versions": versions, "cores": cores().amount, "runs": runs}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    for ours, plain in zip(runs[::2], runs[1::2], strict=True):
        verdict = "PASS" if ours["busy"] >= LEAST else "FAIL"
        console.print(
            f"{ours['slots']} slots: {ours['busy']:.0%} busy, at least {LEAST:.0%}: {verdict}", highlight=False
        )
        console.print(f"{ours['slots']} slots, ours over plain: {ours['busy'] / plain['busy']:.2f}", highlight=False)


if __name__ == "__main__":
    main()
