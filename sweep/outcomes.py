"""What a sampler is told of a trial that did not run to its end.

Optuna treats pruned trials alike, and with several goals takes nothing of what they reached. Told as
nothing at all, they teach nothing, though half of a sweep may be pruned; told as their values at
the rung, they look worse than they are, since they were stopped early.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from sweep.front import Values
from sweep.records import State

Curve = tuple[Mapping[int, Values], Values]  # values by rung, and at the end


def expected(reached: Mapping[int, Values], curves: Sequence[Curve]) -> Values:
    """What a stopped trial would have come to.

    Its values at its last rung, plus the median gain from that rung to the end among complete
    trials of its arm; before there are any, what it had.

    Args:
        reached: its values by rung.
        curves: of complete trials, their values by rung and at the end.
    """
    rung = max(reached)
    values = reached[rung]
    gains = [
        [end - here for end, here in zip(final, by_rung[rung], strict=True)]
        for by_rung, final in curves
        if rung in by_rung
    ]
    if not gains:
        return tuple(values)
    median = [statistics.median(column) for column in zip(*gains, strict=True)]
    return tuple(value + gain for value, gain in zip(values, median, strict=True))


class Outcomes:
    """What the trials of each arm came to, for those that come to less."""

    def __init__(self, arms: Sequence[str]):
        self._curves: dict[str, list[Curve]] = {arm: [] for arm in arms}
        self._worst: dict[str, Values] = {}

    def complete(self, arm: str, reached: Mapping[int, Values], values: Values) -> None:
        self._curves[arm].append((reached, values))
        self.see(arm, values)

    def see(self, arm: str, values: Values) -> None:
        """Values that a sampler was told."""
        worst = self._worst.get(arm, values)
        self._worst[arm] = tuple(min(pair) for pair in zip(worst, values, strict=True))

    def learned(self, arm: str, state: State, cause: str, reached: Mapping[int, Values]) -> Values | None:
        """For the sampler: what a pruned trial would have come to; of one that diverged, the worst seen.

        None: nothing that speaks for the configuration or against it. A complete trial has its own values.
        """
        if state == "pruned":
            return expected(reached, self._curves[arm])
        return self._worst.get(arm) if cause == "diverged" else None
