"""What a sampler is told of trials that were stopped or broke; numbers by hand, all of them exact in binary."""

from __future__ import annotations

import pytest

from sweep.search.imputation import Imputation, impute

# Gains from epoch 2 to the end: (1/4, 1/8), (1/8, 1/4) and (0, -1/8); from epoch 4 the last one's: (1/8, 0).
CURVES = [
    ({2: (0.5, 0.125)}, (0.75, 0.25)),
    ({2: (0.5, 0.25)}, (0.625, 0.5)),
    ({2: (0.75, 0.375), 4: (0.625, 0.25)}, (0.75, 0.25)),
]


def test_a_stopped_trial_gains_the_median_from_its_last_rung_on() -> None:
    assert impute({2: (0.5, 0.125)}, CURVES) == (0.5 + 0.125, 0.125 + 0.125)
    assert impute({2: (0.25, 0.0), 4: (0.5, 0.0)}, CURVES) == (0.5 + 0.125, 0.0), "its last rung, and who was there"
    assert impute({2: (0.375, 0.0)}, CURVES[:2]) == (0.375 + 0.1875, 0.1875), "of two the middle"
    assert impute({2: (0.5,)}, [({2: (0.5,)}, (0.25,))]) == (0.25,), "one goal; trials may get worse"


def test_a_stopped_trial_is_told_as_no_better_than_those_that_were_better() -> None:
    # 0.5 + 0.1875 would be above the 0.625 of one that was as good; in the other goal nobody was as good as 0.375,
    # and nobody ended above 0.5.
    assert impute({2: (0.5, 0.375)}, CURVES[:2]) == (0.625, 0.5)
    assert impute({2: (0.96875,)}, [({2: (0.5,)}, (1.0,))]) == (1.0,), "no AUROC above 1"
    assert impute({2: (0.75,)}, [({2: (0.25,)}, (0.5,))]) == (0.75,), "nor as worse than it was"


def test_before_any_trial_is_complete_it_is_what_it_had() -> None:
    assert impute({1: (0.25, 0.25), 2: (0.5, 0.5)}, []) == (0.5, 0.5)
    assert impute({3: (0.5, 0.5)}, CURVES) == (0.5, 0.5), "nobody's values are known there"


def test_each_arm_learns_from_its_own() -> None:
    imputation = Imputation(("a", "b"))
    for reached, values in CURVES:
        imputation.add_complete("a", reached, values)
    assert imputation.learned("a", "pruned", "", {2: (0.5, 0.125)}) == (0.625, 0.25)
    assert imputation.learned("b", "pruned", "", {2: (0.5, 0.125)}) == (0.5, 0.125)


def test_what_diverged_is_as_bad_as_the_worst_seen() -> None:
    imputation = Imputation(("a", "b"))
    assert imputation.learned("a", "failed", "diverged", {}) is None, "nothing has been seen"
    imputation.add_complete("a", {}, (0.75, 0.25))
    assert imputation.learned("a", "failed", "diverged", {}) == (0.75, 0.25)
    imputation.add_values("a", (0.625, 0.5))  # a pruned one's
    assert imputation.learned("a", "failed", "diverged", {}) == (0.625, 0.25), "in each goal by itself"
    imputation.add_values("a", (0.875, 0.875))
    assert imputation.learned("a", "failed", "diverged", {2: (0.9, 0.9)}) == (0.625, 0.25), "whatever it had reached"
    assert imputation.learned("b", "failed", "diverged", {}) is None


@pytest.mark.parametrize("cause", ["worker", "memory", "error", ""])
def test_what_failed_otherwise_says_nothing_of_its_configuration(cause: str) -> None:
    imputation = Imputation(("a",))
    imputation.add_complete("a", {2: (0.5, 0.5)}, (0.75, 0.25))
    assert imputation.learned("a", "failed", cause, {2: (0.5, 0.5)}) is None
