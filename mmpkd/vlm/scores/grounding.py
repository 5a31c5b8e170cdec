"""How well the boxes of a response agree with those of the true answer. Shape letters: T true boxes, P predicted ones.

The source of `recall50` is the authors' `eval_VG.py` (ClinKD, from BiRD): each true box is a unit, and it is found if
any predicted box has an IoU strictly above 0.5. So a box may find several true boxes, and superfluous boxes cost
nothing. The scores with `_matched` pair the boxes one to one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from mmpkd.scoring.stats import Floats
from mmpkd.vlm.boxes import iou, parse

THRESHOLD = 0.5  # an IoU must be above it


class Pointing(NamedTuple):
    """What the boxes of one response reach."""

    num_true: int
    num_predicted: int
    recalled: int  # true boxes with any predicted box above the threshold
    matched: int  # pairs above the threshold, where each box is in one pair at most
    total_iou: float  # sum over the true boxes of the best IoU with any predicted box


def overlaps(answer: str, response: str) -> Floats:
    """Returns the IoU of each true with each predicted box (TP)."""
    true, predicted = parse(answer), parse(response)
    return np.array([[iou(box, other) for other in predicted] for box in true]).reshape(len(true), len(predicted))


def best_overlaps(answer: str, response: str) -> Floats:
    """Returns the best IoU of each true box (T) with any predicted box, 0 if the response has no readable box."""
    best_T: Floats = overlaps(answer, response).max(axis=1, initial=0.0)
    return best_T


def pointing(answer: str, response: str) -> Pointing:
    """Returns what the boxes of a response reach. A response without a readable box reaches nothing.

    The pairing is the one with the most pairs above the threshold (`scipy.optimize.linear_sum_assignment`).
    """
    overlap_TP = overlaps(answer, response)
    is_hit_TP = overlap_TP > THRESHOLD
    pairs = linear_sum_assignment(is_hit_TP, maximize=True)
    best_T = overlap_TP.max(axis=1, initial=0.0)
    return Pointing(
        num_true=overlap_TP.shape[0],
        num_predicted=overlap_TP.shape[1],
        recalled=int(np.count_nonzero(best_T > THRESHOLD)),
        matched=int(is_hit_TP[pairs].sum()),
        total_iou=float(best_T.sum()),
    )
