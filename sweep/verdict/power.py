"""What difference a test part can show with some seeds, and when a verdict has to say that it cannot tell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import Final

import numpy as np
from scipy.special import gammaincinv, ndtr, stdtrit

from mmpkd.scoring.stats import auroc_variance
from sweep.verdict.inference import LEVEL, Contrast, satterthwaite

MIN_RARER: Final = 10  # patients of the rarer class; with fewer, errors of an AUROC are not to be trusted
MIN_POWER: Final = 0.5
USUAL_POWER: Final = 0.8
MIN_SEEDS: Final = 5
MANY_PATIENTS, MANY_SEEDS = 300, 10  # with more test patients than this, seeds limit the power, and ten are trained
CORRELATION: Final = 0.5  # over patients, of the scores of two arms' students, where nothing is known
MOST_PATIENTS: Final = 1_000_000
# Two halves of a search show more luck than the whole: about four times its variance in the worlds of
# `benchmarks/null_verdicts.py`.
TRUE_SHARE: Final = 0.25
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
        search_variance: expected part of the search, of both arms together.
        search_degrees: degrees of freedom of this part.
    """

    patients: int
    counted: int
    patient_variance: float
    seeds: int
    seed_variance: tuple[float, float]
    search_variance: float = 0.0
    search_degrees: int = 4  # of two arms with three finalists each

    @classmethod
    def seen_in(cls, contrast: Contrast, patients: int, counted: int, seeds: int) -> Design:
        """Returns the design of a contrast that was measured with a number of seeds in each arm."""
        treated, reference = contrast.seed_variance
        seed_variance = treated * seeds, reference * seeds
        return cls(patients, counted, contrast.patient_variance, seeds, seed_variance, sum(contrast.search_variance))

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


def power(difference: float, design: Design, level: float = LEVEL) -> float:
    """Returns the probability that a true difference is claimed in a two-sided test.

    The statistic has a noncentral t distribution if there is no search. The distribution of the difference is
    integrated over that of its estimated standard error, because SciPy's function fails with many degrees of freedom,
    and because the standard error counts more luck of the search than the difference has.

    Raises:
        ValueError: the design has no variance, or an unknown one.
    """
    parts = np.array([design.patient_variance, *(each / design.seeds for each in design.seed_variance)])
    parts = np.append(parts, design.search_variance)
    degrees_of_parts = np.array([design.counted - 1, design.seeds - 1, design.seeds - 1, design.search_degrees])
    error = sqrt(parts.sum())
    if not error > 0:
        raise ValueError(f"the variances of a design have to be known, and above 0 together, got {parts.tolist()}")
    degrees = satterthwaite(parts, degrees_of_parts)
    true_error = sqrt(parts.sum() - (1 - TRUE_SHARE) * design.search_variance)
    estimated_Q = error * np.sqrt(gammaincinv(degrees / 2, QUANTILES) * 2 / degrees)
    limit_Q = float(stdtrit(degrees, 0.5 + level / 2)) * estimated_Q
    return float((ndtr((difference - limit_Q) / true_error) + ndtr((-difference - limit_Q) / true_error)).mean())


def smallest_difference(design: Design, wanted: float = USUAL_POWER, level: float = LEVEL) -> float:
    """Returns the smallest true difference that is claimed with a wanted probability."""
    low, high = 0.0, 1.0
    while power(high, design, level) < wanted:
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, design, level) >= wanted else (middle, high)
    return high


def patients_needed(difference: float, design: Design, wanted: float = USUAL_POWER, level: float = LEVEL) -> int | None:
    """Returns the smallest number of patients with whom a true difference is claimed with a wanted probability.

    It is None if `MOST_PATIENTS` do not suffice, because the luck of the seeds or of the search is too large.
    """

    def suffice(patients: int) -> bool:
        return power(difference, design.with_patients(patients), level) >= wanted

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


def too_little_power(difference: float, design: Design, level: float = LEVEL) -> str:
    """Returns why a difference that is not claimed may still be there; empty if it would probably have been seen.

    Args:
        difference: the smallest difference that matters, as it was declared.
    """
    chance = power(difference, design, level)
    if chance >= MIN_POWER:
        return ""
    needed = patients_needed(difference, design, MIN_POWER, level)
    remedy = (
        f"With {design.seeds} seeds no number of patients is enough, so more seeds are needed."
        if needed is None
        else f"About {needed} patients would be needed for a chance of {MIN_POWER:.0%}."
    )
    return (
        f"With {design.patients} patients and {design.seeds} seeds, a true difference of {difference:g} is shown with "
        f"a chance of {chance:.0%} only. {remedy}"
    )
