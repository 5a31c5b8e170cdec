"""Formulas of the localisation scores, each for P pairs of a map and a region at once.

Pointing and mass are computed on the patch grid, where a cell counts by the share of its area that the region
covers. The other scores rank or threshold pixels. They use the upsampled map as an 8-bit image, scaled by its minimum
and maximum over the pixels that count (see `regions.Regions`), and follow from one histogram, `count_PL2`: the number
of pixels by grey level (L = 256), outside and inside the region.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_LEVELS = 256
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of the scaled map; `iou_tuned` chooses one of them


def inside(box_N4: Tensor, frame: tuple[int, ...]) -> Tensor:
    """Returns for each image a mask (N, H, W) that is True on its content, the image without its padding."""
    top, left, bottom, right = (side[:, None] for side in box_N4.unbind(1))
    row, column = (torch.arange(side, device=box_N4.device) for side in frame)
    return ((row >= top) & (row < bottom))[:, :, None] & ((column >= left) & (column < right))[:, None, :]


def pointing(map_Phw: Tensor, cells_Phw: Tensor, seen_Phw: Tensor) -> Tensor:
    """Returns the share of the highest cell's area that lies in the ROI (P); tied cells are weighted by area.

    This is the expected value of the pointing game (Zhang et al. 2016) on the patch grid, for a random point in the
    highest cell. Upsampling could move the peak out of its cell. A flat map scores the area of the ROI.
    """
    map_Phw = map_Phw.masked_fill(seen_Phw == 0, -1.0)
    winner_Phw = map_Phw == map_Phw.amax(dim=(1, 2), keepdim=True)
    return (winner_Phw * cells_Phw).sum(dim=(1, 2)) / (winner_Phw * seen_Phw).sum(dim=(1, 2))


def mass(map_Phw: Tensor, cells_Phw: Tensor, seen_Phw: Tensor) -> Tensor:
    """Returns the share of the map's sum that lies in the ROI (P); the value of a cell is spread evenly over its area.

    This is relevance mass accuracy (Arras et al. 2022). It is 0 for a map that is zero everywhere.
    """
    total_P = (map_Phw * seen_Phw).sum(dim=(1, 2))
    return (map_Phw * cells_Phw).sum(dim=(1, 2)) / torch.where(total_P > 0, total_P, torch.inf)


def histogram(map_PHW: Tensor, roi_PHW: Tensor, inside_PHW: Tensor) -> Tensor:
    """Returns the histogram (P, L, 2) of the map as an 8-bit image, outside and inside the ROI. A constant map has
    level 0."""
    num_pairs = len(map_PHW)
    level_PHW = (scaled(map_PHW, inside_PHW) * (NUM_LEVELS - 1)).round_().int()
    level_PHW.masked_fill_(~inside_PHW, NUM_LEVELS)  # an extra level, which is dropped below
    pair_P11 = torch.arange(num_pairs, device=level_PHW.device, dtype=torch.int32)[:, None, None]
    bin_PHW = (pair_P11 * (NUM_LEVELS + 1) + level_PHW) * 2 + roi_PHW
    count = torch.bincount(bin_PHW.flatten(), minlength=num_pairs * (NUM_LEVELS + 1) * 2)
    return count.view(num_pairs, NUM_LEVELS + 1, 2)[:, :NUM_LEVELS].double()


def scaled(map_PHW: Tensor, inside_PHW: Tensor | None = None) -> Tensor:
    """Returns (map - min) / (max - min) of each map, with min and max over `inside_PHW`; 0 for a constant map."""
    low, high = map_PHW, map_PHW
    if inside_PHW is not None:
        low = map_PHW.masked_fill(~inside_PHW, torch.inf)
        high = map_PHW.masked_fill(~inside_PHW, -torch.inf)
    minimum, maximum = low.amin(dim=(1, 2), keepdim=True), high.amax(dim=(1, 2), keepdim=True)
    spread = maximum - minimum
    return (map_PHW - minimum) / torch.where(spread > 0, spread, torch.inf)


def pixel_ap(count_PL2: Tensor) -> Tensor:
    """Returns the average precision of the pixels ranked by level (P). Equal levels count together, so that a constant
    map scores the ROI's share of the pixels."""
    count_PL2 = count_PL2.flip(1)
    hits_PL = count_PL2[..., 1]
    precision_PL = hits_PL.cumsum(1) / count_PL2.sum(2).cumsum(1).clamp(min=1)
    return (hits_PL * precision_PL).sum(1) / hits_PL.sum(1)


def rank(count_PL2: Tensor) -> Tensor:
    """Returns the share of the K highest pixels that lie in the ROI of K pixels (P).

    This is relevance rank accuracy (Arras et al. 2022); ties at the K-th place are resolved by the expected value.
    """
    count_PL2 = count_PL2.flip(1)
    size_P1 = count_PL2[..., 1].sum(1, keepdim=True)
    level_PL = count_PL2.sum(2)
    selected_PL = (size_P1 - (level_PL.cumsum(1) - level_PL)).clamp(min=0).minimum(level_PL)
    return (selected_PL / level_PL.clamp(min=1) * count_PL2[..., 1]).sum(1) / size_P1[:, 0]


def cnr(count_PL2: Tensor) -> Tensor:
    """Returns the contrast-to-noise ratio (P): (mean inside - mean outside) / sqrt(variance inside + variance outside).

    This is the score of MS-CXR (Boecking et al. 2022) with its sign kept, so that an inverted map does not score. It is
    0 if both variances are 0, and NaN if no pixel is outside the ROI.
    """
    level_L1 = torch.arange(NUM_LEVELS, device=count_PL2.device, dtype=count_PL2.dtype)[:, None]
    size_P2 = count_PL2.sum(1)
    mean_P2 = (count_PL2 * level_L1).sum(1) / size_P2
    spread_P2 = (count_PL2 * (level_L1 - mean_P2[:, None]) ** 2).sum(1) / size_P2
    noise_P = spread_P2.sum(1).sqrt()
    contrast_P = mean_P2[:, 1] - mean_P2[:, 0]
    return torch.where(noise_P == 0, 0.0, contrast_P / noise_P)


def otsu(count_PL2: Tensor) -> Tensor:
    """Returns the level (P) of Otsu (1979): it maximises the variance between classes; the lowest of tied levels."""
    level_PL = count_PL2.sum(2)
    position_L = torch.arange(NUM_LEVELS, device=level_PL.device, dtype=level_PL.dtype)
    below_PL, sum_PL = level_PL.cumsum(1), (level_PL * position_L).cumsum(1)
    size_P1, total_P1 = below_PL[:, -1:], sum_PL[:, -1:]
    variance_PL = (total_P1 * below_PL - sum_PL * size_P1) ** 2 / (below_PL * (size_P1 - below_PL)).clamp(min=1)
    return variance_PL.argmax(dim=1)


def iou(count_PL2: Tensor) -> Tensor:
    """Returns the intersection over union of the ROI and the pixels above each level (P, L); 0 if no pixel is above."""
    above_PL2 = count_PL2.sum(1, keepdim=True) - count_PL2.cumsum(1)
    size_P1 = count_PL2[..., 1].sum(1, keepdim=True)
    return above_PL2[..., 1] / (size_P1 + above_PL2[..., 0])
