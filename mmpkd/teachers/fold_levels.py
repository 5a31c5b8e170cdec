"""Brings the five fold models of a teacher to one level, so that their logits are comparable."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmpkd.types import Task


def level_offsets(
    logits_NK: NDArray[np.float32],
    fold_N: NDArray[np.int64],
    patient_N: NDArray[np.int64],
    tasks: Sequence[Task],
    num_folds: int,
) -> NDArray[np.float32]:
    """Returns the offsets (F, K) to add to the logits of each fold's model.

    The level of a model is its mean logit. Offsets are 0 where levels differ only by chance.

    A weakly trained model ranks its samples well, but its initial weights place all of them too high or too low. A
    student that learns from five such models learns the differences between their levels, and the logits of all folds
    together rank worse than those of each fold. Patients are distributed evenly over folds. So the mean logit of each
    fold is moved towards the mean over folds, by the share of its distance that differences between models explain,
    tau^2 / (tau^2 + s^2 / n), where s^2 / n is the sampling variance of the fold's mean (n patients) and tau^2 the
    variance between folds beyond this sampling variance (DerSimonian and Laird 1986). Well trained models hardly
    change. Labels are not used, so no label can leak. The order of the logits within a fold and their differences stay
    the same.

    Args:
        logits_NK: out-of-fold logits, NaN where the teacher has no output.
    """
    level_NK = logits_NK.astype(np.float64)
    for task in tasks:
        if task.kind == "multiclass":  # a softmax does not change when the same number is added to all classes
            level_NK[:, task.columns] -= level_NK[:, task.columns].mean(axis=1, keepdims=True)
    covered_N = np.isfinite(level_NK).all(axis=1)
    added_FK = np.zeros((num_folds, level_NK.shape[1]))
    measured = [fold for fold in range(num_folds) if (covered_N & (fold_N == fold)).sum() > 1]
    if len(measured) < 2:
        return added_FK.astype(np.float32)
    mean_FK, error_FK = np.empty((2, len(measured), level_NK.shape[1]))
    for row, fold in enumerate(measured):
        rows = np.flatnonzero(covered_N & (fold_N == fold))
        mean_FK[row] = level_NK[rows].mean(axis=0)
        error_FK[row] = level_NK[rows].var(axis=0, ddof=1) / len(np.unique(patient_N[rows]))
    between_K = np.maximum(mean_FK.var(axis=0, ddof=1) - error_FK.mean(axis=0), 0.0)
    total_FK = between_K + error_FK
    share_FK = np.divide(between_K, total_FK, out=np.zeros_like(total_FK), where=total_FK > 0)
    added_FK[measured] = share_FK * (mean_FK.mean(axis=0) - mean_FK)
    return added_FK.astype(np.float32)
