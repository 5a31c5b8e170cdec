"""Measures the device-hours in which a search reaches 95 % of the attainable hypervolume, on recorded learning curves.

    python benchmarks/search_efficiency.py [spaces=demo,breast] [seeds=20] [slots=4]

Replays `benchmarks/curves/<space>.csv` (see `record_curves.py`) on a simulated clock, `slots` trials at a time; a
suggestion that is not in the table gets the curve of its nearest row in the same arm and branches. A row's curve is the
mean of the repeats that every configuration has; otherwise the best rows would be those with lucky noise. The share of
noise in the spread of the rows is printed first, from the configurations with repeats. Four searches run on the same
seeds:

  random      uniform draws, no trial is stopped
  TPE         Optuna's TPESampler on both goals, no trial is stopped
  documented  Ray's ASHAScheduler on the mean of the goals' ranks, with OptunaSearch, defaults throughout
  ours        this sweep's own classes: sampler per arm, equal shares, halving on both goals

The first three use a single study in which the arm is a category, as most users would write it; ours gives all arms
equal device-hours. So there are two measures. *Any arm* is the hypervolume of the table, from whichever arm it comes.
*Every arm* is reached when each arm has 95 % of the hypervolume of its own rows, without which arms cannot be compared.
Only trials that ran to the end count. Intervals are 95 %, by bootstrap over seeds.
"""

from __future__ import annotations

import heapq
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"

import numpy as np
import optuna
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks.record_curves import EPOCHS, FOLDER, GOALS
from benchmarks.recorded import FLOOR, Curves, spread
from benchmarks.searches import Documented, Free, Ours, Trial, Way
from mmpkd.command import own_words
from sweep.pareto import admit, hypervolume
from sweep.space.space import Space, load_space
from sweep.types import Values

# Limits as multiples of the whole table's device-hours; a search that has not reached a measure by then counts with its
# limit. The two searches that Optuna leads collapse on a few rows and seldom reach it: a low limit flatters them, and
# saves hours.
MOST: Final = {"random": 10.0, "TPE": 0.5, "documented": 0.5, "ours": 4.0}
# The sweep's default early stopping; the demo's own is chosen for a presentable front after 16 trials.
STOPPING: Final = "search.early_stopping={reduction: 3}"
OVERRIDES: Final = {"demo": (STOPPING,), "breast": (STOPPING, "cohort.image_size=64", "cohort.root=unread")}


@dataclass
class Reached:
    """Device-seconds at which a search reached each measure; `complete` is False if it ended before it reached both."""

    seconds: dict[str, float] = field(default_factory=dict)
    complete: bool = True


def simulate(way: Way, curves: Curves, slots: int, limit: float) -> Reached:
    """Runs a search until it has reached both measures, or has spent `limit` times the device-hours of the table."""
    reached, spent, started, clock = Reached(), 0.0, 0, 0.0
    most = limit * sum(float(row.seconds_E.sum()) for row in curves.rows)
    running: list[tuple[float, int, Trial]] = []
    fronts: dict[str, dict[int, Values]] = {arm: {} for arm in curves.arms}
    unreached = set(curves.arms)
    while True:
        while len(running) < slots and spent < most and (trial := way.next(f"trial-{started}")) is not None:
            heapq.heappush(running, (clock + trial.row.seconds_E[0], started, trial))
            started += 1
        if not running:
            break
        clock, order, trial = heapq.heappop(running)
        spent += trial.row.seconds_E[trial.epoch]
        trial.epoch += 1
        if way.goes_on(trial) and trial.epoch < EPOCHS:
            heapq.heappush(running, (clock + trial.row.seconds_E[trial.epoch], order, trial))
            continue
        way.ended(trial)
        if trial.epoch < EPOCHS:
            continue
        admit(fronts[trial.row.arm], order, trial.values)
        points = {arm: list(front.values()) for arm, front in fronts.items()}
        unreached = {arm for arm in unreached if hypervolume(points[arm], FLOOR) < curves.target[arm]}
        if not unreached:
            reached.seconds.setdefault("every arm", spent)
        if hypervolume([point for front in points.values() for point in front], FLOOR) >= curves.target_of_all:
            reached.seconds.setdefault("any arm", spent)
        if len(reached.seconds) == 2:
            return reached
    reached.complete = False
    for measure in ("any arm", "every arm"):
        reached.seconds.setdefault(measure, max(spent, most))
    return reached


def ways(name: str, curves: Curves, slots: int, overrides: Sequence[str]) -> dict[str, Callable[[int], Reached]]:
    def space_of(seed: int) -> Space:
        words = [f"epochs={EPOCHS}", "threads=1", f"seed={seed}", "trials=100000", *OVERRIDES[name], *overrides]
        space, mistakes = load_space(name, words)
        assert space is not None and not mistakes, mistakes
        return space

    def ours(seed: int) -> Reached:
        with tempfile.TemporaryDirectory() as folder:
            return simulate(Ours(space_of(seed), curves, slots, Path(folder)), curves, slots, MOST["ours"])

    samplers = {"random": optuna.samplers.RandomSampler, "TPE": optuna.samplers.TPESampler}
    free = {
        way: lambda seed, kind=kind, way=way: simulate(
            Free(space_of(seed), curves, kind(seed=seed)), curves, slots, MOST[way]
        )
        for way, kind in samplers.items()
    }
    documented = {
        "documented": lambda seed: simulate(Documented(space_of(seed), curves, seed), curves, slots, MOST["documented"])
    }
    return {**free, **documented, "ours": ours}


def bootstrap(top_S: NDArray[np.float64], bottom_S: NDArray[np.float64]) -> tuple[float, float, float]:
    """Returns the ratio of the means, and its 95 % interval over resampled seeds."""
    picks = np.random.default_rng(0).integers(0, len(top_S), (10_000, len(top_S)))
    ratios = top_S[picks].mean(axis=1) / bottom_S[picks].mean(axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(top_S.mean() / bottom_S.mean()), float(low), float(high)


def main(words: Sequence[str]) -> None:
    known = {"spaces": "demo,breast", "seeds": "20", "slots": "4", "ways": "random,TPE,documented,ours"}
    own, overrides = own_words(words, known)
    if {"--help", "-h"} & set(words):
        sys.exit(__doc__)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    console, seeds, slots = Console(width=120), int(own["seeds"]), int(own["slots"])
    for name in own["spaces"].split(","):
        curves = Curves(FOLDER / f"{name}.csv")
        chosen = {
            way: run for way, run in ways(name, curves, slots, overrides).items() if way in own["ways"].split(",")
        }
        results: dict[str, list[Reached]] = {}
        for way, run in chosen.items():
            results[way] = [run(seed) for seed in range(seeds)]
            print(f"{name}: {way} done", file=sys.stderr, flush=True)
        hours = sum(row.seconds_E.sum() for row in curves.rows) / 3600
        console.print(
            f"\n{name}: {len(curves.rows)} curves of {EPOCHS} epochs, {hours:.2f} device-hours; "
            f"{seeds} seeds, {slots} slots"
        )
        if curves.repeated:
            console.print(_spread(curves))
        for measure in ("any arm", "every arm"):
            console.print(_table(measure, results))


def _spread(curves: Curves) -> Table:
    columns = [f"{goal}, {what}" for goal in GOALS for what in ("configurations", "noise")]
    title = f"standard deviations at the end, from {len(curves.repeated)} configurations with repeats"
    table = Table("arm", *columns, title=title)
    for arm in curves.arms:
        table.add_row(arm, *(f"{value:.3f}" for pair in spread(curves, arm) for value in pair))
    return table


def _table(measure: str, results: Mapping[str, Sequence[Reached]]) -> Table:
    table = Table("search", "device-hours", "not reached", "of random", "of documented", title=f"95 % of {measure}")
    spent = {way: np.array([run.seconds[measure] for run in runs]) / 3600 for way, runs in results.items()}
    for way, hours_S in spent.items():
        error = 1.96 * hours_S.std(ddof=1) / np.sqrt(len(hours_S))
        ratios = []
        for other in ("random", "documented"):
            ratio = (
                "-"
                if other not in spent or other == way
                else "{:.2f} [{:.2f}, {:.2f}]".format(*bootstrap(hours_S, spent[other]))
            )
            ratios.append(ratio)
        missed = sum(not run.complete for run in results[way])
        table.add_row(way, f"{hours_S.mean():.3f} ± {error:.3f}", f"{missed}/{len(hours_S)}", *ratios)
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
