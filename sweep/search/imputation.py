"""What a sampler is told of a trial that did not run to its end.

Optuna treats pruned trials alike, and with several goals takes nothing of what they reached. Told as
nothing at all, they teach nothing, though half of a sweep may be pruned; told as their values at
the rung, they look worse than they are, since they were stopped early.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from sweep.types import State, Values

Curve = tuple[Mapping[int, Values], Values]  # values by rung, and at the end


def expected(reached: Mapping[int, Values], curves: Sequence[Curve]) -> Values:
    """What a stopped trial would have come to.

    Goal by goal its value at its last rung, plus the median gain from that rung to the end among
    complete trials of its arm. But gains of those that went on flatter who did not, and near a
    ceiling nobody gains: it is told as no better than the worst end among those that were at least
    as good at that rung, nor than the best end of all. Before any trial is complete, what it had.

    Args:
        reached: its values by rung.
        curves: of complete trials, their values by rung and at the end.
    """
    rung = max(reached)
    there = [(by_rung[rung], final) for by_rung, final in curves if rung in by_rung]
    return tuple(
        _end_of(value, [(here[goal], final[goal]) for here, final in there]) for goal, value in enumerate(reached[rung])
    )


def _end_of(value: float, others: Sequence[tuple[float, float]]) -> float:
    if not others:
        return value
    gain = statistics.median(end - here for here, end in others)
    above = [end for here, end in others if here >= value]
    most = min(above) if above else max(end for _, end in others)
    return min(value + gain, max(value, most))


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
