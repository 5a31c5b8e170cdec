"""What difference a test part can show with some seeds, and when a verdict has to say that it cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Final

import numpy as np
from scipy.special import gammaincinv, ndtr, stdtrit

from mmpkd.scoring.stats import Floats, auroc_variance
from sweep.verdict.inference import (
    FIXED,
    LEVEL,
    Contrast,
    SearchLuck,
    SeedScores,
    contrast,
    degrees_of_choice,
    luck_of_equal_trials,
    satterthwaite,
    variance_of_choice,
)

MIN_RARER: Final = 10  # patients of the rarer class; with fewer, errors of an AUROC are not to be trusted
MIN_POWER: Final = 0.5
USUAL_POWER: Final = 0.8
MIN_SEEDS: Final = 5
MANY_PATIENTS, MANY_SEEDS = 300, 10  # with more test patients than this, seeds limit the power, and ten are trained
CORRELATION: Final = 0.5  # over patients, of the scores of two arms' students, where nothing is known
MOST_PATIENTS: Final = 1_000_000
MOST_SEEDS: Final = 1_000
# What `search_luck` divides by 1 - sum of squared chances, which is about 0.5, is the true variance of the score that
# chooses in the worlds of `benchmarks/null_verdicts.py`.
TRUE_SHARE: Final = 0.5
QUANTILES: Final = (np.arange(1000) + 0.5) / 1000


def usual_seeds(patients: int) -> int:
    """Returns how many seeds are trained with this number of test patients, unless the user names another number."""
    return MANY_SEEDS if patients > MANY_PATIENTS else MIN_SEEDS


@dataclass(frozen=True)
class Design:
    """What decides how small a difference of two arms can be shown.

    Attributes:
        patients: number of test patients.
        counted: those of them who determine the patients' part, as in `contrast`.
        patient_variance: expected patients' part of the variance of a difference with these patients. It is taken to
            fall with one over their number.
        seeds: number of students of each arm.
        seed_variance: expected variance s² of a score over seeds, of the treated arm and of the reference.
        searches: part of the search, of the treated arm and of the reference.
        level: confidence level of the test. With Holm's method it is that of `first_step`.
    """

    patients: int
    counted: int
    patient_variance: float
    seeds: int
    seed_variance: tuple[float, float]
    searches: tuple[SearchLuck, SearchLuck] = (FIXED, FIXED)
    level: float = LEVEL

    @classmethod
    def seen_in(cls, contrast: Contrast, patients: int, counted: int, seeds: int, level: float = LEVEL) -> Design:
        """Returns the design of a contrast that was measured with a number of seeds in each arm."""
        treated, reference = contrast.seed_variance
        seed_variance = treated * seeds, reference * seeds
        of_search = zip(contrast.search_variance, contrast.search_degrees, strict=True)
        searches = [SearchLuck(variance, degrees) for variance, degrees in of_search]
        return cls(
            patients, counted, contrast.patient_variance, seeds, seed_variance, (searches[0], searches[1]), level
        )

    @classmethod
    def of_finalists(
        cls,
        treated: Sequence[SeedScores],
        reference: Sequence[SeedScores],
        searches: tuple[SearchLuck, SearchLuck],
        patients: int,
        counted: int,
        seeds: int,
        level: float,
    ) -> Design:
        """Returns what is expected on the patients on whom the finalists of two arms were compared, but with a number
        of seeds. All finalists count, because the errors of the chosen ones are small by luck as well.
        """
        pairs = [contrast(each, other, counted) for each in treated for other in reference]
        patient_variance = float(np.mean([pair.patient_variance for pair in pairs]))
        of_seeds = [
            float(np.mean([each.variance_of_mean * each.seeds for each in arm])) for arm in (treated, reference)
        ]
        return cls(patients, counted, patient_variance, seeds, (of_seeds[0], of_seeds[1]), searches, level)

    @classmethod
    def expected(
        cls,
        patients: int,
        counted: int,
        errors: tuple[float, float],
        share: float,
        seeds: int,
        spread: float,
        trials: tuple[Floats, Floats],
        is_ranked: bool,
        level: float,
    ) -> Design:
        """Returns what is expected before any training of a confirmation.

        Args:
            errors: standard error over validation patients of a student's score, of the treated arm and of the
                reference. The errors of two arms have the correlation `CORRELATION`.
            share: number of test patients for each validation patient.
            spread: assumed standard deviation of a score over seeds.
            trials: scores of the trials of either arm, with their seeds and validation patients, in the order of the
                score that chooses.
            is_ranked: whether this is the score that chooses.
        """
        treated, reference = errors
        variance = (treated**2 + reference**2 - 2 * CORRELATION * treated * reference) / share
        own = [sqrt(spread**2 + (1 - CORRELATION) * error**2) for error in errors]
        lucks = [expected_luck(value_N, each, is_ranked) for value_N, each in zip(trials, own, strict=True)]
        return cls(patients, counted, variance, seeds, (spread**2, spread**2), (lucks[0], lucks[1]), level)

    @property
    def variance(self) -> float:
        """The expected variance of a difference as the test estimates it."""
        return (
            self.patient_variance + sum(self.seed_variance) / self.seeds + sum(each.variance for each in self.searches)
        )

    def with_patients(self, patients: int) -> Design:
        """Returns the design with another number of test patients of the same kind."""
        factor = patients / self.patients
        counted = max(2, round(self.counted * factor))
        return replace(self, patients=patients, counted=counted, patient_variance=self.patient_variance / factor)


def expected_patient_variance(auroc: float, positives: int, negatives: int, correlation: float = CORRELATION) -> float:
    """Returns the patients' part of the variance of a difference of two AUROCs, where no student has been seen.

    It is that of two students with the same AUROC (Hanley and McNeil 1982, equation 1), whose errors have a correlation
    (Hanley and McNeil 1983).

    Args:
        positives: number of patients of one class.
        negatives: number of patients of the other.
    """
    return 2 * (1 - correlation) * auroc_variance(auroc, positives, negatives)


def expected_luck(trial_N: Floats, error: float, is_ranked: bool = True) -> SearchLuck:
    """Returns what `search_luck` will probably be, before any finalist has run on fresh seeds.

    Args:
        trial_N: scores of the trials in the sweep, ordered by the score that chooses, best first.
        error: standard deviation of each, as seeds and patients cause it.
        is_ranked: whether this is the score that chooses.
    """
    if trial_N.size < 2:
        return FIXED
    luck_RN = luck_of_equal_trials(trial_N.size, error, is_ranked)
    variance = variance_of_choice(trial_N[None])[0] - variance_of_choice(luck_RN).mean()
    return SearchLuck(max(float(variance), 0.0), degrees_of_choice(trial_N.size))


def power(difference: float, design: Design) -> float:
    """Returns the probability that a true difference is claimed in a two-sided test.

    The statistic has a noncentral t distribution if there is no search. The distribution of the difference is
    integrated over that of its estimated standard error, because SciPy's function fails with many degrees of freedom.
    The luck of the search is not estimated anew, so its part of the standard error is known beforehand. It is larger
    than the part that the difference has (`TRUE_SHARE`).

    Raises:
        ValueError: the design has no variance, or an unknown one.
    """
    parts = np.array([design.patient_variance, *(each / design.seeds for each in design.seed_variance)])
    degrees_of_parts = np.array([design.counted - 1.0, design.seeds - 1.0, design.seeds - 1.0])
    searches = np.array([each.variance for each in design.searches])
    measured, search = float(parts.sum()), float(searches.sum())
    if not measured + search > 0:
        raise ValueError(f"the variances of a design have to be known, and above 0 together, got {design}")
    estimated_Q = np.full_like(QUANTILES, measured)
    if measured > 0:
        degrees = satterthwaite(parts, degrees_of_parts)
        estimated_Q = measured * gammaincinv(degrees / 2, QUANTILES) * 2 / degrees
    of_searches = [each.degrees for each in design.searches]
    degrees = satterthwaite(np.append(parts, searches), np.append(degrees_of_parts, of_searches))
    limit_Q = float(stdtrit(degrees, 0.5 + design.level / 2)) * np.sqrt(estimated_Q + search)
    true_error = sqrt(measured + TRUE_SHARE * search)
    return float((ndtr((difference - limit_Q) / true_error) + ndtr((-difference - limit_Q) / true_error)).mean())


def first_step(primaries: int) -> float:
    """Returns the confidence level at which Holm's method judges the smallest p-value of primary contrasts.

    A difference of one contrast alone is claimed if it is significant at this level, so power is computed with it.
    """
    return 1 - (1 - LEVEL) / primaries


def smallest_difference(design: Design, wanted: float = USUAL_POWER) -> float:
    """Returns the smallest true difference that is claimed with a wanted probability."""
    low, high = 0.0, 1.0
    while power(high, design) < wanted:
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, design) >= wanted else (middle, high)
    return high


def patients_needed(difference: float, design: Design, wanted: float = USUAL_POWER) -> int | None:
    """Returns the smallest number of patients with whom a true difference is claimed with a wanted probability.

    It is None if `MOST_PATIENTS` do not suffice, because the luck of the seeds or of the search is too large.
    """

    def suffice(patients: int) -> bool:
        return power(difference, design.with_patients(patients)) >= wanted

    if not suffice(MOST_PATIENTS):
        return None
    low, high = 1, MOST_PATIENTS  # of which the first does not count as enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffice(middle) else (middle, high)
    return high


def too_few_patients(rarer: int) -> str:
    """Returns why nothing can be told with so few patients of the rarer class; empty if they suffice."""
    if rarer >= MIN_RARER:
        return ""
    return (
        f"The rarer class has {rarer} {'patient' if rarer == 1 else 'patients'}; with fewer than {MIN_RARER} the "
        "uncertainty of a score is not known well enough."
    )


def too_little_power(difference: float, design: Design) -> str:
    """Returns why a difference that is not claimed may still be there; empty if it would probably have been seen.

    Args:
        difference: the smallest difference that matters, as it was declared.
    """
    chance = power(difference, design)
    if chance >= MIN_POWER:
        return ""
    if needed := patients_needed(difference, design, MIN_POWER):
        remedy = f"About {needed} patients would be needed for a chance of {MIN_POWER:.0%}."
    elif patients_needed(difference, replace(design, seeds=MOST_SEEDS), MIN_POWER):
        remedy = f"With {design.seeds} seeds no number of patients is enough, so more seeds are needed."
    else:
        remedy = "The luck of the search alone hides it, so a sweep with more trials of each arm is needed."
    return (
        f"With {design.patients} patients and {design.seeds} seeds, a true difference of {difference:g} is shown with "
        f"a chance of {chance:.0%} only. {remedy}"
    )
