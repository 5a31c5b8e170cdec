"""Fronts, ranks and hypervolumes, compared with values worked by hand and with Optuna's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume

from sweep.pareto import Contenders, admit, hypervolume, rank_with_spread


def test_ranks_by_front_then_by_spread() -> None:
    front = [(1.0, 0.0), (0.9, 0.1), (0.0, 1.0)]
    behind = [(0.5, 0.05), (0.4, 0.04)]
    assert rank_with_spread((0.95, 0.0), [*front, *behind]) == 3, "the first of the second front by the first goal"
    # The first front begins with the best by the first goal, then the furthest from it, then the middle.
    assert rank_with_spread((0.5, 0.5), [*front, *behind]) == 2
    assert rank_with_spread((0.91, 0.09), [*front, *behind]) == 3, "it is closer to the best than (0.9, 0.1)"
    assert rank_with_spread((0.3, 0.03), [*front, *behind]) == 5
    assert rank_with_spread((0.1,), []) == 0
    assert [rank_with_spread((value,), [(3.0,), (1.0,), (2.0,)]) for value in (4.0, 2.5, 0.5)] == [0, 1, 3]


def test_hypervolume_by_hand() -> None:
    assert hypervolume([(0.5, 0.5)], (0.0, 0.0)) == 0.25
    assert hypervolume([(0.5, 0.5), (1.0, 0.25), (0.25, 0.25)], (0.0, 0.0)) == pytest.approx(0.5 * 0.5 + 0.5 * 0.25)
    assert hypervolume([(0.4, 0.9)], (0.5, 0.0)) == 0.0
    assert hypervolume([(0.7,), (0.9,)], (0.5,)) == pytest.approx(0.4)


def test_hypervolume_above_a_floor_by_hand() -> None:
    # The first adds 0.25 x 0.25, the second 0.125 x 0.25 above it.
    points = [(0.75, 0.25), (0.625, 0.5)]
    assert hypervolume(points, (0.5, 0.0)) == 0.0625 + 0.03125
    # An equal point, a dominated point and a point on the floor of one goal add nothing.
    assert hypervolume([*points, (0.75, 0.25), (0.6, 0.25), (0.5, 0.9), (0.9, 0.0)], (0.5, 0.0)) == 0.09375
    assert hypervolume([], (0.5, 0.0)) == 0.0


def test_hypervolume_of_three_goals_by_hand() -> None:
    # Three bars of 3 x 1 x 1 cross in one unit cube.
    bars = [(3.0, 1.0, 1.0), (1.0, 3.0, 1.0), (1.0, 1.0, 3.0)]
    assert hypervolume(bars, (0.0, 0.0, 0.0)) == 3 * 3 - 2
    assert hypervolume([tuple(value + 0.5 for value in bar) for bar in bars], (0.5, 0.5, 0.5)) == 7
    # A block of 2 x 2 x 2 contains the cube and three of the six other unit cubes: 8 + 3.
    assert hypervolume([*bars, (2.0, 2.0, 2.0)], (0.0, 0.0, 0.0)) == 11
    assert hypervolume(bars, (0.0, 0.0, 2.0)) == 1, "only the top of the upright bar is above 2"


@pytest.mark.parametrize("goals", [1, 2, 3, 4])
def test_hypervolume_equals_optunas(goals: int) -> None:
    points = np.random.default_rng(goals).random((25, goals))
    expected = compute_hypervolume(-points, np.zeros(goals))  # Optuna minimises
    assert hypervolume([tuple(point) for point in points.tolist()], (0.0,) * goals) == pytest.approx(expected)


def test_contenders_are_the_front_and_the_four_best_by_one_goal() -> None:
    """The second goal selects. Ties in it go to the lowest number, wherever the trial stands in the other goal."""
    contenders = Contenders(select=[1])
    assert contenders.numbers == set()
    for number, values in ((4, (0.2, 0.5)), (6, (0.9, 0.5)), (2, (0.1, 0.5)), (5, (0.1, 0.5))):
        assert contenders.add(number, values) == set(), "of four trials all are kept"
    assert contenders.front == {6: (0.9, 0.5)}
    assert contenders.add(7, (0.8, 0.5)) == {7}, "dominated, and the last of five equals"
    assert contenders.add(3, (0.1, 0.5)) == set(), "6 is the last of five equals, and on the front"
    assert contenders.numbers == {2, 3, 4, 5, 6}
    assert contenders.add(8, (0.1, 0.6)) == {5}
    assert contenders.add(9, (1.0, 1.0)) == {4, 6} and contenders.numbers == {2, 3, 8, 9}


def test_contenders_hold_the_choice_of_every_rule_of_their_goals() -> None:
    """Coarse scores have many ties. Every trial that a rule of two goals chooses is kept, whatever its limit.

    If `search.select` reads these two goals, the four best within the limit are kept.
    """
    scores = np.random.default_rng(3).integers(0, 6, (60, 3)).tolist()
    kept: set[int] = set()
    contenders = Contenders(select=[0, 1])
    for number, values in enumerate(scores):
        kept = (kept | {number}) - contenders.add(number, tuple(values))
    assert kept == contenders.numbers and len(kept) < 60
    for maximize, of, limit in itertools.product(range(3), range(3), range(6)):
        within = [number for number, values in enumerate(scores) if values[of] >= 5 - limit]
        ordered = sorted(within, key=lambda number: (-scores[number][maximize], number))
        assert ordered[0] in kept
        assert {maximize, of} != {0, 1} or set(ordered[:4]) <= kept
    assert contenders.unbeaten.keys() - contenders.front.keys(), "a tie is won by a trial that is not on the front"


def test_a_front_admits_trials_and_drops_dominated_ones() -> None:
    front: dict[int, tuple[float, ...]] = {}
    assert admit(front, 0, (0.5, 0.5)) == []  # type: ignore[arg-type]
    assert admit(front, 1, (0.4, 0.4)) == [1]  # type: ignore[arg-type]
    assert admit(front, 2, (0.6, 0.5)) == [0]  # type: ignore[arg-type]
    assert admit(front, 3, (0.5, 0.9)) == []  # type: ignore[arg-type]
    assert set(front) == {2, 3}
