"""Device-hours that a search needs for 95 % of what there is to find, on recorded learning curves.

    python benchmarks/search_efficiency.py [spaces=demo,breast] [seeds=20] [slots=4]

Replays `benchmarks/curves/<space>.csv` (see `record_curves.py`) on a simulated clock, `slots` trials at
a time; a suggestion that is not in the table gets the curve of its nearest row in the same arm and
branches. Four ways to search, each on the same seeds:

  random      uniform draws, nothing stopped
  TPE         Optuna's TPESampler on both goals, nothing stopped
  documented  Ray's ASHAScheduler on the mean of the goals' ranks, with OptunaSearch, defaults throughout
  ours        this sweep's own classes: sampler per arm, equal shares, halving on both goals

The first three know one study in which the arm is a category, as one would write it; ours holds the
arms' device-hours equal. So two measures: *any arm*, the hypervolume of the table whichever arm it
comes from, and *every arm*, when each arm has 95 % of the hypervolume of its own rows, without which
arms cannot be compared. Only trials that ran to the end count. Intervals: 95 %, bootstrap over seeds.
"""

from __future__ import annotations

import csv
import heapq
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Protocol

os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks.record_curves import EPOCHS, FOLDER, GOALS
from sweep.books import Books
from sweep.choosers import Asked
from sweep.draw import draw
from sweep.front import Values, admit, hypervolume
from sweep.halving import ArmHalving
from sweep.records import Spool
from sweep.search import Search
from sweep.space import Space, load_space
from sweep.studies import Studies

SHARE: Final = 0.95
FLOOR: Final = (0.5, 0.0)
# Times the whole table's device-hours; a search that has not found it by then counts with that. The two that
# Optuna leads fall in on a few rows and seldom find it; a low limit flatters them, and saves hours.
MOST: Final = {"random": 10.0, "TPE": 0.5, "documented": 0.5, "ours": 4.0}
# Stopping as the sweep does by default; the demo's own halving is for a front worth a look after 16 trials.
STOPPING: Final = "search.early_stopping={reduction: 3}"
OVERRIDES: Final = {"demo": (STOPPING,), "breast": (STOPPING, "cohort.image_size=64", "cohort.root=unread")}


@dataclass(frozen=True)
class Row:
    arm: str
    labels: Mapping[str, str]
    numbers: Mapping[str, float]
    values_ET: NDArray[np.float64]  # goals by epoch
    seconds_E: NDArray[np.float64]


class Curves:
    """The table, and what it says of a configuration."""

    def __init__(self, path: Path):
        self.rows: list[Row] = []
        with path.open() as file:
            for row in csv.DictReader(file):
                sampled = json.loads(row["sampled"])
                labels = {name: value for name, value in sampled.items() if isinstance(value, str)}
                numbers = {name: float(value) for name, value in sampled.items() if not isinstance(value, str)}
                values = np.array([json.loads(row[goal]) for goal in GOALS]).T
                seconds = np.array(json.loads(row["seconds"]))
                self.rows.append(Row(row["arm"], labels, numbers, values, seconds))
        self.arms = sorted({row.arm for row in self.rows})
        finals = {arm: [tuple(row.values_ET[-1]) for row in self.rows if row.arm == arm] for arm in self.arms}
        self.target = {arm: SHARE * hypervolume(points, FLOOR) for arm, points in finals.items()}
        self.target_of_all = SHARE * hypervolume([point for points in finals.values() for point in points], FLOOR)

    def nearest(self, arm: str, sampled: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> Row:
        """Distance in units of each leaf's range, on the scale that it is drawn on."""
        labels = {name: value for name, value in sampled.items() if isinstance(value, str)}
        candidates = [row for row in self.rows if row.arm == arm]
        unlike = [sum(row.labels.get(name) != label for name, label in labels.items()) for row in candidates]
        candidates = [row for row, count in zip(candidates, unlike, strict=True) if count == min(unlike)]

        def distance(row: Row) -> float:
            total = 0.0
            for name, value in sampled.items():
                known = distributions.get(name)
                if name in row.numbers and isinstance(known, FloatDistribution | IntDistribution):
                    scale = np.log if known.log else float
                    span = scale(known.high) - scale(known.low) or 1.0
                    total += ((scale(value) - scale(row.numbers[name])) / span) ** 2
            return total

        return min(candidates, key=distance)


@dataclass
class Trial:
    key: str
    row: Row
    epoch: int = 0
    job: Any = None

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(float(value) for value in self.row.values_ET[self.epoch - 1])


class Way(Protocol):
    """A search: what runs next, and whether it goes on after an epoch."""

    def next(self, key: str) -> Trial | None: ...
    def goes_on(self, trial: Trial) -> bool: ...
    def ended(self, trial: Trial) -> None: ...


class Free:
    """Optuna alone, nothing stopped."""

    def __init__(self, space: Space, curves: Curves, sampler: optuna.samplers.BaseSampler):
        self._space, self._curves = space, curves
        self._study = optuna.create_study(directions=["maximize"] * len(GOALS), sampler=sampler)

    def next(self, key: str) -> Trial:
        trial = self._study.ask()
        arm, sampled = _drawn(self._space, trial)
        return Trial(key, self._curves.nearest(arm, sampled, trial.distributions), job=trial)

    def goes_on(self, trial: Trial) -> bool:
        return True

    def ended(self, trial: Trial) -> None:
        self._study.tell(trial.job, trial.values)


def _drawn(space: Space, trial: Any) -> tuple[str, Mapping[str, Any]]:
    arm = trial.suggest_categorical("arm", list(space.arms))
    return arm, draw(space.arms[arm], Asked(trial), arm).values


class Documented:
    """OptunaSearch and ASHAScheduler with their defaults, on one number: the mean of the goals' ranks."""

    def __init__(self, space: Space, curves: Curves, seed: int):
        self._curves = curves
        self._drawn: dict[str, tuple[str, Mapping[str, Any], Mapping[str, BaseDistribution]]] = {}
        self._key = ""

        def define(trial: Any) -> dict[str, Any]:
            arm, sampled = _drawn(space, trial)
            self._drawn[self._key] = arm, sampled, trial.distributions
            return {}

        self._search = OptunaSearch(space=define, metric="score", mode="max", seed=seed)
        self._asha = ASHAScheduler(time_attr="epoch", metric="score", mode="max", max_t=EPOCHS)
        self._seen: dict[int, list[tuple[float, ...]]] = {}
        self._scores: dict[str, dict[str, Any]] = {}

    def next(self, key: str) -> Trial:
        self._key = key
        self._search.suggest(key)
        trial = Trial(key, self._curves.nearest(*self._drawn.pop(key)), job=SimpleNamespace(trial_id=key))
        self._asha.on_trial_add(None, trial.job)  # type: ignore[arg-type]
        return trial

    def goes_on(self, trial: Trial) -> bool:
        seen = self._seen.setdefault(trial.epoch, [])
        seen.append(trial.values)
        ranks = [np.mean([one[goal] <= mine for one in seen]) for goal, mine in enumerate(trial.values)]
        result = {"epoch": trial.epoch, "training_iteration": trial.epoch, "score": float(np.mean(ranks))}
        self._scores[trial.key] = result
        going = self._asha.on_trial_result(None, trial.job, result) == "CONTINUE"  # type: ignore[arg-type]
        if going and trial.epoch < EPOCHS:
            self._search.on_trial_result(trial.key, result)
        return going

    def ended(self, trial: Trial) -> None:
        self._search.on_trial_complete(trial.key, self._scores.pop(trial.key))


class Ours:
    """The sweep's own searcher, storage and scheduler; only Ray's clock is simulated."""

    def __init__(self, space: Space, curves: Curves, slots: int, folder: Path):
        self._curves = curves
        books = Books(
            space, GOALS, Studies(folder / "journal.log", space, GOALS), Spool(folder / "spool.jsonl"), folder
        )
        self.search = Search(space, books, folder, folder, folder, wait=True)
        self.search.most_live = slots
        stopping = space.search.early_stopping
        assert stopping is not None
        grace = stopping.first_rung(EPOCHS)
        self._halving = ArmHalving(list(space.arms), GOALS, EPOCHS, grace, stopping.reduction, keep=books.studies.reach)

    def next(self, key: str) -> Trial | None:
        job = self.search.suggest(key)
        if self.search.broken:
            raise self.search.broken
        if not isinstance(job, dict):
            return None
        proposal = self.search.live[key].proposal
        row = self._curves.nearest(proposal.arm, proposal.drawn.values, proposal.distributions)
        return Trial(key, row, job=SimpleNamespace(config=job))

    def goes_on(self, trial: Trial) -> bool:
        result = self._result(trial)
        going = self._halving.on_trial_result(None, trial.job, result) == self._halving.CONTINUE
        if going and trial.epoch < EPOCHS:
            self.search.on_trial_result(trial.key, result)
        return going

    def ended(self, trial: Trial) -> None:
        self.search.on_trial_complete(trial.key, self._result(trial))

    def _result(self, trial: Trial) -> dict[str, Any]:
        metrics = dict(zip(GOALS, trial.values, strict=True))
        seconds = float(trial.row.seconds_E[trial.epoch - 1])
        return {"reports": [{"epoch": trial.epoch, "seconds": seconds, "metrics": metrics, "terms": {}}]}


@dataclass
class Reached:
    """Device-seconds at which a search had 95 %; `whole` is False if it had not by its end."""

    seconds: dict[str, float] = field(default_factory=dict)
    whole: bool = True


def simulate(way: Way, curves: Curves, slots: int, limit: float) -> Reached:
    """Runs a search until it has both measures, or has spent `limit` times the table."""
    reached, spent, started, clock = Reached(), 0.0, 0, 0.0
    most = limit * sum(float(row.seconds_E.sum()) for row in curves.rows)
    running: list[tuple[float, int, Trial]] = []
    fronts: dict[str, dict[int, Values]] = {arm: {} for arm in curves.arms}
    due = set(curves.arms)
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
        due = {arm for arm in due if hypervolume(points[arm], FLOOR) < curves.target[arm]}
        if not due:
            reached.seconds.setdefault("every arm", spent)
        if hypervolume([one for found in points.values() for one in found], FLOOR) >= curves.target_of_all:
            reached.seconds.setdefault("any arm", spent)
        if len(reached.seconds) == 2:
            return reached
    reached.whole = False
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
    """The ratio of means, and its 95 % interval over resampled seeds."""
    picks = np.random.default_rng(0).integers(0, len(top_S), (10_000, len(top_S)))
    ratios = top_S[picks].mean(axis=1) / bottom_S[picks].mean(axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(top_S.mean() / bottom_S.mean()), float(low), float(high)


def main(words: Sequence[str]) -> None:
    own = {"spaces": "demo,breast", "seeds": "20", "slots": "4", "ways": "random,TPE,documented,ours"}
    own |= {key: value for key, _, value in (word.partition("=") for word in words) if key in own}
    overrides = [word for word in words if word.partition("=")[0] not in own]
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
        found: dict[str, list[Reached]] = {}
        for way, run in chosen.items():
            found[way] = [run(seed) for seed in range(seeds)]
            print(f"{name}: {way} done", file=sys.stderr, flush=True)
        hours = sum(row.seconds_E.sum() for row in curves.rows) / 3600
        console.print(
            f"\n{name}: {len(curves.rows)} curves of {EPOCHS} epochs, {hours:.2f} device-hours; "
            f"{seeds} seeds, {slots} slots"
        )
        for measure in ("any arm", "every arm"):
            console.print(_table(measure, found))


def _table(measure: str, found: Mapping[str, Sequence[Reached]]) -> Table:
    table = Table("search", "device-hours", "not reached", "of random", "of documented", title=f"95 % of {measure}")
    spent = {way: np.array([one.seconds[measure] for one in runs]) / 3600 for way, runs in found.items()}
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
        missed = sum(not one.whole for one in found[way])
        table.add_row(way, f"{hours_S.mean():.3f} ± {error:.3f}", f"{missed}/{len(hours_S)}", *ratios)
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
