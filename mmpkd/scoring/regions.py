"""Regions of interest (ROIs) as the localisation scores read them: pairs of an image and a label, prepared once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from mmpkd.scoring import formulas
from mmpkd.scoring.stats import Floats

DARK = 0.1  # between an image's 1st and 99th percentile of grey: lower values are background


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

    @cached_property
    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The image and the label of each pair, copied from the device once."""
        return self.image_P.cpu().numpy(), self.label_P.cpu().numpy()

    def by_place(self, value_P: NDArray[Any]) -> Floats:
        """Returns the values of the pairs by image and label (N, R); NaN without an ROI."""
        value_NR = np.full(self.shape, np.nan)
        value_NR[self.places] = value_P
        return value_NR

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

        cells_Phw = share(roi_PHW)
        return cls(
            shape=(roi_NRHW.shape[0], roi_NRHW.shape[1]),
            grid=grid,
            image_P=image_P.to(device),
            label_P=label_P.to(device),
            roi_PHW=roi_PHW,
            cells_Phw=cells_Phw,
            box_P4=box_N4[image_P].to(device),
            inside_PHW=inside_PHW,
            seen_Phw=torch.ones_like(cells_Phw) if foreground_NHW is None else share(inside_PHW),
        )


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
