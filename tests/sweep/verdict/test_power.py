"""Power and numbers of patients against published values, simulation and numbers worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import nct
from scipy.stats import t as student_t

from mmpkd.scoring.stats import auroc_variance, patient_weights
from sweep.verdict.inference import FIXED, SearchLuck, SeedScores, contrast, overlap, search_luck, widened
from sweep.verdict.power import (
    TRUE_SHARE,
    Design,
    first_step,
    patients_needed,
    power,
    smallest_difference,
    too_few_patients,
    too_little_power,
)

DESIGN = Design(patients=300, counted=120, patient_variance=0.0004, seeds=5, seed_variance=(0.0009, 0.0009))


def test_two_samples_of_64_have_the_power_of_cohens_table() -> None:
    """Cohen (1988), table 2.3.5: a difference of half a standard deviation is found in 80 % of tests with 64 a side."""
    cohen = Design(patients=100, counted=100, patient_variance=0.0, seeds=64, seed_variance=(1.0, 1.0))
    assert power(0.5, cohen) == pytest.approx(0.80, abs=0.005)
    assert smallest_difference(cohen, power(0.5, cohen)) == pytest.approx(0.5, abs=1e-4)
    assert power(-0.5, cohen) == power(0.5, cohen)
    assert power(0.0, cohen) == pytest.approx(0.05, abs=1e-5)
    assert power(0.5, cohen) == pytest.approx(nct.sf(student_t.ppf(0.975, 126), 126, 0.5 * 32**0.5), abs=1e-4)
    assert power(0.5, replace(cohen, level=0.99)) < 0.6


def test_power_agrees_with_simulated_contrasts() -> None:
    random = np.random.default_rng(0)
    claims = []
    for _ in range(1000):
        patient_R = random.normal(0, DESIGN.patient_variance**0.5, 120)  # as many degrees as there are patients
        value_AK = 0.8 + np.array([[0.06], [0.0]]) + random.normal(0, 0.03, (2, 5))
        value_AK[0] += random.normal(0, DESIGN.patient_variance**0.5)
        shifts = patient_R[:, None], 0.0
        arms = [
            SeedScores(value_K, np.zeros((120, 5)) + shift) for value_K, shift in zip(value_AK, shifts, strict=True)
        ]
        claims.append(contrast(*arms, patients=DESIGN.counted).p < 0.05)
    # 2,000 tests know a share to 1.1 %
    assert np.mean(claims) == pytest.approx(power(0.06, DESIGN), abs=0.035)


def test_the_number_of_patients_by_hand() -> None:
    """If patients are the only luck and many, n = (1.96 + 0.84)² of the variance of a patient over the difference²."""
    design = replace(DESIGN, seed_variance=(0.0, 0.0), counted=300, patient_variance=4 / 300)
    by_hand = (ndtri(0.975) + ndtri(0.8)) ** 2 * 4 / 0.1**2
    needed = patients_needed(0.1, design)
    assert needed is not None and needed == pytest.approx(by_hand, rel=0.001)
    assert power(0.1, design.with_patients(needed)) >= 0.8 > power(0.1, design.with_patients(needed - 1))


def test_where_seeds_are_the_luck_no_number_of_patients_is_enough() -> None:
    assert patients_needed(0.01, DESIGN) is None
    assert "so more seeds are needed" in too_little_power(0.01, DESIGN)


def test_power_falls_with_every_kind_of_luck() -> None:
    worse = [
        replace(DESIGN, seed_variance=(0.0018, 0.0009)),
        replace(DESIGN, searches=(SearchLuck(0.0004, 1.9), SearchLuck(0.0, 1.0))),
        replace(DESIGN, seeds=3),
        DESIGN.with_patients(100),
    ]
    assert all(power(0.06, design) < power(0.06, DESIGN) - 0.05 for design in worse)
    assert DESIGN.with_patients(100).counted == 40


def test_the_design_of_a_contrast_has_its_error_and_knows_what_it_counts_twice() -> None:
    """Scores with a seed's own luck, and with luck of patients that is shared in part: a variance of 0.0001 of each
    student's own. In folds, replicates are widened, and what is counted twice is not.
    """
    random = np.random.default_rng(0)
    shared_R1 = random.normal(0, 0.02, (20_000, 1))
    arms = [
        SeedScores(random.normal(0.8, 0.03, 5), share * shared_R1 + random.normal(0.8, 0.01, (20_000, 5)))
        for share in (1.5, 1.0)
    ]
    seen, lucks = contrast(*arms, patients=40), (SearchLuck(0.0001, 2.0), FIXED)
    design = Design.measured(arms[:1], arms[1:], lucks, patients=100, counted=40, seeds=5, level=0.95)
    assert design.variance == pytest.approx(seen.standard_error**2 + 0.0001)
    assert design.own_variance == pytest.approx((0.0001, 0.0001), rel=0.03)
    wide = [widened(each, 5) for each in arms]
    of_folds = Design.measured(wide[:1], wide[1:], lucks, 100, 40, 5, 0.95, overlap(5))
    assert of_folds.own_variance == pytest.approx(design.own_variance)
    assert of_folds.parts[0] == pytest.approx(design.parts[0] * overlap(5))


def test_the_expected_error_of_an_auroc_is_that_of_the_published_example() -> None:
    """Hanley and McNeil 1982: an area of 0.893 with 51 abnormal and 58 normal images has a standard error of 0.032."""
    assert auroc_variance(0.893, 51, 58) ** 0.5 == pytest.approx(0.032, abs=0.0006)


def test_an_unknown_variance_is_refused() -> None:
    for variance in (float("nan"), 0.0):
        with pytest.raises(ValueError, match="have to be known"):
            power(0.1, replace(DESIGN, patient_variance=variance, seed_variance=(0.0, 0.0)))


def test_the_sentences() -> None:
    assert too_few_patients(10) == ""
    assert too_few_patients(1).startswith("The rarer class has 1 patient; with fewer than 10")
    assert too_little_power(0.08, DESIGN) == ""
    small = Design(patients=60, counted=24, patient_variance=0.003, seeds=5, seed_variance=(0.0009, 0.0009))
    sentence = too_little_power(0.08, small)
    needed = patients_needed(0.08, small, 0.5)
    assert sentence == (
        "With 60 patients and 5 seeds, a true difference of 0.08 is shown with a chance of "
        f"{power(0.08, small):.0%} only. About {needed} patients would be needed for a chance of 50%."
    )
    assert needed is not None and 60 < needed < 200


def test_power_with_a_search_agrees_with_simulated_contrasts() -> None:
    """The luck of the search is known, the true difference has half its variance, and Holm's first step judges."""
    design = replace(DESIGN, searches=(SearchLuck(0.0008, 1.9), SearchLuck(0.0004, 1.9)), level=first_step(2))
    random, claims = np.random.default_rng(0), []
    for _ in range(1000):
        patient_R = random.normal(0, DESIGN.patient_variance**0.5, 120)
        value_AK = 0.8 + np.array([[0.12], [0.0]]) + random.normal(0, 0.03, (2, 5))
        value_AK[0] += random.normal(0, (DESIGN.patient_variance + TRUE_SHARE * 0.0012) ** 0.5)
        treated = SeedScores(value_AK[0], np.zeros((120, 5)) + patient_R[:, None])
        claims.append(contrast(treated, SeedScores(value_AK[1], np.zeros((120, 5))), 120, design.searches).p < 0.025)
    # 1,000 tests know a share to 1.6 %
    assert 0.2 < np.mean(claims) < 0.8 and np.mean(claims) == pytest.approx(power(0.12, design), abs=0.05)


def test_what_is_expected_before_any_training_by_hand() -> None:
    """Errors of 0.02 and 0.03, and as many test patients as validation patients and half as many again. Two students of
    an arm share three quarters of their variances, those of two arms a half: (0.75 * (0.0004 + 0.0009) - 0.0006) / 1.5.
    The last quarter is each student's own. Trials that differ by their errors only have no search.
    """
    equal = np.full(8, 0.7)
    design = Design.expected(300, 120, (0.02, 0.03), 1.5, 5, 0.01, (equal, equal), is_ranked=True, level=0.975)
    assert design.patient_variance == pytest.approx(0.000375 / 1.5)
    own = 0.0001 / 1.5, 0.000225 / 1.5
    assert design.own_variance == pytest.approx(own) and [each.variance for each in design.searches] == [0, 0]
    assert design.seed_variance == pytest.approx((0.0001 + own[0], 0.0001 + own[1]))
    twice = design.with_patients(600)
    assert twice.seed_variance == pytest.approx((0.0001 + own[0] / 2, 0.0001 + own[1] / 2))
    in_folds = replace(design, seeds=10).widened(2.0)
    assert in_folds.parts[0] == pytest.approx(2 * (0.00025 + sum(own) / 10))
    spread = np.array([0.9, 0.8, 0.7, 0.6])
    without_error = Design.expected(300, 120, (0.0, 0.0), 1.0, 5, 0.0, (spread, spread), is_ranked=True, level=0.975)
    seeds = [SeedScores(np.full(5, value), np.empty((0, 5))) for value in spread]
    assert without_error.searches[0].variance == pytest.approx(search_luck(seeds, np.empty(0)).variance)


def test_all_finalists_tell_what_is_expected() -> None:
    """Replicates that scatter by 0.01 and 0.03 give variances of 0.0001 and 0.0009, which are 0.0005 on average."""
    wave_R = np.tile([1.0, -1.0], 50) * (99 / 100) ** 0.5
    treated = [SeedScores(np.full(5, 0.8), np.zeros((100, 5)) + scale * wave_R[:, None]) for scale in (0.01, 0.03)]
    reference = [SeedScores(np.array([0.7, 0.72]), np.zeros((100, 2)))]
    lucks = SearchLuck(0.0001, 1.9), SearchLuck(0.0, 1.0)
    design = Design.measured(treated, reference, lucks, 200, 80, 10, level=0.975)
    assert design.patient_variance == pytest.approx(0.0005) and design.seed_variance == pytest.approx((0, 0.0002))
    assert design.variance == pytest.approx(0.0005 + 0.0002 / 10 + 0.0001)


def test_power_agrees_with_simulated_students_whose_luck_with_patients_is_their_own() -> None:
    """The score of a student is a mean over 60 patients. Students of one configuration share a part of their luck with
    each patient; the remainder is in the patients' part and in s². The whole rule runs on students on new patients, and
    power comes from students on other patients.
    """
    random, patients, seeds = np.random.default_rng(0), 60, 5
    weight_RN = patient_weights(np.arange(patients), 100)

    def arms(count: int, difference: float) -> list[list[SeedScores]]:
        shared_N1 = random.standard_normal((patients, 1))
        result = []
        for mean in (difference, 0.0):
            configurations = [shared_N1 + random.normal(0, 0.5, (patients, 1)) for _ in range(count)]
            own = [random.normal(0, 1.5, (patients, seeds)) + random.normal(0, 0.1, seeds) for _ in range(count)]
            value = [mean + each_N1 + own_NK for each_N1, own_NK in zip(configurations, own, strict=True)]
            result.append([SeedScores(each.mean(axis=0), weight_RN @ each / patients) for each in value])
        return result

    designs, claims = [], []
    for _ in range(300):
        finalists, tested = arms(3, 0.4), arms(1, 0.4)
        designs.append(Design.measured(*finalists, (FIXED, FIXED), patients, patients, seeds, level=0.95))
        claims.append(contrast(tested[0][0], tested[1][0], patients).p < 0.05)
    printed = np.mean([power(0.4, design) for design in designs[::10]])
    counted_as_luck = np.mean([power(0.4, replace(each, own_variance=(0.0, 0.0))) for each in designs[::10]])
    # 300 tests know a share to 2.9 %
    assert np.mean(claims) == pytest.approx(printed, abs=0.08)
    assert abs(counted_as_luck - printed) > 0.1, "what is each student's own decides here"
