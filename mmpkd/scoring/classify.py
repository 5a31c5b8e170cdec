"""Classification scores of a split: AUROC, AP, Brier score and calibration error, per label and over tasks.

A label has an AUROC and an AP if the split holds both of its classes; otherwise they are NaN, left out of the means
and counted. Every headline number is the unweighted mean over tasks. AUROC and AP rank by log odds, which order
samples as probabilities do, but never saturate into ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logsumexp, softmax, xlogy

from mmpkd.scoring.stats import Floats, auroc_influence, delong_error, macro, standard_error, weighted_auroc
from mmpkd.types import Task

Bools = NDArray[np.bool_]

NUM_BINS = 15  # number of bins of the calibration error, of equal width over [0, 1]


def score(
    logits_NK: ArrayLike,
    target_NK: ArrayLike,
    known_NK: ArrayLike,
    tasks: Sequence[Task],
    weight_RN: Floats | None = None,
) -> dict[str, float]:
    """Returns every classification metric of a split.

    `auroc`, `ap`: per task the mean over its labels that have both classes (a binary task has one
    label, its positive class; a multi-class task is scored one class against the rest).
    `brier`: binary mean (p - y)^2; multi-class summed over classes; multi-label mean over labels.
    `ece`: binary on P(positive); multi-class on the confidence of the top class; multi-label mean
    over labels (Guo et al. 2017, eq. 3, 15 bins of equal width).
    `balanced_accuracy`: for a multi-class task, which predicts its likeliest class, the mean recall of the classes
    that occur; for every other label the mean of sensitivity and specificity at a probability of 0.5 (no threshold is
    tuned), then the mean over the labels with both classes.
    `auroc_se` is the standard error over patients.

    Args:
        weight_RN: bootstrap replicates of patients (see `stats.patient_weights`), if a patient has several samples. If
            None, every sample is of another patient, and the error is DeLong's.

    Returns:
        `auroc`, `auroc_se`, `ap`, `brier`, `ece`, `balanced_accuracy`, `auroc_undefined` (labels without both classes),
        and `auroc/<task>/<label>`, `ap/<task>/<label>`, `balanced_accuracy/<task>`. A task without any defined label
        makes `auroc`, `ap` and `balanced_accuracy` NaN: planning refuses such a task (see `scorable`).

    Raises:
        ValueError: some logits are not finite.
    """
    logits = np.asarray(logits_NK, dtype=np.float64)
    positive = np.asarray(target_NK) > 0.5
    known = np.asarray(known_NK, dtype=np.bool_)
    mean_auroc, auroc, odds = aurocs(logits, positive, known, tasks)
    probability = probabilities(logits, tasks)
    ap = average_precision(odds, positive, known)
    defined = np.isfinite(auroc)
    accuracy = {task.name: _balanced_accuracy(task, logits, positive, known) for task in tasks}
    metrics = {
        "auroc": mean_auroc,
        "auroc_se": auroc_error(odds, positive, known, defined, tasks, weight_RN),
        "ap": float(over_tasks(ap[None], defined, tasks)[0]),
        "brier": float(np.mean([_brier(task, probability, positive, known) for task in tasks])),
        "ece": float(np.mean([_ece(task, probability, positive, known) for task in tasks])),
        "balanced_accuracy": float(np.mean(list(accuracy.values()))),
        "auroc_undefined": float((~defined).sum()),
    }
    metrics |= {f"balanced_accuracy/{name}": value for name, value in accuracy.items()}
    for task in tasks:
        for name, column in zip(task.logit_names, range(task.columns.start, task.columns.stop), strict=True):
            metrics[f"auroc/{task.name}/{name}"] = float(auroc[column])
            metrics[f"ap/{task.name}/{name}"] = float(ap[column])
    return metrics


def aurocs(
    logits_NK: ArrayLike, target_NK: ArrayLike, known_NK: ArrayLike, tasks: Sequence[Task]
) -> tuple[float, Floats, Floats]:
    """Returns `auroc` of `score`, the AUROC of each label (K), NaN if it is undefined, and the log odds (N, K) by which
    samples are ranked. Nothing else is computed, as suits an epoch of which only the goals are needed.

    Raises:
        ValueError: some logits are not finite.
    """
    logits = np.asarray(logits_NK, dtype=np.float64)
    if not np.isfinite(logits).all():
        raise ValueError(
            f"{int((~np.isfinite(logits)).any(axis=1).sum())} of {len(logits)} samples have logits "
            "that are not finite numbers"
        )
    odds_NK = log_odds(logits, tasks)
    known_NK = np.asarray(known_NK, dtype=np.bool_)
    auroc_K = weighted_auroc(odds_NK, np.asarray(target_NK) > 0.5, known_NK, np.ones((1, len(logits))))[0]
    return float(over_tasks(auroc_K[None], np.isfinite(auroc_K), tasks)[0]), auroc_K, odds_NK


def auroc_error(
    odds_NK: Floats,
    positive_NK: NDArray[Any],
    known_NK: NDArray[Any],
    defined_K: Bools,
    tasks: Sequence[Task],
    weight_RN: Floats | None,
) -> float:
    """Returns the standard error over patients of the mean AUROC over tasks (see `over_tasks`); NaN if it is unknown.

    Args:
        weight_RN: see `score`.
    """
    if weight_RN is None:
        return delong_error(over_tasks(auroc_influence(odds_NK, positive_NK, known_NK), defined_K, tasks))
    return standard_error(over_tasks(weighted_auroc(odds_NK, positive_NK, known_NK, weight_RN), defined_K, tasks))


def scorable(target_NK: ArrayLike, known_NK: ArrayLike, tasks: Sequence[Task]) -> dict[str, tuple[str, ...]]:
    """Returns for each task the labels that have both classes in a split. The `auroc` of the task is the mean over
    these labels."""
    positive = np.asarray(target_NK) > 0.5
    known = np.asarray(known_NK, dtype=np.bool_)
    both: Bools = np.any(positive & known, axis=0) & np.any(~positive & known, axis=0)
    return {
        task.name: tuple(name for name, has in zip(task.logit_names, both[task.columns], strict=True) if has)
        for task in tasks
    }


def probabilities(logits_NK: ArrayLike, tasks: Sequence[Task]) -> Floats:
    """Returns the softmax over the classes of a multi-class task, and the sigmoid of every other logit."""
    logits = np.asarray(logits_NK, dtype=np.float64)
    probability_NK: Floats = expit(logits)
    for task in tasks:
        if task.kind == "multiclass":
            probability_NK[:, task.columns] = softmax(logits[:, task.columns], axis=1)
    return probability_NK


def entropy(logits_NK: ArrayLike, tasks: Sequence[Task]) -> Floats:
    """Returns the entropy of the prediction for each sample (N) in nats: the mean over tasks. The entropy of a sigmoid
    task is the mean over its labels."""
    p = probabilities(logits_NK, tasks)
    bernoulli_NK = -(xlogy(p, p) + xlogy(1 - p, 1 - p))
    by_task = [
        -xlogy(p, p)[:, task.columns].sum(axis=1)
        if task.kind == "multiclass"
        else bernoulli_NK[:, task.columns].mean(axis=1)
        for task in tasks
    ]
    entropy_N: Floats = np.mean(by_task, axis=0)
    return entropy_N


def log_odds(logits_NK: ArrayLike, tasks: Sequence[Task]) -> Floats:
    """Returns log(p / (1 - p)): for a sigmoid the logit, for a softmax the log odds of a class against the others."""
    logits = np.asarray(logits_NK, dtype=np.float64)
    odds_NK = logits.copy()
    for task in tasks:
        if task.kind == "multiclass":
            for column in range(task.columns.start, task.columns.stop):
                others = [other for other in range(task.columns.start, task.columns.stop) if other != column]
                odds_NK[:, column] -= logsumexp(logits[:, others], axis=1)
    return odds_NK


def average_precision(score_NL: Floats, positive_NL: Bools, known_NL: Bools) -> Floats:
    """Returns the sum of precision x gain in recall over the thresholds; samples with equal scores count together.

    It is NaN for a column without a positive or without a negative.
    """
    ap_L = np.full(score_NL.shape[1], np.nan)
    for column in range(score_NL.shape[1]):
        known = np.flatnonzero(known_NL[:, column])
        order = known[np.argsort(-score_NL[known, column], kind="stable")]
        hits = np.cumsum(positive_NL[order, column])
        if not known.size or not 0 < hits[-1] < known.size:
            continue
        score = score_NL[order, column]
        last = np.flatnonzero(np.r_[score[1:] != score[:-1], True])  # where each run of equal scores ends
        ap_L[column] = np.sum(np.diff(hits[last], prepend=0) * hits[last] / (last + 1)) / hits[-1]
    return ap_L


def calibration_error(confidence_N: Floats, correct_N: NDArray[Any]) -> float:
    """Returns the expected calibration error: mean over samples of |mean confidence - share correct| in the sample's
    bin."""
    bins = np.clip(np.digitize(confidence_N, np.linspace(0, 1, NUM_BINS + 1)) - 1, 0, NUM_BINS - 1)
    gap = np.bincount(bins, confidence_N - correct_N, minlength=NUM_BINS)
    return float(np.abs(gap).sum() / len(confidence_N)) if len(confidence_N) else float("nan")


def over_tasks(value_RK: Floats, defined_K: Bools, tasks: Sequence[Task]) -> Floats:
    """Returns for each row the mean over tasks of the mean over the task's labels in `defined_K`. A row is NaN if the
    value of one of these labels is NaN."""
    by_task = [macro(value_RK[:, task.columns][:, defined_K[task.columns]]) for task in tasks]
    return macro(np.stack(by_task, axis=1))


def _brier(task: Task, probability_NK: Floats, positive_NK: Bools, known_NK: Bools) -> float:
    columns = task.columns
    known = known_NK[:, columns]
    error = np.where(known, (probability_NK[:, columns] - positive_NK[:, columns]) ** 2, 0.0).sum(axis=0)
    count = known.sum(axis=0)
    by_label = error[count > 0] / count[count > 0]
    if not by_label.size:
        return float("nan")
    return float(by_label.sum() if task.kind == "multiclass" else by_label.mean())


def _balanced_accuracy(task: Task, logits_NK: Floats, positive_NK: Bools, known_NK: Bools) -> float:
    logits, positive, known = logits_NK[:, task.columns], positive_NK[:, task.columns], known_NK[:, task.columns]
    if task.kind == "multiclass":
        called = logits.argmax(axis=1)[:, None] == np.arange(task.num_logits)
        recalls = [called[rows, name].mean() for name, rows in enumerate((known & positive).T) if rows.any()]
        return float(np.mean(recalls)) if len(recalls) > 1 else float("nan")
    right, by_label = (logits > 0) == positive, []
    for label in range(task.num_logits):
        sides = [right[known[:, label] & (positive[:, label] == side), label] for side in (True, False)]
        if all(side.size for side in sides):
            by_label.append(np.mean([side.mean() for side in sides]))
    return float(np.mean(by_label)) if by_label else float("nan")


def _ece(task: Task, probability_NK: Floats, positive_NK: Bools, known_NK: Bools) -> float:
    columns = task.columns
    probability, positive, known = probability_NK[:, columns], positive_NK[:, columns], known_NK[:, columns]
    if task.kind == "multiclass":
        rows = np.flatnonzero(known.all(axis=1))
        top = probability[rows].argmax(axis=1)
        return calibration_error(probability[rows, top], positive[rows, top])
    by_label = [
        calibration_error(probability[rows, label], positive[rows, label])
        for label, rows in enumerate(known.T)
        if rows.any()
    ]
    return float(np.mean(by_label)) if by_label else float("nan")
