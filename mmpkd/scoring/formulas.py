"""Formulas of the localisation scores, each for P pairs of a map and a region at a time.

Pointing and mass are taken on the patch grid, a cell counting by the share of its area that the
region covers. The others rank or cut pixels: they read the upsampled map as an 8-bit image, scaled by
its minimum and maximum over the pixels that count, and so follow from one histogram, `count_PL2`:
pixels by grey level (L = 256), outside and inside the region.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_LEVELS = 256
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of the scaled map, that `iou_tuned` chooses from


def pointing(map_Phw: Tensor, cells_Phw: Tensor, seen_Phw: Tensor) -> Tensor:
    """Share of the winning cell's area that lies in the ROI (P); cells tied for the maximum share by area.

    The pointing game (Zhang et al. 2016) on the patch grid, as its expected value: a point drawn in
    the winning cell. Upsampling would move the peak out of its cell. A flat map scores the ROI's area.
    """
    map_Phw = map_Phw.masked_fill(seen_Phw == 0, -1.0)
    winner_Phw = map_Phw == map_Phw.amax(dim=(1, 2), keepdim=True)
    return (winner_Phw * cells_Phw).sum(dim=(1, 2)) / (winner_Phw * seen_Phw).sum(dim=(1, 2))


def mass(map_Phw: Tensor, cells_Phw: Tensor, seen_Phw: Tensor) -> Tensor:
    """Share of the map's sum that falls in the ROI (P), a cell's value spread evenly over its area.

    Relevance mass accuracy (Arras et al. 2022). 0 for a map that is zero everywhere.
    """
    total_P = (map_Phw * seen_Phw).sum(dim=(1, 2))
    return (map_Phw * cells_Phw).sum(dim=(1, 2)) / torch.where(total_P > 0, total_P, torch.inf)


def histogram(map_PHW: Tensor, roi_PHW: Tensor, inside_PHW: Tensor) -> Tensor:
    """The map as an 8-bit image, counted (P, L, 2): outside and inside the ROI. A constant map is all 0."""
    num_pairs = len(map_PHW)
    level_PHW = (scaled(map_PHW, inside_PHW) * (NUM_LEVELS - 1)).round_().int()
    level_PHW.masked_fill_(~inside_PHW, NUM_LEVELS)  # one level more, dropped below
    pair_P11 = torch.arange(num_pairs, device=level_PHW.device, dtype=torch.int32)[:, None, None]
    bin_PHW = (pair_P11 * (NUM_LEVELS + 1) + level_PHW) * 2 + roi_PHW
    count = torch.bincount(bin_PHW.flatten(), minlength=num_pairs * (NUM_LEVELS + 1) * 2)
    return count.view(num_pairs, NUM_LEVELS + 1, 2)[:, :NUM_LEVELS].double()


def scaled(map_PHW: Tensor, inside_PHW: Tensor | None = None) -> Tensor:
    """(map - min) / (max - min) of each map, over the pixels that count; 0 for a constant one."""
    low, high = map_PHW, map_PHW
    if inside_PHW is not None:
        low = map_PHW.masked_fill(~inside_PHW, torch.inf)
        high = map_PHW.masked_fill(~inside_PHW, -torch.inf)
    minimum, maximum = low.amin(dim=(1, 2), keepdim=True), high.amax(dim=(1, 2), keepdim=True)
    spread = maximum - minimum
    return (map_PHW - minimum) / torch.where(spread > 0, spread, torch.inf)


def pixel_ap(count_PL2: Tensor) -> Tensor:
    """Average precision of the pixels ranked by level (P); equal levels enter together, so a constant map scores
    the ROI's share of the pixels."""
    count_PL2 = count_PL2.flip(1)
    hits_PL = count_PL2[..., 1]
    precision_PL = hits_PL.cumsum(1) / count_PL2.sum(2).cumsum(1).clamp(min=1)
    return (hits_PL * precision_PL).sum(1) / hits_PL.sum(1)


def rank(count_PL2: Tensor) -> Tensor:
    """Share of the K highest pixels that lie in the ROI of K pixels (P).

    Relevance rank accuracy (Arras et al. 2022), as its expected value where the K-th place is tied.
    """
    count_PL2 = count_PL2.flip(1)
    size_P1 = count_PL2[..., 1].sum(1, keepdim=True)
    level_PL = count_PL2.sum(2)
    taken_PL = (size_P1 - (level_PL.cumsum(1) - level_PL)).clamp(min=0).minimum(level_PL)
    return (taken_PL / level_PL.clamp(min=1) * count_PL2[..., 1]).sum(1) / size_P1[:, 0]


def cnr(count_PL2: Tensor) -> Tensor:
    """Contrast-to-noise ratio (P): (mean inside - mean outside) / sqrt(variance inside + variance outside).

    As for MS-CXR (Boecking et al. 2022), but signed: an inverted map must not score. 0 where both
    variances are 0; NaN where the ROI leaves no pixel outside.
    """
    level_L1 = torch.arange(NUM_LEVELS, device=count_PL2.device, dtype=count_PL2.dtype)[:, None]
    size_P2 = count_PL2.sum(1)
    mean_P2 = (count_PL2 * level_L1).sum(1) / size_P2
    spread_P2 = (count_PL2 * (level_L1 - mean_P2[:, None]) ** 2).sum(1) / size_P2
    noise_P = spread_P2.sum(1).sqrt()
    contrast_P = mean_P2[:, 1] - mean_P2[:, 0]
    return torch.where(noise_P == 0, 0.0, contrast_P / noise_P)


def otsu(count_PL2: Tensor) -> Tensor:
    """The level (P) above which Otsu (1979) cuts: greatest variance between the two classes, the lowest of equals."""
    level_PL = count_PL2.sum(2)
    position_L = torch.arange(NUM_LEVELS, device=level_PL.device, dtype=level_PL.dtype)
    below_PL, sum_PL = level_PL.cumsum(1), (level_PL * position_L).cumsum(1)
    size_P1, total_P1 = below_PL[:, -1:], sum_PL[:, -1:]
    apart_PL = (total_P1 * below_PL - sum_PL * size_P1) ** 2 / (below_PL * (size_P1 - below_PL)).clamp(min=1)
    return apart_PL.argmax(dim=1)


def iou(count_PL2: Tensor) -> Tensor:
    """Intersection over union of the ROI and the pixels above each level (P, L); 0 where none is above."""
    above_PL2 = count_PL2.sum(1, keepdim=True) - count_PL2.cumsum(1)
    size_P1 = count_PL2[..., 1].sum(1, keepdim=True)
    return above_PL2[..., 1] / (size_P1 + above_PL2[..., 0])
