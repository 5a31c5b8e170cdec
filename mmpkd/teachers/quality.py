"""How good a teacher is, and whether it does more than state the label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmpkd.cohort import leakage
from mmpkd.cohort.store import Store
from mmpkd.scoring import classify, localize, stats
from mmpkd.types import Task

LEAK_AUROC, LEAK_AGREEMENT = leakage.STATED, 0.95  # our thresholds: soft targets as hard as the label add little


def looks(map_Nhw: Tensor, store: Store, val: NDArray[np.int64]) -> dict[str, float]:
    """`pointing` and `mass` of a teacher's own maps of the samples at `val`, as a student's are scored within the
    content: whoever is taught to look where it looks should know. Nothing where no such sample has a map and an ROI.

    Args:
        map_Nhw: of every sample of the store, NaN where it says nothing.
    """
    rows = val[map_Nhw[torch.from_numpy(val)].isfinite().flatten(1).all(dim=1).numpy()]
    if not store.facts.roi_labels or not len(rows):
        return {}
    grid = (map_Nhw.shape[1], map_Nhw.shape[2])
    regions = localize.Regions.of(store.roi_mask(rows), store.content_box_N4[rows], grid, torch.device("cpu"))
    found = localize.summarize(localize.score(map_Nhw[torch.from_numpy(rows)][:, None], regions))
    return {score: found[score] for score in ("pointing", "mass") if np.isfinite(found.get(score, np.nan))}


def quality(
    logits_NK: NDArray[np.float32],
    store: Store,
    train: NDArray[np.int64],
    val: NDArray[np.int64],
    fold_n: NDArray[np.int64],
) -> dict[str, float]:
    """Of the answers about all samples of a store, out of fold for those at `train`.

    Args:
        fold_n: of each sample at `train`.

    Returns:
        `auroc`, out of fold: of each label the mean over the folds that hold both of its sides, for five models do not
        rank samples among each other's; `val_auroc`, with its standard error over patients (`val_auroc_se`);
        `entropy`, how sure it is (mean, nats); `agreement`, how often it says the hard label; `silent`, the share of
        training samples of which it says nothing (all others are of the rest); and `leak`, 1 if it all but states the
        label: an AUROC from LEAK_AUROC, or an agreement above LEAK_AGREEMENT that always saying the commonest class
        does not reach. Such a teacher's soft targets add nothing to the label (Bergstrom et al., arXiv 2510.24385, of
        reports), and hint that its input was written with the label in hand. Of several tasks each has these AUROCs
        and a `leak` (by AUROC) of its own, as `auroc/<task>` and so on.
    """
    tasks = store.facts.tasks
    told, told_val = (rows[np.isfinite(logits_NK[rows]).all(axis=1)] for rows in (train, val))
    target_NK, known_NK = store.target_NK[told], store.known_NK[told]
    fold_n = fold_n[np.isfinite(logits_NK[train]).all(axis=1)]
    weight_Fn = (fold_n == np.unique(fold_n)[:, None]).astype(float)
    by_fold_FK = stats.weighted_auroc(classify.log_odds(logits_NK[told], tasks), target_NK, known_NK, weight_Fn)
    defined_K: NDArray[np.bool_] = np.any(np.isfinite(by_fold_FK), axis=0)
    mean_K = np.full(len(defined_K), np.nan)
    mean_K[defined_K] = np.nanmean(by_fold_FK[:, defined_K], axis=0)
    auroc = float(classify.over_tasks(mean_K[None], defined_K, tasks)[0])
    said = classify.probabilities(logits_NK[told], tasks)
    agreements, commonest = [], []
    for task in tasks:
        p, target, known = (values[:, task.columns] for values in (said, target_NK, known_NK))
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
        **_on_validation(logits_NK, store, told_val),
        "entropy": float(classify.entropy(logits_NK[told], tasks).mean()),
        "agreement": agreement,
        "silent": 1 - len(told) / len(train),
        "leak": float(auroc >= LEAK_AUROC or agreement > LEAK_AGREEMENT >= np.mean(commonest)),
    }


def _on_validation(logits_NK: NDArray[np.float32], store: Store, rows: NDArray[np.int64]) -> dict[str, float]:
    """`val_auroc` and `val_auroc_se` of the samples at `rows`, of which it says something; by task where there are
    several. NaN where no label has both sides among them."""
    tasks = store.facts.tasks
    asked: list[tuple[str, Sequence[Task]]] = [("", tasks)]
    asked += [(f"/{task.name}", (task,)) for task in tasks] if len(tasks) > 1 else []
    if not len(rows):
        return {f"{score}{name}": float("nan") for name, _ in asked for score in ("val_auroc", "val_auroc_se")}
    odds_NK = classify.log_odds(logits_NK[rows], tasks)
    labels = store.target_NK[rows], store.known_NK[rows]
    auroc_K = stats.weighted_auroc(odds_NK, *labels, np.ones((1, len(rows))))[0]
    replicate_RK = stats.weighted_auroc(odds_NK, *labels, stats.patient_weights(store.patient_N[rows]))
    found, defined_K = dict[str, float](), np.isfinite(auroc_K)
    for name, several in asked:
        found[f"val_auroc{name}"] = float(classify.over_tasks(auroc_K[None], defined_K, several)[0])
        found[f"val_auroc_se{name}"] = stats.standard_error(classify.over_tasks(replicate_RK, defined_K, several))
    return found
