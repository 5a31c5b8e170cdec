"""Recorded learning curves (see `record_curves.py`), and the hypervolumes that a search can reach in them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from benchmarks.record_curves import GOALS
from sweep.pareto import hypervolume

SHARE: Final = 0.95
FLOOR: Final = (0.5, 0.0)


@dataclass(frozen=True)
class Row:
    arm: str
    labels: Mapping[str, str]
    numbers: Mapping[str, float]
    values_ET: NDArray[np.float64]  # goals by epoch
    seconds_E: NDArray[np.float64]


class Curves:
    """The table of recorded curves, with the curve that stands for a configuration."""

    def __init__(self, path: Path):
        self.recorded: dict[int, dict[int, Row]] = {}
        with path.open() as file:
            for row in csv.DictReader(file):
                sampled = json.loads(row["sampled"])
                labels = {name: value for name, value in sampled.items() if isinstance(value, str)}
                numbers = {name: float(value) for name, value in sampled.items() if not isinstance(value, str)}
                values = np.array([json.loads(row[goal]) for goal in GOALS]).T
                seconds = np.array(json.loads(row["seconds"]))
                self.recorded.setdefault(int(row["number"]), {})[int(row["repeat"])] = Row(
                    row["arm"], labels, numbers, values, seconds
                )
        self.common = sorted(set.intersection(*(set(repeats) for repeats in self.recorded.values())))
        self.repeated = [repeats for repeats in self.recorded.values() if len(repeats) > 1]
        self.rows = [_mean([repeats[index] for index in self.common]) for repeats in self.recorded.values()]
        self.arms = sorted({row.arm for row in self.rows})
        finals = {arm: [tuple(row.values_ET[-1]) for row in self.rows if row.arm == arm] for arm in self.arms}
        self.target = {arm: SHARE * hypervolume(points, FLOOR) for arm, points in finals.items()}
        self.target_of_all = SHARE * hypervolume([point for points in finals.values() for point in points], FLOOR)

    def nearest(self, arm: str, sampled: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> Row:
        """Returns the nearest row of the same arm, by distances relative to each leaf's range and scale."""
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


def _mean(repeats: Sequence[Row]) -> Row:
    values = np.mean([row.values_ET for row in repeats], axis=0)
    return replace(repeats[0], values_ET=values, seconds_E=np.mean([row.seconds_E for row in repeats], axis=0))


def spread(curves: Curves, arm: str) -> list[tuple[float, float]]:
    """Returns, for each goal at the last epoch, the standard deviation over configurations and that over repeats.

    They come from a one-way analysis of variance over the repeats that all configurations with repeats have, after each
    repeat's mean (of its seed and fold) is subtracted. The first is 0 if configurations differ no more than by noise.
    """
    of_arm = [repeats for repeats in curves.repeated if next(iter(repeats.values())).arm == arm]
    shared = sorted(set.intersection(*(set(repeats) for repeats in of_arm)))
    last_CRG = np.array([[repeats[index].values_ET[-1] for index in shared] for repeats in of_arm])
    last_CRG = last_CRG - last_CRG.mean(axis=0)
    num_configurations, num_repeats = last_CRG.shape[:2]
    mean_CG = last_CRG.mean(axis=1)
    within_G = ((last_CRG - mean_CG[:, None]) ** 2).sum(axis=(0, 1)) / ((num_configurations - 1) * (num_repeats - 1))
    between_G = mean_CG.var(axis=0, ddof=1) - within_G / num_repeats
    return [
        (float(np.sqrt(max(0.0, between))), float(np.sqrt(within)))
        for between, within in zip(between_G, within_G, strict=True)
    ]
