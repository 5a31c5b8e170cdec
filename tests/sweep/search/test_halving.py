"""MO-ASHA: Ray's own decisions on one goal, dominance on several, arms apart, and the same after a restart."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.tune.schedulers import ASHAScheduler

from sweep.pareto import dominates, place
from sweep.search.halving import ArmHalving
from sweep.space.space import EarlyStopping
from sweep.types import Arrival

GOALS = ("val/auroc", "val/pointing")
Trace = list[tuple[int, int, tuple[float, ...]]]  # number, epoch, values, in order of arrival


def result(*reports: tuple[int, tuple[float, ...]]) -> dict[str, Any]:
    return {
        "reports": [{"epoch": epoch, "metrics": dict(zip(GOALS, values, strict=False))} for epoch, values in reports]
    }


def trial(number: int, arm: str = "none", **job: Any) -> Any:
    return SimpleNamespace(config={"number": number, "arm": arm, **job})


def trace_of(seed: int, count: int, epochs: int, goals: int, grid: int | None = None) -> Trace:
    """Trials side by side in random order, as workers are; on a coarse grid many values are equal."""
    chance = random.Random(seed)

    def value() -> float:
        return chance.random() if grid is None else chance.randrange(grid) / grid

    curves = {number: [tuple(value() for _ in range(goals)) for _ in range(epochs)] for number in range(count)}
    order = [number for number in curves for _ in range(epochs)]
    chance.shuffle(order)
    at, trace = dict.fromkeys(curves, 0), []
    for number in order:
        at[number] += 1
        trace.append((number, at[number], curves[number][at[number] - 1]))
    return trace


def replay(
    halving: ArmHalving, trace: Trace, arm: str = "none", stopped: set[int] | None = None
) -> list[tuple[int, int, bool]]:
    """Every decision: number, epoch, whether it goes on. Stopped trials are heard of no more."""
    decisions, stopped = [], set() if stopped is None else stopped
    for number, epoch, values in trace:
        if number in stopped:
            continue
        goes_on = halving.on_trial_result(None, trial(number, arm), result((epoch, values))) == halving.CONTINUE
        decisions.append((number, epoch, goes_on))
        if not goes_on:
            stopped.add(number)
    return decisions


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize(("grace", "reduction"), [(1, 2), (1, 3), (2, 4), (3, 3)])
def test_with_one_goal_it_is_rays_asha_decision_by_decision(seed: int, grace: int, reduction: int) -> None:
    trace = trace_of(seed, 25, 9, goals=1, grid=None if seed % 2 else 6)
    asha = ASHAScheduler(
        time_attr="epoch", metric=GOALS[0], mode="max", max_t=9, grace_period=grace, reduction_factor=reduction
    )
    for number in range(25):
        asha.on_trial_add(cast(Any, None), cast(Any, SimpleNamespace(trial_id=str(number))))
    theirs: list[tuple[int, int, bool]] = []
    stopped: set[int] = set()
    for number, epoch, values in trace:
        if number in stopped:
            continue
        one = cast(Any, SimpleNamespace(trial_id=str(number)))
        decision = asha.on_trial_result(cast(Any, None), one, {"epoch": epoch, GOALS[0]: values[0]})
        goes_on = decision == "CONTINUE" or epoch == 9  # at max_t Ray says STOP to say 'done'
        theirs.append((number, epoch, goes_on))
        if not goes_on:
            stopped.add(number)
    rungs = EarlyStopping(grace=grace, reduction=reduction).rungs(9)
    ours = replay(ArmHalving(["none"], GOALS[:1], rungs, reduction), trace)
    assert ours == theirs
    assert {goes_on for _, _, goes_on in ours} == {True, False}


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("goals", [2, 3])
def test_no_trial_is_stopped_while_one_that_it_dominates_ranks_above_it(seed: int, goals: int) -> None:
    chance = random.Random(seed)
    points = [tuple(chance.randrange(8) / 8 for _ in range(goals)) for _ in range(30)]
    for index, values in enumerate(points):
        others = points[:index]
        own = place(values, others)
        # Whoever would stand before it, by their own places among the same points:
        for position, other in enumerate(others):
            rest = [values, *others[:position], *others[position + 1 :]]
            if dominates(values, other):
                assert own < place(other, rest), f"{values} behind {other}, which it dominates"


@pytest.mark.parametrize("seed", range(20))
def test_dominated_by_a_stopped_trial_at_its_decision_means_stopped(seed: int) -> None:
    """Were a trial to go on while the rung stops one at that moment that dominates it, the rung would be mad."""
    chance = random.Random(seed)
    seen = [(chance.random(), chance.random()) for _ in range(12)]
    better = (chance.random(), chance.random())
    worse = tuple(value * 0.9 for value in better)

    def goes_on(values: tuple[float, ...]) -> bool:
        arrived = [Arrival(number, "none", 3, one, True) for number, one in enumerate(seen)]
        halving = ArmHalving(["none"], GOALS, [3], 3, arrived)
        return halving.on_trial_result(None, trial(99), result((3, values))) == halving.CONTINUE

    assert goes_on(better) or not goes_on(worse)


def test_a_replayed_trace_decides_alike() -> None:
    trace = trace_of(1, 40, 9, goals=2)
    assert replay(ArmHalving(["none"], GOALS, [1, 3], 3), trace) == replay(
        ArmHalving(["none"], GOALS, [1, 3], 3), trace
    )


@pytest.mark.parametrize("cut", [1, 17, 60, 120])
def test_a_restart_in_mid_sweep_decides_as_if_there_had_been_none(cut: int) -> None:
    trace = trace_of(2, 40, 9, goals=2)
    whole = replay(ArmHalving(["none"], GOALS, [1, 3], 3), trace)
    kept: list[Arrival] = []
    stopped: set[int] = set()
    first = replay(ArmHalving(["none"], GOALS, [1, 3], 3, keep=kept.append), trace[:cut], stopped=stopped)
    random.Random(0).shuffle(kept)  # the storage has them by trial, not by time
    second = replay(ArmHalving(["none"], GOALS, [1, 3], 3, arrived=kept), trace[cut:], stopped=stopped)
    assert first + second == whole


def test_two_goals_keep_what_is_best_at_either() -> None:
    halving = ArmHalving(["none"], GOALS, [1, 2, 4, 8], 2)
    seen = [(0.5, 0.5), (0.9, 0.1), (0.1, 0.9), (0.4, 0.4), (0.3, 0.3)]
    for number, values in enumerate(seen):
        halving.on_trial_result(None, trial(number), result((1, values)))
    assert halving.on_trial_result(None, trial(10), result((1, (0.05, 0.95)))) == halving.CONTINUE
    assert halving.on_trial_result(None, trial(11), result((1, (0.35, 0.35)))) == halving.STOP


def test_another_arm_changes_nothing() -> None:
    trace = trace_of(3, 20, 9, goals=2)
    alone = replay(ArmHalving(["none", "tabular"], GOALS, [1, 3], 3), trace, "tabular")
    halving = ArmHalving(["none", "tabular"], GOALS, [1, 3], 3)
    for number in range(100, 120):
        halving.on_trial_result(None, trial(number, "none"), result((1, (2.0, 2.0))))
    assert replay(halving, trace, "tabular") == alone


def test_a_resumed_trials_earlier_epochs_enter_their_own_rungs() -> None:
    halving = ArmHalving(["none"], GOALS[:1], [1, 3], 3)
    halving.on_trial_result(None, trial(0), result((1, (0.2,)), (2, (0.3,)), (3, (0.4,)), (4, (0.9,))))
    # Compared at epoch 1 with that trial's 0.2 at epoch 1, not with its 0.9 of today.
    assert halving.on_trial_result(None, trial(1), result((1, (0.3,)))) == halving.CONTINUE
    assert halving.on_trial_result(None, trial(2), result((1, (0.1,)))) == halving.STOP


def test_a_trial_started_again_ranks_once_and_stays_stopped() -> None:
    kept: list[Arrival] = []
    halving = ArmHalving(["none"], GOALS[:1], [1, 2, 4, 8], 2, keep=kept.append)
    for _ in range(5):
        assert halving.on_trial_result(None, trial(0), result((1, (0.5,)))) == halving.CONTINUE
        assert halving.on_trial_result(None, trial(1), result((1, (0.1,)))) == halving.STOP
    assert kept == [Arrival(0, "none", 1, (0.5,), True), Arrival(1, "none", 1, (0.1,), False)]
    # Killed between the decision and the telling: the next driver stops it where it was stopped.
    again = ArmHalving(["none"], GOALS[:1], [1, 2, 4, 8], 2, kept)
    assert again.on_trial_result(None, trial(1), result((1, (0.1,)), (2, (0.9,)))) == again.STOP


def test_further_seeds_are_not_stopped_and_stop_nobody() -> None:
    halving = ArmHalving(["none"], GOALS[:1], [1, 2, 4, 8], 2)
    halving.on_trial_result(None, trial(0), result((1, (0.5,))))
    assert halving.on_trial_result(None, trial(1, repeat_of=0), result((1, (0.1,)))) == halving.CONTINUE
    assert halving.on_trial_result(None, trial(2, repeat_of=0), result((1, (0.9,)))) == halving.CONTINUE
    assert halving.on_trial_result(None, trial(3), result((1, (0.6,)))) == halving.CONTINUE


def test_rungs() -> None:
    assert EarlyStopping(grace=3, reduction=3).rungs(27) == [3, 9]
    assert EarlyStopping(grace=1, reduction=3).rungs(27) == [1, 3, 9]
    assert EarlyStopping(grace=4, reduction=2).rungs(4) == []
