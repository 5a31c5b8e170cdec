"""Uncertainty of scores: patient bootstrap with shared replicates, DeLong's errors of AUROCs, paired intervals,
adjusted p-values.

Replicates are drawn once per validation set, as weights (how often each sample counts), and used for every score, so
that scores are compared on the same replicates and no array is resampled. Where every sample is of another patient, an
AUROC has DeLong's error instead, whose intervals hold in small samples (see docs/decisions/scores.md). Shape letters
beside those of `types.py`: R replicates, L columns of scores.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, stdtrit

Floats = NDArray[np.float64]

MIN_REPLICATES = 20  # fewer defined replicates do not determine a spread
SMALLEST_ERROR = 1e-9  # a smaller standard error is only rounding and counts as 0
NORMAL_95 = 1.959964  # the 97.5th percentile of the normal distribution


class Interval(NamedTuple):
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


def patient_weights(patient_N: NDArray[Any], replicates: int = 200, seed: int = 0) -> Floats:
    """Returns how often each sample counts in each replicate of a patient (cluster) bootstrap.

    Each replicate draws patients with replacement; the number of draws is the number of patients. All samples of a
    patient are drawn together.

    Returns:
        weight_RN: non-negative whole numbers.
    """
    _, code_N = np.unique(patient_N, return_inverse=True)
    num_patients = int(code_N.max()) + 1
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(num_patients, np.full(num_patients, 1 / num_patients), size=replicates)
    return drawn[:, code_N].astype(np.float64)


def weighted_auroc(score_NL: Floats, positive_NL: NDArray[Any], known_NL: NDArray[Any], weight_RN: Floats) -> Floats:
    """Returns the area under the ROC curve of each column under the weights of each replicate; ties count half.

    It is the share of (positive, negative) pairs in the right order, where a pair weighs the product of its two
    weights; weights of 1 give the ordinary AUROC.

    Returns:
        auroc_RL: NaN where a replicate has no positive or no negative.
    """
    auroc_RL = np.full((weight_RN.shape[0], score_NL.shape[1]), np.nan)
    for column in range(score_NL.shape[1]):
        known_N, is_positive_N = known_NL[:, column] > 0, positive_NL[:, column] > 0
        positives, negatives = np.flatnonzero(known_N & is_positive_N), np.flatnonzero(known_N & ~is_positive_N)
        negatives = negatives[np.argsort(score_NL[negatives, column])]
        weighed_R1 = np.zeros((len(weight_RN), negatives.size + 1))  # weight of so many of the lowest negatives
        np.cumsum(weight_RN[:, negatives], axis=1, out=weighed_R1[:, 1:])
        below, not_above = (
            np.searchsorted(score_NL[negatives, column], score_NL[positives, column], side)
            for side in ("left", "right")
        )
        positive_RP = weight_RN[:, positives]
        ordered_R = np.einsum("rp,rp->r", positive_RP, weighed_R1[:, below] + weighed_R1[:, not_above]) / 2
        pairs_R = positive_RP.sum(axis=1) * weighed_R1[:, -1]
        auroc_RL[:, column] = np.divide(ordered_R, pairs_R, out=np.full_like(pairs_R, np.nan), where=pairs_R > 0)
    return auroc_RL


def auroc_within(
    score_NL: Floats, positive_NL: NDArray[Any], known_NL: NDArray[Any], weight_RN: Floats, group_N: NDArray[Any]
) -> Floats:
    """Returns `weighted_auroc` over the pairs whose two samples are of one group.

    Samples of different folds are scored by different students, whose outputs need not have the same scale. Pairs of
    such samples would lower or raise the area although no student ranks any patient otherwise (Airola et al. 2011, An
    experimental comparison of cross-validation techniques, Computational Statistics and Data Analysis 55). So the area
    is the mean of the areas of the groups, weighted by the number of their pairs.

    Args:
        group_N: the group of each sample.

    Returns:
        auroc_RL: NaN where no group of a replicate has both classes.
    """
    groups = np.unique(group_N)
    if len(groups) == 1:
        return weighted_auroc(score_NL, positive_NL, known_NL, weight_RN)
    ordered_RL, pairs_RL = np.zeros((2, weight_RN.shape[0], score_NL.shape[1]))
    for group in groups:
        of_group = np.flatnonzero(group_N == group)
        positive_nL, known_nL, weight_Rn = positive_NL[of_group] > 0, known_NL[of_group] > 0, weight_RN[:, of_group]
        area_RL = weighted_auroc(score_NL[of_group], positive_nL, known_nL, weight_Rn)
        pairs_of_group_RL = (weight_Rn @ (known_nL & positive_nL)) * (weight_Rn @ (known_nL & ~positive_nL))
        ordered_RL += np.where(pairs_of_group_RL > 0, area_RL, 0.0) * pairs_of_group_RL
        pairs_RL += pairs_of_group_RL
    return np.divide(ordered_RL, pairs_RL, out=np.full_like(pairs_RL, np.nan), where=pairs_RL > 0)


def auroc_influence(score_NL: Floats, positive_NL: NDArray[Any], known_NL: NDArray[Any]) -> Floats:
    """Returns the influence of each sample on the AUROC of each column, from which `delong_error` follows.

    The placement of a positive sample is the share of the negative samples below it (ties count half), and that of a
    negative sample is the share of the positive samples above it. The mean placement of either class is the AUROC. The
    influence of a sample is (placement - AUROC) / sqrt(m (m - 1)), where m is the size of its class. The sum of the
    squared influences of a column is the variance of DeLong et al. (1988). The sum of the products of two columns is
    their covariance, also if the labels of the columns differ or are unknown for some samples: a sample has no
    influence on a column in which its label is unknown. Placements come from sorted scores, as in Sun & Xu (2014).

    The spread within a class of one sample cannot be estimated. The largest possible variance of its placement is used
    instead, AUROC (1 - AUROC).

    Returns:
        influence_NL: 0 in a column without both classes.
    """
    influence_NL = np.zeros(score_NL.shape)
    for column in range(score_NL.shape[1]):
        score_N, known_N, is_positive_N = score_NL[:, column], known_NL[:, column] > 0, positive_NL[:, column] > 0
        positives, negatives = (np.flatnonzero(known_N & side_N) for side_N in (is_positive_N, ~is_positive_N))
        if not (positives.size and negatives.size):
            continue
        for rows, others, sign in ((positives, negatives, 1), (negatives, positives, -1)):
            scores, ordered, size = sign * score_N[rows], np.sort(sign * score_N[others]), rows.size
            below, not_above = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
            placement = (below + not_above) / (2 * others.size)
            mean = placement.mean()
            if size > 1:
                influence_NL[rows, column] = (placement - mean) / np.sqrt(size * (size - 1))
            else:
                influence_NL[rows, column] = np.sqrt(mean * (1 - mean))
    return influence_NL


def delong_error(influence_N: Floats) -> float:
    """Returns DeLong's standard error of an AUROC, or of a mean of AUROCs, if every sample is of another patient.

    It is NaN if no sample has an influence, because all positive samples score above all negative ones, for example.

    Args:
        influence_N: a column of `auroc_influence`; for a mean of AUROCs, the same mean of the columns.
    """
    error = float(np.sqrt(np.square(influence_N).sum()))
    return error if error > SMALLEST_ERROR else float("nan")


def auroc_variance(area: float, positives: int, negatives: int) -> float:
    """Returns the expected variance of an AUROC over samples of two classes (Hanley & McNeil 1982, equation 1)."""
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    spread = (positives - 1) * (first - area**2) + (negatives - 1) * (second - area**2)
    return (area * (1 - area) + spread) / (positives * negatives)


def logit_interval(value: float, error: float) -> Interval:
    """Returns the 95 % interval of a value between 0 and 1 that is symmetric on the logit scale.

    The standard error of logit(value) is error / (value (1 - value)). The ends never leave the range from 0 to 1. They
    are NaN if the error is unknown.
    """
    if not (0 < value < 1 and np.isfinite(error)):
        return Interval(value, float("nan"), float("nan"))
    half = NORMAL_95 * error / (value * (1 - value))
    return Interval(value, float(expit(logit(value) - half)), float(expit(logit(value) + half)))


def normal_interval(value: float, error: float) -> Interval:
    """Returns the 95 % interval of a value of any size, such as a difference of two scores, from its standard error.

    It is symmetric, with `NORMAL_95` standard errors on each side. The ends are NaN if the error is unknown.
    """
    half = NORMAL_95 * error if np.isfinite(error) else float("nan")
    return Interval(value, value - half, value + half)


def weighted_mean(value_NL: Floats, weight_RN: Floats) -> Floats:
    """Returns the mean of each column under each replicate's weights. NaN values in a column are left out of its mean.

    Returns:
        mean_RL: NaN where a replicate holds no value of a column.
    """
    known_NL = np.isfinite(value_NL)
    total_RL = weight_RN @ np.where(known_NL, value_NL, 0.0)
    count_RL = weight_RN @ known_NL.astype(np.float64)
    return np.divide(total_RL, count_RL, out=np.full_like(total_RL, np.nan), where=count_RL > 0)


def macro(value_RL: Floats) -> Floats:
    """Returns the unweighted mean over the columns of each row; NaN if a column is NaN or there is no column.

    A mean over the labels that happen to be defined in a row would compare different sets of labels. So the caller
    fixes the columns first, and a row in which one of these columns is NaN gives NaN.
    """
    return value_RL.mean(axis=1) if value_RL.shape[1] else np.full(value_RL.shape[0], np.nan)


def standard_error(replicate_R: Floats) -> float:
    """Returns the bootstrap standard error: the standard deviation over the defined replicates.

    It is NaN with fewer than `MIN_REPLICATES` defined replicates, and if all are equal: an AUROC of 1 in three
    patients, for example, is not known exactly.
    """
    defined = replicate_R[np.isfinite(replicate_R)]
    return float(defined.std(ddof=1)) if defined.size >= MIN_REPLICATES and np.ptp(defined) > 0 else float("nan")


def is_all_equal(score: float, error: float) -> bool:
    """Returns whether a score has no standard error because every resampling of the patients gives the same score.

    This is so if all its parts are equal: a mean of scores between 0 and 1 is 0 or 1 only then, and an AUROC without an
    error is 0, 1, or the 0.5 of constant predictions. Another score without an error (NaN) has too few patients.
    """
    return error <= SMALLEST_ERROR or (bool(np.isnan(error)) and score in (0.0, 0.5, 1.0))


def paired_interval(differences: ArrayLike, level: float = 0.95) -> Interval:
    """Returns the mean of a few paired differences (one per seed) with Student's t interval.

    Raises:
        ValueError: there are fewer than two differences, or a difference is not finite.
    """
    values = np.asarray(differences, dtype=np.float64).ravel()
    if values.size < 2 or not np.isfinite(values).all():
        raise ValueError(f"a paired interval needs at least two finite differences, got {values.tolist()}")
    mean = float(values.mean())
    half = float(stdtrit(values.size - 1, 0.5 + level / 2) * values.std(ddof=1) / np.sqrt(values.size))
    return Interval(mean, mean - half, mean + half)


def holm(p_values: ArrayLike) -> Floats:
    """Returns Holm's adjusted p-values (1979) of a family of tests, in the order given.

    If all hypotheses with adjusted p-values below alpha are rejected, the probability of any false rejection is at most
    alpha, whatever the dependence between the tests.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return adjusted
