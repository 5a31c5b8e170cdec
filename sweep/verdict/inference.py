"""The statistics of a verdict: contrasts of two arms on patients that no choice has seen, and which of them are claims.

The score of an arm in this sample has three sources of luck: the patients, the seeds of its students, and the search,
which might have chosen another configuration. The variance of a difference is the sum of their parts, and has the
degrees of freedom of Satterthwaite (1946). Why this rule, and how often it is wrong: docs/decisions/verdict.md.

Shape letters beside those of `types.py`: K students of an arm (one for each seed), R bootstrap replicates of the
patients, F finalists of an arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import stdtr, stdtrit

from mmpkd.scoring.stats import MIN_REPLICATES, SMALLEST_ERROR, Floats

LEVEL: Final = 0.95
NAN: Final = float("nan")


@dataclass(frozen=True)
class SeedScores:
    """Scores of students that differ by their seed only, on the same patients.

    Attributes:
        value_K: the score of each student.
        replicate_RK: the same under each bootstrap replicate of the patients (`mmpkd.scoring.stats.patient_weights`).
            Scores that are compared share their replicates.
    """

    value_K: Floats
    replicate_RK: Floats

    @property
    def seeds(self) -> int:
        return int(self.value_K.size)

    @property
    def mean(self) -> float:
        return float(self.value_K.mean())

    @property
    def variance_of_mean(self) -> float:
        """The variance of the mean over seeds, s²/K, as far as the seeds cause it."""
        return float(self.value_K.var(ddof=1)) / self.seeds


@dataclass(frozen=True)
class SearchLuck:
    """The part of the search in the variance of an arm's score (see `search_luck`), and its degrees of freedom."""

    variance: float
    degrees: float


FIXED: Final = SearchLuck(0.0, 1.0)  # a configuration that no search has chosen, or that both sides of a contrast share


@dataclass(frozen=True)
class Contrast:
    """The difference of two arms, with its uncertainty. Values that cannot be determined are NaN.

    Attributes:
        difference: mean score of the treated students minus that of the reference students.
        patient_variance: bootstrap variance of the difference over patients, with these students.
        seed_variance: the seeds' parts s²/K, of the treated arm and of the reference.
        search_variance: the search's parts, of the treated arm and of the reference.
        standard_error: the square root of the sum of all parts.
        degrees: Satterthwaite's degrees of freedom of this sum.
        low: lower end of the confidence interval.
        high: upper end.
        p: two-sided p-value of no difference.
        reason: why there is neither an interval nor a p-value; empty if there are.
        search_degrees: degrees of freedom of the search's parts.
    """

    difference: float
    patient_variance: float
    seed_variance: tuple[float, float]
    search_variance: tuple[float, float]
    standard_error: float
    degrees: float
    low: float
    high: float
    p: float
    reason: str = ""
    search_degrees: tuple[float, float] = (1.0, 1.0)


def contrast(
    treated: SeedScores,
    reference: SeedScores,
    patients: int,
    searches: tuple[SearchLuck, SearchLuck] = (FIXED, FIXED),
    level: float = LEVEL,
) -> Contrast:
    """Compares two arms on the same patients.

    The patients' part has `patients` - 1 degrees of freedom. For an AUROC the patients are those of the rarer class:
    its variance is a sum over the two classes, which has at least these degrees of freedom. The part of a seed's luck
    that differs from patient to patient is in the patients' part and in the seeds' parts, so the standard error is
    rather too large (Obuchowski and Rockette 1995 leave it out once; see docs/decisions/verdict.md).

    Args:
        patients: number of patients who determine the patients' part: those of the rarer class for an AUROC, those
            with an ROI for a score of ROIs.
        searches: what the search adds, for the treated arm and for the reference. Leave it out if both have the same
            configuration.
        level: confidence level of the interval.

    Raises:
        ValueError: an arm has fewer than two seeds, or the two arms have different numbers of replicates.
    """
    if min(treated.seeds, reference.seeds) < 2:
        raise ValueError(f"an arm needs at least two seeds, got {treated.seeds} and {reference.seeds}")
    if len(treated.replicate_RK) != len(reference.replicate_RK):
        raise ValueError("the arms do not share their replicates")
    difference = treated.mean - reference.mean
    replicate_R = treated.replicate_RK.mean(axis=1) - reference.replicate_RK.mean(axis=1)
    defined = replicate_R[np.isfinite(replicate_R)]
    patient_variance = float(defined.var(ddof=1)) if defined.size >= MIN_REPLICATES and patients > 1 else NAN
    seeds = treated.variance_of_mean, reference.variance_of_mean
    search = searches[0].variance, searches[1].variance
    parts = np.array([patient_variance, *seeds, *search])
    of_parts = np.array(
        [patients - 1, treated.seeds - 1, reference.seeds - 1, searches[0].degrees, searches[1].degrees]
    )
    error = float(np.sqrt(parts.sum()))
    reason = _no_error(difference, sum(search), error, patients)
    if reason:
        return Contrast(difference, patient_variance, seeds, search, error, NAN, NAN, NAN, NAN, reason)
    degrees = satterthwaite(parts, of_parts)
    half = float(stdtrit(degrees, 0.5 + level / 2)) * error
    p, low, high = 2 * float(stdtr(degrees, -abs(difference) / error)), difference - half, difference + half
    search_degrees = searches[0].degrees, searches[1].degrees
    return Contrast(
        difference, patient_variance, seeds, search, error, degrees, low, high, p, search_degrees=search_degrees
    )


def _no_error(difference: float, search_variance: float, error: float, patients: int) -> str:
    """Returns why a difference has no usable standard error; empty if it has."""
    if not np.isfinite(difference):
        return "A student has no score."
    if patients < 2:
        return f"The score rests on {patients} patients, so its spread over patients is unknown."
    if not np.isfinite(search_variance):
        return "An arm has a single finalist of several trials, so the luck of its search is unknown."
    if not np.isfinite(error):
        return "Too few resamplings of the patients have a score, so its spread over patients is unknown."
    if error <= SMALLEST_ERROR:
        return "The standard error is 0: all seeds and all resamplings of the patients give the same difference."
    return ""


def overlap(folds: int) -> float:
    """Returns by how much the patients' part of the variance is too small in a cross-validation, as a factor.

    The students of two folds share most of their training patients, and those of one fold are tested on training
    patients of the others. So their scores are not independent, and the bootstrap over the tested patients alone gives
    too small a variance. Nadeau and Bengio (2003, Inference for the generalization error, Machine Learning 52, section
    3) estimate the variance of a mean over J tests as (1/J + tested / trained) s² instead of s²/J. Here a fold is
    tested, another one validates, and J - 2 train, so the factor is 1 + J / (J - 2). No estimate from a single
    cross-validation is free of bias (Bengio and Grandvalet 2004), and without this factor intervals are too narrow
    (Bates, Hastie and Tibshirani 2023).

    Args:
        folds: number J of folds, at least 3.
    """
    return 1 + folds / (folds - 2)


def widened(scores: SeedScores, folds: int) -> SeedScores:
    """Returns scores over all folds of a cross-validation with replicates that scatter as much as `overlap` says."""
    factor = float(np.sqrt(overlap(folds)))
    return SeedScores(scores.value_K, scores.value_K + factor * (scores.replicate_RK - scores.value_K))


def satterthwaite(parts: Floats, degrees: Floats) -> float:
    """Returns the approximate degrees of freedom of a sum of independent variance estimates.

    Satterthwaite (1946), An approximate distribution of estimates of variance components, Biometrics Bulletin 2.

    Args:
        parts: the variances, of which at least one is above 0.
        degrees: the degrees of freedom of each.
    """
    return float(parts.sum() ** 2 / (parts**2 / degrees).sum())


def search_luck(finalists: Sequence[SeedScores], others: Floats, chosen_by: Floats | None = None) -> SearchLuck:
    """Returns how much the score of an arm would vary if its search were repeated and chose another configuration.

    Another search is a bootstrap sample of the N trials of the arm, and chooses the best trial that it holds (see
    `chances`). Finalists are ranked by their means over fresh seeds, and other trials follow in the order of their
    scores in the sweep. The variance of the score that is chosen is divided by 1 - sum of squared chances, as the
    variance of a sample is divided by (n - 1) / n. It is then right on average for a score that does not depend on the
    rank, and rather too large for the score that chooses. What it would be if all trials were equally good, and
    differed by the luck of seeds and patients only, is subtracted.

    Args:
        finalists: scores of each finalist on the seeds and patients among which one was chosen. Replicates may be
            empty; then the luck of patients is not subtracted, and the result is rather too large.
        others: scores of the other complete trials in the sweep, with a single seed. They are ordered by the score that
            chooses, best first, and were measured on the same patients.
        chosen_by: mean of each finalist in the score by which the arm's configuration was chosen, if this is another.

    Returns:
        The variance, which is not below 0, and the degrees of freedom that it has for normal scores that do not depend
        on the rank. The variance is NaN if there is one finalist of several trials, because its rivals are unknown.

    Raises:
        ValueError: there is no finalist, or a finalist has fewer than two seeds.
    """
    if not finalists or min(each.seeds for each in finalists) < 2:
        raise ValueError(f"needs finalists with at least two seeds, got {[each.seeds for each in finalists]}")
    if len(finalists) == 1:
        return FIXED if not others.size else SearchLuck(NAN, 1.0)
    mean_F = np.array([each.mean for each in finalists])
    order_F = np.argsort(-(mean_F if chosen_by is None else chosen_by), kind="stable")
    value_N = np.concatenate([mean_F[order_F], others])
    luck_RN = _luck_of_trials(finalists, others.size, is_ranked=chosen_by is None)
    variance = variance_of_choice(value_N[None])[0] - variance_of_choice(luck_RN).mean()
    return SearchLuck(max(float(variance), 0.0), degrees_of_choice(value_N.size))


def chances(trials: int) -> Floats:
    """Returns how probably each of N ranks, from the best on, is the best in a bootstrap sample of N trials.

    All N draws have at least rank r with a probability of (1 - (r - 1) / N)^N.
    """
    not_better_N1 = (1 - np.arange(trials + 1) / trials) ** trials
    return -np.diff(not_better_N1)


def variance_of_choice(value_RN: Floats) -> Floats:
    """Returns the variance of what a search chooses (see `search_luck`) for each row of values of its ranked trials."""
    chance_N = chances(value_RN.shape[1])
    spread_R = np.square(value_RN - (value_RN @ chance_N)[:, None]) @ chance_N
    variance_R: Floats = spread_R / (1 - chance_N @ chance_N)
    return variance_R


def degrees_of_choice(trials: int) -> float:
    """Returns the degrees of freedom of `variance_of_choice` for independent normal values.

    It is a quadratic form with the matrix A = diag(p) - p p' of the chances p, which has tr(A)² / tr(A²) degrees.
    """
    p = chances(trials)
    matrix = np.diag(p) - np.outer(p, p)
    return float(np.trace(matrix) ** 2 / np.square(matrix).sum())


NUM_LUCK: Final = 2000  # drawn deviations; the mean of their variances is then exact to about 2 %


def luck_of_equal_trials(
    trials: int, error: float, is_ranked: bool, generator: np.random.Generator | None = None
) -> Floats:
    """Draws deviations of trials with a single seed that are equally good, shape (R, N).

    Args:
        is_ranked: whether the score itself chooses, so that deviations are sorted, the highest first.
    """
    luck_RN = (generator or np.random.default_rng(0)).standard_normal((NUM_LUCK, trials)) * error
    return -np.sort(-luck_RN, axis=1) if is_ranked else luck_RN


def _luck_of_trials(finalists: Sequence[SeedScores], others: int, is_ranked: bool) -> Floats:
    """Draws deviations of finalists and other trials that are all equally good, as seeds and patients cause them.

    Args:
        is_ranked: whether the score itself chooses, so that the luckiest trials are finalists.

    Returns:
        luck_RN: R draws, in the order of `search_luck`.
    """
    generator, num = np.random.default_rng(0), len(finalists)
    luck_RF = generator.standard_normal((NUM_LUCK, num)) * np.sqrt([each.variance_of_mean for each in finalists])
    single_variance = float(np.mean([each.variance_of_mean * each.seeds for each in finalists]))
    replicates = [each.replicate_RK for each in finalists]
    defined_R = np.isfinite(np.concatenate(replicates, axis=1)).all(axis=1)
    if defined_R.sum() >= MIN_REPLICATES:
        # What patients do to all finalists alike does not change which is chosen.
        mean_RF = np.stack([each_RK[defined_R].mean(axis=1) for each_RK in replicates], axis=1)
        shared_R1 = mean_RF.mean(axis=1, keepdims=True)
        own_RF = mean_RF - shared_R1
        own_RF -= own_RF.mean(axis=0)
        luck_RF += own_RF[generator.integers(0, len(own_RF), NUM_LUCK)]
        own = [(each_RK[defined_R] - shared_R1).var(axis=0, ddof=1).mean() for each_RK in replicates]
        single_variance += float(np.mean(own))
    single_RN = luck_of_equal_trials(num + others, single_variance**0.5, is_ranked, generator)
    luck_RF = -np.sort(-luck_RF, axis=1) if is_ranked else luck_RF
    return np.concatenate([luck_RF, single_RN[:, num:]], axis=1)
