"""ASHA per arm: Ray's own decisions on one arm, none of its neighbours' business, and the same after a restart."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

from ray.tune.schedulers import ASHAScheduler

from sweep.halving import ArmHalving

GOAL = "val/auroc"


def result(epochs: list[int], values: list[float]) -> dict[str, Any]:
    return {
        "reports": [{"epoch": epoch, "metrics": {GOAL: value}} for epoch, value in zip(epochs, values, strict=True)]
    }


def trial(number: int, arm: str = "none") -> Any:
    return SimpleNamespace(config={"number": number, "arm": arm})


def curves(count: int, epochs: int) -> dict[int, list[float]]:
    chance = random.Random(0)
    return {number: [chance.random() for _ in range(epochs)] for number in range(count)}


def decisions(halving: ArmHalving, arm: str, epochs: int = 9) -> dict[int, int]:
    """Trials one after another; each one's last epoch."""
    last = {}
    for number, values in curves(12, epochs).items():
        for epoch, value in enumerate(values, start=1):
            last[number] = epoch
            if halving.on_trial_result(None, trial(number, arm), result([epoch], [value])) == halving.STOP:
                break
    return last


def test_one_arm_is_stopped_as_rays_asha_stops_it() -> None:
    asha = ASHAScheduler(time_attr="epoch", metric=GOAL, mode="max", max_t=9, grace_period=1, reduction_factor=3)
    theirs = {}
    for number, values in curves(12, 9).items():
        one = cast(Any, SimpleNamespace(trial_id=str(number)))
        asha.on_trial_add(cast(Any, None), one)
        for epoch, value in enumerate(values, start=1):
            theirs[number] = epoch
            if asha.on_trial_result(cast(Any, None), one, {"epoch": epoch, GOAL: value}) == "STOP":
                break
    ours = decisions(ArmHalving(["none"], GOAL, 9, 1, 3), "none")
    assert ours == theirs
    assert {1, 9} <= set(ours.values()), "some stopped at once, some went through"


def test_another_arm_changes_nothing() -> None:
    alone = decisions(ArmHalving(["none", "tabular"], GOAL, 9, 1, 3), "tabular")
    halving = ArmHalving(["none", "tabular"], GOAL, 9, 1, 3)
    for number in range(100, 120):
        halving.on_trial_result(None, trial(number, "none"), result([1], [2.0]))
    assert decisions(halving, "tabular") == alone


def test_a_restarted_driver_is_as_strict_as_the_first() -> None:
    first = ArmHalving(["none"], GOAL, 9, 1, 3)
    last = decisions(first, "none")
    values = curves(12, 9)
    heard = [
        (number, "none", epoch, values[number][epoch - 1]) for number in last for epoch in range(1, last[number] + 1)
    ]
    second = ArmHalving(["none"], GOAL, 9, 1, 3, heard)
    for value in (0.1, 0.5, 0.9, 0.99):
        both = [
            one.on_trial_result(None, trial(50 + int(value * 100)), result([1], [value])) for one in (first, second)
        ]
        assert both[0] == both[1]


def test_a_resumed_trials_earlier_epochs_enter_their_own_rungs() -> None:
    halving = ArmHalving(["none"], GOAL, 9, 1, 3)
    halving.on_trial_result(None, trial(0), result([1, 2, 3, 4], [0.2, 0.3, 0.4, 0.9]))
    # Compared at epoch 1 with that trial's 0.2 at epoch 1, not with its 0.9 of today.
    assert halving.on_trial_result(None, trial(1), result([1], [0.3])) == halving.CONTINUE
    assert halving.on_trial_result(None, trial(2), result([1], [0.1])) == halving.STOP


def test_a_trial_started_again_ranks_once() -> None:
    halving = ArmHalving(["none"], GOAL, 9, 1, 2)
    for _ in range(5):
        assert halving.on_trial_result(None, trial(0), result([1], [0.5])) == halving.CONTINUE
    # Two trials: the cut is the better half; had the first counted five times it would be 0.5 alike,
    # so look inside.
    (rung,) = [recorded for milestone, recorded in halving._asha["none"]._brackets[0]._rungs if milestone == 1]
    assert rung == {0: 0.5}
