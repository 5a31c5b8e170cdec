"""The statistics of a verdict: contrasts of two arms on patients that no choice has seen, and which of them are claims.

The score of an arm in this sample has three sources of luck: the patients, the seeds of its students, and the search,
which might have chosen another configuration. The variance of a difference is the sum of their parts, and has the
degrees of freedom of Satterthwaite (1946). Why this rule, and how often it is wrong: docs/decisions/verdict.md.

Shape letters beside those of `types.py`: K students of an arm (one for each seed), R bootstrap replicates of the
patients, F finalists of an arm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from mmpkd.scoring.stats import MIN_REPLICATES, SMALLEST_ERROR, Floats, holm

LEVEL: Final = 0.95
NAN: Final = float("nan")
Key = TypeVar("Key")


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
    degrees: int


FIXED: Final = SearchLuck(0.0, 1)  # a configuration that no search has chosen, or that both sides of a contrast share


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
    p = 2 * float(stdtr(degrees, -abs(difference) / error))
    return Contrast(
        difference, patient_variance, seeds, search, error, degrees, difference - half, difference + half, p
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


def satterthwaite(parts: Floats, degrees: NDArray[np.int64]) -> float:
    """Returns the approximate degrees of freedom of a sum of independent variance estimates.

    Satterthwaite (1946), An approximate distribution of estimates of variance components, Biometrics Bulletin 2.

    Args:
        parts: the variances, of which at least one is above 0.
        degrees: the degrees of freedom of each.
    """
    return float(parts.sum() ** 2 / (parts**2 / degrees).sum())


def search_luck(finalists: Sequence[SeedScores], trials: int, chosen_by: Floats | None = None) -> SearchLuck:
    """Returns how much the score of an arm would vary if its search were repeated and chose another configuration.

    The trials of the arm are split at random into two halves, as if they were two searches. The best finalist is chosen
    in its half. In the other half the finalist of rank 2 is chosen if it is there, which has a probability of about
    1/2, else that of rank 3, and so on; the last finalist stands for all trials below. The expected square of the
    difference of the two chosen scores is twice the variance of a search with half as many trials, so the variance of
    the whole search is rather smaller. What this square would be if all finalists were equally good, and differed by
    the luck of seeds and patients only, is subtracted.

    Args:
        finalists: scores of each finalist on the seeds and patients among which one was chosen. Replicates may be
            empty; then the luck of patients is not subtracted, and the result is rather too large.
        trials: number N of complete trials among which the finalists were chosen.
        chosen_by: mean of each finalist in the score by which the arm's configuration was chosen, if this is another.

    Returns:
        The variance, which is not below 0. It is NaN if there is one finalist of several trials, because its rivals
        are unknown.

    Raises:
        ValueError: there are more finalists than trials, or a finalist has fewer than two seeds.
    """
    if not 1 <= len(finalists) <= trials:
        raise ValueError(f"{len(finalists)} finalists among {trials} trials")
    if min(each.seeds for each in finalists) < 2:
        raise ValueError("a finalist needs at least two seeds")
    if len(finalists) == 1:
        return FIXED if trials == 1 else SearchLuck(NAN, 1)
    mean_F = np.array([each.mean for each in finalists])
    order_F = np.argsort(-(mean_F if chosen_by is None else chosen_by), kind="stable")
    apart = _squared_difference_of_halves(mean_F[None, order_F], trials)[0]
    by_luck_RF = np.sort(_luck_of_finalists(finalists), axis=1)[:, ::-1]
    by_luck = _squared_difference_of_halves(by_luck_RF, trials).mean()
    return SearchLuck(max(float(apart - by_luck) / 2, 0.0), len(finalists) - 1)


def _squared_difference_of_halves(value_RF: Floats, trials: int) -> Floats:
    """Returns the expected squared difference of what two halves of the trials choose, for each row of the values of
    ranked finalists, shape (R,).
    """
    expected_R, remaining = np.zeros(len(value_RF)), 1.0
    last = value_RF.shape[1] - 1
    for place in range(1, last + 1):
        in_other_half = 1.0 if place == last else trials / 2 / (trials - place)
        expected_R += remaining * in_other_half * np.square(value_RF[:, place] - value_RF[:, 0])
        remaining *= 1 - in_other_half
    return expected_R


NUM_LUCK: Final = 4000  # drawn deviations; the mean of their variances is then exact to about 2 %


def _luck_of_finalists(finalists: Sequence[SeedScores]) -> Floats:
    """Draws deviations of the finalists' mean scores as seeds and patients cause them, shape (R, F)."""
    generator = np.random.default_rng(0)
    error_F = np.sqrt([each.variance_of_mean for each in finalists])
    luck_RF = generator.standard_normal((NUM_LUCK, len(finalists))) * error_F
    replicate_RF = np.stack([each.replicate_RK.mean(axis=1) for each in finalists], axis=1)
    replicate_RF = replicate_RF[np.isfinite(replicate_RF).all(axis=1)]
    if len(replicate_RF) >= MIN_REPLICATES:
        deviation_RF = replicate_RF - replicate_RF.mean(axis=0)
        luck_RF += deviation_RF[generator.integers(0, len(deviation_RF), NUM_LUCK)]
    return luck_RF


@dataclass(frozen=True)
class Decision:
    """Whether a primary contrast is a claim.

    Attributes:
        adjusted_p: Holm's adjusted p-value; NaN if the contrast has no p-value.
        claimed: whether a difference is claimed.
    """

    adjusted_p: float
    claimed: bool


def decide(primaries: Mapping[Key, Contrast], level: float = LEVEL) -> dict[Key, Decision]:
    """Decides which primary contrasts are claims. The probability of any false claim is at most 1 - level.

    A contrast without a p-value is no claim. It still counts as a member of the family, whose size was declared before.
    """
    p_values = np.array([each.p for each in primaries.values()])
    adjusted = holm(np.where(np.isnan(p_values), 1.0, p_values))
    return {
        key: Decision(NAN if np.isnan(p) else adjusted_p, bool(adjusted_p < 1 - level))
        for key, p, adjusted_p in zip(primaries, p_values.tolist(), adjusted.tolist(), strict=True)
    }
