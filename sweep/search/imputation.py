"""Imputes the final values that a sampler learns from a trial that did not run to its end.

Optuna treats all pruned trials alike, and with several goals it ignores the values that they reached. If the sampler
learned nothing from pruned trials, it would miss the results of up to half of a sweep. If it learned their values at
the last rung, pruned trials would look worse than they are, because they were stopped early. Their final values are
therefore imputed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from sweep.types import State, Values

Curve = tuple[Mapping[int, Values], Values]  # a complete trial's values by rung, and its final values


def impute(by_rung: Mapping[int, Values], curves: Sequence[Curve]) -> Values:
    """Returns the final values that a stopped trial would probably have reached.

    For each goal this is its value at its last rung, plus the median gain from that rung to the end among complete
    trials of its arm. These gains are too high for a stopped trial, because they come from better trials, and because
    near a ceiling nothing can be gained. The imputed value is therefore limited to the worst final value among the
    complete trials that were at least as good at that rung. If no complete trial was at least as good at that rung, the
    limit is the best final value of all complete trials. The imputed value is never less than the value at the last
    rung, and equals that value if there are no complete trials.

    Args:
        by_rung: the stopped trial's values by rung.
        curves: the values by rung and the final values of each complete trial.
    """
    rung = max(by_rung)
    known = [(rungs[rung], final) for rungs, final in curves if rung in rungs]
    return tuple(
        _impute_goal(value, [(at_rung[goal], final[goal]) for at_rung, final in known])
        for goal, value in enumerate(by_rung[rung])
    )


def _impute_goal(value: float, complete: Sequence[tuple[float, float]]) -> float:
    """Returns the imputed final value of one goal. `complete` holds a pair (value at the rung, final value) for each
    complete trial.
    """
    if not complete:
        return value
    gain = statistics.median(final - at_rung for at_rung, final in complete)
    at_least_as_good = [final for at_rung, final in complete if at_rung >= value]
    ceiling = min(at_least_as_good) if at_least_as_good else max(final for _, final in complete)
    return min(value + gain, max(value, ceiling))


class Imputation:
    """Collects the results of each arm's trials, and imputes the final values of its unfinished trials from them."""

    def __init__(self, arms: Sequence[str]):
        self._curves: dict[str, list[Curve]] = {arm: [] for arm in arms}
        self._worst: dict[str, Values] = {}

    def add_complete(self, arm: str, by_rung: Mapping[int, Values], values: Values) -> None:
        """Adds a complete trial with its values by rung and its final values."""
        self._curves[arm].append((by_rung, values))
        self.add_values(arm, values)

    def add_values(self, arm: str, values: Values) -> None:
        """Adds values that the arm's sampler has learned. They are then included when the worst values so far are
        determined.
        """
        worst = self._worst.get(arm, values)
        self._worst[arm] = tuple(min(pair) for pair in zip(worst, values, strict=True))

    def learned(self, arm: str, state: State, cause: str, by_rung: Mapping[int, Values]) -> Values | None:
        """Returns the values that the sampler learns from a trial that is not complete.

        For a pruned trial these are its imputed final values. For a trial that diverged they are the worst values seen
        so far, goal by goal. The result is None if the trial shows nothing about its configuration.
        """
        if state == "pruned":
            return impute(by_rung, self._curves[arm])
        return self._worst.get(arm) if cause == "diverged" else None
