"""Values that a sampler learns from stopped and failed trials; worked by hand with numbers that are exact in binary."""

from __future__ import annotations

import pytest

from sweep.search.imputation import Imputation, impute

# The gains from epoch 2 to the end are (1/4, 1/8), (1/8, 1/4) and (0, -1/8); from epoch 4, of the last trial, (1/8, 0).
CURVES = [
    ({2: (0.5, 0.125)}, (0.75, 0.25)),
    ({2: (0.5, 0.25)}, (0.625, 0.5)),
    ({2: (0.75, 0.375), 4: (0.625, 0.25)}, (0.75, 0.25)),
]


def test_a_stopped_trial_gains_the_median_from_its_last_rung_on() -> None:
    assert impute({2: (0.5, 0.125)}, CURVES) == (0.5 + 0.125, 0.125 + 0.125)
    assert impute({2: (0.25, 0.0), 4: (0.5, 0.0)}, CURVES) == (0.5 + 0.125, 0.0), "its last rung counts"
    assert impute({2: (0.375, 0.0)}, CURVES[:2]) == (0.375 + 0.1875, 0.1875), "the median of two is their middle"
    assert impute({2: (0.5,)}, [({2: (0.5,)}, (0.25,))]) == (0.25,), "a gain may be negative"


def test_a_stopped_trial_is_not_imputed_better_than_trials_that_were_better() -> None:
    # 0.5 + 0.1875 would be above the 0.625 of a trial that was as good. In the other goal no trial was as good as
    # 0.375, and no trial ended above 0.5.
    assert impute({2: (0.5, 0.375)}, CURVES[:2]) == (0.625, 0.5)
    assert impute({2: (0.96875,)}, [({2: (0.5,)}, (1.0,))]) == (1.0,), "no AUROC is above 1"
    assert impute({2: (0.75,)}, [({2: (0.25,)}, (0.5,))]) == (0.75,), "and no value is below the one at the rung"


def test_without_complete_trials_the_value_at_the_rung_is_kept() -> None:
    assert impute({1: (0.25, 0.25), 2: (0.5, 0.5)}, []) == (0.5, 0.5)
    assert impute({3: (0.5, 0.5)}, CURVES) == (0.5, 0.5), "no complete trial has values at this rung"


def test_each_arm_imputes_from_its_own_trials() -> None:
    imputation = Imputation(("a", "b"))
    for reached, values in CURVES:
        imputation.add_complete("a", reached, values)
    assert imputation.learned("a", "pruned", "", {2: (0.5, 0.125)}) == (0.625, 0.25)
    assert imputation.learned("b", "pruned", "", {2: (0.5, 0.125)}) == (0.5, 0.125)


def test_a_diverged_trial_counts_as_the_worst_seen() -> None:
    imputation = Imputation(("a", "b"))
    assert imputation.learned("a", "failed", "diverged", {}) is None, "no values have been seen"
    imputation.add_complete("a", {}, (0.75, 0.25))
    assert imputation.learned("a", "failed", "diverged", {}) == (0.75, 0.25)
    imputation.add_values("a", (0.625, 0.5))  # imputed for a pruned trial
    assert imputation.learned("a", "failed", "diverged", {}) == (0.625, 0.25), "the worst of each goal by itself"
    imputation.add_values("a", (0.875, 0.875))
    assert imputation.learned("a", "failed", "diverged", {2: (0.9, 0.9)}) == (0.625, 0.25), "whatever it reached"
    assert imputation.learned("b", "failed", "diverged", {}) is None


@pytest.mark.parametrize("cause", ["worker", "memory", "error", ""])
def test_another_failure_says_nothing_about_the_configuration(cause: str) -> None:
    imputation = Imputation(("a",))
    imputation.add_complete("a", {2: (0.5, 0.5)}, (0.75, 0.25))
    assert imputation.learned("a", "failed", cause, {2: (0.5, 0.5)}) is None
