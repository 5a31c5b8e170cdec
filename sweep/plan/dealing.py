"""Computes how many trials each arm of a sweep gets, and how much luck alone favours an arm that gets more of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sweep.plan.expectations import expected_maximum
from sweep.space.draw import count_configurations
from sweep.space.space import Space, furthest_behind

MAX_RATIO: Final = 1.5  # largest ratio between the numbers of trials of two arms that causes no warning


def deal_trials(space: Space, typical: Mapping[str, float]) -> dict[str, int]:
    """Returns the number of trials of each arm, if trials run one after another on one device.

    Trials are dealt as the search deals them: the next trial goes to the arm that is furthest behind its share of the
    trials or, with `search.equal=hours`, of the device-seconds. An arm gets no more trials than it has different
    configurations.

    Args:
        typical: device-seconds of a typical trial of each arm.
    """
    shares, by_hours = space.shares, space.search.equal == "hours"
    sizes = {arm: count_configurations(node) for arm, node in space.arms.items()}
    trials, used = dict.fromkeys(space.arms, 0), dict.fromkeys(space.arms, 0.0)
    for _ in range(space.search.trials):
        arms = [arm for arm, size in sizes.items() if size is None or trials[arm] < size]
        if not arms:
            break
        arm = furthest_behind(used, shares, arms)
        trials[arm] += 1
        used[arm] += typical[arm] if by_hours else 1
    return trials


def luck_warnings(trials: Mapping[str, int]) -> list[str]:
    """Returns a warning if the numbers of trials of two arms differ by more than `MAX_RATIO`.

    The warning states how far the best of more trials is expected to lie above the best of fewer trials if the arms do
    not differ and their scores are normally distributed.
    """
    most, fewest = max(trials, key=lambda arm: trials[arm]), min(trials, key=lambda arm: trials[arm])
    if trials[most] <= MAX_RATIO * trials[fewest]:
        return []
    luck = expected_maximum(trials[most]) - expected_maximum(trials[fewest])
    return [
        f"search.equal=hours gives about {trials[most]} trials to {most} and {trials[fewest]} to {fewest}: "
        f"luck alone puts the best of {most} about {luck:.1f} standard deviations higher (standard deviations of a "
        "score over an arm's configurations); with search.equal=trials, arms share the number of trials instead"
    ]
