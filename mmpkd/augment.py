"""Augmentation as one vectorised gather: a random view of each image, drawn once, applied to
whatever must move together (image and ROI)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpkd.config import AugmentationConfig


class View(NamedTuple):
    """Where each pixel of a view comes from; outside [0, size) is background."""

    rows_BH: Tensor
    columns_BW: Tensor


def draw_views(count: int, size: int, config: AugmentationConfig, generator: torch.Generator) -> View:
    """Random shifts of whole pixels and flips, one per image, from an explicit CPU generator."""

    def axis(flip: bool) -> Tensor:
        reach = round(config.shift * size)
        shift_B1 = torch.randint(-reach, reach + 1, (count, 1), generator=generator)
        mirrored_B1 = torch.rand(count, 1, generator=generator) < 0.5
        index_S = torch.arange(size)
        index_BS = torch.where(mirrored_B1, size - 1 - index_S, index_S) if flip else index_S.expand(count, size)
        return index_BS + shift_B1

    return View(axis(config.flip_vertical), axis(config.flip_horizontal))


def look(x_BCHW: Tensor, view: View) -> Tensor:
    """The views of a batch of images or masks (any dtype); what lies outside the image is 0."""
    height, width = x_BCHW.shape[-2:]
    rows_BH, columns_BW = (index.to(x_BCHW.device) for index in view)
    batch = torch.arange(len(x_BCHW), device=x_BCHW.device)[:, None, None, None]
    channel = torch.arange(x_BCHW.shape[1], device=x_BCHW.device)[None, :, None, None]
    seen_BCHW = x_BCHW[
        batch, channel, rows_BH.clamp(0, height - 1)[:, None, :, None], columns_BW.clamp(0, width - 1)[:, None, None, :]
    ]
    inside_BH = (rows_BH >= 0) & (rows_BH < height)
    inside_BW = (columns_BW >= 0) & (columns_BW < width)
    return seen_BCHW * (inside_BH[:, None, :, None] & inside_BW[:, None, None, :])


def look_map(map_Bhw: Tensor, view: View) -> Tensor:
    """Maps over the cells of a grid, moved as the batch's images are; each sums to 1.

    A cell is spread over its pixels, and the pixels seen are averaged over the cells again. A map of which
    the view sees nothing is NaN.
    """
    size = view.rows_BH.shape[1], view.columns_BW.shape[1]
    seen_B1HW = look(F.interpolate(map_Bhw[:, None], size=size, mode="nearest"), view)
    moved_Bhw = F.adaptive_avg_pool2d(seen_B1HW, (map_Bhw.shape[1], map_Bhw.shape[2]))[:, 0]
    return moved_Bhw / moved_Bhw.sum(dim=(1, 2), keepdim=True)
