"""Scores of a teacher, and whether it does more than state the label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmpkd.cohort import leakage
from mmpkd.cohort.store import Store
from mmpkd.scoring import classify, localize, stats
from mmpkd.scoring.regions import Regions
from mmpkd.types import Task

# Our thresholds: soft targets that are as hard as the label add little to it.
LEAK_AUROC, LEAK_AGREEMENT = leakage.STATED, 0.95


def map_quality(map_Nhw: Tensor, store: Store, val: NDArray[np.int64]) -> dict[str, float]:
    """Returns the scores `pointing` and `mass` of a teacher's maps of the samples at `val`.

    Like a student's maps, they are scored within the content, which is the image without its padding. The user should
    know these scores before a student learns from the maps. The result is empty if no sample at `val` has both a map
    and an ROI.

    Args:
        map_Nhw: the map of every sample of the store, NaN where the teacher has no output.
    """
    rows = val[map_Nhw[torch.from_numpy(val)].isfinite().flatten(1).all(dim=1).numpy()]
    if not store.facts.roi_labels or not len(rows):
        return {}
    grid = (map_Nhw.shape[1], map_Nhw.shape[2])
    regions = Regions.of(store.roi_mask(rows), store.content_box_N4[rows], grid, torch.device("cpu"))
    scores = localize.summarize(localize.score(map_Nhw[torch.from_numpy(rows)][:, None], regions))
    return {name: scores[name] for name in ("pointing", "mass") if np.isfinite(scores.get(name, np.nan))}


def logit_quality(
    logits_NK: NDArray[np.float32],
    store: Store,
    train: NDArray[np.int64],
    val: NDArray[np.int64],
    fold_n: NDArray[np.int64],
) -> dict[str, float]:
    """Scores the logits of all samples of a store. The logits of the samples at `train` are out of fold.

    Args:
        fold_n: the fold of each sample at `train`.

    Returns:
        `auroc`, out of fold: for each label the mean over the folds that hold positive and negative samples, because
        scores of different models cannot be ranked together; `val_auroc`, with its standard error over patients
        (`val_auroc_se`); `entropy`, the mean in nats; `agreement`, how often the teacher predicts the hard label;
        `silent`, the share of training samples without an output of the teacher (the other scores leave these samples
        out); and `leak`, 1 if the teacher nearly states the label: an AUROC of LEAK_AUROC or more, or an agreement
        above LEAK_AGREEMENT, if always predicting the commonest class would not exceed LEAK_AGREEMENT. The soft targets
        of such a teacher add nothing to the label (Bergstrom et al., arXiv 2510.24385, on reports), and suggest that
        its input was written with the label in hand. If there are several tasks, each has these AUROCs and a `leak` (by
        AUROC) of its own, as `auroc/<task>` and so on.
    """
    tasks = store.facts.tasks
    scored, scored_val = (rows[np.isfinite(logits_NK[rows]).all(axis=1)] for rows in (train, val))
    target_NK, known_NK = store.target_NK[scored], store.known_NK[scored]
    fold_n = fold_n[np.isfinite(logits_NK[train]).all(axis=1)]
    weight_Fn = (fold_n == np.unique(fold_n)[:, None]).astype(float)
    by_fold_FK = stats.weighted_auroc(classify.log_odds(logits_NK[scored], tasks), target_NK, known_NK, weight_Fn)
    defined_K: NDArray[np.bool_] = np.any(np.isfinite(by_fold_FK), axis=0)
    mean_K = np.full(len(defined_K), np.nan)
    mean_K[defined_K] = np.nanmean(by_fold_FK[:, defined_K], axis=0)
    auroc = float(classify.over_tasks(mean_K[None], defined_K, tasks)[0])
    probabilities_NK = classify.probabilities(logits_NK[scored], tasks)
    agreements, commonest = [], []
    for task in tasks:
        p, target, known = (values[:, task.columns] for values in (probabilities_NK, target_NK, known_NK))
        if task.kind == "multiclass":
            agreements.append((p.argmax(axis=1) == target.argmax(axis=1))[known[:, 0]].mean())
            commonest.append(target[known[:, 0]].mean(axis=0).max())
        else:
            agreements.append(((p > 0.5) == (target > 0.5))[known].mean())
            positive = (target * known).sum(axis=0)
            commonest.append(np.maximum(positive, known.sum(axis=0) - positive).sum() / known.sum())
    agreement = float(np.mean(agreements))
    by_task: dict[str, float] = {}
    for task in tasks if len(tasks) > 1 else ():
        by_task[f"auroc/{task.name}"] = float(classify.over_tasks(mean_K[None], defined_K, (task,))[0])
        by_task[f"leak/{task.name}"] = float(by_task[f"auroc/{task.name}"] >= LEAK_AUROC)
    return {
        "auroc": auroc,
        **by_task,
        **_validation_scores(logits_NK, store, scored_val),
        "entropy": float(classify.entropy(logits_NK[scored], tasks).mean()),
        "agreement": agreement,
        "silent": 1 - len(scored) / len(train),
        "leak": float(auroc >= LEAK_AUROC or agreement > LEAK_AGREEMENT >= np.mean(commonest)),
    }


def _validation_scores(logits_NK: NDArray[np.float32], store: Store, rows: NDArray[np.int64]) -> dict[str, float]:
    """Returns `val_auroc` and `val_auroc_se` of the samples at `rows`, and of each task if there are several. The
    teacher must have outputs for these samples. A score is NaN if no label has both positive and negative samples."""
    tasks = store.facts.tasks
    subsets: list[tuple[str, Sequence[Task]]] = [("", tasks)]
    subsets += [(f"/{task.name}", (task,)) for task in tasks] if len(tasks) > 1 else []
    if not len(rows):
        return {f"{score}{name}": float("nan") for name, _ in subsets for score in ("val_auroc", "val_auroc_se")}
    odds_NK = classify.log_odds(logits_NK[rows], tasks)
    labels = store.target_NK[rows], store.known_NK[rows]
    auroc_K = stats.weighted_auroc(odds_NK, *labels, np.ones((1, len(rows))))[0]
    patient_N = store.patient_N[rows]
    weight_RN = None if len(np.unique(patient_N)) == len(rows) else stats.patient_weights(patient_N)
    scores, defined_K = dict[str, float](), np.isfinite(auroc_K)
    for name, subset in subsets:
        scores[f"val_auroc{name}"] = float(classify.over_tasks(auroc_K[None], defined_K, subset)[0])
        scores[f"val_auroc_se{name}"] = classify.auroc_error(odds_NK, *labels, defined_K, subset, weight_RN)
    return scores
