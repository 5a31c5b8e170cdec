"""Bootstrap and intervals against analytic values, a naive loop and scikit-learn."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score

from mmpkd.scoring.stats import (
    auroc_influence,
    auroc_within,
    delong_error,
    holm,
    is_all_equal,
    logit_interval,
    macro,
    paired_interval,
    patient_weights,
    standard_error,
    weighted_auroc,
    weighted_mean,
)


def test_replicates_draw_whole_patients():
    patient_N = np.array([7, 3, 7, 9, 3, 7])
    weight_RN = patient_weights(patient_N, replicates=50, seed=1)
    for patient in (3, 7, 9):
        together = weight_RN[:, patient_N == patient]
        assert (together == together[:, :1]).all()
    assert (weight_RN[:, 0] + weight_RN[:, 1] + weight_RN[:, 3] == 3).all()
    assert (weight_RN != weight_RN[0]).any()
    assert (weight_RN == patient_weights(patient_N, replicates=50, seed=1)).all()
    assert (weight_RN != patient_weights(patient_N, replicates=50, seed=2)).any()


def test_standard_error_of_a_mean_agrees_with_the_formula():
    value_N1 = np.random.default_rng(0).normal(3.0, 2.0, size=(400, 1))
    replicates = macro(weighted_mean(value_N1, patient_weights(np.arange(400), 4000)))
    analytic = value_N1.std() / np.sqrt(400)  # about 0.1
    # 4,000 replicates know their spread to 1 / sqrt(8000) = 1.1 %
    assert standard_error(replicates) == pytest.approx(analytic, rel=0.04)


def test_images_of_one_patient_count_as_one_observation():
    patient_value = np.random.default_rng(0).normal(size=100)
    value_N1 = np.repeat(patient_value, 4)[:, None]
    patient_N = np.repeat(np.arange(100), 4)
    by_patient = standard_error(weighted_mean(value_N1, patient_weights(patient_N, 2000))[:, 0])
    by_image = standard_error(weighted_mean(value_N1, patient_weights(np.arange(400), 2000))[:, 0])
    assert by_patient == pytest.approx(patient_value.std() / 10, rel=0.06)
    assert by_patient / by_image == pytest.approx(2, rel=0.1)  # sqrt(4) images each


def test_weighted_mean_leaves_nan_out():
    value_NL = np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, np.nan]])
    weight_RN = np.array([[1.0, 1, 1], [3, 1, 9], [2, 0, 4]])
    mean_RL = weighted_mean(value_NL, weight_RN)
    np.testing.assert_allclose(mean_RL, [[2, 5], [1.5, 5], [1, np.nan]])


def test_auroc_by_hand():
    # Pairs (positive above negative): 0.8 beats 0.1 and 0.4; 0.4 beats 0.1 and ties with 0.4. 3.5 of 4.
    score = np.array([[0.1], [0.4], [0.4], [0.8]])
    positive, known = np.array([[0], [0], [1], [1]]), np.ones((4, 1), bool)
    weight_RN = np.array([[1.0, 1, 1, 1], [1, 2, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]])
    # Second: positive 0.4 against 0.1 once and 0.4 twice: (1 + 2 / 2) / 3. Then a class is missing.
    np.testing.assert_allclose(
        weighted_auroc(score, positive, known, weight_RN)[:, 0], [3.5 / 4, 2 / 3, np.nan, np.nan]
    )
    known[3] = False  # 0.4 beats 0.1 and ties with 0.4
    assert weighted_auroc(score, positive, known, weight_RN[:1])[0, 0] == 1.5 / 2
    assert np.isnan(weighted_auroc(score, positive, np.zeros((4, 1), bool), weight_RN)).all()


def test_pairs_of_different_groups_do_not_count() -> None:
    """Two groups on different scales. Of group 0 all of 2 x 1 pairs are in order, of group 1 one of 1 x 2."""
    score = np.array([0.9, 0.8, 0.7, 10.0, 11.0, 9.0])[:, None]
    positive, known = np.array([1, 1, 0, 1, 0, 0])[:, None], np.ones((6, 1), bool)
    group, ones = np.array([0, 0, 0, 1, 1, 1]), np.ones((1, 6))
    assert auroc_within(score, positive, known, ones, group)[0, 0] == (2 + 1) / (2 + 2)
    weight = np.array([[1.0, 1, 1, 3, 1, 0], [0.0, 0, 1, 1, 0, 0]])  # the second has no pair
    np.testing.assert_allclose(auroc_within(score, positive, known, weight, group)[:, 0], [2 / (2 + 3), np.nan])
    whole = weighted_auroc(score, positive, known, weight)
    np.testing.assert_allclose(auroc_within(score, positive, known, weight, np.zeros(6)), whole)
    assert weighted_auroc(score, positive, known, ones)[0, 0] != 0.75


def test_auroc_of_replicates_equals_a_loop_that_resamples():
    generator = np.random.default_rng(5)
    for _ in range(20):
        num = int(generator.integers(20, 60))
        score = generator.integers(0, 8, size=(num, 2)).astype(float)  # many ties
        positive = generator.random((num, 2)) < 0.4
        known = generator.random((num, 2)) < 0.9
        weight_RN = patient_weights(generator.integers(0, 15, num), replicates=8, seed=int(generator.integers(99)))
        auroc_RL = weighted_auroc(score, positive, known, weight_RN)
        for weight, auroc in zip(weight_RN, auroc_RL, strict=True):
            rows = np.repeat(np.arange(num), weight.astype(int))
            for label in range(2):
                kept = rows[known[rows, label]]
                if len(set(positive[kept, label])) < 2:
                    assert np.isnan(auroc[label])
                else:
                    expected = roc_auc_score(positive[kept, label], score[kept, label])
                    assert auroc[label] == pytest.approx(expected, abs=1e-12)


def test_a_mean_over_labels_is_nan_if_a_label_is_missing():
    np.testing.assert_allclose(macro(np.array([[0.5, 1.0], [0.5, np.nan]])), [0.75, np.nan])
    assert np.isnan(macro(np.zeros((3, 0)))).all()


def test_standard_error_ignores_undefined_replicates_and_needs_enough():
    replicates = np.r_[np.arange(20.0), np.nan]
    assert standard_error(replicates) == pytest.approx(np.sqrt(35))  # variance of 0..19 is 20 * 21 / 12
    assert np.isnan(standard_error(replicates[1:]))


def test_paired_interval():
    mean, low, high = paired_interval([0.1, 0.2, 0.3])
    # sd 0.1, t(2 degrees, 97.5 %) = 4.303
    assert (mean, low, high) == pytest.approx((0.2, 0.2 - 0.2484, 0.2 + 0.2484), abs=1e-4)
    values = np.random.default_rng(0).normal(size=7)
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert paired_interval(values, level=0.9)[1:] == pytest.approx(tuple(expected))


@pytest.mark.parametrize("differences", [[], [0.1], [0.1, float("nan")]])
def test_paired_interval_refuses_too_few_differences(differences):
    with pytest.raises(ValueError, match="at least two"):
        paired_interval(differences)


def test_holm_by_hand():
    # 3 x .01, 2 x .03, then 1 x .04, which may not fall below the one before
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.6]).tolist() == [1.0, 1.0]


def test_holm_is_the_closed_test_of_bonferroni():
    """Holm (1979, section 3): a hypothesis is rejected if Bonferroni rejects every intersection that it belongs to."""
    p = np.random.default_rng(0).uniform(0, 0.3, 5)
    subsets = [subset for size in range(1, 6) for subset in combinations(range(5), size)]
    closed = [max(min(1, len(each) * p[list(each)].min()) for each in subsets if place in each) for place in range(5)]
    assert holm(p) == pytest.approx(closed)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_equal_replicates_have_no_standard_error(value: float) -> None:
    assert np.isnan(standard_error(np.full(200, value)))
    assert standard_error(np.r_[np.full(199, value), value + 0.2]) > 0


def test_a_perfect_auroc_of_few_patients_has_no_standard_error() -> None:
    score_N1, positive_N1 = np.array([[0.1], [0.2], [0.9]]), np.array([[0.0], [0.0], [1.0]])
    weight_RN = patient_weights(np.arange(3))
    assert np.isnan(standard_error(weighted_auroc(score_N1, positive_N1, positive_N1 > -1, weight_RN)[:, 0]))


def delong_of(scores: list[float], positive: list[int]) -> float:
    score_N1, positive_N1 = np.array(scores)[:, None], np.array(positive)[:, None]
    return delong_error(auroc_influence(score_N1, positive_N1, np.ones_like(positive_N1))[:, 0])


def test_delongs_error_by_hand():
    # Of the positives 3 and 1, the negatives 2 and 0 lie 2 and 1 below: placements 1 and 1/2. Those of the negatives
    # are 1/2 and 1. Each class has a variance of 1/8, which is divided by two samples.
    assert delong_of([3, 1, 2, 0], [1, 1, 0, 0]) == pytest.approx((1 / 16 + 1 / 16) ** 0.5)
    # A tie counts half: placements of the positives 1, 3/4 and 1 (variance 1/48), of the negatives 5/6 and 1 (1/72).
    assert delong_of([0.8, 0.4, 0.6, 0.4, 0.2], [1, 1, 1, 0, 0]) == pytest.approx((1 / 144 + 1 / 144) ** 0.5)


def test_the_class_of_a_single_sample_has_the_largest_possible_variance():
    # It lies above three of four negatives: 3/4 x 1/4, and the variance of 1, 1, 1 and 0, 1/4, over four samples.
    assert delong_of([2.5, 1, 1.5, 2, 3], [1, 0, 0, 0, 0]) == pytest.approx((3 / 16 + 1 / 16) ** 0.5)


@pytest.mark.parametrize("scores", [[1, 2, 3, 4], [4, 3, 2, 1], [1, 1, 1, 1]])
def test_an_auroc_of_1_or_0_or_of_ties_alone_has_no_error(scores: list[float]):
    assert np.isnan(delong_of(scores, [0, 0, 1, 1]))


def test_the_error_of_a_mean_is_from_delongs_covariance_matrix():
    """The matrix is computed from all pairs, as in DeLong et al. (1988), equations 4 to 6."""
    generator = np.random.default_rng(0)
    positive = np.arange(40) < 15
    scores = np.round(generator.normal(size=(40, 3)) + positive[:, None] * [0.5, 1, 2], 1)
    pairs = np.sign(scores[positive][:, None] - scores[~positive][None]) / 2 + 0.5  # 15 x 25 x 3
    covariance = np.cov(pairs.mean(axis=1).T) / 15 + np.cov(pairs.mean(axis=0).T) / 25
    weights = np.array([0.5, 0.25, 0.25])
    influence = auroc_influence(scores, np.repeat(positive[:, None], 3, axis=1), np.ones((40, 3)))
    np.testing.assert_allclose(influence.T @ influence, covariance, rtol=1e-10)
    assert delong_error(influence @ weights) == pytest.approx((weights @ covariance @ weights) ** 0.5)


def test_a_sample_of_unknown_label_has_no_influence():
    generator = np.random.default_rng(0)
    scores, positive = generator.normal(size=(30, 2)), generator.random((30, 2)) < 0.5
    known = generator.random((30, 2)) < 0.6
    influence = auroc_influence(scores, positive, known)
    assert (influence[~known] == 0).all() and (influence[known] != 0).any()
    for column in range(2):
        rows = known[:, [column]].ravel()
        alone = auroc_influence(scores[rows, column, None], positive[rows, column, None], np.ones((rows.sum(), 1)))
        np.testing.assert_array_equal(influence[rows, column], alone[:, 0])
    assert (auroc_influence(scores, np.ones_like(positive), known) == 0).all(), "a single class has no AUROC"


def test_the_interval_on_the_logit_scale_by_hand():
    # The odds of 0.8 are 4; the error of their logarithm is 0.08 / 0.16 = 1/2.
    mean, low, high = logit_interval(0.8, 0.08)
    factor = np.exp(1.959964 / 2)
    assert mean == 0.8
    assert low / (1 - low) == pytest.approx(4 / factor) and high / (1 - high) == pytest.approx(4 * factor)
    for value, error in ((1.0, np.nan), (0.8, np.nan), (np.nan, 0.1)):
        assert np.isnan(logit_interval(value, error)[1:]).all()


def test_which_scores_without_an_error_are_the_same_for_all_patients():
    assert all(is_all_equal(score, np.nan) for score in (0.0, 0.5, 1.0))
    assert is_all_equal(0.75, 0.0) and is_all_equal(0.75, 1e-17)
    assert not is_all_equal(0.75, np.nan) and not is_all_equal(1.0, 0.01)
