"""MO-ASHA: Ray's own decisions on one goal, dominance on several, separate arms, and restarts."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.tune.schedulers import ASHAScheduler

from sweep.pareto import dominates, rank_with_spread
from sweep.search.halving import ArmHalving
from sweep.space.search_config import EarlyStopping
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
    """Returns the epochs of parallel trials in random order, as workers do; on a coarse grid many values are equal."""
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
    """Returns every decision: number, epoch, and whether the trial goes on. Stopped trials report no more epochs."""
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
    expected: list[tuple[int, int, bool]] = []
    stopped: set[int] = set()
    for number, epoch, values in trace:
        if number in stopped:
            continue
        ray_trial = cast(Any, SimpleNamespace(trial_id=str(number)))
        decision = asha.on_trial_result(cast(Any, None), ray_trial, {"epoch": epoch, GOALS[0]: values[0]})
        goes_on = decision == "CONTINUE" or epoch == 9  # at max_t Ray's STOP means that the trial is done
        expected.append((number, epoch, goes_on))
        if not goes_on:
            stopped.add(number)
    rungs = EarlyStopping(grace=grace, reduction=reduction).rungs(9)
    decisions = replay(ArmHalving(["none"], GOALS[:1], rungs, reduction), trace)
    assert decisions == expected
    assert {goes_on for _, _, goes_on in decisions} == {True, False}


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("goals", [2, 3])
def test_a_point_ranks_before_every_point_that_it_dominates(seed: int, goals: int) -> None:
    chance = random.Random(seed)
    points = [tuple(chance.randrange(8) / 8 for _ in range(goals)) for _ in range(30)]
    for index, values in enumerate(points):
        others = points[:index]
        own = rank_with_spread(values, others)
        # Each other point has a rank among the same points, too.
        for position, other in enumerate(others):
            same_points = [values, *others[:position], *others[position + 1 :]]
            if dominates(values, other):
                assert own < rank_with_spread(other, same_points), f"{values} behind {other}, which it dominates"


@pytest.mark.parametrize("seed", range(20))
def test_a_trial_is_stopped_if_a_trial_that_dominates_it_would_be_stopped(seed: int) -> None:
    """Both decisions are made by the same rung at the same moment."""
    chance = random.Random(seed)
    seen = [(chance.random(), chance.random()) for _ in range(12)]
    better = (chance.random(), chance.random())
    worse = tuple(value * 0.9 for value in better)

    def goes_on(values: tuple[float, ...]) -> bool:
        arrivals = [Arrival(number, "none", 3, point, True) for number, point in enumerate(seen)]
        halving = ArmHalving(["none"], GOALS, [3], 3, arrivals)
        return halving.on_trial_result(None, trial(99), result((3, values))) == halving.CONTINUE

    assert goes_on(better) or not goes_on(worse)


def test_the_same_trace_gives_the_same_decisions() -> None:
    trace = trace_of(1, 40, 9, goals=2)
    assert replay(ArmHalving(["none"], GOALS, [1, 3], 3), trace) == replay(
        ArmHalving(["none"], GOALS, [1, 3], 3), trace
    )


@pytest.mark.parametrize("cut", [1, 17, 60, 120])
def test_a_restart_in_mid_sweep_does_not_change_decisions(cut: int) -> None:
    trace = trace_of(2, 40, 9, goals=2)
    uninterrupted = replay(ArmHalving(["none"], GOALS, [1, 3], 3), trace)
    arrivals: list[Arrival] = []
    stopped: set[int] = set()
    first = replay(ArmHalving(["none"], GOALS, [1, 3], 3, on_arrival=arrivals.append), trace[:cut], stopped=stopped)
    random.Random(0).shuffle(arrivals)  # the storage returns them by trial, not by time
    second = replay(ArmHalving(["none"], GOALS, [1, 3], 3, arrivals=arrivals), trace[cut:], stopped=stopped)
    assert first + second == uninterrupted


def test_trials_that_are_best_in_either_goal_go_on() -> None:
    halving = ArmHalving(["none"], GOALS, [1, 2, 4, 8], 2)
    seen = [(0.5, 0.5), (0.9, 0.1), (0.1, 0.9), (0.4, 0.4), (0.3, 0.3)]
    for number, values in enumerate(seen):
        halving.on_trial_result(None, trial(number), result((1, values)))
    assert halving.on_trial_result(None, trial(10), result((1, (0.05, 0.95)))) == halving.CONTINUE
    assert halving.on_trial_result(None, trial(11), result((1, (0.35, 0.35)))) == halving.STOP


def test_another_arm_does_not_change_decisions() -> None:
    trace = trace_of(3, 20, 9, goals=2)
    alone = replay(ArmHalving(["none", "tabular"], GOALS, [1, 3], 3), trace, "tabular")
    halving = ArmHalving(["none", "tabular"], GOALS, [1, 3], 3)
    for number in range(100, 120):
        halving.on_trial_result(None, trial(number, "none"), result((1, (2.0, 2.0))))
    assert replay(halving, trace, "tabular") == alone


def test_the_earlier_epochs_of_a_resumed_trial_enter_their_own_rungs() -> None:
    halving = ArmHalving(["none"], GOALS[:1], [1, 3], 3)
    halving.on_trial_result(None, trial(0), result((1, (0.2,)), (2, (0.3,)), (3, (0.4,)), (4, (0.9,))))
    # The trial is compared with the 0.2 that the first one had at epoch 1, not with its present 0.9.
    assert halving.on_trial_result(None, trial(1), result((1, (0.3,)))) == halving.CONTINUE
    assert halving.on_trial_result(None, trial(2), result((1, (0.1,)))) == halving.STOP


def test_a_trial_started_again_ranks_once_and_stays_stopped() -> None:
    arrivals: list[Arrival] = []
    halving = ArmHalving(["none"], GOALS[:1], [1, 2, 4, 8], 2, on_arrival=arrivals.append)
    for _ in range(5):
        assert halving.on_trial_result(None, trial(0), result((1, (0.5,)))) == halving.CONTINUE
        assert halving.on_trial_result(None, trial(1), result((1, (0.1,)))) == halving.STOP
    assert arrivals == [Arrival(0, "none", 1, (0.5,), True), Arrival(1, "none", 1, (0.1,), False)]
    # After a kill between decision and stop the next driver stops the trial at the same rung.
    again = ArmHalving(["none"], GOALS[:1], [1, 2, 4, 8], 2, arrivals)
    assert again.on_trial_result(None, trial(1), result((1, (0.1,)), (2, (0.9,)))) == again.STOP


def test_further_seeds_are_not_stopped_and_stop_no_other_trial() -> None:
    halving = ArmHalving(["none"], GOALS[:1], [1, 2, 4, 8], 2)
    halving.on_trial_result(None, trial(0), result((1, (0.5,))))
    assert halving.on_trial_result(None, trial(1, repeat_of=0), result((1, (0.1,)))) == halving.CONTINUE
    assert halving.on_trial_result(None, trial(2, repeat_of=0), result((1, (0.9,)))) == halving.CONTINUE
    assert halving.on_trial_result(None, trial(3), result((1, (0.6,)))) == halving.CONTINUE


def test_rungs() -> None:
    assert EarlyStopping(grace=3, reduction=3).rungs(27) == [3, 9]
    assert EarlyStopping(grace=1, reduction=3).rungs(27) == [1, 3, 9]
    assert EarlyStopping(grace=4, reduction=2).rungs(4) == []
