"""Early stopping: asynchronous halving (ASHA) on one goal, with a rung table per arm.

A trial is ranked among its own arm's only: were arms ranked together, the one that learns
slowest at first would be starved, and its tuning would be an artefact of the stopping rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

Heard = tuple[int, str, int, float]  # number, arm, epoch, value of the goal


class ArmHalving(FIFOScheduler):
    """One `ASHAScheduler` per arm behind Ray Tune's interface.

    Args:
        heard: epochs of earlier drivers of this sweep in their order, so that a restarted sweep is
            as strict as one that never stopped.
    """

    def __init__(
        self, arms: Sequence[str], goal: str, epochs: int, grace: int, factor: float, heard: Iterable[Heard] = ()
    ):
        super().__init__()  # type: ignore[no-untyped-call]
        self._goal = goal
        self._asha = {
            arm: ASHAScheduler(
                time_attr="epoch", metric=goal, mode="max", max_t=epochs, grace_period=grace, reduction_factor=factor
            )
            for arm in arms
        }
        self._known: set[int] = set()
        for number, arm, epoch, value in heard:
            if arm in self._asha:
                self._decide(number, arm, epoch, value)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        decision = self.CONTINUE
        # A resumed trial brings its earlier epochs along. They enter the rungs they belong to;
        # whether it goes on is decided where it stands now.
        for report in result["reports"]:
            value = report["metrics"][self._goal]
            decision = self._decide(trial.config["number"], trial.config["arm"], report["epoch"], value)
        return decision

    def _decide(self, number: int, arm: str, epoch: int, value: float) -> str:
        # By our number, not Ray's id: a trial that starts again under a new id ranks only once.
        controller, trial = cast(Any, None), cast(Any, SimpleNamespace(trial_id=number))
        if number not in self._known:
            self._known.add(number)
            self._asha[arm].on_trial_add(controller, trial)
        decision: str = self._asha[arm].on_trial_result(controller, trial, {"epoch": epoch, self._goal: value})
        return decision
