"""Scores of an exported student by label, by group of patients and by region.

Predictions of a student and labels of a cohort are matched by name, so that a student of fourteen findings can be
scored on a cohort with five of them. Intervals of 95 % are over patients: percentile bootstraps with shared replicates,
but for an AUROC of samples of one patient each, DeLong's on the logit scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, brier_score_loss

from mmpkd.cohort.store import Store
from mmpkd.export.student_file import Card
from mmpkd.scoring import classify, stats
from mmpkd.scoring.baselines import BASELINES
from mmpkd.scoring.grouping import groups
from mmpkd.scoring.localize import SCORES
from mmpkd.scoring.patients import rarer_class, warn_of_few
from mmpkd.scoring.stats import Floats, Interval
from mmpkd.types import ConfigError, Task

REPLICATES = 2000
CHUNK = 100  # replicates that are computed at once: each needs several numbers per sample
ClassWeights = Literal["equal", "balanced"]


@dataclass(frozen=True)
class Predictions:
    """The predictions of a student for some samples of a store, in the layout of the student's tasks.

    A label that the store lacks is unknown for every sample. `tasks` are the student's tasks with a label in the
    store.
    """

    tasks: tuple[Task, ...]
    logits_NK: Floats
    probability_NK: Floats  # calibrated probabilities
    target_NK: NDArray[np.float32]
    known_NK: NDArray[np.bool_]
    weight_RN: Floats  # bootstrap replicates of patients
    one_each: bool = False  # whether every sample is of another patient


def aligned(
    own_tasks: Sequence[Task], channels: int, store: Store
) -> tuple[tuple[Task, ...], NDArray[np.float32], NDArray[np.bool_]]:
    """Returns the student's tasks that have a label in the store, the targets of all samples (N, K), and the mask of
    known targets (N, K). The K columns are the student's logits.

    Labels are matched by name; a binary or multi-class task needs the same classes in both.

    Args:
        own_tasks: all tasks of the student.
        channels: number of channels of its images.

    Raises:
        ConfigError: student and store have no label in common, or their images differ in the number of channels.
    """
    facts = store.facts
    if facts.channels != channels:
        raise ConfigError.at("cohort", f"its images have {facts.channels} channels, the student's {channels}")
    cohort_tasks = {task.name: task for task in facts.tasks}
    shape = (len(store.sample_ids), own_tasks[-1].columns.stop)
    target_NK, known_NK, tasks = np.zeros(shape, np.float32), np.zeros(shape, bool), []
    for task in own_tasks:
        other = cohort_tasks.get(task.name)
        if other is None or other.kind != task.kind or (task.kind != "multilabel" and other.labels != task.labels):
            continue
        column_of = {name: column for name, column in zip(other.logit_names, _columns(other), strict=True)}
        pairs = zip(task.logit_names, _columns(task), strict=True)
        common = [(own, column_of[name]) for name, own in pairs if name in column_of]
        for own, column in common:
            target_NK[:, own], known_NK[:, own] = store.target_NK[:, column], store.known_NK[:, column]
        tasks += [task] if common else []
    if not tasks:
        sides = f"the student has {_in_words(own_tasks)}; the cohort has {_in_words(facts.tasks)}"
        raise ConfigError.at("cohort", f"no label in common: {sides}")
    return tuple(tasks), target_NK, known_NK


def few_patients(own_tasks: Sequence[Task], channels: int, store: Store, rows: NDArray[np.int64]) -> list[str]:
    """Returns a warning if a label that is scored on the samples at `rows` has few patients of its rarer class."""
    tasks, target_NK, known_NK = aligned(own_tasks, channels, store)
    return warn_of_few(rarer_class(target_NK[rows], known_NK[rows], store.patient_N[rows]), tasks)


def _columns(task: Task) -> range:
    return range(task.columns.start, task.columns.stop)


def _in_words(tasks: Sequence[Task]) -> str:
    return "; ".join(f"{task.name} ({task.kind} of {', '.join(task.labels)})" for task in tasks)


def by_label(predictions: Predictions, card: Card, weights: ClassWeights) -> pd.DataFrame:
    """Returns one row per label: counts, AUROC with its 95 % interval, scores that depend on threshold or prevalence.

    `balanced_accuracy` uses the threshold chosen on the student's validation patients (multi-class: whether the class
    is the likeliest). `ap` and `brier` weigh all samples equally or, with `balanced`, both classes equally, which makes
    cohorts of different prevalence comparable; this does not change the AUROC and the balanced accuracy.
    """
    auroc_K = _aurocs(predictions, predictions.known_NK, lambda value_RK: value_RK)
    rows = []
    for task in predictions.tasks:
        top_N = predictions.probability_NK[:, task.columns].argmax(axis=1) + task.columns.start
        for name, column in zip(task.logit_names, _columns(task), strict=True):
            known = predictions.known_NK[:, column]
            if not known.any():
                continue
            label, probability = predictions.target_NK[known, column] > 0.5, predictions.probability_NK[known, column]
            called = top_N[known] == column
            if task.kind != "multiclass":
                called = probability > card.threshold[f"{task.name}/{name}"]
            weight = np.ones(len(label))
            if weights == "balanced" and 0 < label.sum() < len(label):
                weight = np.where(label, 0.5 / label.mean(), 0.5 / (1 - label.mean()))
            both = 0 < label.sum() < len(label)
            rows.append(
                {
                    "label": f"{task.name}/{name}",
                    "samples": len(label),
                    "positive": int(label.sum()),
                    "auroc": auroc_K[column].mean,
                    "auroc_low": auroc_K[column].low,
                    "auroc_high": auroc_K[column].high,
                    "ap": average_precision_score(label, probability, sample_weight=weight) if both else np.nan,
                    "balanced_accuracy": (called[label].mean() + (~called[~label]).mean()) / 2 if both else np.nan,
                    "brier": brier_score_loss(label, probability, sample_weight=weight),
                }
            )
    return pd.DataFrame(rows)


def overall(predictions: Predictions, mask_N: NDArray[np.bool_], defined_K: NDArray[np.bool_]) -> Interval:
    """Returns the AUROC over the samples in `mask_N` with its 95 % interval. The AUROC is the mean over tasks of the
    mean over the task's logits in `defined_K`."""
    tasks = [task for task in predictions.tasks if defined_K[task.columns].any()]
    if not tasks:
        return Interval(float("nan"), float("nan"), float("nan"))
    known_NK = predictions.known_NK & mask_N[:, None]
    (auroc,) = _aurocs(predictions, known_NK, lambda value_RK: classify.over_tasks(value_RK, defined_K, tasks)[:, None])
    return auroc


def _aurocs(predictions: Predictions, known_NK: NDArray[np.bool_], mean: Callable[[Floats], Floats]) -> list[Interval]:
    """Returns means of AUROCs with their 95 % intervals.

    Args:
        mean: maps values of the logits (R, K) to the same M means of them in every row (R, M).
    """
    labels = classify.log_odds(predictions.logits_NK, predictions.tasks), predictions.target_NK, known_NK
    value_M = mean(stats.weighted_auroc(*labels, np.ones((1, len(known_NK)))))[0].tolist()
    if predictions.one_each:
        influence_MN = mean(stats.auroc_influence(*labels)).T
        errors = [stats.delong_error(influence_N) for influence_N in influence_MN]
        return [stats.logit_interval(value, error) for value, error in zip(value_M, errors, strict=True)]
    chunks = np.array_split(predictions.weight_RN, 1 + len(predictions.weight_RN) // CHUNK)
    value_MR = mean(np.concatenate([stats.weighted_auroc(*labels, chunk_RN) for chunk_RN in chunks])).T
    return [Interval(value, *interval(value_R)) for value, value_R in zip(value_M, value_MR, strict=True)]


def defined(predictions: Predictions, mask_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns a mask (K) of the logits that have both classes among the samples in `mask_N`."""
    known_NK, positive_NK = predictions.known_NK & mask_N[:, None], predictions.target_NK > 0.5
    both: NDArray[np.bool_] = np.any(known_NK & positive_NK, axis=0) & np.any(known_NK & ~positive_NK, axis=0)
    return both


def interval(value_R: Floats) -> tuple[float, float]:
    """Returns the middle 95 % of replicates. It is NaN with fewer than `stats.MIN_REPLICATES` defined replicates, or
    if all are equal: so few patients do not determine a spread."""
    value_R = value_R[np.isfinite(value_R)]
    if len(value_R) < stats.MIN_REPLICATES or np.ptp(value_R) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(value_R, [2.5, 97.5])
    return float(low), float(high)


def by_group(
    predictions: Predictions, values: pd.DataFrame, patient_N: NDArray[np.int64], pointing_N: Floats
) -> pd.DataFrame:
    """Returns one row per group of each column of `values`: counts, AUROC and pointing with 95 % intervals.

    The groups of a column are compared on the same labels: those with both classes in every group. A column with a
    single group has no row, since there is nothing to compare.
    """
    rows = []
    for name in values:
        members = dict(groups(values[name], patient_N))
        if len(members) < 2:
            continue
        common_K = np.all([defined(predictions, mask) for mask in members.values()], axis=0)
        for group, mask_N in members.items():
            auroc, low, high = overall(predictions, mask_N, common_K)
            pointing = np.where(mask_N, pointing_N, np.nan)[:, None]
            pointing_R = stats.weighted_mean(pointing, predictions.weight_RN)[:, 0]
            pointing_low, pointing_high = interval(pointing_R)
            rows.append(
                {
                    "column": name,
                    "group": group,
                    "samples": int(mask_N.sum()),
                    "patients": len(np.unique(patient_N[mask_N])),
                    "labels": int(common_K.sum()),
                    "auroc": auroc,
                    "auroc_low": low,
                    "auroc_high": high,
                    "with ROI": int(np.isfinite(pointing).sum()),
                    "pointing": float(np.nanmean(pointing)) if np.isfinite(pointing).any() else float("nan"),
                    "pointing_low": pointing_low,
                    "pointing_high": pointing_high,
                }
            )
    return pd.DataFrame(rows)


def by_region(images: pd.DataFrame, sample_ids: NDArray[np.str_], weight_RN: Floats) -> pd.DataFrame:
    """Returns one row per score: its mean over labels of the mean over images with an ROI, with its 95 % interval, the
    scores of maps that ignore the image, and the highest attainable score (of pointing and mass). With several labels,
    rows of the same kind follow for each label."""
    labels = list(dict.fromkeys(images["label"]))
    rows = []
    for label in [None, *labels] if len(labels) > 1 else [None]:
        some = labels if label is None else [label]
        for score in SCORES:
            columns = {"": f"{score}"} | {name: f"{score}_{name}" for name in BASELINES if f"{score}_{name}" in images}
            # If one map serves several labels, the bound in the row of a label is that of this label alone.
            bounds = (f"{score}_max_alone", f"{score}_max") if label else (f"{score}_max",)
            if bound := next((name for name in bounds if name in images), None):
                columns["max"] = bound
            row = {
                "label": label or (labels[0] if len(labels) == 1 else "mean over labels"),
                "score": score,
                "images": images.loc[images["label"].isin(some), "sample"].nunique(),
            }
            scored = [name for name in some if images.loc[images["label"] == name, score].notna().any()]
            for name, column in columns.items():  # all columns cover the labels for which the student has a score
                wide = images.pivot(index="sample", columns="label", values=column)[scored].reindex(sample_ids)
                value_NR = wide.to_numpy(float)
                row[name or "student"] = float(stats.macro(stats.weighted_mean(value_NR, np.ones((1, len(wide)))))[0])
                if not name:
                    replicate_R = stats.macro(stats.weighted_mean(value_NR, weight_RN))
                    row["student_low"], row["student_high"] = interval(replicate_R)
            rows.append(row)
    return pd.DataFrame(rows)
