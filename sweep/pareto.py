"""Which of several trials are better, when there are several goals. Every goal is better when higher."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sweep.types import Values


def dominates(one: Values, other: Values) -> bool:
    """As good everywhere, better somewhere."""
    return all(mine >= theirs for mine, theirs in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def admit(front: dict[int, Values], number: int, values: Values) -> list[int]:
    """Adds a trial to a front if none there dominates it.

    Returns:
        Whoever is not on the front after all: trials that it dominates, or itself.
    """
    if any(dominates(other, values) for other in front.values()):
        return [number]
    leaving = [other for other in front if dominates(values, front[other])]
    for other in leaving:
        del front[other]
    front[number] = values
    return leaving


def place(values: Values, others: Sequence[Values]) -> int:
    """How many of `others` stand before it: by non-dominated rank, then by spread within the front.

    Fronts are peeled off one after the other. Within one the order is that of an epsilon-net: the
    best by the first goal, then whoever is furthest from all before it, goals scaled to the range
    that they span here (Schmucker et al. 2021, MO-ASHA, algorithm 2; Salinas et al. 2021). Ties go
    to the earlier in `others`, and to those before `values`.
    """
    points = np.array([*others, values], dtype=float)
    above = (points[:, None, 0] >= points[None, :, 0]).copy()
    equal = points[:, None, 0] == points[None, :, 0]
    for goal in range(1, points.shape[1]):
        above &= points[:, None, goal] >= points[None, :, goal]
        equal &= points[:, None, goal] == points[None, :, goal]
    above &= ~equal  # above[i, j]: i dominates j
    dominators = above.sum(axis=0)
    before, last = 0, len(others)
    left = np.ones(len(points), dtype=bool)
    while True:
        front = np.flatnonzero(left & (dominators == 0))
        if dominators[last] == 0:
            span = np.ptp(points, axis=0)
            order = _spread(points[front] / np.where(span > 0, span, 1))
            return before + order.index(len(front) - 1)
        before += len(front)
        left[front] = False
        dominators = dominators - above[front].sum(axis=0)


def _spread(points: NDArray[np.float64]) -> list[int]:
    order = [int(np.argmax(points[:, 0]))]
    distance = np.full(len(points), np.inf)
    while len(order) < len(points):
        distance = np.minimum(distance, np.linalg.norm(points - points[order[-1]], axis=1))
        distance[order[-1]] = -1.0
        order.append(int(np.argmax(distance)))
    return order


def hypervolume(points: Sequence[Values], floor: Values) -> float:
    """What the points dominate above `floor`: the volume of the union of their boxes, by slices along the last goal."""
    inside = [tuple(point) for point in points if all(mine > low for mine, low in zip(point, floor, strict=True))]
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
