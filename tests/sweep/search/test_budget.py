"""Who comes next by what was spent, and when it is enough; numbers by hand."""

from __future__ import annotations

from datetime import datetime

import pytest

from sweep.search.budget import Ledger, Plateau, limit
from sweep.space.space import SearchConfig
from sweep.types import Record, State

GOALS = ("val/auroc", "val/pointing")


def ended(arm: str, device_seconds: float, state: State = "complete") -> Record:
    return Record(0, arm, state, 1, device_seconds, {}, {}, "{}", device_seconds=device_seconds)


def ledger_of(*records: Record, **shares: float) -> Ledger:
    """A ledger on which each record is both spent and finished."""
    ledger = Ledger(shares)
    for record in records:
        ledger.spend(record.arm, record.device_seconds)
        ledger.finish(record)
    return ledger


# --- whose turn it is ---


def test_the_arm_furthest_behind_its_share_is_next() -> None:
    ledger = ledger_of(a=0.5, b=0.5)
    assert ledger.neediest(("a", "b"), ()) == "a", "of equal ones the first"
    assert ledger.neediest(("b", "a"), ()) == "b"
    ledger.spend("a", 1)
    assert ledger.neediest(("a", "b"), ()) == "b"
    assert ledger.neediest(("a",), ()) == "a", "only among those asked about"
    uneven = ledger_of(a=0.75, b=0.25)
    uneven.spend("a", 60)  # 60 / 0.75 = 80
    uneven.spend("b", 21)  # 21 / 0.25 = 84
    assert uneven.neediest(("a", "b"), ()) == "a"
    uneven.spend("a", 4)  # 85.3
    assert uneven.neediest(("a", "b"), ()) == "b"


def test_a_trial_in_flight_counts_as_what_it_will_probably_cost() -> None:
    ledger = ledger_of(ended("a", 30), ended("a", 50, "pruned"), ended("b", 90), a=0.5, b=0.5)
    assert (ledger.typical("a"), ledger.typical("b"), ledger.total) == (40, 90, 170)
    assert ledger.neediest(("a", "b"), ()) == "a"  # 80 against 90
    assert ledger.neediest(("a", "b"), [("a", 25)]) == "b"  # 80 + 15
    assert ledger.neediest(("a", "b"), [("a", 31)]) == "a"  # 80 + 9
    assert ledger.neediest(("a", "b"), [("b", 120)]) == "a", "what is spent beyond that is in the ledger already"
    assert ledger.neediest(("a", "b"), [("a", 35), ("a", 34)]) == "b"  # 80 + 5 + 6


def test_before_an_arm_has_a_trial_any_arms_are_typical() -> None:
    assert ledger_of(a=0.5, b=0.5).typical("a") == 1.0
    ledger = ledger_of(ended("a", 30), ended("c", 60), ended("c", 60), a=0.3, b=0.3, c=0.4)
    assert ledger.typical("b") == 50, "over trials, not over arms"
    assert ledger_of(ended("a", 7, "failed"), a=1.0).typical("a") == 1.0, "a failed trial is not typical"


def test_a_failed_trial_is_charged_like_one_that_went_through() -> None:
    failing = [ended("b", 1, "failed")] * 2
    ledger = ledger_of(ended("a", 40), *failing, a=0.5, b=0.5)
    assert ledger.total == 42
    assert ledger.neediest(("a", "b"), ()) == "a"  # 40 against 2 x 40
    assert ledger_of(ended("a", 40), failing[0], a=0.3, b=0.7).neediest(("a", "b"), ()) == "b"  # 133 against 57
    late = ledger_of(ended("a", 40), ended("a", 40), ended("b", 70, "failed"), a=0.5, b=0.5)
    assert late.neediest(("a", "b"), ()) == "b", "70, not less, though a typical one costs 40"


def test_what_the_space_no_longer_holds_is_spent_but_charged_to_none() -> None:
    ledger = ledger_of(ended("a", 10), a=0.5, b=0.5)
    ledger.before = 100
    assert ledger.total == 110
    assert ledger.neediest(("a", "b"), ()) == "b"


# --- enough ---


def test_what_guessing_scores_is_no_growth_of_patients_either() -> None:
    plateau = Plateau(("a",), ("val/auroc_patient",), patience=1)
    plateau.add("a", 0, (0.51,))
    plateau.add("a", 1, (0.513,))  # 0.013 over a half is far more than 0.01; of 0.513 it is less than one hundredth
    assert not plateau.reached()


def test_a_plateau_is_when_no_arm_has_grown_by_a_hundredth() -> None:
    plateau = Plateau(("a", "b"), GOALS, patience=2)
    assert not plateau.reached()
    plateau.add("a", 0, (0.7, 0.2))  # (0.7 - 0.5) x 0.2 = 0.04
    plateau.add("a", 1, (0.6, 0.1))  # behind the front
    plateau.add("a", 2, (0.701, 0.2))  # 0.0402: half a hundredth more
    assert not plateau.reached(), "the other arm has had none"
    plateau.add("b", 3, (0.6, 0.1))
    plateau.add("b", 4, (0.6, 0.1))
    assert not plateau.reached()
    plateau.add("b", 5, None)  # a seed of it failed
    assert plateau.reached()
    plateau.add("a", 6, (0.7021, 0.2))  # 0.04042: small steps add up to more than a hundredth
    assert not plateau.reached()
    plateau.add("a", 7, (0.5, 0.9))  # no better than guessing: no achievement, whatever it localises
    assert not plateau.reached()
    plateau.add("a", 8, (0.6, 0.2))
    assert plateau.reached()
    plateau.add("b", 9, (0.55, 0.3))  # 0.1 x 0.1 + 0.05 x 0.2 = 0.02: twice the volume
    assert not plateau.reached()


def test_without_patience_there_is_no_plateau() -> None:
    plateau = Plateau(("a",), GOALS, patience=None)
    for number in range(50):
        plateau.add("a", number, (0.6, 0.1))
    assert not plateau.reached()


def test_a_budget_is_spent_when_its_seconds_are() -> None:
    search = SearchConfig(budget_device_hours=0.5)
    ledger = ledger_of(ended("a", 1000), a=0.5, b=0.5)
    ledger.spend("b", 799)
    assert limit(search, ledger) == ""
    ledger.spend("b", 1)
    assert (
        limit(search, ledger) == "the budget of 0.5 device-hours is spent; budget_device_hours=... with more continues"
    )
    assert limit(SearchConfig(), ledger) == ""


# 2030 begins at 1893456000 in UTC; a day and twelve and a half hours are 131400 seconds.
@pytest.mark.parametrize(("zone", "when"), [("", 1893587400), ("Z", 1893587400), ("+09:00", 1893555000)])
def test_a_deadline_comes_in_its_own_time_or_in_local_time(
    zone: str, when: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not zone:
        when = datetime(2030, 1, 2, 12, 30).astimezone().timestamp()
    search = SearchConfig.model_validate({"deadline": f"2030-01-02T12:30{zone}"})
    monkeypatch.setattr("time.time", lambda: when - 1)
    assert limit(search, Ledger({"a": 1.0})) == ""
    monkeypatch.setattr("time.time", lambda: when)
    told = limit(search, Ledger({"a": 1.0}))
    assert told == "the deadline (2030-01-02 12:30) has come; deadline=... with a later one continues"


def test_an_arm_with_nothing_left_to_try_holds_up_no_plateau() -> None:
    plateau = Plateau(("a", "b"), GOALS, 2)
    for number in range(3):
        plateau.add("b", number, (0.7, 0.2))
    assert not plateau.reached()
    assert plateau.reached({"a"})
    assert not plateau.reached({"a", "b"}), "then it is at its end, which is no plateau"
