"""Early stopping on any number of goals: asynchronous halving (MO-ASHA), with a rung table per arm.

ASHA (Li et al. 2020, "A system for massively parallel hyperparameter tuning", algorithm 2, in the
form of Ray's `ASHAScheduler`, which stops where the paper pauses): on arrival at a rung a trial goes
on if it is among the best 1/reduction of what that rung has seen. MO-ASHA (Schmucker et al. 2021,
"Multi-objective asynchronous successive halving") ranks by non-dominated front, then by spread
within the front (`front.place`). With one goal this decides as Ray's scheduler does: the cut is the
percentile of the values that were there before, interpolated between neighbours. With several goals
the same cut is put through the places instead of the values.

A trial is ranked among its own arm's only: were arms ranked together, the one that learns slowest at
first would be starved, and its tuning would be an artefact of the stopping rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler

from sweep.pareto import place
from sweep.types import Arrival, Values


@dataclass
class Rung:
    reduction: float
    seen: dict[int, tuple[float, ...]] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)

    def arrive(self, number: int, values: Values) -> bool:
        """Whether a trial goes on; it enters the rung either way, once."""
        if number not in self.seen:
            others = [self.seen[one] for one in sorted(self.seen)]  # whatever their order of arrival
            if not among_best(values, others, self.reduction):
                self.stopped.add(number)
            self.seen[number] = tuple(values)
        return number not in self.stopped


def among_best(values: Values, others: Sequence[Values], reduction: float) -> bool:
    """Whether a result is in the best 1/reduction of those before it; the first always is."""
    if not others:
        return True
    if len(values) == 1:
        score, scores = values[0], [other[0] for other in others]
    else:
        own = place(values, others)
        score, scores = -own, [-position for position in range(len(others) + 1) if position != own]
    return bool(score >= np.percentile(scores, (1 - 1 / reduction) * 100))


class ArmHalving(FIFOScheduler):
    """The rungs of each arm behind Ray Tune's interface.

    Args:
        arrived: what earlier drivers of this sweep have decided, so that a restarted sweep is as
            strict as one that never stopped.
        keep: is given each new arrival, before Ray hears of the decision.
    """

    def __init__(
        self,
        arms: Sequence[str],
        goals: Sequence[str],
        rungs: Sequence[int],
        reduction: int,
        arrived: Iterable[Arrival] = (),
        keep: Callable[[Arrival], None] = lambda _: None,
    ):
        super().__init__()  # type: ignore[no-untyped-call]
        self._goals, self._keep = tuple(goals), keep
        self._rungs = {arm: {epoch: Rung(reduction) for epoch in rungs} for arm in arms}
        for one in arrived:
            rung = self._rungs.get(one.arm, {}).get(one.rung)
            if rung is not None:
                rung.seen[one.number] = one.values
                if not one.goes_on:
                    rung.stopped.add(one.number)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        # A resumed trial brings its earlier epochs along; they enter the rungs that have not seen them.
        decisions = [self.decide(trial.config, report) for report in result["reports"]]
        return self.CONTINUE if all(decisions) else self.STOP

    def decide(self, job: Mapping[str, Any], report: Mapping[str, Any]) -> bool:
        """Whether a trial goes on after an epoch. Further seeds of a finished configuration always do."""
        number, arm, epoch = job["number"], job["arm"], report["epoch"]
        rung = self._rungs[arm].get(epoch)
        if rung is None or job.get("repeat_of") is not None:
            return True
        new = number not in rung.seen
        values = tuple(report["metrics"][goal] for goal in self._goals)
        goes_on = rung.arrive(number, values)
        if new:
            self._keep(Arrival(number, arm, epoch, values, goes_on))
        return goes_on

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles what its own restore would want; we never use that
