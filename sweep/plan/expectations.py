"""Computes expectations for the plan: epochs of a trial under halving, the size of the Pareto front, the maximum of
several draws, and the standard error of AUROC.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from mmpkd.cohort.store import Store
from mmpkd.scoring.stats import auroc_variance
from sweep.verdict.inference import LEVEL
from sweep.verdict.power import USUAL_POWER, Design, smallest_difference, usual_seeds


def expected_epochs(trials: float, epochs: int, rungs: Sequence[int], reduction: int) -> float:
    """Returns the mean number of epochs of a trial under asynchronous halving, if trials arrive in random order of
    quality.

    The i-th trial that arrives at a rung continues with probability 1 - (h + 1)/i, where h = (i - 2)(1 - 1/reduction).
    The reason: the trial has to beat an interpolated percentile of the i - 1 earlier trials, and (h + 1)/i is the
    expectation of this percentile for uniform values. The first trial always continues. A rung with few trials
    therefore stops fewer of them than 1/reduction suggests.
    """
    arriving, total, last_rung = trials, 0.0, 0
    for rung in rungs:
        total += arriving * (rung - last_rung)
        arriving, last_rung = _expected_survivors(arriving, reduction), rung
    return (total + arriving * (epochs - last_rung)) / trials if trials else float(epochs)


def _expected_survivors(arriving: float, reduction: int) -> float:
    full = math.floor(arriving)
    chances = [1.0] + [1 - ((i - 2) * (1 - 1 / reduction) + 1) / i for i in range(2, full + 2)]
    return float(sum(chances[:full]) + (arriving - full) * chances[full])


def expected_front(trials: float, goals: int) -> float:
    """Returns the expected number of trials that are on the Pareto front when they end, if the goals are independent.

    The i-th trial to end is on the front of the first i trials with probability M_d(i)/i, where d is the number of
    goals, M_1 = 1, and M_d(i) is the sum over j <= i of M_{d-1}(j)/j (Bentley et al. 1978). The result is the sum of
    these probabilities.
    """
    count = max(round(trials), 1)
    maxima = np.ones(count)
    for _ in range(goals - 1):
        maxima = np.cumsum(maxima / np.arange(1, count + 1))
    return float(np.sum(maxima / np.arange(1, count + 1)))


def expected_behind(trials: float, goals: int, width: int) -> float:
    """Returns the expected number of trials behind the Pareto front of one or two independent goals that fewer than
    `width` others dominate.

    With one goal these are the best without the first. With two goals, fewer than `width` of the j - 1 trials that are
    better in the first goal than the j-th are better in the second with probability min(1, width/j), because its rank
    in the second goal among these j is uniform. The front is the case of a width of 1.
    """
    count = max(round(trials), 1)
    if goals == 1:
        return float(min(width, count) - 1)
    ranks = np.arange(1, count + 1)
    return float(np.sum(np.minimum(1, width / ranks) - 1 / ranks))


def expected_maximum(draws: int) -> float:
    """Returns the expected maximum of independent draws from the standard normal distribution.

    With the distribution function F of one draw, the maximum of n draws has the distribution function F^n, so its mean
    is the integral of 1 - F(x)^n - F(-x)^n over all positive x.
    """
    grid = np.linspace(0.0, 10.0, 10_001)
    return float(np.trapezoid(1 - ndtr(grid) ** draws - ndtr(-grid) ** draws, grid))


def validation_folds(store: Store, fold: int, repeats: int) -> list[int]:
    """Returns the folds on which the seeds of a configuration validate. Each seed has the next fold, if the patients
    are divided into folds.

    Args:
        fold: the fold of the first seed.
        repeats: the number of seeds.
    """
    return [(fold + turn) % store.num_folds for turn in range(min(repeats, store.num_folds))]


def auroc_error(store: Store, fold: int, repeats: int = 1) -> float:
    """Returns the standard error over patients of the mean AUROC over labels on validation, if each label has AUROC
    0.75.

    The error of each label is from Hanley & McNeil 1982, eq. 1. The sample sizes are numbers of patients.

    Args:
        fold: the validation fold of the first seed.
        repeats: the number of seeds of a configuration. The result is the standard error of the mean over the folds of
            these seeds (see `validation_folds`).

    Returns:
        The standard error, or NaN if no label has two classes.
    """
    folds = validation_folds(store, fold, repeats)
    return _error_of_average([_auroc_error_on(store, store.rows("val", each)) for each in folds])


def _auroc_error_on(store: Store, rows: NDArray[np.int64]) -> float:
    errors = []
    for target_N, known_N in zip(store.target_NK[rows].T, store.known_NK[rows].T, strict=True):
        patients = store.patient_N[rows]
        positive = len(np.unique(patients[known_N & (target_N == 1)]))
        negative = len(np.unique(patients[known_N & (target_N == 0)]))
        if positive and negative:
            errors.append(math.sqrt(auroc_variance(0.75, positive, negative)))
    return _error_of_average(errors)


def _error_of_average(errors: Sequence[float]) -> float:
    """Returns the standard error of the average of independent values, or NaN if there is no value."""
    return math.sqrt(sum(error**2 for error in errors)) / len(errors) if errors else math.nan


def shown_by_test_part(store: Store, fold: int) -> list[str]:
    """Returns a sentence on the smallest difference of AUROC that a confirmation on the sealed test part will probably
    show, or no sentence if there is no test part. Of the test part only the number of patients is read.

    Args:
        fold: the validation fold, whose share of the rarer class is taken for that of the test part.
    """
    tested, validated = (
        len(np.unique(store.patient_N[rows])) for rows in (store.rows("test"), store.rows("val", fold))
    )
    error = auroc_error(store, fold)
    if not (tested and math.isfinite(error)):
        return []
    no_trials = np.empty(0), np.empty(0)
    errors, share = (error, error), tested / validated
    design = Design.expected(tested, tested, errors, share, usual_seeds(tested), 0.0, no_trials, True, LEVEL)
    difference = smallest_difference(design)
    return [
        f"the sealed test part has {tested} patients; with them sweep.confirm shows a difference of AUROC of at least "
        f"{difference:.2f} in {USUAL_POWER:.0%} of cases, around an AUROC of 0.75"
    ]
