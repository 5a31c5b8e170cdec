"""Fronts, places and hypervolumes, against values worked by hand and Optuna's."""

from __future__ import annotations

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume

from sweep.pareto import admit, hypervolume, rank_with_spread


def test_places_by_rank_then_by_spread() -> None:
    front = [(1.0, 0.0), (0.9, 0.1), (0.0, 1.0)]
    behind = [(0.5, 0.05), (0.4, 0.04)]
    assert rank_with_spread((0.95, 0.0), [*front, *behind]) == 3, "first of the second front, by its first goal"
    # In the first front: the best by the first goal, the furthest from it, and then the middle.
    assert rank_with_spread((0.5, 0.5), [*front, *behind]) == 2
    assert rank_with_spread((0.91, 0.09), [*front, *behind]) == 3, "closer to the best than (0.9, 0.1)"
    assert rank_with_spread((0.3, 0.03), [*front, *behind]) == 5
    assert rank_with_spread((0.1,), []) == 0
    assert [rank_with_spread((value,), [(3.0,), (1.0,), (2.0,)]) for value in (4.0, 2.5, 0.5)] == [0, 1, 3]


def test_hypervolume_by_hand() -> None:
    assert hypervolume([(0.5, 0.5)], (0.0, 0.0)) == 0.25
    assert hypervolume([(0.5, 0.5), (1.0, 0.25), (0.25, 0.25)], (0.0, 0.0)) == pytest.approx(0.5 * 0.5 + 0.5 * 0.25)
    assert hypervolume([(0.4, 0.9)], (0.5, 0.0)) == 0.0
    assert hypervolume([(0.7,), (0.9,)], (0.5,)) == pytest.approx(0.4)


def test_hypervolume_above_a_floor_by_hand() -> None:
    # 0.25 x 0.25 of the first, 0.125 x 0.25 of the second above it.
    points = [(0.75, 0.25), (0.625, 0.5)]
    assert hypervolume(points, (0.5, 0.0)) == 0.0625 + 0.03125
    # Neither a twin, nor what is behind, nor what is on the floor of one goal, adds to it.
    assert hypervolume([*points, (0.75, 0.25), (0.6, 0.25), (0.5, 0.9), (0.9, 0.0)], (0.5, 0.0)) == 0.09375
    assert hypervolume([], (0.5, 0.0)) == 0.0


def test_hypervolume_of_three_goals_by_hand() -> None:
    # Three bars of 3 x 1 x 1, crossing in one unit cube.
    bars = [(3.0, 1.0, 1.0), (1.0, 3.0, 1.0), (1.0, 1.0, 3.0)]
    assert hypervolume(bars, (0.0, 0.0, 0.0)) == 3 * 3 - 2
    assert hypervolume([tuple(value + 0.5 for value in bar) for bar in bars], (0.5, 0.5, 0.5)) == 7
    # A block of 2 x 2 x 2 takes the cube and three of the six further ones: 8 + 3.
    assert hypervolume([*bars, (2.0, 2.0, 2.0)], (0.0, 0.0, 0.0)) == 11
    assert hypervolume(bars, (0.0, 0.0, 2.0)) == 1, "what of the upright bar is above 2"


@pytest.mark.parametrize("goals", [1, 2, 3, 4])
def test_hypervolume_is_optunas(goals: int) -> None:
    points = np.random.default_rng(goals).random((25, goals))
    expected = compute_hypervolume(-points, np.zeros(goals))  # Optuna minimises
    assert hypervolume([tuple(point) for point in points.tolist()], (0.0,) * goals) == pytest.approx(expected)


def test_a_front_admits_and_dismisses() -> None:
    front: dict[int, tuple[float, ...]] = {}
    assert admit(front, 0, (0.5, 0.5)) == []  # type: ignore[arg-type]
    assert admit(front, 1, (0.4, 0.4)) == [1]  # type: ignore[arg-type]
    assert admit(front, 2, (0.6, 0.5)) == [0]  # type: ignore[arg-type]
    assert admit(front, 3, (0.5, 0.9)) == []  # type: ignore[arg-type]
    assert set(front) == {2, 3}
