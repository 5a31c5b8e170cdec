"""Scores of a saliency map against regions of interest: pointing, mass in the ROI, pixel AP.

Scored in the store frame, one value for each (image, label) that has an ROI; several ROIs of a
label on an image are their union. Everything that depends on the ROIs alone is prepared once, in
`Regions`; scoring a new set of maps is then a few tensor operations.

Padding (what the letterbox added) counts as outside for pointing and mass, so that a map that
looks at the border loses, and is left out of the pixel AP. Where scores are restricted to the
foreground (a mammogram is mostly black film), nothing outside it counts at all: maps are 0 there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from mmpkd.stats import Floats, macro, standard_error, weighted_mean

SCORES = ("pointing", "mass", "pixel_ap")
NUM_BINS = 256  # of the pixel AP: the map as an 8-bit image
CENTRE_SIGMA = 0.25  # of the content's side, along each axis
DARK = 0.1  # of the way from an image's 1st to its 99th percentile: background below
CHUNK_PIXELS = 1 << 18  # the pixel AP works through so many at once, which stay in the cache


@dataclass(frozen=True)
class Regions:
    """The ROIs of some images, laid out by pair: P = the (image, label) pairs that have an ROI.

    `box_P4` is the content of each pair's image inside its letterbox (top, left, bottom, right).
    """

    shape: tuple[int, int]  # N images, R labels
    grid: tuple[int, int]
    image_P: Tensor
    label_P: Tensor
    roi_PHW: Tensor  # bool, empty outside the content
    cells_Phw: Tensor  # share of each patch cell's area that the ROI covers
    box_P4: Tensor
    inside_PHW: Tensor  # bool: the pixels that count, the content or the foreground
    seen_Phw: Tensor  # share of each patch cell's area that counts: 1, or what of it is in the foreground

    @classmethod
    def of(
        cls,
        roi_NRHW: NDArray[Any] | Tensor,
        content_box_N4: NDArray[Any] | Tensor,
        grid: tuple[int, int],
        device: torch.device | str | None = None,
        foreground_NHW: NDArray[np.bool_] | None = None,
    ) -> Regions:
        """The pairs of N images and R labels, on the device where the maps will be.

        With `foreground_NHW` (see `foreground`) nothing outside it counts, of maps or of regions.

        Raises:
            ValueError: a frame that the patch grid does not divide.
        """
        roi_NRHW, box_N4 = torch.as_tensor(roi_NRHW), torch.as_tensor(content_box_N4)
        (height, width), (rows, columns) = roi_NRHW.shape[2:], grid
        if height % rows or width % columns:
            raise ValueError(
                f"a grid of {rows} x {columns} patches does not divide a frame of {height} x {width} pixels"
            )
        inside_NHW = inside(box_N4, (height, width))
        if foreground_NHW is not None:
            inside_NHW = inside_NHW & torch.as_tensor(foreground_NHW)
            roi_NRHW = roi_NRHW & inside_NHW[:, None]  # an ROI outside the foreground is none
        image_P, label_P = roi_NRHW.flatten(2).any(dim=2).nonzero(as_tuple=True)
        inside_PHW = inside_NHW[image_P].to(device)
        roi_PHW = roi_NRHW[image_P, label_P].to(device) & inside_PHW

        def share(mask_PHW: Tensor) -> Tensor:
            cells = mask_PHW.view(len(mask_PHW), rows, height // rows, columns, width // columns)
            return cells.sum(dim=(2, 4)) / (cells.shape[2] * cells.shape[4])

        return cls(
            shape=(roi_NRHW.shape[0], roi_NRHW.shape[1]),
            grid=grid,
            image_P=image_P.to(device),
            label_P=label_P.to(device),
            roi_PHW=roi_PHW,
            cells_Phw=share(roi_PHW),
            box_P4=box_N4[image_P].to(device),
            inside_PHW=inside_PHW,
            seen_Phw=share(inside_PHW if foreground_NHW is not None else torch.ones_like(inside_PHW)),
        )


def score(map_Nhw: Tensor, regions: Regions) -> dict[str, Floats]:
    """Pointing, mass and pixel AP of one map per image, each (N, R) with NaN where there is none.

    The map is the patch grid's, non-negative, in any scale. NaN stands for a pair without an ROI,
    and in `mass` also for a map that is zero everywhere.

    Raises:
        ValueError: maps of another number or grid than the regions', negative or not finite.
    """
    if map_Nhw.shape != (regions.shape[0], *regions.grid):
        raise ValueError(f"maps of shape {tuple(map_Nhw.shape)}, wanted {(regions.shape[0], *regions.grid)}")
    if not (torch.isfinite(map_Nhw) & (map_Nhw >= 0)).all():
        raise ValueError("a saliency map holds values that are negative or not finite")
    map_Phw = map_Nhw.float()[regions.image_P]
    by_pair = (
        pointing(map_Phw, regions.cells_Phw, regions.seen_Phw),
        mass(map_Phw, regions.cells_Phw, regions.seen_Phw),
        pixel_ap(map_Phw, regions.roi_PHW, regions.inside_PHW),
    )
    pairs = regions.image_P.cpu().numpy(), regions.label_P.cpu().numpy()
    scores: dict[str, Floats] = {}
    for name, value_P in zip(SCORES, by_pair, strict=True):
        scores[name] = np.full(regions.shape, np.nan)
        scores[name][pairs] = value_P.double().cpu().numpy()
    return scores


def baselines(regions: Regions) -> dict[str, Floats]:
    """What maps that ignore the image would score: `<score>_chance` and `<score>_centre`, each (N, R).

    Chance is a uniform map, which scores the ROI's share of the frame (pixel AP: of the content).
    They depend on the ROIs alone: compute them once per validation set.
    """
    uniform_Nhw = torch.ones((regions.shape[0], *regions.grid), device=regions.roi_PHW.device)
    centre_Nhw = torch.zeros_like(uniform_Nhw)
    centre_Nhw[regions.image_P] = centre_prior(regions.box_P4, tuple(regions.roi_PHW.shape[1:]), regions.grid)
    named = {"chance": score(uniform_Nhw, regions), "centre": score(centre_Nhw, regions)}
    return {f"{name}_{prior}": values for prior, scores in named.items() for name, values in scores.items()}


def summarize(scores: Mapping[str, Floats], weight_RN: Floats | None = None) -> dict[str, float]:
    """Each score as the mean over labels of the mean over images with an ROI.

    Returns:
        `<score>`; `<score>_undefined`, its (image, label) pairs without a value; and with
        `weight_RN` (see `stats.patient_weights`) `<score>_se`. NaN if no image has an ROI.
    """
    summary: dict[str, float] = {}
    for name, value_NR in scores.items():
        defined = np.isfinite(value_NR)
        value_NL = value_NR[:, defined.any(axis=0)]
        summary[name] = float(macro(weighted_mean(value_NL, np.ones((1, len(value_NL)))))[0])
        if name in SCORES:  # a baseline lacks the same pairs
            summary[f"{name}_undefined"] = float((~defined).sum())
        if weight_RN is not None:
            summary[f"{name}_se"] = standard_error(macro(weighted_mean(value_NL, weight_RN)))
    return summary


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

    Relevance mass accuracy (Arras et al. 2022). NaN for a map that is zero everywhere.
    """
    return (map_Phw * cells_Phw).sum(dim=(1, 2)) / (map_Phw * seen_Phw).sum(dim=(1, 2))


def pixel_ap(map_Phw: Tensor, roi_PHW: Tensor, inside_PHW: Tensor) -> Tensor:
    """Average precision of the pixels that count, ranked by the map as an 8-bit image (P).

    The map is upsampled bilinearly (align_corners=False) to the store frame and scaled to 0..255 by
    its minimum and maximum inside what counts; equal values enter together, so a constant map scores
    the ROI's share of it. NaN without a single ROI pixel.
    """
    height, width = roi_PHW.shape[1:]
    step = max(1, CHUNK_PIXELS // (height * width))
    chunks = [
        _pixel_ap(map_Phw[start : start + step], roi_PHW[start : start + step], inside_PHW[start : start + step])
        for start in range(0, len(map_Phw), step)
    ]
    return torch.cat(chunks) if chunks else map_Phw.new_zeros(0)


def _pixel_ap(map_Phw: Tensor, roi_PHW: Tensor, inside_PHW: Tensor) -> Tensor:
    num_pairs, height, width = roi_PHW.shape
    # Scaled on the grid first: a constant map becomes exactly zero there, where upsampling would
    # leave rounding noise that the second scaling then blows up to a full ranking.
    level_PHW = F.interpolate(_scaled(map_Phw)[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    level_PHW = (_scaled(level_PHW, inside_PHW) * (NUM_BINS - 1)).round_().long()
    level_PHW.masked_fill_(~inside_PHW, NUM_BINS)  # one bin more, dropped below
    pair_P11 = torch.arange(num_pairs, device=level_PHW.device)[:, None, None]
    cell_PHW = (pair_P11 * (NUM_BINS + 1) + level_PHW) * 2 + roi_PHW
    count = torch.bincount(cell_PHW.flatten(), minlength=num_pairs * (NUM_BINS + 1) * 2)
    count = count.view(num_pairs, NUM_BINS + 1, 2)[:, :NUM_BINS].flip(1).double()  # highest value first
    hits = count[..., 1]
    precision = hits.cumsum(1) / count.sum(2).cumsum(1).clamp(min=1)
    return (hits * precision).sum(1) / hits.sum(1)


def _scaled(map_PHW: Tensor, inside_PHW: Tensor | None = None) -> Tensor:
    """(map - min) / (max - min) of each map, over the pixels that count; 0 for a constant one."""
    low, high = map_PHW, map_PHW
    if inside_PHW is not None:
        low = map_PHW.masked_fill(~inside_PHW, torch.inf)
        high = map_PHW.masked_fill(~inside_PHW, -torch.inf)
    minimum, maximum = low.amin(dim=(1, 2), keepdim=True), high.amax(dim=(1, 2), keepdim=True)
    spread = maximum - minimum
    return (map_PHW - minimum) / torch.where(spread > 0, spread, torch.inf)


def inside(box_N4: Tensor, frame: tuple[int, ...]) -> Tensor:
    """True at the pixels of each image's content (N, H, W)."""
    top, left, bottom, right = (side[:, None] for side in box_N4.unbind(1))
    row, column = (torch.arange(side, device=box_N4.device) for side in frame)
    return ((row >= top) & (row < bottom))[:, :, None] & ((column >= left) & (column < right))[:, None, :]


def foreground(image_NHW: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The largest bright region of each image, holes filled: the breast on its film, without labels.

    Bright is above `DARK` between the image's 1st and 99th percentiles. An image without contrast is all foreground.
    """
    found = np.empty(image_NHW.shape, bool)
    for image_HW, found_HW in zip(image_NHW, found, strict=True):
        low, high = np.percentile(image_HW, [1, 99])
        region_HW, count = ndimage.label(image_HW > low + DARK * (high - low))
        largest = np.bincount(region_HW.ravel())[1:].argmax() + 1 if count else 0
        found_HW[:] = ndimage.binary_fill_holes(region_HW == largest)
    return found


def centre_prior(box_N4: Tensor, frame: tuple[int, ...], grid: tuple[int, int]) -> Tensor:
    """A Gaussian bump in the middle of each image's content, at the patch centres (N, h, w).

    Centred on the content, not on the frame, with a standard deviation of a quarter of the content's
    side along each axis: what one would guess who knows where the image lies and has not looked.
    """
    box_N4 = box_N4.double()  # and rounded at the end, so that cells equally far tie exactly
    axes = []
    for axis in (0, 1):
        low, high = box_N4[:, axis, None], box_N4[:, axis + 2, None]
        centre = (torch.arange(grid[axis], device=box_N4.device) + 0.5) * (frame[axis] / grid[axis])
        axes.append(((centre - (low + high) / 2) / (CENTRE_SIGMA * (high - low))) ** 2)
    return torch.exp(-(axes[0][:, :, None] + axes[1][:, None, :]) / 2).float()
