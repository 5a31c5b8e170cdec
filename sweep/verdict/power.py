"""What difference a test part can show with some seeds, and when a verdict has to say that it cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Final

import numpy as np
from scipy.special import gammaincinv, ndtr, stdtrit

from mmpkd.scoring.stats import MIN_REPLICATES, Floats
from sweep.verdict.inference import (
    FIXED,
    LEVEL,
    NAN,
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
# Over patients, of the scores of two students, where nothing is known: of two arms, and of one configuration. The
# second says that seeds cause half of what two arms do not share.
CORRELATION: Final = 0.5
CORRELATION_OF_SEEDS: Final = 0.75
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
        patient_variance: expected patients' part of the variance of a difference with these patients, without
            `own_variance`. It is taken to fall with one over their number.
        seeds: number of students of each arm.
        seed_variance: expected variance s² of a score over seeds, of the treated arm and of the reference.
        searches: part of the search, of the treated arm and of the reference.
        level: confidence level of the test. With Holm's method it is that of `first_step`.
        own_variance: the part of `seed_variance` that comes from the luck of a student with each patient, which other
            seeds do not share. It falls with one over the number of patients. The test counts it twice: in the
            patients' part, and in s².
    """

    patients: int
    counted: int
    patient_variance: float
    seeds: int
    seed_variance: tuple[float, float]
    searches: tuple[SearchLuck, SearchLuck] = (FIXED, FIXED)
    level: float = LEVEL
    own_variance: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def measured(
        cls,
        treated: Sequence[SeedScores],
        reference: Sequence[SeedScores],
        searches: tuple[SearchLuck, SearchLuck],
        patients: int,
        counted: int,
        seeds: int,
        level: float,
        overlap: float = 1.0,
    ) -> Design:
        """Returns what is expected of a number of seeds on the patients on whom students of two arms were scored.

        Args:
            treated: the scores of the configuration that was tested; before, those of all finalists, because the errors
                of the chosen one are small by luck as well. Those of the reference are given alike.
            overlap: by how much the variance of the replicates was widened (`inference.widened`).
        """
        pairs = [contrast(each, other, counted) for each in treated for other in reference]
        patient_variance = float(np.mean([pair.patient_variance for pair in pairs]))
        of_seeds, own = [], []
        for arm in (treated, reference):
            of_seeds.append(float(np.mean([each.variance_of_mean * each.seeds for each in arm])))
            own.append(min(float(np.mean([_own_variance(each) for each in arm])) / overlap, of_seeds[-1]))
            patient_variance -= own[-1] / arm[0].seeds
        seed_variance, own_variance = (of_seeds[0], of_seeds[1]), (own[0], own[1])
        patient_variance = max(patient_variance, 0.0)
        return cls(patients, counted, patient_variance, seeds, seed_variance, searches, level, own_variance)

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
                reference. The errors of two students of different arms have the correlation `CORRELATION`, those of
                one configuration `CORRELATION_OF_SEEDS`.
            share: number of test patients for each validation patient.
            spread: assumed standard deviation of a score over seeds.
            trials: scores of the trials of either arm, with their seeds and validation patients, in the order of the
                score that chooses.
            is_ranked: whether this is the score that chooses.
        """
        treated, reference = errors
        shared = CORRELATION_OF_SEEDS * (treated**2 + reference**2) - 2 * CORRELATION * treated * reference
        own = [(1 - CORRELATION_OF_SEEDS) * error**2 / share for error in errors]
        of_trials = [sqrt(spread**2 + (1 - CORRELATION) * error**2) for error in errors]
        lucks = [expected_luck(value_N, each, is_ranked) for value_N, each in zip(trials, of_trials, strict=True)]
        seed_variance, searches = (spread**2 + own[0], spread**2 + own[1]), (lucks[0], lucks[1])
        variance = max(shared, 0.0) / share
        return cls(patients, counted, variance, seeds, seed_variance, searches, level, (own[0], own[1]))

    @property
    def parts(self) -> Floats:
        """The expected parts of patients and of either arm's seeds, as the test estimates them, shape (3,)."""
        of_patients = self.patient_variance + sum(self.own_variance) / self.seeds
        return np.array([of_patients, *(each / self.seeds for each in self.seed_variance)])

    @property
    def variance(self) -> float:
        """The expected variance of a difference as the test estimates it."""
        return float(self.parts.sum()) + sum(each.variance for each in self.searches)

    def widened(self, factor: float) -> Design:
        """Returns the design with a patients' part that is larger by a factor, as the test estimates it in folds."""
        more = (factor - 1) * float(self.parts[0])
        return replace(self, patient_variance=self.patient_variance + more)

    def with_patients(self, patients: int) -> Design:
        """Returns the design with another number of test patients of the same kind."""
        factor = patients / self.patients
        counted = max(2, round(self.counted * factor))
        own = self.own_variance[0] / factor, self.own_variance[1] / factor
        lasting = np.subtract(self.seed_variance, self.own_variance)
        seed_variance = float(lasting[0] + own[0]), float(lasting[1] + own[1])
        variance = self.patient_variance / factor
        return Design(patients, counted, variance, self.seeds, seed_variance, self.searches, self.level, own)


def _own_variance(scores: SeedScores) -> float:
    """Returns the variance over patients of the score of one student, as far as the other seeds do not share it.

    It is an estimate from the bootstrap, and NaN with too few defined replicates.
    """
    defined_RK = scores.replicate_RK[np.isfinite(scores.replicate_RK).all(axis=1)]
    if len(defined_RK) < MIN_REPLICATES:
        return NAN
    own_RK = defined_RK - defined_RK.mean(axis=1, keepdims=True)
    return float(own_RK.var(axis=0, ddof=1).sum()) / (scores.seeds - 1)


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

    Raises:
        ValueError: the design has no variance, or an unknown one.
    """
    return _claimed(difference, *_errors(design))


def _claimed(difference: float, limit_Q: Floats, true_error: float) -> float:
    return float((ndtr((difference - limit_Q) / true_error) + ndtr((-difference - limit_Q) / true_error)).mean())


def _errors(design: Design) -> tuple[Floats, float]:
    """Returns the limits above which a difference is claimed, over the quantiles of its estimated standard error, and
    its true standard error.

    The statistic has a noncentral t distribution if there is no search. The distribution of the difference is
    integrated over that of its estimated standard error, because SciPy's function fails with many degrees of freedom.
    The luck of the search is not estimated anew, so its part of the standard error is known beforehand. The standard
    error is larger than that of the difference, because one part counts twice (`Design.own_variance`), and the search's
    part is too large (`TRUE_SHARE`).
    """
    parts = design.parts
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
    return limit_Q, sqrt(measured - sum(design.own_variance) / design.seeds + TRUE_SHARE * search)


def first_step(primaries: int) -> float:
    """Returns the confidence level at which Holm's method judges the smallest p-value of primary contrasts.

    A difference of one contrast alone is claimed if it is significant at this level, so power is computed with it.
    """
    return 1 - (1 - LEVEL) / primaries


def smallest_difference(design: Design, wanted: float = USUAL_POWER) -> float:
    """Returns the smallest true difference that is claimed with a wanted probability."""
    errors, low, high = _errors(design), 0.0, 1.0
    while _claimed(high, *errors) < wanted:
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if _claimed(middle, *errors) >= wanted else (middle, high)
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
