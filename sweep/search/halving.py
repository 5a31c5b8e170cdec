"""Stops trials early by asynchronous halving on any number of goals (MO-ASHA), with separate rungs for each arm.

ASHA (Li et al. 2020, "A system for massively parallel hyperparameter tuning", algorithm 2, in the form of Ray's
`ASHAScheduler`, which stops trials where the paper pauses them): a trial that arrives at a rung goes on if it is among
the best 1/reduction of the trials that have arrived there. MO-ASHA (Schmucker et al. 2021, "Multi-objective
asynchronous successive halving") ranks by non-dominated front, then by spread within the front
(`pareto.rank_with_spread`). With one goal this decides as Ray's scheduler does: the cut is the percentile of the
earlier values, interpolated between neighbours. With several goals the same cut is applied to ranks instead of values.
The rule of Syne Tune's MO-ASHA, which counts the trial itself and lets the first trials go on more often, and a rung
that waits for its first three arrivals have no less regret (docs/decisions/halving.md).

A trial is ranked among the trials of its own arm only. If arms were ranked together, the arm that learns slowest at
first would be starved, and its tuning would be an artefact of the stopping rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler

from sweep.pareto import rank_with_spread
from sweep.types import Arrival, Values


@dataclass
class Rung:
    """The trials that have arrived at one epoch, with their values at that epoch, and the numbers of the trials that
    were stopped at this rung.
    """

    reduction: float
    seen: dict[int, tuple[float, ...]] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)

    def arrive(self, number: int, values: Values) -> bool:
        """Returns whether a trial goes on. The trial enters the rung in either case. A second arrival of the same trial
        changes nothing.
        """
        if number not in self.seen:
            others = [self.seen[other] for other in sorted(self.seen)]  # independent of the order of arrival
            if not among_best(values, others, self.reduction):
                self.stopped.add(number)
            self.seen[number] = tuple(values)
        return number not in self.stopped


def among_best(values: Values, others: Sequence[Values], reduction: float) -> bool:
    """Returns whether a result is among the best 1/reduction when compared with the earlier results. The first result
    always is.
    """
    if not others:
        return True
    if len(values) == 1:
        score, scores = values[0], [other[0] for other in others]
    else:
        own = rank_with_spread(values, others)
        score, scores = -own, [-rank for rank in range(len(others) + 1) if rank != own]
    return bool(score >= np.percentile(scores, (1 - 1 / reduction) * 100))


class ArmHalving(FIFOScheduler):
    """A Ray Tune scheduler that keeps the rungs of each arm, and stops trials there.

    Args:
        rungs: the epochs at which trials are ranked.
        arrivals: the arrivals that earlier drivers of this sweep recorded, so that a restarted sweep is as strict as an
            uninterrupted one.
        on_arrival: function that is called with each new arrival, before Ray receives the decision.
    """

    def __init__(
        self,
        arms: Sequence[str],
        goals: Sequence[str],
        rungs: Sequence[int],
        reduction: int,
        arrivals: Iterable[Arrival] = (),
        on_arrival: Callable[[Arrival], None] = lambda _: None,
    ):
        super().__init__()  # type: ignore[no-untyped-call]
        self._goals, self._on_arrival = tuple(goals), on_arrival
        self._rungs = {arm: {epoch: Rung(reduction) for epoch in rungs} for arm in arms}
        for arrival in arrivals:
            rung = self._rungs.get(arrival.arm, {}).get(arrival.rung)
            if rung is not None:
                rung.seen[arrival.number] = arrival.values
                if not arrival.goes_on:
                    rung.stopped.add(arrival.number)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        # A resumed trial reports its earlier epochs again; they enter the rungs that have not seen them.
        decisions = [self.decide(trial.config, report) for report in result["reports"]]
        return self.CONTINUE if all(decisions) else self.STOP

    def decide(self, job: Mapping[str, Any], report: Mapping[str, Any]) -> bool:
        """Returns whether a trial goes on after an epoch. Trials that run a finished configuration on a further seed
        always go on.
        """
        number, arm, epoch = job["number"], job["arm"], report["epoch"]
        rung = self._rungs[arm].get(epoch)
        if rung is None or job.get("repeat_of") is not None:
            return True
        new = number not in rung.seen
        values = tuple(report["metrics"][goal] for goal in self._goals)
        goes_on = rung.arrive(number, values)
        if new:
            self._on_arrival(Arrival(number, arm, epoch, values, goes_on))
        return goes_on

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles the scheduler for its own restore, which is never used
