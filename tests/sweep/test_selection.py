"""The rule of choice by hand: what is nearly the best, and what is chosen among it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sweep.selection import Selection, rule_of
from sweep.space.search_config import SearchConfig
from sweep.storage.records import choice_of, comparable, picked
from sweep.types import Record

AUROC, POINTING = "val/auroc", "val/pointing"
ONE_ERROR = Selection(maximize=POINTING, within="1se", of=AUROC)


def trial(number: int, auroc: float, pointing: float, error: float = 0.03, **metrics: float) -> Record:
    scores = {AUROC: auroc, POINTING: pointing, f"{AUROC}_se": error, **metrics}
    return Record(number, "a", "complete", 1, 1.0, {}, scores, "{}")


# The best AUROC is 0.93 of trial 2, whose standard error is 0.03: trials from 0.90 on are within it.
TRIALS = [trial(0, 0.80, 0.9), trial(1, 0.90, 0.5, 0.2), trial(2, 0.93, 0.1), trial(3, 0.91, 0.4), trial(4, 0.89, 0.8)]


@pytest.mark.parametrize(
    ("select", "number", "eligible"),
    [
        (AUROC, 2, [2, 3, 1, 4, 0]),
        (POINTING, 0, [0, 4, 1, 3, 2]),
        (ONE_ERROR, 1, [1, 3, 2]),  # 0.93 - 0.03 is 0.90 although floats do not say so; trial 1's own error is not used
        (Selection(maximize=POINTING, within=0.02, of=AUROC), 3, [3, 2]),
        (Selection(maximize=POINTING, within=0.0, of=AUROC), 2, [2]),
        (Selection(maximize=POINTING, within=1.0, of=AUROC), 0, [0, 4, 1, 3, 2]),
    ],
)
def test_a_rule_by_hand(select: str | Selection, number: int, eligible: list[int]) -> None:
    choice = choice_of(TRIALS, select)
    assert choice is not None and choice.trial.number == number
    assert [record.number for record in choice.eligible] == eligible
    best = picked(TRIALS, select)
    assert best is not None and best.number == number


@pytest.mark.parametrize("error", [0.0, math.nan])
def test_an_unknown_error_leaves_only_equal_trials_and_the_lowest_number_wins(error: float) -> None:
    records = [trial(5, 1.0, 0.4, error), trial(3, 1.0, 0.4, error), trial(1, 0.99, 0.9), trial(4, 1.0, 0.2, error)]
    choice = choice_of(records, ONE_ERROR)
    assert choice is not None and choice.tolerance == 0
    assert [record.number for record in choice.eligible] == [3, 5, 4]


def test_the_error_of_a_mean_over_seeds_is_used() -> None:
    """Two seeds of trial 0 score 0.90 and 0.94 on the same patients: the variance is 0.03² + 0.02²."""
    first, second = trial(0, 0.90, 0.1), trial(1, 0.94, 0.1)
    other = [trial(2, 0.885, 0.5), trial(3, 0.885, 0.5)]
    seeds = [Record(**{**vars(run), "repeat_of": of, "turn": 1}) for run, of in ((second, 0), (other[1], 2))]
    choice = choice_of(comparable([first, other[0], *seeds], [AUROC, POINTING], repeats=2), ONE_ERROR)
    assert choice is not None and choice.tolerance == pytest.approx(math.sqrt(0.03**2 + 0.02**2))
    assert choice.trial.number == 2, "0.885 is within 0.036 of 0.92, and not within the 0.03 of a single seed"


def test_estimates_are_compared_where_there_are_any_and_references_are_not_chosen() -> None:
    compared = {f"{AUROC}_compared": 0.9, f"{POINTING}_compared": 0.3}
    records = [
        trial(0, 0.95, 0.9, **{**compared, f"{POINTING}_compared": 0.2}),
        trial(1, 0.90, 0.2, **compared),
        trial(2, 0.99, 0.5, **{**compared, f"{AUROC}_compared": 0.8, f"{POINTING}_compared": 0.9}),
    ]
    best = picked(records, ONE_ERROR)
    assert best is not None and best.number == 1
    reference = Record(**{**vars(TRIALS[0]), "config": '{"student": {"reads": ["superior"]}}'})
    by_pointing = picked([reference, *TRIALS[1:]], POINTING)
    assert by_pointing is not None and by_pointing.number == 4


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("val/auroc", "val/auroc"),
        ({"maximize": POINTING}, POINTING),
        (
            {"maximize": POINTING, "within": "1se", "of": AUROC},
            f"{POINTING} within one standard error of the best {AUROC}",
        ),
        ({"maximize": POINTING, "within": "0.010", "of": AUROC}, f"{POINTING} within 0.01 of the best {AUROC}"),
    ],
)
def test_a_rule_survives_the_file_of_its_space(value: Any, text: str) -> None:
    search = SearchConfig.model_validate({"select": value})
    dumped = search.model_dump(mode="json")["select"]
    assert str(rule_of(dumped)) == str(rule_of(search.select)) == text
