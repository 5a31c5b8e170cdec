"""Compares trials by several goals: dominance, Pareto fronts, ranks and hypervolumes. Higher is better for every
goal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sweep.types import Values

NUM_BEST: Final = 4  # trials; see docs/decisions/choosing.md


def dominates(values: Values, other: Values) -> bool:
    """Returns whether `values` are at least as good as `other` in every goal, and better in at least one goal."""
    at_least = all(value >= limit for value, limit in zip(values, other, strict=True))
    return at_least and tuple(values) != tuple(other)


def admit(front: dict[int, Values], number: int, values: Values) -> list[int]:
    """Adds a trial to a front, in place, unless a trial of the front dominates the new trial.

    Returns:
        Numbers of the trials that this call excludes from the front: either the trials that the new trial dominates, or
        the new trial itself.
    """
    if any(dominates(other, values) for other in front.values()):
        return [number]
    dominated = [other for other in front if dominates(values, front[other])]
    for other in dominated:
        del front[other]
    front[number] = values
    return dominated


@dataclass
class Contenders:
    """The trials that may be chosen: the Pareto front, and the trials that few others beat.

    One trial beats another in some goals if every rule that reads only these goals prefers it: it is at least as good
    in each of them, and it is better in each or has the lower number, which decides ties. A trial is a contender

    - on the front;
    - if no other beats it in all goals, so that it wins a tie by its number, although an equal trial is better in
      another goal;
    - if fewer than `NUM_BEST` others beat it in the goals of the rule. Of a single goal, these are the `NUM_BEST` best
      trials. When a sweep ends, one of them may be chosen because its estimated mean is the best.

    Attributes:
        select: the positions of the goals of the rule among the values of a trial.
        front: the values of the trials on the front, by the number of the trial.
        unbeaten: the values of the trials that no other beats in all goals.
        best: the values by the goals of the rule of the trials that fewer than `NUM_BEST` others beat in them.
    """

    select: Sequence[int]
    front: dict[int, Values] = field(default_factory=dict)
    unbeaten: dict[int, Values] = field(default_factory=dict)
    best: dict[int, Values] = field(default_factory=dict)

    @property
    def numbers(self) -> set[int]:
        """The numbers of the contenders."""
        return {*self.front, *self.unbeaten, *self.best}

    def add(self, number: int, values: Values) -> set[int]:
        """Adds a trial, and returns the numbers of the trials that are no contenders any more, which may include the
        new trial.
        """
        before = self.numbers | {number}
        admit(self.front, number, values)
        self.unbeaten = _least_beaten(self.unbeaten | {number: values}, 1)
        self.best = _least_beaten(self.best | {number: tuple(values[goal] for goal in self.select)}, NUM_BEST)
        return before - self.numbers


def _least_beaten(values: Mapping[int, Values], width: int) -> dict[int, Values]:
    """Returns the trials that fewer than `width` others beat. A trial that is left out beats only trials that `width`
    of the others beat too, so that it need not be remembered.
    """

    def beats(number: int, other: int) -> bool:
        pairs = [*zip(values[number], values[other], strict=True)]
        decides = number < other or all(value > limit for value, limit in pairs)
        return decides and all(value >= limit for value, limit in pairs)

    return {
        number: of_trial
        for number, of_trial in values.items()
        if sum(beats(other, number) for other in values if other != number) < width
    }


def rank_with_spread(values: Values, others: Sequence[Values]) -> int:
    """Returns how many of `others` rank before `values`. Ranks go by non-dominated front, then by spread within a
    front.

    The first front is the set of points that no point dominates; each further front is found in the same way among the
    points that are left. Within a front the order is that of an epsilon-net: the point that is best by the first goal
    comes first, and each next point is the one whose nearest already ordered point is farthest away. For this distance
    each goal is divided by the range of its values in `others` and `values` together (Schmucker et al. 2021, MO-ASHA,
    algorithm 2; Salinas et al. 2021). Equal points keep their order in `others`, and `values` comes after all points
    that are equal to `values`.
    """
    points = np.array([*others, values], dtype=float)
    above = (points[:, None, 0] >= points[None, :, 0]).copy()
    equal = points[:, None, 0] == points[None, :, 0]
    for goal in range(1, points.shape[1]):
        above &= points[:, None, goal] >= points[None, :, goal]
        equal &= points[:, None, goal] == points[None, :, goal]
    above &= ~equal  # above[i, j]: point i dominates point j
    num_dominators = above.sum(axis=0)
    num_before, last = 0, len(others)
    remaining = np.ones(len(points), dtype=bool)
    while True:
        front = np.flatnonzero(remaining & (num_dominators == 0))
        if num_dominators[last] == 0:
            span = np.ptp(points, axis=0)
            order = _order_by_spread(points[front] / np.where(span > 0, span, 1))
            return num_before + order.index(len(front) - 1)
        num_before += len(front)
        remaining[front] = False
        num_dominators = num_dominators - above[front].sum(axis=0)


def _order_by_spread(points: NDArray[np.float64]) -> list[int]:
    order = [int(np.argmax(points[:, 0]))]
    distance = np.full(len(points), np.inf)
    while len(order) < len(points):
        distance = np.minimum(distance, np.linalg.norm(points - points[order[-1]], axis=1))
        distance[order[-1]] = -1.0
        order.append(int(np.argmax(distance)))
    return order


def hypervolume(points: Sequence[Values], floor: Values) -> float:
    """Returns the hypervolume: the volume above `floor` that the points dominate.

    Each point spans a box from `floor` to the point. The volume of the union of these boxes is summed over slices along
    the last goal.
    """
    inside = [tuple(point) for point in points if all(value > low for value, low in zip(point, floor, strict=True))]
    if not inside:
        return 0.0
    if len(floor) == 1:
        return max(inside)[0] - floor[0]
    total = 0.0
    levels = sorted({point[-1] for point in inside}, reverse=True)
    for level, below in zip(levels, [*levels[1:], floor[-1]], strict=True):
        reaching = [point[:-1] for point in inside if point[-1] >= level]
        total += (level - below) * hypervolume(reaching, floor[:-1])
    return total
