"""Scores of saliency maps against regions of interest, beside the scores of maps that ignore the image.

There is one value for each (image, label) with an ROI; several ROIs of a label on an image form their union. Maps are
scored in the store frame (the padded square); `measure_original` scores in the frame of the original image. What
depends on the ROIs alone is prepared once, in `Regions`, so that scoring maps takes few tensor operations. Formulas are
in `formulas.py`.

Padding by the letterbox counts as outside for pointing and mass, so that a map that attends to the border scores lower;
pixel scores leave the padding out. If scores are restricted to the foreground (a mammogram is mostly black film),
nothing outside it counts: maps are 0 there. The score of an (image, label) without an ROI is NaN; such pairs are
counted. A map that is zero everywhere predicts nothing: mass and IoU are 0, rank scores as for a flat map, at chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from mmpkd.frames import Letterbox
from mmpkd.scoring import attainable, formulas
from mmpkd.scoring.stats import Floats, macro, standard_error, weighted_mean

MEASURED = ("pointing", "mass", "pixel_ap", "rank", "cnr", "iou_otsu")
SCORES = (*MEASURED, "iou_tuned")
DARK = 0.1  # between an image's 1st and 99th percentile of grey: lower values are background
CHUNK_PIXELS = 1 << 18  # pixels that are scored at once; this number fits into the CPU cache
# A pixel is above 0.2 of an 8-bit image where its level is above 51.
CUTS = [int(threshold * (formulas.NUM_LEVELS - 1) + 1e-9) for threshold in formulas.THRESHOLDS]
NUM_MEASURED = len(MEASURED) + len(CUTS)  # columns of the result of `measure`


@dataclass(frozen=True)
class Regions:
    """The ROIs of some images: one for each of the P (image, label) pairs that have an ROI.

    `box_P4` is the box (top, left, bottom, right) of each pair's image, without its padding, in the padded square.
    """

    shape: tuple[int, int]  # N images, R labels
    grid: tuple[int, int]
    image_P: Tensor
    label_P: Tensor
    roi_PHW: Tensor  # bool, empty outside the content
    cells_Phw: Tensor  # share of each patch cell's area that the ROI covers
    box_P4: Tensor
    inside_PHW: Tensor  # bool: the pixels that count, the content or the foreground
    seen_Phw: Tensor  # share of each patch cell's area that counts: 1, or the share in the foreground

    @classmethod
    def of(
        cls,
        roi_NRHW: NDArray[Any] | Tensor,
        content_box_N4: NDArray[Any] | Tensor,
        grid: tuple[int, int],
        device: torch.device | str | None = None,
        foreground_NHW: NDArray[np.bool_] | None = None,
    ) -> Regions:
        """Returns the pairs of N images and R labels, on the device of the maps.

        With `foreground_NHW` (see `foreground`), nothing outside the foreground counts, in maps or in regions.

        Raises:
            ValueError: the patch grid does not divide the frame.
        """
        roi_NRHW, box_N4 = torch.as_tensor(roi_NRHW), torch.as_tensor(content_box_N4)
        (height, width), (rows, columns) = roi_NRHW.shape[2:], grid
        if height % rows or width % columns:
            raise ValueError(
                f"a grid of {rows} x {columns} patches does not divide a frame of {height} x {width} pixels"
            )
        inside_NHW = formulas.inside(box_N4, (height, width))
        if foreground_NHW is not None:
            inside_NHW = inside_NHW & torch.as_tensor(foreground_NHW)
            roi_NRHW = roi_NRHW & inside_NHW[:, None]  # an ROI outside the foreground is no ROI
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


def score(map_NRhw: Tensor, regions: Regions, threshold_R: Floats | None = None) -> dict[str, Floats]:
    """Returns every score of SCORES by name, for N images and R labels (N, R); NaN without an ROI of the label.

    Args:
        map_NRhw: non-negative maps on the patch grid, in any scale; R is 1 if one map serves all labels.
        threshold_R: see `by_image`.

    Raises:
        ValueError: maps differ from the regions in number or grid, are negative, or are not finite.
    """
    return by_image(measure(by_pair(map_NRhw, regions), regions), regions, threshold_R)


def by_pair(map_NRhw: Tensor, regions: Regions) -> Tensor:
    """Returns the map of each (image, label) pair that has an ROI (P, h, w). Raises ValueError as `score` does."""
    (num_images, num_labels), given = regions.shape, tuple(map_NRhw.shape)
    if given not in [(num_images, count, *regions.grid) for count in (1, num_labels)]:
        raise ValueError(
            f"maps of shape {given}, wanted {(num_images, num_labels, *regions.grid)} or one for all labels"
        )
    if not (torch.isfinite(map_NRhw) & (map_NRhw >= 0)).all():
        raise ValueError("a saliency map holds values that are negative or not finite")
    return map_NRhw.float().expand(num_images, num_labels, *regions.grid)[regions.image_P, regions.label_P]


def measure(map_Phw: Tensor, regions: Regions) -> Tensor:
    """Returns the scores of MEASURED, then the IoU at each of THRESHOLDS (P, S), in the store frame.

    Maps are upsampled bilinearly (align_corners=False). They are scaled on the grid first, so that a constant map is
    exactly zero: otherwise the rounding noise of upsampling would be scaled up to a full ranking.
    """
    height, width = regions.roi_PHW.shape[1:]
    pixels = []
    step = max(1, CHUNK_PIXELS // (height * width))
    for start in range(0, max(1, len(map_Phw)), step):
        part = slice(start, start + step)
        grid_P1hw = formulas.scaled(map_Phw[part])[:, None]
        up_PHW = F.interpolate(grid_P1hw, (height, width), mode="bilinear", align_corners=False)[:, 0]
        pixels.append(_measure_pixels(up_PHW, regions.roi_PHW[part], regions.inside_PHW[part]))
    cells = [formula(map_Phw, regions.cells_Phw, regions.seen_Phw) for formula in (formulas.pointing, formulas.mass)]
    return torch.cat([torch.stack(cells, dim=1).double(), torch.cat(pixels)], dim=1)


def measure_original(
    map_hw: Tensor, roi_HW: NDArray[np.bool_], letterbox: Letterbox, inside_HW: NDArray[np.bool_] | None = None
) -> Tensor:
    """Returns `measure` of a single map (1, S) in the frame of the original image, against the ROI there.

    The shares of cells are those of the original ROI, and the upsampled map is that of the store frame, read at the
    centres of the original pixels. If `inside_HW`, the foreground, is given, only its pixels count.
    """
    grid = (int(map_hw.shape[0]), int(map_hw.shape[1]))
    counts_HW = np.ones_like(roi_HW) if inside_HW is None else inside_HW
    roi_HW = roi_HW & counts_HW
    if not roi_HW.any():  # a pixel of the ROI is in the stored foreground, but none at the original scale
        return torch.full((1, NUM_MEASURED), torch.nan, dtype=torch.float64)
    cells_1hw, seen_1hw = (share_hw[None] for share_hw in original_shares(roi_HW, letterbox, grid, inside_HW))
    map_1hw = torch.as_tensor(map_hw).cpu().float()[None]
    up_HW = letterbox.original_map(formulas.scaled(map_1hw)[0].numpy())
    pixels = _measure_pixels(*(torch.from_numpy(array_HW)[None] for array_HW in (up_HW, roi_HW, counts_HW)))
    cells = [formula(map_1hw, cells_1hw, seen_1hw) for formula in (formulas.pointing, formulas.mass)]
    return torch.cat([torch.stack(cells, dim=1).double(), pixels], dim=1)


def original_shares(
    roi_HW: NDArray[np.bool_], letterbox: Letterbox, grid: tuple[int, int], inside_HW: NDArray[np.bool_] | None = None
) -> tuple[Tensor, Tensor]:
    """Returns `cells_Phw` and `seen_Phw` of `Regions`, as (h, w), for one ROI in the frame of the original image."""
    roi_HW = roi_HW if inside_HW is None else roi_HW & inside_HW
    cells_hw = letterbox.cell_shares(roi_HW, grid)
    seen_hw = np.ones_like(cells_hw) if inside_HW is None else letterbox.cell_shares(inside_HW, grid)
    return torch.from_numpy(cells_hw).float(), torch.from_numpy(seen_hw).float()


def _measure_pixels(map_PHW: Tensor, roi_PHW: Tensor, inside_PHW: Tensor) -> Tensor:
    count_PL2 = formulas.histogram(map_PHW, roi_PHW, inside_PHW)
    iou_PL = formulas.iou(count_PL2)
    rank_scores = [formulas.pixel_ap(count_PL2), formulas.rank(count_PL2), formulas.cnr(count_PL2)]
    iou_otsu_P1 = iou_PL.gather(1, formulas.otsu(count_PL2)[:, None])
    return torch.cat([torch.stack(rank_scores, dim=1), iou_otsu_P1, iou_PL[:, CUTS]], dim=1)


def by_image(measured_PS: Tensor, regions: Regions, threshold_R: Floats | None = None) -> dict[str, Floats]:
    """Returns all SCORES, each (N, R), from the result of `measure` or `measure_original`.

    Args:
        threshold_R: thresholds of `iou_tuned`, chosen by `tuned_thresholds` on other images. If None, they are chosen
            on the scored pairs themselves, which raises the score; a sweep does this for all trials. The score of a
            label is NaN if its threshold is NaN.
    """
    threshold_R = tuned_thresholds(measured_PS, regions) if threshold_R is None else threshold_R
    label_P = regions.label_P.cpu().numpy()
    value_PS = measured_PS.cpu().numpy()
    threshold_P = threshold_R[label_P]
    cut_P = np.abs(np.array(formulas.THRESHOLDS) - threshold_P[:, None]).argmin(axis=1)
    tuned_P = np.where(np.isnan(threshold_P), np.nan, value_PS[np.arange(len(cut_P)), len(MEASURED) + cut_P])
    scores: dict[str, Floats] = {}
    for name, value_P in zip(SCORES, [*value_PS.T[: len(MEASURED)], tuned_P], strict=True):
        scores[name] = np.full(regions.shape, np.nan)
        scores[name][regions.image_P.cpu().numpy(), label_P] = value_P
    return scores


def tuned_thresholds(measured_PS: Tensor, regions: Regions) -> Floats:
    """Returns each label's threshold (R) with the highest mean IoU (the lowest if tied); NaN for a label without ROI.

    CheXlocalize tunes in the same way, per label, on validation.
    """
    iou_PT, label_P = measured_PS[:, len(MEASURED) :].cpu().numpy(), regions.label_P.cpu().numpy()
    threshold_R = np.full(regions.shape[1], np.nan)
    for label in np.unique(label_P):
        threshold_R[label] = formulas.THRESHOLDS[iou_PT[label_P == label].mean(axis=0).argmax()]
    return threshold_R


def bounds(regions: Regions, one_map: bool) -> dict[str, Floats]:
    """Returns the highest attainable scores, `pointing_max` and `mass_max`, each (N, R); see `attainable`."""
    best_P = attainable.best_shares(regions.cells_Phw, regions.seen_Phw, regions.image_P, regions.label_P, one_map)
    best_NR = np.full(regions.shape, np.nan)
    best_NR[regions.image_P.cpu().numpy(), regions.label_P.cpu().numpy()] = best_P.cpu().numpy()
    return {f"{score}_max": best_NR for score in attainable.SCORES}


def summarize(
    scores: Mapping[str, Floats], weight_RN: Floats | None = None, labels: Sequence[str] = ()
) -> dict[str, float]:
    """Returns each score as the mean over labels of the mean over images with an ROI.

    Returns:
        `<score>`; `<score>_undefined`, the number of (image, label) pairs without a value; with `weight_RN`
        (see `stats.patient_weights`) `<score>_se`; with several `labels` also `<score>/<label>`.
        Scores are NaN if no image has an ROI.
    """
    summary: dict[str, float] = {}
    for name, value_NR in scores.items():
        mean_1R = weighted_mean(value_NR, np.ones((1, len(value_NR))))
        defined_R = np.isfinite(mean_1R[0])
        summary[name] = float(macro(mean_1R[:, defined_R])[0])
        if name in SCORES:  # a baseline has no values for the same pairs
            summary[f"{name}_undefined"] = float((~np.isfinite(value_NR)).sum())
            if len(labels) > 1:
                summary |= {f"{name}/{label}": float(mean) for label, mean in zip(labels, mean_1R[0], strict=True)}
        if weight_RN is not None:
            summary[f"{name}_se"] = standard_error(macro(weighted_mean(value_NR[:, defined_R], weight_RN)))
    return summary


def table(
    scores: Mapping[str, Floats], regions: Regions, sample_ids: Sequence[str], labels: Sequence[str]
) -> pd.DataFrame:
    """Returns one row for each (sample, label) with an ROI, with every score, for statistical analyses."""
    image_P, label_P = regions.image_P.cpu().numpy(), regions.label_P.cpu().numpy()
    columns = {name: value_NR[image_P, label_P] for name, value_NR in scores.items()}
    return pd.DataFrame({"sample": np.array(sample_ids)[image_P], "label": np.array(labels)[label_P], **columns})


def foreground(image_NHW: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Returns the largest bright region of each image with its holes filled: the breast on its film, without labels.

    A pixel is bright above `DARK` between the 1st and 99th percentiles. An image without contrast is all foreground.
    """
    foreground_NHW = np.empty(image_NHW.shape, bool)
    for image_HW, foreground_HW in zip(image_NHW, foreground_NHW, strict=True):
        low, high = np.percentile(image_HW, [1, 99])
        region_HW, count = ndimage.label(image_HW > low + DARK * (high - low))
        largest = np.bincount(region_HW.ravel())[1:].argmax() + 1 if count else 0
        foreground_HW[:] = ndimage.binary_fill_holes(region_HW == largest)
    return foreground_NHW
