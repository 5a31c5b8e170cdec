"""Contrasts, the luck of a search and claims, against scipy, analytic variances and numbers worked by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import t as student_t
from scipy.stats import ttest_ind

from mmpkd.scoring.stats import Floats, patient_weights, weighted_auroc, weighted_mean
from sweep.verdict.inference import Contrast, SearchLuck, SeedScores, contrast, decide, search_luck, widened

NO_REPLICATES = np.empty((0, 5))


def without_patients(value_K: Floats) -> SeedScores:
    """Scores that are the same for all resamplings of the patients."""
    return SeedScores(value_K, np.tile(value_K, (50, 1)))


def seeds_of(mean: float, seeds: int = 5) -> SeedScores:
    """Equal scores of some seeds, without replicates."""
    return SeedScores(np.full(seeds, mean), np.empty((0, seeds)))


def test_without_luck_of_patients_it_is_the_test_of_welch() -> None:
    random = np.random.default_rng(0)
    treated_K, reference_K = random.normal(0.8, 0.03, 5), random.normal(0.7, 0.01, 7)
    result = contrast(without_patients(treated_K), without_patients(reference_K), patients=40, level=0.9)
    welch = ttest_ind(treated_K, reference_K, equal_var=False)
    assert result.patient_variance == pytest.approx(0, abs=1e-30)
    assert (result.p, result.degrees) == pytest.approx((welch.pvalue, welch.df))
    assert (result.low, result.high) == pytest.approx(tuple(welch.confidence_interval(0.9)))


def test_the_degrees_of_all_parts_by_hand() -> None:
    """Parts 4 (patients, 8 degrees), 1 and 2 (four degrees each) and 1 (search, two degrees) are 8 together, so that
    there are 64 / (16/8 + 1/4 + 4/4 + 1/2) degrees.
    """
    replicate_R = np.tile([1.0, -1.0], 10) * 2 * (19 / 20) ** 0.5  # variance 4

    def arm(variance_of_mean: float) -> Floats:
        deviation_K = np.array([-2, -1, 0, 1, 2]) * (2 * variance_of_mean) ** 0.5  # (4 + 1 + 1 + 4) / 4 / 5 = 1/2
        return deviation_K

    treated = SeedScores(10 + arm(1), np.tile(replicate_R[:, None], 5))
    reference = SeedScores(arm(2), np.zeros((20, 5)))
    result = contrast(treated, reference, patients=9, searches=(SearchLuck(1.0, 2), SearchLuck(0.0, 2)))
    assert result.patient_variance == pytest.approx(4)
    assert result.seed_variance == pytest.approx((1, 2)) and result.search_variance == (1, 0)
    assert result.standard_error == pytest.approx(8**0.5)
    assert result.degrees == pytest.approx(64 / 3.75)
    assert (result.difference, (result.low + result.high) / 2) == pytest.approx((10, 10))
    assert result.p == pytest.approx(2 * student_t.sf(10 / 8**0.5, 64 / 3.75))


def test_folds_widen_the_patients_part_as_nadeau_and_bengio_do() -> None:
    """With five folds, three of which train, the variance of a mean over folds is (1/5 + 1/3) s² instead of s²/5."""
    random = np.random.default_rng(0)
    arms = [SeedScores(random.normal(0.7, 0.02, 5), random.normal(0.7, 0.05, (300, 5))) for _ in range(2)]
    plain = contrast(arms[0], arms[1], patients=40)
    wide = contrast(*(widened(arm, 5) for arm in arms), patients=40)
    assert wide.patient_variance == pytest.approx(plain.patient_variance * (1 / 5 + 1 / 3) / (1 / 5))
    assert (wide.difference, wide.seed_variance) == (plain.difference, plain.seed_variance)


def test_the_patients_part_is_that_of_paired_differences() -> None:
    """Of a score that is a mean over patients, it is the variance of the patients' differences over their number."""
    random = np.random.default_rng(0)
    shared_N1 = random.normal(0, 1, (80, 1))
    treated_NK, reference_NK = shared_N1 + random.normal(0, 0.3, (80, 5)), shared_N1 + random.normal(0, 0.3, (80, 5))
    weight_RN = patient_weights(np.arange(80), 2000)
    treated, reference = (
        SeedScores(value_NK.mean(axis=0), weighted_mean(value_NK, weight_RN)) for value_NK in (treated_NK, reference_NK)
    )
    analytic = (treated_NK.mean(axis=1) - reference_NK.mean(axis=1)).var() / 80
    result = contrast(treated, reference, patients=80)
    # 2,000 replicates know a variance to sqrt(2 / 2000) = 3.2 %
    assert result.patient_variance == pytest.approx(analytic, rel=0.08)
    assert result.patient_variance < 0.1 * treated_NK.mean(axis=1).var() / 80, "the patients are shared"


def test_the_patients_part_of_an_auroc_is_that_of_delong() -> None:
    """DeLong's variance of a difference is computed from all pairs, as in DeLong et al. (1988)."""
    random = np.random.default_rng(1)
    positive_N = np.arange(200) < 80
    score_NK = positive_N[:, None] * 1.0 + random.normal(0, 1, (200, 1)) + random.normal(0, 1, (200, 4))
    weight_RN = patient_weights(np.arange(200), 1500)
    positive_NK = np.tile(positive_N[:, None], 4)
    value_K = weighted_auroc(score_NK, positive_NK, np.ones((200, 4)), np.ones((1, 200)))[0]
    replicate_RK = weighted_auroc(score_NK, positive_NK, np.ones((200, 4)), weight_RN)
    treated, reference = (SeedScores(value_K[part], replicate_RK[:, part]) for part in (slice(0, 2), slice(2, 4)))
    pair = np.sign(score_NK[positive_N][:, None] - score_NK[~positive_N][None]) / 2 + 0.5  # 80 x 120 x 4
    difference = pair[..., :2].mean(axis=2) - pair[..., 2:].mean(axis=2)
    delong = difference.mean(axis=1).var(ddof=1) / 80 + difference.mean(axis=0).var(ddof=1) / 120
    assert contrast(treated, reference, patients=80).patient_variance == pytest.approx(delong, rel=0.1)


@pytest.mark.parametrize(
    ("treated_K", "reference_K", "replicates", "patients", "reason"),
    [
        ([0.5] * 5, [0.5] * 5, 50, 40, "The standard error is 0"),
        ([0.5, np.nan, 0.6], [0.5, 0.6, 0.7], 50, 40, "has no score"),
        ([0.5, 0.6, 0.7], [0.5, 0.6, 0.7], 19, 40, "Too few resamplings"),
        ([0.5, 0.6, 0.7], [0.5, 0.6, 0.7], 50, 1, "rests on 1 patients"),
    ],
)
def test_an_unknown_error_gives_a_reason_and_no_p_value(
    treated_K: list[float], reference_K: list[float], replicates: int, patients: int, reason: str
) -> None:
    arms = [SeedScores(np.array(value), np.tile(value, (replicates, 1))) for value in (treated_K, reference_K)]
    result = contrast(*arms, patients=patients)
    assert reason in result.reason
    assert np.isnan([result.p, result.low, result.high, result.degrees]).all()
    assert not decide({"it": result})["it"].claimed


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two seeds, got 1 and 3"):
        contrast(without_patients(np.array([0.5])), without_patients(np.array([0.5, 0.6, 0.7])), patients=30)
    with pytest.raises(ValueError, match="do not share"):
        contrast(seeds_of(0.5), without_patients(np.array([0.5, 0.6])), patients=30)


def test_undefined_replicates_are_left_out() -> None:
    value_K = np.array([0.5, 0.6])
    replicate_RK = value_K + np.tile([0.01, -0.01], 30)[:, None]
    treated = SeedScores(value_K, np.r_[replicate_RK, np.full((5, 2), np.nan)])
    reference = SeedScores(value_K, np.zeros((65, 2)))
    assert contrast(treated, reference, 30).patient_variance == pytest.approx(0.0001 * 60 / 59)


def test_the_luck_of_a_search_is_that_of_all_halves_of_its_trials() -> None:
    """All ways to split six trials into two halves are enumerated; a half chooses the best trial that it holds."""
    means = np.array([0.9, 0.8, 0.6, 0.5, 0.5, 0.5])
    halves = [set(half) for half in combinations(range(6), 3)]
    squares = [(means[min(half)] - means[min(set(range(6)) - half)]) ** 2 for half in halves]
    luck = search_luck([seeds_of(mean) for mean in means[:4]], trials=6)
    assert luck.variance == pytest.approx(np.mean(squares) / 2) and luck.degrees == 3
    assert search_luck([seeds_of(mean) for mean in means[[0, 2]]], trials=6).variance == pytest.approx(0.3**2 / 2)


def test_finalists_are_ranked_by_the_score_that_chose() -> None:
    """Of four trials, rank 2 is in the half without rank 1 with a probability of 2/3."""
    finalists = [seeds_of(0.9), seeds_of(0.6), seeds_of(0.6)]
    by_own, by_other = (search_luck(finalists, 4, chosen_by) for chosen_by in (None, np.array([2.0, 3.0, 1.0])))
    assert by_own.variance == pytest.approx(0.3**2 / 2)
    assert by_other.variance == pytest.approx(2 / 3 * 0.3**2 / 2)


def test_differences_that_seeds_or_patients_explain_are_no_luck_of_the_search() -> None:
    random = np.random.default_rng(0)
    value_FK = 0.8 + random.normal(0, 0.05, (3, 5))
    by_seeds = [SeedScores(value_K, NO_REPLICATES) for value_K in value_FK]
    assert (
        search_luck(by_seeds, 16).variance
        < search_luck([seeds_of(value_K.mean()) for value_K in value_FK], 16).variance
    )
    replicate_FRK = random.normal(0, 0.1, (3, 200, 1)) + np.zeros((3, 200, 5))
    by_patients = [SeedScores(np.full(5, 0.8 + 0.01 * place), replicate_FRK[place]) for place in range(3)]
    assert search_luck(by_patients, 16).variance == 0
    shared_by_all = [SeedScores(np.full(5, 0.8 + 0.01 * place), replicate_FRK[0]) for place in range(3)]
    alone = [seeds_of(0.8 + 0.01 * place) for place in range(3)]
    assert search_luck(shared_by_all, 16).variance == pytest.approx(search_luck(alone, 16).variance)


def test_a_single_trial_is_no_search_and_a_single_finalist_of_several_has_unknown_rivals() -> None:
    assert search_luck([seeds_of(0.8)], trials=1).variance == 0
    luck = search_luck([seeds_of(0.8)], trials=9)
    arms = [without_patients(np.array(value)) for value in ([0.5, 0.6, 0.7], [0.5, 0.6, 0.8])]
    result = contrast(*arms, patients=30, searches=(luck, luck))
    assert "single finalist" in result.reason and np.isnan(result.p)
    with pytest.raises(ValueError, match="3 finalists among 2 trials"):
        search_luck([seeds_of(0.8)] * 3, trials=2)


def with_p(p: float) -> Contrast:
    return Contrast(0.1, 0.01, (0.0, 0.0), (0.0, 0.0), 0.1, 10.0, 0.0, 0.2, p)


def test_claims_after_holm() -> None:
    """Of 0.01, 0.04, 0.03 and 0.005 the adjusted values are 3 x .01, the one before again, 2 x .03 and 4 x .005."""
    decisions = decide({p: with_p(p) for p in (0.01, 0.04, 0.03, 0.005)})
    assert [each.adjusted_p for each in decisions.values()] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [each.claimed for each in decisions.values()] == [True, False, False, True]


def test_a_contrast_without_a_p_value_still_counts_in_the_family() -> None:
    decisions = decide({"first": with_p(0.03), "second": with_p(np.nan)})
    assert decisions["first"].adjusted_p == pytest.approx(0.06) and not decisions["first"].claimed
    assert np.isnan(decisions["second"].adjusted_p) and not decisions["second"].claimed
    assert decide({"first": with_p(0.03)})["first"].claimed
