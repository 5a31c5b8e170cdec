"""Augmentation: draws a random view of each image, and applies the view alike to the image, its ROI and the teacher's
map, in one vectorised gather. Changes of brightness and contrast apply to the image alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpkd.config import AugmentationConfig
from mmpkd.scoring.formulas import inside


class View(NamedTuple):
    """Random views of a batch of images: for each pixel of a view, the position in its image from which the pixel is
    read. A pixel that is read from outside [0, size) is background.

    A view is first rotated and scaled about the middle of the square, then shifted and flipped.
    """

    rows_BH: Tensor
    columns_BW: Tensor
    turn_B22: Tensor | None = None  # (row, column) in the view to (row, column) in the image, from the middle
    light_B2: Tensor | None = None  # factors of brightness and contrast


class Draws(NamedTuple):
    """The random numbers that determine the views of B images. They are few, so that those of a whole epoch can be
    copied to a device at once.
    """

    shift_B2: Tensor  # pixels, along the rows and the columns
    mirrored_B2: Tensor  # whether the order of the rows, and of the columns, is reversed
    turn_B22: Tensor | None = None  # as in `View`
    light_B2: Tensor | None = None  # as in `View`

    @classmethod
    def joined(cls, parts: Sequence[Draws]) -> Draws:
        """Returns the draws of several batches as those of one."""
        turns = [part.turn_B22 for part in parts if part.turn_B22 is not None]
        lights = [part.light_B2 for part in parts if part.light_B2 is not None]
        return cls(
            torch.cat([part.shift_B2 for part in parts]),
            torch.cat([part.mirrored_B2 for part in parts]),
            torch.cat(turns) if turns else None,
            torch.cat(lights) if lights else None,
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> Draws:
        """Returns draws of which every tensor is changed by a function."""
        turn_B22, light_B2 = (numbers if numbers is None else change(numbers) for numbers in self[2:])
        return Draws(change(self.shift_B2), change(self.mirrored_B2), turn_B22, light_B2)

    def view(self, size: int) -> View:
        """Returns the views of images with `size` rows and columns."""
        index_S = torch.arange(size, device=self.shift_B2.device)
        rows_BS, columns_BS = (
            torch.where(mirrored_B1, size - 1 - index_S, index_S) + shift_B1
            for mirrored_B1, shift_B1 in zip(self.mirrored_B2.split(1, 1), self.shift_B2.split(1, 1), strict=True)
        )
        return View(rows_BS, columns_BS, self.turn_B22, self.light_B2)


def draw_views(count: int, size: int, config: AugmentationConfig, generator: torch.Generator) -> View:
    """Draws a random view of each image; see `draw`."""
    return draw(count, size, config, generator).view(size)


def draw(count: int, size: int, config: AugmentationConfig, generator: torch.Generator) -> Draws:
    """Draws the numbers of a random view of each image from an explicit CPU generator.

    Rotation, scale, brightness and contrast draw no random numbers while they are off. Shifts and flips are drawn
    first, so that these options do not change them.
    """

    def axis(flip: bool) -> tuple[Tensor, Tensor]:
        reach = round(config.shift * size)
        shift_B1 = torch.randint(-reach, reach + 1, (count, 1), generator=generator)
        mirrored_B1 = torch.rand(count, 1, generator=generator) < 0.5  # drawn in any case, so that flips move no shift
        return shift_B1, mirrored_B1 & flip

    def uniform(low: float, high: float) -> Tensor:
        if low == high:
            return torch.full((count,), low)
        return low + (high - low) * torch.rand(count, generator=generator)

    shift_2B1, mirrored_2B1 = zip(axis(config.flip_vertical), axis(config.flip_horizontal), strict=True)
    turn_B22 = light_B2 = None
    if config.moves:
        angle_B = torch.deg2rad(uniform(-config.rotation, config.rotation))
        scale_B = torch.tensor(config.scale).log()  # halving is as likely as doubling
        scale_B = uniform(float(scale_B[0]), float(scale_B[1])).exp()
        cosine_B, sine_B = angle_B.cos() / scale_B, angle_B.sin() / scale_B
        turn_B22 = torch.stack([cosine_B, -sine_B, sine_B, cosine_B], dim=1).view(count, 2, 2)
    if config.lights:
        reach = (config.brightness, config.contrast)
        light_B2 = torch.stack([uniform(1 - most, 1 + most) for most in reach], dim=1)
    return Draws(torch.cat(shift_2B1, dim=1), torch.cat(mirrored_2B1, dim=1), turn_B22, light_B2)


def apply_view(x_BCHW: Tensor, view: View) -> Tensor:
    """Returns the views of a batch of images or masks (any dtype); pixels outside the image are 0.

    A rotated or scaled view interpolates images bilinearly, and reads masks at the nearest pixel.
    """
    if view.turn_B22 is not None:
        return _turned(x_BCHW, view, view.turn_B22)
    height, width = x_BCHW.shape[-2:]
    rows_BH, columns_BW = view.rows_BH.to(x_BCHW.device), view.columns_BW.to(x_BCHW.device)
    batch = torch.arange(len(x_BCHW), device=x_BCHW.device)[:, None, None, None]
    channel = torch.arange(x_BCHW.shape[1], device=x_BCHW.device)[None, :, None, None]
    seen_BCHW = x_BCHW[
        batch, channel, rows_BH.clamp(0, height - 1)[:, None, :, None], columns_BW.clamp(0, width - 1)[:, None, None, :]
    ]
    inside_BH = (rows_BH >= 0) & (rows_BH < height)
    inside_BW = (columns_BW >= 0) & (columns_BW < width)
    return seen_BCHW * (inside_BH[:, None, :, None] & inside_BW[:, None, None, :])


def _turned(x_BCHW: Tensor, view: View, turn_B22: Tensor) -> Tensor:
    height, width = x_BCHW.shape[-2:]
    device = x_BCHW.device
    rows_BH, columns_BW = (index.to(device, torch.float32) for index in view[:2])
    turn_B22 = turn_B22.to(device)
    row_BH1, column_B1W = (rows_BH - (height - 1) / 2)[:, :, None], (columns_BW - (width - 1) / 2)[:, None, :]
    row_BHW, column_BHW = (
        turn_B22[:, axis, 0, None, None] * row_BH1 + turn_B22[:, axis, 1, None, None] * column_B1W for axis in (0, 1)
    )
    # The coordinates of grid_sample: -1 and 1 are the outer edges of the first and the last pixel.
    at_BHW2 = torch.stack([(2 * column_BHW) / width, (2 * row_BHW) / height], dim=-1)
    mode = "nearest" if x_BCHW.dtype == torch.bool else "bilinear"
    seen_BCHW = F.grid_sample(x_BCHW.float(), at_BHW2, mode=mode, padding_mode="zeros", align_corners=False)
    if x_BCHW.is_floating_point():
        return seen_BCHW.to(x_BCHW.dtype)
    return seen_BCHW.round().to(x_BCHW.dtype)


def apply_light(image_BCHW: Tensor, view: View, box_B4: Tensor | None) -> Tensor:
    """Applies the brightness and contrast of a view to images in [0, 1]; a view without these factors leaves the images
    unchanged.

    Brightness multiplies; contrast stretches about the mean of the visible part of the image. The padding around an
    image and the pixels outside the square stay black: if they turned grey, their value would reveal the factors.

    Args:
        box_B4: box of each image without its padding, in the square before the view is applied. None means that the
            images fill their squares, as is assumed for the further images of a sample.
    """
    if view.light_B2 is None:
        return image_BCHW
    bright_B, contrast_B = (factor[:, None, None, None] for factor in view.light_B2.to(image_BCHW.device).unbind(1))
    count, _, height, width = image_BCHW.shape
    inside_BHW = image_BCHW.new_ones(count, height, width, dtype=torch.bool)
    if box_B4 is not None:
        inside_BHW = inside(box_B4.to(image_BCHW.device), (height, width))
    seen_B1HW = apply_view(inside_BHW[:, None], view)
    bright_BCHW = image_BCHW * bright_B
    count_B111 = seen_B1HW.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1) * image_BCHW.shape[1]
    mean_B111 = (bright_BCHW * seen_B1HW).sum(dim=(1, 2, 3), keepdim=True) / count_B111
    return ((bright_BCHW - mean_B111) * contrast_B + mean_B111).clamp(0, 1) * seen_B1HW


def apply_view_to_map(map_Bhw: Tensor, view: View) -> Tensor:
    """Applies the view of each image to the image's map, which is given over the cells of a grid. Each returned map
    sums to 1.

    Each cell is spread over its pixels, the view is applied, and the pixels are averaged over the cells again. A map
    is NaN if the view shows none of its mass.
    """
    size = view.rows_BH.shape[1], view.columns_BW.shape[1]
    seen_B1HW = apply_view(F.interpolate(map_Bhw[:, None], size=size, mode="nearest"), view)
    moved_Bhw = F.adaptive_avg_pool2d(seen_B1HW, (map_Bhw.shape[1], map_Bhw.shape[2]))[:, 0]
    return moved_Bhw / moved_Bhw.sum(dim=(1, 2), keepdim=True)
