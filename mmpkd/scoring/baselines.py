"""Maps that ignore the image on which they are scored: the baselines of every localisation score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CENTRE_SIGMA = 0.25  # standard deviation, as a share of the content's side along each axis


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


def inside(box_N4: Tensor, frame: tuple[int, ...]) -> Tensor:
    """Returns for each image a mask (N, H, W) that is True on its content, the image without its padding."""
    top, left, bottom, right = (side[:, None] for side in box_N4.unbind(1))
    row, column = (torch.arange(side, device=box_N4.device) for side in frame)
    return ((row >= top) & (row < bottom))[:, :, None] & ((column >= left) & (column < right))[:, None, :]


def _positions(box_N4: Tensor, frame: tuple[int, ...], grid: tuple[int, int]) -> list[Tensor]:
    """Returns the rows (N, h) and columns (N, w) of the patch centres as positions along the image without its padding,
    which reaches from 0 to 1."""
    positions = []
    for axis in (0, 1):
        low, high = box_N4[:, axis, None].double(), box_N4[:, axis + 2, None].double()
        centre = (torch.arange(grid[axis], device=box_N4.device) + 0.5) * (frame[axis] / grid[axis])
        positions.append((centre - low) / (high - low))
    return positions
