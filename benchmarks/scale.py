"""What one driver costs with many trials at a time: processor time, memory, bytes on disk, and how long a result waits.

    python benchmarks/scale.py [--open 1000] [--trials 3000] [--json FILE]

**The workers are a stand-in.** No Ray and no process of a worker runs: this file plays Ray Tune's part and calls the
searcher as Tune does, with results of two epochs a trial. So many trials are open at a time, and the oldest one ends
next. All else is real: search, journal, spool, status file, tables and report. MLflow is left out, and the sampler is
`random`, so that neither a model of the results nor a tracking server is measured. What Ray itself needs for workers is
measured with real ones by `benchmarks/slots.py`.

Figures are means over blocks of a tenth of the trials. *CPU* is the processor time of the whole driver per trial. The
last lines extrapolate to 10,000 trials along the straight line through the first and the last block, and say so. Trials
that are still open when the last block has ended are in no figure.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import deque
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks.trivial import GOALS, metrics_of, trivial_functions, words_of
from mmpkd.config import TrialConfig
from sweep import driver
from sweep.search.searcher import Search
from sweep.tracking.mlflow import Tracker

MANY: Final = 10_000  # trials to which the figures are extrapolated
BLOCKS: Final = 10


def resident_bytes() -> int:
    """Returns the memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def play(search: Search, open_trials: int, num_trials: int) -> list[dict[str, float]]:
    """Plays Ray Tune's part until all trials have ended, and returns the figures of each block of trials."""
    search.max_running, search._wait = open_trials, True
    noise, waiting, blocks = random.Random(0), deque[tuple[str, Any]](), list[dict[str, float]]()
    longest, ended, cpu, wall = 0.0, 0, time.process_time(), time.perf_counter()

    def hand_out() -> None:
        trial_id = f"trial-{search.state.next_number}"
        if isinstance(job := search.suggest(trial_id), dict):
            waiting.append((trial_id, job))

    for _ in range(open_trials):
        hand_out()
    print(f"{len(waiting)} trials are open after {time.perf_counter() - wall:.1f} s", file=sys.stderr)
    cpu, wall = time.process_time(), time.perf_counter()
    while waiting:
        begin = time.perf_counter()
        trial_id, job = waiting.popleft()
        optimizer = TrialConfig.model_validate_json(job["trial"]).optimizer
        for epoch in (1, 2):
            metrics = metrics_of(optimizer.lr, optimizer.weight_decay, epoch, noise)
            report = {"epoch": epoch, "step": epoch, "seconds": 4.0, "terms": {"task": 1.0}, "metrics": metrics}
            (search.on_trial_result if epoch == 1 else search.on_trial_complete)(trial_id, {"reports": [report]})
        hand_out()
        longest, ended = max(longest, time.perf_counter() - begin), ended + 1
        if ended % (num_trials // BLOCKS) == 0 and len(blocks) < BLOCKS:
            trials, now, clock = num_trials // BLOCKS, time.process_time(), time.perf_counter()
            figures = {"cpu": (now - cpu) / trials, "wall": (clock - wall) / trials, "longest": longest}
            blocks.append({"ended": ended, "memory": resident_bytes()} | figures)
            longest, cpu, wall = 0.0, now, clock
    return blocks


def run(open_trials: int, num_trials: int, place: Path) -> dict[str, Any]:
    """Runs a sweep, and returns its figures."""
    all_trials = num_trials + open_trials
    words = [f"trials={all_trials}", "search.sampler=random", "search.early_stopping=false", "arms.tabular=false"]
    options, space = words_of(place, *words)
    example = TrialConfig.model_validate({"cohort": {"reader": "synthetic"}, "epochs": 2})
    planned: Any = SimpleNamespace(goals=GOALS, facts=None, example=example, as_json=dict)
    blocks: list[dict[str, float]] = []
    played: list[float] = []

    def run_trials(search: Search, *rest: Any) -> None:
        blocks.extend(play(search, open_trials, num_trials))
        played.append(time.process_time())

    driver.run_trials = run_trials  # type: ignore[assignment]
    Tracker.start = lambda self: None  # type: ignore[method-assign]
    Tracker.close = lambda self, seconds: 0  # type: ignore[method-assign]
    console = Console(file=StringIO(), width=120)
    status = driver.run_sweep(space, planned, options, console, trivial_functions())
    assert status == 0, console.file.getvalue()  # type: ignore[attr-defined]
    sizes = {name: (options.folder.path / name).stat().st_size for name in ("journal.log", "spool.jsonl")}
    bytes_per_trial = {name: size / all_trials for name, size in sizes.items()}
    return {"blocks": blocks, "bytes": bytes_per_trial, "end_cpu": time.process_time() - played[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=3000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scale-") as place:
        figures = run(options.open, options.trials, Path(place))
    table = Table("trials ended", "CPU per trial, ms", "wall per trial, ms", "longest, ms", "memory, MB")
    for block in figures["blocks"]:
        times = [f"{1000 * block[name]:.1f}" for name in ("cpu", "wall", "longest")]
        table.add_row(f"{block['ended']:.0f}", *times, f"{block['memory'] / 2**20:.0f}")
    console = Console(width=120, highlight=False)
    console.print(table)
    if options.json:
        content = {"command": sys.argv, "open": options.open, "trials": options.trials, "load": os.getloadavg()[0]}
        options.json.write_text(json.dumps(content | figures, indent=1) + "\n")
    for name, size in figures["bytes"].items():
        console.print(f"{name}: {size:.0f} bytes per trial")
    all_trials = options.trials + options.open
    console.print(f"tables and report at the end: {figures['end_cpu']:.1f} s of CPU for {all_trials} trials")
    first, last = figures["blocks"][0], figures["blocks"][-1]
    for name, unit, factor in (("cpu", "ms of CPU per trial", 1000), ("memory", "MB", 2**-20)):
        slope = (last[name] - first[name]) / (last["ended"] - first["ended"])
        console.print(
            f"extrapolated to {MANY} trials: {factor * (last[name] + slope * (MANY - last['ended'])):.1f} {unit}"
        )


if __name__ == "__main__":
    main()
