"""Maps that ignore the image on which they are scored: the baselines of every localisation score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmpkd.cohort.store import Store
from mmpkd.scoring import attainable
from mmpkd.scoring.localize import MEASURED, SCORES, by_image
from mmpkd.scoring.regions import Regions
from mmpkd.scoring.stats import Floats

BASELINES = ("chance", "content", "centre", "prior")
CENTRE_SIGMA = 0.25  # standard deviation, as a share of the content's side along each axis


def baseline_maps(regions: Regions, prior_Rhw: Tensor | None = None) -> dict[str, Tensor]:
    """Returns maps that ignore the image, by name. Each holds one map for each (image, label) pair, (P, h, w).

    `chance` is uniform, `content` is uniform on the content, and `centre` is a bump in the middle of the content.
    `prior` is the mean ROI of the training images (see `mean_roi`), if given: a map for each label, or one for all.
    """
    frame = tuple(regions.roi_PHW.shape[1:])
    maps = {
        "chance": torch.ones_like(regions.cells_Phw),
        "content": content(regions.inside_PHW, regions.seen_Phw),
        "centre": centre(regions.box_P4, frame, regions.grid),
    }
    if prior_Rhw is not None:
        prior_Rhw = prior_Rhw.to(regions.label_P.device).expand(regions.shape[1], *regions.grid)
        maps["prior"] = letterboxed(prior_Rhw[regions.label_P], regions.box_P4, frame)
    return maps


def baseline_scores(measured: Mapping[str, Tensor], regions: Regions) -> dict[str, Floats]:
    """Returns the scores of `baseline_maps`, `<score>_chance` and so on, each (N, R). They depend on the ROIs alone.

    `content` has pointing and mass only, because the other scores leave the padding out and are those of `chance`.

    An IoU by chance is the ROI's share of the pixels that count, the IoU of the set of all these pixels. No set that is
    placed at random, so that all pixels are equally likely to be in it, has a higher expected IoU. The reason: the
    union of set and ROI is at least as large as the set, so the IoU is at most the share of the set that lies in the
    ROI, and the expectation of this share is the ROI's share of the pixels.

    Args:
        measured: the result of `measure` or `measure_original` of each map, by its name.
    """
    scores: dict[str, Floats] = {}
    for name, measured_PS in measured.items():
        if name == "chance":  # a uniform map has no pixel above a threshold, so its IoU says nothing
            share_P1 = measured_PS[:, [MEASURED.index("pixel_ap")]]  # for a uniform map, the ROI's share of the pixels
            measured_PS = measured_PS.clone()
            measured_PS[:, MEASURED.index("iou_otsu") :] = share_P1
        by_score = by_image(measured_PS, regions)
        kept = attainable.SCORES if name == "content" else SCORES
        scores |= {f"{score}_{name}": by_score[score] for score in kept}
    return scores


def content(inside_PHW: Tensor, seen_Phw: Tensor) -> Tensor:
    """Returns for each pair a map (P, h, w) that is uniform on the pixels that count and 0 on the padding.

    The value of a patch that the edge of the content cuts is the share of the patch that lies in the content. It is the
    best guess of a student that knows the padding alone.

    Args:
        inside_PHW, seen_Phw: see `regions.Regions`.
    """
    share_Phw = F.adaptive_avg_pool2d(inside_PHW.float(), (seen_Phw.shape[1], seen_Phw.shape[2]))
    return share_Phw / torch.where(seen_Phw > 0, seen_Phw, torch.inf)


def centre(box_N4: Tensor, frame: tuple[int, ...], grid: tuple[int, int]) -> Tensor:
    """Returns for each image a map with a Gaussian bump in the middle of its content, the image without its padding.
    The map is evaluated at the centres of the patches (N, h, w).

    The bump is not centred on the frame, the padded square. Its standard deviation along each axis is a quarter of the
    content's side. It is the best guess from the position of the content in the frame alone.
    """
    # Computed in double precision and rounded at the end, so that cells at equal distance tie exactly.
    row_Nh, column_Nw = (((position - 0.5) / CENTRE_SIGMA) ** 2 for position in _positions(box_N4, frame, grid))
    return torch.exp(-(row_Nh[:, :, None] + column_Nw[:, None, :]) / 2).float()


def mean_roi(training: Iterable[tuple[Tensor, Sequence[int]]], grid: tuple[int, int]) -> Tensor | None:
    """Returns the mean ROI of each label over training images (R, h, w). The grid covers the content, the image without
    its padding.

    A value is the share of its cell that ROIs cover. The map of a label without an ROI in training is uniform; the
    result is None if no label has an ROI. Only this baseline may read these ROIs.

    Args:
        training: for each image, its masks (R, H, W) in the stored square and the box of its content.
    """
    total_Rhw, count_R = torch.zeros(()), torch.zeros(())
    for roi_RHW, (top, left, bottom, right) in training:
        content_RHW = roi_RHW[:, top:bottom, left:right].float()
        total_Rhw = total_Rhw + F.adaptive_avg_pool2d(content_RHW, grid)
        count_R = count_R + content_RHW.flatten(1).any(dim=1)
    if not count_R.any():
        return None
    return torch.where(count_R[:, None, None] > 0, total_Rhw / count_R.clamp(min=1)[:, None, None], 1.0)


def mean_roi_of(store: Store, rows: NDArray[np.int64], grid: tuple[int, int], one_map: bool) -> Tensor | None:
    """Returns `mean_roi` of the samples at `rows`: one map per label or, if `one_map`, a single map for the
    ROIs of all labels."""

    def masks(row: int) -> Tensor:
        roi_RHW = torch.from_numpy(store.roi_mask(np.array([row]))[0])
        return roi_RHW.any(dim=0, keepdim=True) if one_map else roi_RHW

    with_roi = [int(row) for row in rows if store.rois(int(row))]
    return mean_roi(((masks(row), store.content_box_N4[row].tolist()) for row in with_roi), grid)


def letterboxed(content_Phw: Tensor, box_P4: Tensor, frame: tuple[int, ...]) -> Tensor:
    """Resamples maps of images without their padding at the patch centres of the padded square, as (P, h, w).

    The result is 0 on the padding.
    """
    grid = (content_Phw.shape[1], content_Phw.shape[2])
    row_Ph, column_Pw = (2 * position.float() - 1 for position in _positions(box_P4, frame, grid))  # for grid_sample
    at_Phw2 = torch.stack(
        [column_Pw[:, None, :].expand(-1, grid[0], -1), row_Ph[:, :, None].expand(-1, -1, grid[1])], -1
    )
    read_Phw = F.grid_sample(content_Phw[:, None], at_Phw2, padding_mode="border", align_corners=False)[:, 0]
    return read_Phw * (at_Phw2.abs() < 1).all(dim=-1)


def _positions(box_N4: Tensor, frame: tuple[int, ...], grid: tuple[int, int]) -> list[Tensor]:
    """Returns the rows (N, h) and columns (N, w) of the patch centres as positions along the image without its padding,
    which reaches from 0 to 1."""
    positions = []
    for axis in (0, 1):
        low, high = box_N4[:, axis, None].double(), box_N4[:, axis + 2, None].double()
        centre = (torch.arange(grid[axis], device=box_N4.device) + 0.5) * (frame[axis] / grid[axis])
        positions.append((centre - low) / (high - low))
    return positions
