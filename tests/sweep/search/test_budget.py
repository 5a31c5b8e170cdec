"""Which arm is next by its spending, and when the sweep ends; worked by hand."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

import pytest

from sweep.search.budget import Ledger, Plateau, reached_limit
from sweep.space.search_config import Equal, SearchConfig
from sweep.types import Record, State

GOALS = ("val/auroc", "val/pointing")


def ended(arm: str, device_seconds: float, state: State = "complete") -> Record:
    return Record(0, arm, state, 1, device_seconds, {}, {}, "{}", device_seconds=device_seconds)


def ledger_of(*records: Record, **shares: float) -> Ledger:
    """Returns a ledger of device-hours on which each record is both spent and finished."""
    ledger = Ledger(shares, "hours")
    for record in records:
        ledger.spend(record.arm, record.device_seconds)
        ledger.add_finished(record)
    return ledger


# --- the next arm ---


def test_the_arm_furthest_behind_its_share_is_next() -> None:
    ledger = ledger_of(a=0.5, b=0.5)
    assert ledger.neediest(("a", "b"), ()) == "a", "the first of equal arms"
    assert ledger.neediest(("b", "a"), ()) == "b"
    ledger.spend("a", 1)
    assert ledger.neediest(("a", "b"), ()) == "b"
    assert ledger.neediest(("a",), ()) == "a", "only among the given arms"
    uneven = ledger_of(a=0.75, b=0.25)
    uneven.spend("a", 60)  # 60 / 0.75 = 80
    uneven.spend("b", 21)  # 21 / 0.25 = 84
    assert uneven.neediest(("a", "b"), ()) == "a"
    uneven.spend("a", 4)  # 85.3
    assert uneven.neediest(("a", "b"), ()) == "b"


def test_a_running_trial_counts_with_its_probable_cost() -> None:
    ledger = ledger_of(ended("a", 30), ended("a", 50, "pruned"), ended("b", 90), a=0.5, b=0.5)
    assert (ledger.typical_cost("a"), ledger.typical_cost("b"), ledger.total) == (40, 90, 170)
    assert ledger.neediest(("a", "b"), ()) == "a"  # 80 against 90
    assert ledger.neediest(("a", "b"), [("a", 25)]) == "b"  # 80 + 15
    assert ledger.neediest(("a", "b"), [("a", 31)]) == "a"  # 80 + 9
    assert ledger.neediest(("a", "b"), [("b", 120)]) == "a", "the ledger already holds what is spent beyond that"
    assert ledger.neediest(("a", "b"), [("a", 35), ("a", 34)]) == "b"  # 80 + 5 + 6


def test_an_arm_without_trials_has_the_typical_cost_of_all_arms() -> None:
    assert ledger_of(a=0.5, b=0.5).typical_cost("a") == 1.0
    ledger = ledger_of(ended("a", 30), ended("c", 60), ended("c", 60), a=0.3, b=0.3, c=0.4)
    assert ledger.typical_cost("b") == 50, "the mean is over trials, not over arms"
    assert ledger_of(ended("a", 7, "failed"), a=1.0).typical_cost("a") == 1.0, "a failed trial is not typical"


def test_a_failed_trial_is_charged_like_a_complete_one() -> None:
    failing = [ended("b", 1, "failed")] * 2
    ledger = ledger_of(ended("a", 40), *failing, a=0.5, b=0.5)
    assert ledger.total == 42
    assert ledger.neediest(("a", "b"), ()) == "a"  # 40 against 2 x 40
    assert ledger_of(ended("a", 40), failing[0], a=0.3, b=0.7).neediest(("a", "b"), ()) == "b"  # 133 against 57
    late = ledger_of(ended("a", 40), ended("a", 40), ended("b", 70, "failed"), a=0.5, b=0.5)
    assert late.neediest(("a", "b"), ()) == "b", "70 and not less, though a typical trial costs 40"


def test_trials_that_the_space_no_longer_holds_are_spent_but_charged_to_no_arm() -> None:
    ledger = ledger_of(ended("a", 10), a=0.5, b=0.5)
    ledger.left_behind = 100
    assert ledger.total == 110
    assert ledger.neediest(("a", "b"), ()) == "b"


# --- equal numbers of trials ---


def simulated(equal: Equal, costs: dict[str, float], trials: int, slots: int = 1, **shares: float) -> list[str]:
    """Returns the arm of each started trial. A trial's device-seconds are spent when it ends."""
    ledger, arms, running, now = Ledger(shares, equal), list(shares), list[tuple[float, str]](), 0.0
    started = list[str]()
    while len(started) < trials:
        while len(running) == slots:
            ends, arm = min(running)
            running.remove((ends, arm))
            now = ends
            ledger.spend(arm, costs[arm])
            ledger.add_finished(ended(arm, costs[arm]))
        arm = ledger.neediest(arms, [(arm, 0.0) for _, arm in running])
        ledger.start(arm)
        started.append(arm)
        running.append((now + costs[arm], arm))
    return started


@pytest.mark.parametrize("slots", [1, 4])
def test_an_expensive_arm_gets_as_many_trials_as_a_cheap_one(slots: int) -> None:
    costs = {"cheap": 1.0, "dear": 10.0}
    by_trials = simulated("trials", costs, 32, slots, cheap=0.5, dear=0.5)
    assert by_trials == ["cheap", "dear"] * 16, "whenever the sweep ends, the arms differ by at most one trial"
    if slots == 1:
        by_hours = simulated("hours", costs, 32, cheap=0.5, dear=0.5)
        assert Counter(by_hours) == {"cheap": 29, "dear": 3}


def test_trials_are_dealt_by_shares_and_ties_go_to_the_first_arm() -> None:
    costs = {"a": 5.0, "b": 1.0}
    # Started trials over shares, a and b: 0, 0 -> a; 1.4, 0 -> b; 1.4, 3.3 -> a; 2.9, 3.3 -> a; 4.3, 3.3 -> b;
    # 4.3, 6.7 -> a; 5.7, 6.7 -> a; 7.1, 6.7 -> b; 7.1, 10 -> a; 8.6, 10 -> a; 10, 10 -> a.
    assert "".join(simulated("trials", costs, 11, a=0.7, b=1 - 0.7)) == "abaabaabaaa"
    assert 3 / (1 - 0.7) < 7 / 0.7, "the tie holds only if quotients are rounded"
    assert "".join(simulated("trials", costs, 3, b=0.5, a=0.5)) == "bab"


def test_with_equal_trials_neither_costs_nor_running_trials_matter() -> None:
    ledger = Ledger({"a": 0.5, "b": 0.5}, "trials")
    ledger.spend("a", 1e6)
    assert ledger.neediest(("a", "b"), [("a", 5.0)]) == "a", "no configuration of either arm has been started"
    ledger.start("a")
    assert ledger.neediest(("a", "b"), ()) == "b"
    ledger.start("b")
    ledger.start("b")
    assert ledger.neediest(("b",), ()) == "b", "an arm with no configuration left is not among the given arms"
    assert ledger.started == {"a": 1, "b": 2}


# --- the end of a sweep ---


def test_auroc_over_patients_grows_from_a_half_on_too() -> None:
    plateau = Plateau(("a",), ("val/auroc_patient",), patience=1)
    plateau.add("a", 0, (0.51,))
    plateau.add("a", 1, (0.513,))  # 0.013 above 0.5 grows by 30 %; counted from 0 it would grow by less than 1 %
    assert not plateau.reached()


def test_a_plateau_is_reached_when_no_arm_grows_by_a_hundredth() -> None:
    plateau = Plateau(("a", "b"), GOALS, patience=2)
    assert not plateau.reached()
    plateau.add("a", 0, (0.7, 0.2))  # (0.7 - 0.5) x 0.2 = 0.04
    plateau.add("a", 1, (0.6, 0.1))  # is behind the front
    plateau.add("a", 2, (0.701, 0.2))  # 0.0402 is half a hundredth more
    assert not plateau.reached(), "the other arm has had no configuration"
    plateau.add("b", 3, (0.6, 0.1))
    plateau.add("b", 4, (0.6, 0.1))
    assert not plateau.reached()
    plateau.add("b", 5, None)  # one of its seeds failed
    assert plateau.reached()
    plateau.add("a", 6, (0.7021, 0.2))  # 0.04042: small steps add up to more than a hundredth
    assert not plateau.reached()
    plateau.add("a", 7, (0.5, 0.9))  # an AUROC of guessing adds nothing, however good the localisation
    assert not plateau.reached()
    plateau.add("a", 8, (0.6, 0.2))
    assert plateau.reached()
    plateau.add("b", 9, (0.55, 0.3))  # 0.1 x 0.1 + 0.05 x 0.2 = 0.02 is twice the volume
    assert not plateau.reached()


def test_without_patience_there_is_no_plateau() -> None:
    plateau = Plateau(("a",), GOALS, patience=None)
    for number in range(50):
        plateau.add("a", number, (0.6, 0.1))
    assert not plateau.reached()


def test_a_budget_ends_the_sweep_when_its_seconds_are_spent() -> None:
    search = SearchConfig(budget_device_hours=0.5)
    ledger = ledger_of(ended("a", 1000), a=0.5, b=0.5)
    ledger.spend("b", 799)
    assert reached_limit(search, ledger) == ""
    ledger.spend("b", 1)
    assert (
        reached_limit(search, ledger)
        == "the budget of 0.5 device-hours is spent; to continue, raise budget_device_hours=..."
    )
    assert reached_limit(SearchConfig(), ledger) == ""


# 2030 begins at 1893456000 in UTC; a day and twelve and a half hours are 131400 seconds.
@pytest.mark.parametrize(("zone", "when"), [("", 1893587400), ("Z", 1893587400), ("+09:00", 1893555000)])
def test_a_deadline_is_in_its_own_time_zone_or_in_local_time(
    zone: str, when: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not zone:
        when = datetime(2030, 1, 2, 12, 30).astimezone().timestamp()
    search = SearchConfig.model_validate({"deadline": f"2030-01-02T12:30{zone}"})
    monkeypatch.setattr("time.time", lambda: when - 1)
    assert reached_limit(search, Ledger({"a": 1.0}, "trials")) == ""
    monkeypatch.setattr("time.time", lambda: when)
    reason = reached_limit(search, Ledger({"a": 1.0}, "trials"))
    assert reason == "the deadline (2030-01-02 12:30) has passed; to continue, give a later deadline=..."


def test_an_exhausted_arm_does_not_delay_the_plateau() -> None:
    plateau = Plateau(("a", "b"), GOALS, 2)
    for number in range(3):
        plateau.add("b", number, (0.7, 0.2))
    assert not plateau.reached()
    assert plateau.reached({"a"})
    assert not plateau.reached({"a", "b"}), "a sweep with only exhausted arms is finished, not at a plateau"
