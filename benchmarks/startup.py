"""Seconds from `python -m sweep.run` to the first epoch, and from one trial to the next in a reused worker.

    python benchmarks/startup.py [--breast DIR] [--trials 8] [--rounds 1] [--before DIR] [--json FILE]

Runs a real sweep of one epoch a trial, the space `breast` with `--breast` and the demo without, in an empty folder,
and prints where the seconds go. `--before DIR` names a checkout of earlier code: both are run in turn, the order
reversed in every second round, and stand side by side. All figures are medians over the rounds, and over all reused
workers.

The seconds before the first epoch are those of the driver up to the start of Tune's loop, and then those of the worker
whose first epoch begins first. The seconds between trials run from the last report of a trial, in the worker, to the
first epoch of the next trial in the same process. `other` is what no row above it explains.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
MARKS: Final = "STARTUP_MARKS"  # environment variable that names the folder of the marks
BEGINS, REPORTS = "first epoch begins", "reports"
# The functions that a worker calls before the first epoch, by the module in whose namespace they are looked up.
IN_WORKER: Final = {
    "mmpkd.train": ("check", "fit_teachers", "build", "Evaluator", "prepare"),
    "mmpkd.export": ("write",),
}


# --- what runs in the driver and in the workers ---


def mark(what: str, seconds: float | None = None) -> None:
    """Appends a line to the marks of this process: what ended or happened, when, and how long it took."""
    line = {"pid": os.getpid(), "what": what, "at": time.time(), "seconds": seconds}
    with (Path(os.environ[MARKS]) / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def noted(function: Callable[..., Any], what: str, then: Callable[[], None] = lambda: None) -> Callable[..., Any]:
    """Returns a function that marks how long each call of `function` takes, and calls `then` after it."""

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            mark(what, time.perf_counter() - started)
            then()

    return call


def imported(module: str, what: str) -> Any:
    started = time.perf_counter()
    __import__(module)
    mark(what, time.perf_counter() - started)
    return sys.modules[module]


def run_training(*arguments: Any) -> None:
    """Trains in a worker as `sweep.workers.worker.run_training` does, with marks. The last argument is the callback
    that takes the report of an epoch.
    """
    from sweep.workers import worker

    mark("trial begins")
    for name, functions in IN_WORKER.items():
        module = imported(name, "worker: imports")
        for function in functions:
            if hasattr(module, function) and not hasattr(getattr(module, function), "__wrapped__"):
                setattr(module, function, noted(getattr(module, function), f"worker: {function}"))
    training = sys.modules["mmpkd.train"]
    if not hasattr(training.train_epoch, "__wrapped__"):  # type: ignore[attr-defined]
        train_epoch = training.train_epoch  # type: ignore[attr-defined]

        @wraps(train_epoch)
        def begin_epoch(*arguments: Any, **options: Any) -> Any:
            mark(BEGINS)
            return train_epoch(*arguments, **options)

        training.train_epoch = begin_epoch  # type: ignore[attr-defined]
    from mmpkd.cohort.store import Store

    if not hasattr(Store.open, "__wrapped__"):
        opened = Store.open.__func__  # type: ignore[attr-defined]
        Store.open = classmethod(noted(opened, "worker: Store.open"))  # type: ignore[method-assign, assignment]

    *job, report = arguments

    def report_marked(epoch: Any) -> None:
        mark(REPORTS)
        report(epoch)

    worker.run_training(*job, report_marked)


def drive(words: Sequence[str]) -> None:
    """Runs `python -m sweep.run` in this process, with marks."""
    run = imported("sweep.run", "driver: imports of sweep.run")

    def note_driver() -> None:
        driver = imported("sweep.driver", "driver: imports of sweep.driver")
        functions = driver.FUNCTIONS
        driver.FUNCTIONS = replace(
            functions,
            prepare=noted(functions.prepare, "driver: prepare"),
            leakage_warnings=noted(functions.leakage_warnings, "driver: leakage warnings"),
            price=noted(functions.price, "driver: price"),
            training=replace(functions.training, run=run_training),
        )
        cluster = sys.modules["sweep.cluster"]
        cluster.start_ray = noted(cluster.start_ray, "driver: start of Ray")  # type: ignore[attr-defined]
        driver.run_tune = noted_start(driver.run_tune)

    def noted_start(run_tune: Callable[..., Any]) -> Callable[..., Any]:
        def start(*arguments: Any, **options: Any) -> Any:
            mark("Tune's loop begins")
            return run_tune(*arguments, **options)

        return start

    def note_plan() -> None:
        planning = imported("sweep.plan.plan", "driver: imports of the plan")
        planning.plan = noted(planning.plan, "driver: plan", note_driver)

    run.load_space = noted(run.load_space, "driver: load_space", note_plan)
    run.main(words)


# --- what the marks say ---


def read_marks(folder: Path) -> dict[int, list[dict[str, Any]]]:
    return {int(path.stem): [json.loads(line) for line in path.open()] for path in folder.glob("*.jsonl")}


def figures(marks: Mapping[int, Sequence[Mapping[str, Any]]], driver: int, began: float) -> dict[str, list[float]]:
    """Returns the seconds of each row of the table; rows of reused workers have a value for each reuse.

    Args:
        driver: process id of the driver, whose marks are kept apart from those of the workers.
        began: when the driver was started.
    """
    rows: dict[str, list[float]] = defaultdict(list)
    for line in marks[driver]:
        if line["seconds"] is not None:
            rows[line["what"]].append(line["seconds"])
    loop = next(line["at"] for line in marks[driver] if line["what"] == "Tune's loop begins")
    rows["driver: other"] = [loop - began - sum(seconds for values in rows.values() for seconds in values)]
    workers = [lines for pid, lines in marks.items() if pid != driver and any(each["what"] == BEGINS for each in lines)]

    def first_epoch(lines: Sequence[Mapping[str, Any]]) -> float:
        return float(next(each["at"] for each in lines if each["what"] == BEGINS))

    fastest = min(workers, key=first_epoch)
    entered = fastest[0]["at"]
    rows["worker: start of the process"] = [entered - loop]
    explain(rows, "worker", fastest, entered, first_epoch(fastest))
    rows["UNTIL THE FIRST EPOCH"] = [first_epoch(fastest) - began]
    for lines in workers:
        for ended, begins in reuses(lines):
            explain(rows, "reused", lines, ended, begins)
            rows["FROM ONE TRIAL TO THE NEXT"].append(begins - ended)
    return rows


def reuses(lines: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Returns, for each trial of a worker but the first, when the trial before last reported and when it begins."""
    events = [line for line in lines if line["what"] in (BEGINS, REPORTS)]
    return [(a["at"], b["at"]) for a, b in pairwise(events) if (a["what"], b["what"]) == (REPORTS, BEGINS)]


def explain(
    rows: dict[str, list[float]], prefix: str, lines: Sequence[Mapping[str, Any]], start: float, end: float
) -> None:
    """Appends the seconds of the functions that ended between two times, and of what they leave unexplained."""
    sums: dict[str, float] = defaultdict(float)
    for line in lines:
        if start < line["at"] <= end and line["seconds"] is not None:
            sums[line["what"].replace("worker", prefix)] += line["seconds"]
    for what, seconds in sums.items():
        rows[what].append(seconds)
    rows[f"{prefix}: other"].append(end - start - sum(sums.values()))


# --- the runs ---


def measure(tree: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Runs one sweep of the code in `tree`, in a process and an empty folder of its own."""
    with tempfile.TemporaryDirectory(prefix="startup-") as place:
        words = [f"trials={options.trials}", "epochs=1", "name=startup", "search.early_stopping=false"]
        words += [f"storage={place}/runs", f"cache={place}/cache"]
        words += ["space=breast", f"cohort.root={options.breast.resolve()}"] if options.breast else ["space=demo"]
        marks, log = Path(place) / "marks", Path(place) / "output.txt"
        marks.mkdir()
        environment = os.environ | {MARKS: str(marks), "PYTHONPATH": f"{tree}:{ROOT}"}
        with log.open("w") as output:
            began = time.time()
            process = subprocess.Popen(
                [sys.executable, __file__, "--worker", str(tree), *words], env=environment, stdout=output, stderr=output
            )
            status = process.wait()
        if status:
            raise SystemExit(f"the sweep failed with status {status}:\n{log.read_text()[-4000:]}")
        return figures(read_marks(marks), process.pid, began)


def main(words: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["--worker"]:
        sys.path.insert(0, words[1])
        from benchmarks import startup  # workers import this module by its name

        startup.drive(words[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--breast", type=Path, help="folder of the BrEaST data")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--before", type=Path, help="a checkout of earlier code")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(words)
    trees = {"before": options.before.resolve()} if options.before else {}
    trees["now"] = ROOT
    samples: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in trees}
    for number in range(options.rounds):
        for name in list(trees)[:: -1 if number % 2 else 1]:
            for row, values in measure(trees[name], options).items():
                samples[name][row] += values
    report(samples)
    if options.json:
        options.json.write_text(json.dumps({"command": sys.argv, "seconds": samples}, indent=1) + "\n")


def report(samples: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("seconds (medians)", *samples)
    for row in dict.fromkeys(row for rows in samples.values() for row in rows):
        cells = [f"{statistics.median(rows[row]):.2f}" if row in rows else "" for rows in samples.values()]
        table.add_row(row, *cells, style="bold" if row.isupper() else None)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
