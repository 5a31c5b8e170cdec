"""How good a teacher is, and whether it does more than state the label."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmpkd import classify, leakage, localize
from mmpkd.cohort.store import Store

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
    logits_NK: NDArray[np.float32], store: Store, train: NDArray[np.int64], val: NDArray[np.int64]
) -> dict[str, float]:
    """Of the answers about all samples of a store, out of fold for those at `train`.

    Returns:
        `auroc`, `val_auroc`; `entropy`, how sure it is (mean, nats); `agreement`, how often it says the
        hard label; `silent`, the share of training samples of which it says nothing (all others are
        of the rest); and `leak`, 1 if it all but states the label: an AUROC from LEAK_AUROC, or an agreement
        above LEAK_AGREEMENT that always saying the commonest class does not reach. Such a teacher's soft
        targets add nothing to the label (Bergstrom et al., arXiv 2510.24385, of reports), and hint that
        its input was written with the label in hand.
    """
    tasks = store.facts.tasks
    told, told_val = (rows[np.isfinite(logits_NK[rows]).all(axis=1)] for rows in (train, val))
    target_NK, known_NK = store.target_NK[told], store.known_NK[told]
    scores = [
        classify.score(logits_NK[rows], store.target_NK[rows], store.known_NK[rows], tasks)["auroc"]
        if len(rows)
        else float("nan")
        for rows in (told, told_val)
    ]
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
    return {
        "auroc": scores[0],
        "val_auroc": scores[1],
        "entropy": float(classify.entropy(logits_NK[told], tasks).mean()),
        "agreement": agreement,
        "silent": 1 - len(told) / len(train),
        "leak": float(scores[0] >= LEAK_AUROC or agreement > LEAK_AGREEMENT >= np.mean(commonest)),
    }


def warning(name: str, quality: Mapping[str, float]) -> str:
    """What to tell the user of a teacher, once; empty where there is nothing."""
    if not quality["leak"]:
        return ""
    return (
        f"warning: teacher {name!r} all but states the label (out of fold: AUROC {quality['auroc']:.3f}, agreement "
        f"{quality['agreement']:.1%}), so it teaches little else; was what it reads written with the label in hand? "
        "Take that column or section away, or hide the labels' names from a text teacher (mask_labels)"
    )
