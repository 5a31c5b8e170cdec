"""How the number of trials per device follows from steps a second, and what the plan says of it."""

from __future__ import annotations

import pytest

from sweep.plan.packing import NO_CORES, Packing

GOOD = Packing(((1, 50.0), (2, 85.5), (4, 95.0), (8, 96.0)))


def test_the_plan_names_every_number_that_was_measured() -> None:
    assert GOOD.best == 4, "four make 11 % more than two, and eight 1 % more than four"
    assert GOOD.line() == (
        "4 trials to a device, measured: 1: 100 %, 2: 171 %, 4: 190 %, 8: 192 % of one trial's steps a second"
    )
    assert GOOD.warnings() == []


@pytest.mark.parametrize(
    ("rates", "figures", "warning"),
    [
        (((1, 50.0), (2, 52.0)), "2: 104 %", "badly: 2 at a time make 104 % of one trial's steps a second, so each"),
        (
            ((1, 50.0), (2, 0.0)),
            "2: not possible",
            "2 trials at a time do not fit on a device, or could not be timed there",
        ),
    ],
)
def test_the_plan_says_that_trials_share_a_device_badly(
    rates: tuple[tuple[int, float], ...], figures: str, warning: str
) -> None:
    packing = Packing(rates)
    assert packing.best == 1
    assert packing.line() == (f"1 trial to a device, measured: 1: 100 %, {figures} of one trial's steps a second")
    (line,) = packing.warnings()
    assert warning in line and line.endswith("so each trial has a device to itself")


def test_the_plan_says_when_cores_end_the_measurement() -> None:
    packing = Packing(((1, 50.0), (2, 100.0)), NO_CORES)
    assert packing.best == 2 and packing.line().endswith("; there are no cores for more")
    assert Packing(((1, 0.0),)).line().startswith("1 trial to a device, measured: 1: not possible")
