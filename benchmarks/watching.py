"""What it costs to watch a sweep: its results written while it runs, and its status file.

    python benchmarks/watching.py [--trials 1000] [--epochs 10] [--running 1000]

A sweep that has finished so many trivial trials (`benchmarks/trivial.py`, half of them pruned, epochs beyond the second
in the spool alone) writes its results once through `ResultsWriter`. Meanwhile this process does what Ray Tune's loop
does between two events, nothing, and notes the longest time for which it was held up. Then the status of so many
running trials is noted and written.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks.trivial import GOALS, begin_after, metrics_of, words_of
from mmpkd.config import CohortConfig
from sweep.driver_status import write_status
from sweep.reports.results import snapshot_of
from sweep.reports.watch import ResultsWriter, Watch
from sweep.search.searcher import Search
from sweep.search.state import RunningTrial, SweepState
from sweep.search.studies import Studies
from sweep.storage.events import EpochEnded, Spool
from sweep.tracking.mlflow import Tracker

COHORT = CohortConfig(reader="synthetic")


def finished_search(place: Path, trials: int, epochs: int) -> Search:
    options, space = words_of(place, f"trials={2 * trials}")
    noise = random.Random(0)
    begin_after(trials, space, options, noise)
    spool = Spool(options.folder)
    for number in range(trials):
        for epoch in range(3, epochs + 1):
            event: dict[str, Any] = {"metrics": metrics_of(1e-4, 0.01, 2, noise), "terms": {"task": 1.0}}
            arm = list(space.arms)[number % len(space.arms)]
            spool.append(EpochEnded(number=number, arm=arm, devices=1.0, epoch=epoch, seconds=0.01, **event))
    state = SweepState(space, GOALS, Studies(options.folder, space, GOALS), spool, options.folder)
    return Search(space, state, options.folder, place, place)


def write_once(search: Search) -> None:
    writer, begun = ResultsWriter(), time.perf_counter()
    copy = snapshot_of(search, GOALS, search._folder, COHORT)
    copied = time.perf_counter()
    writer.write(copy)
    writer.step()
    started = last = time.perf_counter()
    longest, memory = 0.0, 0
    while writer.written is None and not writer.trouble:
        if writer._process is not None:
            memory = max(memory, most_memory(writer._process.pid))
        time.sleep(0.005)
        writer.step()
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"results: {last - started:.1f} s, {used.ru_utime + used.ru_stime:.1f} CPU-seconds, {memory / 1000:.0f} MB")
    print(f"  in the loop: {1000 * (copied - begun):.1f} ms; in the thread: {1000 * (started - copied):.0f} ms")
    print(f"  the driver was held up for {1000 * longest:.0f} ms at the longest, of which it slept 5 ms")
    print(f"  the next results come after {writer.interval:.0f} s {writer.trouble}")


def most_memory(process: int) -> int:
    """Returns the largest resident memory of a process so far, in kB, or 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def show(search: Search, running: int) -> None:
    proposal = search.state.samplers.request("none", 10**6) or search.state.samplers.collect(True)[1]
    assert proposal is not None
    for number in range(running):
        trial = RunningTrial(number, proposal, proposal.config, search.state._reported[number])
        search.running[str(number)] = replace(trial, last_sign=time.time() - number)
    folder = search._folder
    spool = Spool(folder)
    watch = Watch(search, Tracker("http://127.0.0.1:1", "x", "x", spool, folder.path), spool, COHORT, "")
    begun = time.perf_counter()
    watch.tick()
    ticked = time.perf_counter()
    write_status(folder, watch._status)
    written = time.perf_counter()
    size = folder.status.stat().st_size
    print(f"status of {running} running trials: {1000 * (ticked - begun):.1f} ms in the loop, without Ray; ", end="")
    print(f"{1000 * (written - ticked):.1f} ms in the thread, {size / 1000:.0f} kB, every 5 s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--running", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        search = finished_search(Path(place), options.trials, options.epochs)
        size = search._folder.spool.stat().st_size
        print(f"{options.trials} trials of {options.epochs} epochs, a spool of {size / 1e6:.1f} MB")
        write_once(search)
        show(search, options.running)


if __name__ == "__main__":
    main()
