"""Scores of saliency maps against regions of interest, beside the scores of maps that ignore the image.

There is one value for each (image, label) with an ROI; several ROIs of a label on an image form their union. Maps are
scored in the store frame (the padded square); `measure_original` scores in the frame of the original image. What
depends on the ROIs alone is prepared once, in `regions.py`, so that scoring maps takes few tensor operations. Formulas
are in `formulas.py`.

Padding by the letterbox counts as outside for pointing and mass, so that a map that attends to the border scores lower;
pixel scores leave the padding out. If scores are restricted to the foreground (a mammogram is mostly black film),
nothing outside it counts: maps are 0 there. The score of an (image, label) without an ROI is NaN; such pairs are
counted. A map that is zero everywhere predicts nothing: mass and IoU are 0, rank scores as for a flat map, at chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmpkd.frames import Letterbox
from mmpkd.scoring import attainable, formulas
from mmpkd.scoring.regions import Regions
from mmpkd.scoring.stats import Floats, macro, standard_error, weighted_mean

MEASURED = ("pointing", "mass", "pixel_ap", "rank", "cnr", "iou_otsu")
SCORES = (*MEASURED, "iou_tuned")
ON_CELLS = {"pointing": formulas.pointing, "mass": formulas.mass}  # formulas that need the patch grid alone
CHUNK_PIXELS = 1 << 18  # pixels that are scored at once on a CPU; this number fits into its cache
GPU_PIXELS = 1 << 24  # the same on a GPU, where few large operations are faster; they take some 500 MB
# A pixel is above 0.2 of an 8-bit image where its level is above 51.
CUTS = [int(threshold * (formulas.NUM_LEVELS - 1) + 1e-9) for threshold in formulas.THRESHOLDS]
NUM_MEASURED = len(MEASURED) + len(CUTS)  # columns of the result of `measure`


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
    map_Phw = by_pair_unchecked(map_NRhw, regions)
    if not (torch.isfinite(map_NRhw) & (map_NRhw >= 0)).all():
        raise ValueError("a saliency map holds values that are negative or not finite")
    return map_Phw


def by_pair_unchecked(map_NRhw: Tensor, regions: Regions) -> Tensor:
    """Returns `by_pair` without a look at the values of the maps, for which the host would wait for the device."""
    (num_images, num_labels), given = regions.shape, tuple(map_NRhw.shape)
    if given not in [(num_images, count, *regions.grid) for count in (1, num_labels)]:
        raise ValueError(
            f"maps of shape {given}, wanted {(num_images, num_labels, *regions.grid)} or one for all labels"
        )
    return map_NRhw.float().expand(num_images, num_labels, *regions.grid)[regions.image_P, regions.label_P]


def measure(map_Phw: Tensor, regions: Regions) -> Tensor:
    """Returns the scores of MEASURED, then the IoU at each of THRESHOLDS (P, S), in the store frame.

    Maps are upsampled bilinearly (align_corners=False). They are scaled on the grid first, so that a constant map is
    exactly zero: otherwise the rounding noise of upsampling would be scaled up to a full ranking.
    """
    pixels = [_measure_pixels(count_PL2) for count_PL2 in _histograms(map_Phw, regions)]
    cells = [formula(map_Phw, regions.cells_Phw, regions.seen_Phw) for formula in ON_CELLS.values()]
    return torch.cat([torch.stack(cells, dim=1).double(), torch.cat(pixels)], dim=1)


def measure_goals(map_Phw: Tensor, regions: Regions, goals: Sequence[str]) -> Tensor:
    """Returns only the columns `goals` of `measure` (P, len(goals)), bit by bit. It computes no other score, and no map
    at full resolution unless a goal needs it.

    Args:
        goals: some of `pointing`, `mass` and `pixel_ap`.
    """
    columns = []
    for goal in goals:
        if goal in ON_CELLS:
            columns.append(ON_CELLS[goal](map_Phw, regions.cells_Phw, regions.seen_Phw).double())
        else:
            assert goal == "pixel_ap", goal
            columns.append(torch.cat([formulas.pixel_ap(count_PL2) for count_PL2 in _histograms(map_Phw, regions)]))
    return torch.stack(columns, dim=1)


def _histograms(map_Phw: Tensor, regions: Regions) -> Iterator[Tensor]:
    """Yields `formulas.histogram` of the upsampled maps, of a few pairs at a time."""
    height, width = regions.roi_PHW.shape[1:]
    step = max(1, (GPU_PIXELS if map_Phw.is_cuda else CHUNK_PIXELS) // (height * width))
    for start in range(0, max(1, len(map_Phw)), step):
        part = slice(start, start + step)
        grid_P1hw = formulas.scaled(map_Phw[part])[:, None]
        up_PHW = F.interpolate(grid_P1hw, (height, width), mode="bilinear", align_corners=False)[:, 0]
        yield formulas.histogram(up_PHW, regions.roi_PHW[part], regions.inside_PHW[part])


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
    count_1L2 = formulas.histogram(*(torch.from_numpy(array_HW)[None] for array_HW in (up_HW, roi_HW, counts_HW)))
    pixels = _measure_pixels(count_1L2)
    cells = [formula(map_1hw, cells_1hw, seen_1hw) for formula in ON_CELLS.values()]
    return torch.cat([torch.stack(cells, dim=1).double(), pixels], dim=1)


def original_shares(
    roi_HW: NDArray[np.bool_], letterbox: Letterbox, grid: tuple[int, int], inside_HW: NDArray[np.bool_] | None = None
) -> tuple[Tensor, Tensor]:
    """Returns `cells_Phw` and `seen_Phw` of `Regions`, as (h, w), for one ROI in the frame of the original image."""
    roi_HW = roi_HW if inside_HW is None else roi_HW & inside_HW
    cells_hw = letterbox.cell_shares(roi_HW, grid)
    seen_hw = np.ones_like(cells_hw) if inside_HW is None else letterbox.cell_shares(inside_HW, grid)
    return torch.from_numpy(cells_hw).float(), torch.from_numpy(seen_hw).float()


def _measure_pixels(count_PL2: Tensor) -> Tensor:
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
    value_PS = measured_PS.cpu().numpy()
    threshold_P = threshold_R[regions.places[1]]
    cut_P = np.abs(np.array(formulas.THRESHOLDS) - threshold_P[:, None]).argmin(axis=1)
    tuned_P = np.where(np.isnan(threshold_P), np.nan, value_PS[np.arange(len(cut_P)), len(MEASURED) + cut_P])
    columns = zip(SCORES, [*value_PS.T[: len(MEASURED)], tuned_P], strict=True)
    return {name: regions.by_place(value_P) for name, value_P in columns}


def tuned_thresholds(measured_PS: Tensor, regions: Regions) -> Floats:
    """Returns each label's threshold (R) with the highest mean IoU (the lowest if tied); NaN for a label without ROI.

    CheXlocalize tunes in the same way, per label, on validation.
    """
    iou_PT, (_, label_P) = measured_PS[:, len(MEASURED) :].cpu().numpy(), regions.places
    threshold_R = np.full(regions.shape[1], np.nan)
    for label in np.unique(label_P):
        threshold_R[label] = formulas.THRESHOLDS[iou_PT[label_P == label].mean(axis=0).argmax()]
    return threshold_R


def bounds(regions: Regions, one_map: bool) -> dict[str, Floats]:
    """Returns the highest attainable scores, `pointing_max` and `mass_max`, each (N, R); see `attainable`."""
    best_P = attainable.best_shares(regions.cells_Phw, regions.seen_Phw, regions.image_P, regions.label_P, one_map)
    best_NR = regions.by_place(best_P.cpu().numpy())
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
    image_P, label_P = regions.places
    columns = {name: value_NR[image_P, label_P] for name, value_NR in scores.items()}
    return pd.DataFrame({"sample": np.array(sample_ids)[image_P], "label": np.array(labels)[label_P], **columns})
