"""Seconds from `python -m sweep.run` to the first epoch, and from one trial to the next in a reused worker.

    python benchmarks/startup.py [--breast DIR] [--trials 8] [--rounds 1] [--before DIR] [--json FILE]

Runs a real sweep of one epoch a trial, the space `breast` with `--breast` and the demo without, in an empty folder,
and prints where the seconds go. `--before DIR` names a checkout of earlier code: both are run in turn, the order
reversed in every second round, and stand side by side. All figures are medians over the rounds, and over all reused
workers.

The seconds before the first epoch are those of the driver up to the start of Tune's loop, and then those of the worker
whose first epoch begins first. The seconds between trials run from the last report of a trial, in the worker, to the
first epoch of the next trial in the same process. `other` is what no row above it explains.

Each row has wall-clock seconds and CPU-seconds, which stay comparable while other work shares the machine. Those of the
driver's rows are those of all processes of the sweep during that time; those of a worker's rows are its own.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
MARKS: Final = "STARTUP_MARKS"  # environment variable that names the folder of the marks
BEGINS, REPORTS, LOOP = "first epoch begins", "reports", "Tune's loop begins"
FIRST, NEXT = "UNTIL THE FIRST EPOCH", "FROM ONE TRIAL TO THE NEXT"
# The functions that a worker calls before the first epoch, by the module in whose namespace they are looked up.
IN_WORKER: Final = {
    "mmpkd.train": ("check", "fit_teachers", "build", "Evaluator"),
    "mmpkd.export.student_file": ("write",),
}

Line = Mapping[str, Any]  # what happened or ended, when (at), how long it took (seconds), CPU-seconds of its process
Row = tuple[float, float]  # seconds and CPU-seconds


# --- what runs in the driver and in the workers ---


def mark(what: str, seconds: float | None = None, cpu: float = 0.0) -> None:
    """Appends a line to the marks of this process."""
    line = {"what": what, "at": time.time(), "seconds": seconds, "cpu": cpu, "process_cpu": time.process_time()}
    with (Path(os.environ[MARKS]) / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


@contextmanager
def marked(what: str) -> Iterator[None]:
    """Marks how long the body takes."""
    started, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        mark(what, time.perf_counter() - started, time.process_time() - cpu)


def noted(function: Callable[..., Any], what: str, then: Callable[[], None] = lambda: None) -> Callable[..., Any]:
    """Returns a function that marks how long each call of `function` takes, and calls `then` after it."""

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        with marked(what):
            result = function(*arguments, **options)
        then()
        return result

    return call


def preceded(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Returns a function that marks each call of `function` when it begins."""

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        mark(what)
        return function(*arguments, **options)

    return call


def imported(module: str, what: str) -> Any:
    with marked(what):
        __import__(module)
    return sys.modules[module]


def run_training(*arguments: Any) -> None:
    """Trains in a worker as `sweep.workers.worker.run_training` does, with marks. The last argument is the callback
    that takes the report of an epoch.
    """
    *job, report = arguments
    mark("trial begins")
    for name, functions in IN_WORKER.items():
        module = imported(name, "worker: imports")
        for function in functions:
            patch(module, function, noted, f"worker: {function}")
    patch(sys.modules["mmpkd.train"], "train_epoch", preceded, BEGINS)
    store = imported("mmpkd.cohort.store", "worker: imports").Store
    if not hasattr(store.open, "__wrapped__"):
        store.open = classmethod(noted(store.open.__func__, "worker: Store.open"))
    worker = imported("sweep.workers.worker", "worker: imports")
    worker.run_training(*job, preceded(report, REPORTS))


def patch(module: Any, name: str, wrap: Callable[..., Any], what: str) -> None:
    """Wraps a function of a module once."""
    if not hasattr(getattr(module, name), "__wrapped__"):
        setattr(module, name, wrap(getattr(module, name), what))


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
        patch(sys.modules["sweep.cluster"], "start_ray", noted, "driver: start of Ray")
        patch(driver, "run_tune", preceded, LOOP)

    def note_plan() -> None:
        planning = imported("sweep.plan.plan", "driver: imports of the plan")
        planning.plan = noted(planning.plan, "driver: plan", note_driver)

    run.load_space = noted(run.load_space, "driver: load_space", note_plan)
    run.main(words)


# --- what the marks say ---


def read_marks(folder: Path) -> dict[int, list[Line]]:
    """Returns the lines of each process, by its id."""
    return {int(path.stem): [json.loads(line) for line in path.open()] for path in folder.glob("*.jsonl")}


def figures(
    marks: Mapping[int, Sequence[Line]], driver: int, began: float, cpu_until: Callable[[float], float]
) -> dict[str, list[Row]]:
    """Returns the rows of the table; rows of reused workers have a value for each reuse.

    Args:
        driver: process id of the driver, whose marks are kept apart from those of the workers.
        began: when the driver was started.
        cpu_until: CPU-seconds of all processes up to a moment.
    """
    rows: dict[str, list[Row]] = defaultdict(list)

    def between(start: float, end: float) -> Row:
        return end - start, cpu_until(end) - cpu_until(start)

    for line in marks[driver]:
        if line["seconds"] is not None:
            rows[line["what"]].append(between(line["at"] - line["seconds"], line["at"]))
    loop = moment(marks[driver], LOOP)
    rows["driver: other"] = [_without(between(began, loop), [row for values in rows.values() for row in values])]
    workers = [lines for pid, lines in marks.items() if pid != driver and any(line["what"] == BEGINS for line in lines)]
    fastest = min(workers, key=lambda lines: moment(lines, BEGINS))
    rows["worker: start of the process"] = [between(loop, fastest[0]["at"])]
    first = next(line for line in fastest if line["what"] == BEGINS)
    explain(rows, "worker", fastest, fastest[0], first)
    rows[FIRST] = [between(began, first["at"])]
    for lines in workers:
        for ended, begins in reuses(lines):
            explain(rows, "reused", lines, ended, begins)
            rows[NEXT].append((begins["at"] - ended["at"], begins["process_cpu"] - ended["process_cpu"]))
    return rows


def moment(lines: Sequence[Line], what: str) -> float:
    return float(next(line["at"] for line in lines if line["what"] == what))


def reuses(lines: Sequence[Line]) -> list[tuple[Line, Line]]:
    """Returns, for each trial of a worker but the first, the last report before it and the begin of its first epoch."""
    events = [line for line in lines if line["what"] in (BEGINS, REPORTS)]
    return [(a, b) for a, b in pairwise(events) if (a["what"], b["what"]) == (REPORTS, BEGINS)]


def explain(rows: dict[str, list[Row]], prefix: str, lines: Sequence[Line], start: Line, end: Line) -> None:
    """Appends what the functions took that ended between two lines, and what they leave unexplained."""
    parts: dict[str, list[Row]] = defaultdict(list)
    for line in lines:
        if start["at"] < line["at"] <= end["at"] and line["seconds"] is not None:
            parts[line["what"].replace("worker", prefix)].append((line["seconds"], line["cpu"]))
    for what, values in parts.items():
        rows[what].append((sum(seconds for seconds, _ in values), sum(cpu for _, cpu in values)))
    whole = end["at"] - start["at"], end["process_cpu"] - start["process_cpu"]
    rows[f"{prefix}: other"].append(_without(whole, [row for values in parts.values() for row in values]))


def _without(whole: Row, parts: Sequence[Row]) -> Row:
    return whole[0] - sum(seconds for seconds, _ in parts), whole[1] - sum(cpu for _, cpu in parts)


# --- the runs ---


def measure(tree: Path, options: argparse.Namespace) -> dict[str, list[Row]]:
    """Runs one sweep of the code in `tree`, in a process and an empty folder of its own."""
    from benchmarks.cpu_time import CpuMeter

    with tempfile.TemporaryDirectory(prefix="startup-") as place:
        words = [f"trials={options.trials}", "epochs=1", "name=startup", "search.early_stopping=false"]
        words += [f"storage={place}/runs", f"cache={place}/cache"]
        words += ["space=breast", f"cohort.root={options.breast.resolve()}"] if options.breast else ["space=demo"]
        marks, log = Path(place) / "marks", Path(place) / "output.txt"
        marks.mkdir()
        environment = os.environ | {MARKS: str(marks), "PYTHONPATH": f"{tree}:{ROOT}"}
        command = [sys.executable, __file__, "--worker", str(tree), *words]
        with log.open("w") as output:
            began = time.time()
            # Ray's workers import from the working directory first.
            process = subprocess.Popen(command, env=environment, cwd=tree, stdout=output, stderr=output)
            meter = CpuMeter(process.pid)
            meter.start()
            status = process.wait()
            meter.end()
        if status:
            raise SystemExit(f"the sweep failed with status {status}:\n{log.read_text()[-4000:]}")
        return figures(read_marks(marks), process.pid, began, meter.until)


def report(samples: Mapping[str, Mapping[str, Sequence[Row]]]) -> None:
    """Prints the medians of each row, for each side seconds and CPU-seconds."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", *(f"{side}\n{unit}" for side in samples for unit in ("seconds", "CPU")))
    for row in dict.fromkeys(row for rows in samples.values() for row in rows):
        cells = []
        for rows in samples.values():
            values = rows.get(row) or []
            cells += [f"{statistics.median(each):.2f}" for each in zip(*values, strict=True)] if values else ["", ""]
        table.add_row(row, *cells, style="bold" if row.isupper() else None)
    Console(width=100).print(table)


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
    sys.path.insert(0, str(ROOT))  # run as a script, it imports the other benchmarks
    trees = {"before": options.before.resolve()} if options.before else {}
    trees["now"] = ROOT
    samples: dict[str, dict[str, list[Row]]] = {side: defaultdict(list) for side in trees}
    for number in range(options.rounds):
        for side in list(trees)[:: -1 if number % 2 else 1]:
            for row, values in measure(trees[side], options).items():
                samples[side][row] += values
    report(samples)
    if options.json:
        options.json.write_text(json.dumps({"command": sys.argv, "rows": samples}, indent=1) + "\n")


if __name__ == "__main__":
    main()
