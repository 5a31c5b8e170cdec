"""Geometry of the letterbox: how an original image lies in the square that the store keeps.

The longest side is scaled to the side of the square, and the remainder is padded evenly with black; nothing is
cropped. Three integers (height, width, size) determine the geometry.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image


class Box(NamedTuple):
    """A half-open rectangle in pixels: rows top to bottom - 1, columns left to right - 1."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True)
class Letterbox:
    """An original image of `height` x `width` pixels inside a square of `size` pixels."""

    height: int
    width: int
    size: int

    @property
    def scale(self) -> float:
        """Number of stored pixels per original pixel along a side, before sizes are rounded to whole pixels."""
        return self.size / max(self.height, self.width)

    @cached_property
    def content(self) -> Box:
        """The position of the image in the square; an odd row or column of padding is at the bottom or right."""
        height, width = (max(1, round(side * self.scale)) for side in (self.height, self.width))
        top, left = (self.size - height) // 2, (self.size - width) // 2
        return Box(top, left, top + height, left + width)

    def store_image(self, image: np.ndarray) -> np.ndarray:
        """Converts H x W or H x W x 3 uint8 to size x size (x 3) uint8: bilinear, antialiased when shrinking."""
        self._check(image)
        box = self.content
        square = np.zeros((self.size, self.size, *image.shape[2:]), np.uint8)
        square[box.top : box.bottom, box.left : box.right] = _resize(image, box, Image.Resampling.BILINEAR)
        return square

    def store_mask(self, mask: np.ndarray) -> np.ndarray:
        """Converts H x W bool to size x size bool: the pixels that the region covers at least by half.

        A region that is too small to cover half of any pixel keeps the pixels that it covers most, so that it is
        never lost. The limit of one half preserves areas, which determine the chance level of the pointing score.
        """
        self._check(mask)
        box = self.content
        covered = _resize(mask.astype(np.float32), box, Image.Resampling.BOX)
        threshold = min(0.5, float(covered.max())) * 0.9999  # a float32 sum may be slightly below one half
        square = np.zeros((self.size, self.size), bool)
        square[box.top : box.bottom, box.left : box.right] = (covered >= threshold) & bool(mask.any())
        return square

    def original_map(self, map: np.ndarray) -> np.ndarray:
        """Converts a map of h x w cells over the square to the original height x width (float32), without the padding.

        Each value is read from the bilinearly upsampled cells (align_corners=False) at the centre of an original pixel.
        """
        weights = []
        for axis, count in enumerate(map.shape):
            edges = self._edges(axis) * (count / self.size)  # positions of the edges, in units of cells
            centres = (edges[:-1] + edges[1:]) / 2 - 0.5
            weights.append([np.interp(centres, np.arange(count), unit) for unit in np.eye(count)])
        rows, columns = (np.array(axis_weights, np.float32) for axis_weights in weights)
        return np.asarray(rows.T @ map.astype(np.float32) @ columns)

    def original_mask(self, mask: np.ndarray) -> np.ndarray:
        """Converts size x size bool to height x width bool: an original pixel gets the stored pixel at its centre."""
        rows, columns = (((edges[:-1] + edges[1:]) / 2).astype(int) for edges in (self._edges(0), self._edges(1)))
        return mask[np.ix_(rows, columns)]

    def cell_shares(self, mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """Returns for each cell of the patch grid (h x w) the share of its area that a region (height x width bool)
        covers. Padding inside a cell is part of the cell's area."""
        self._check(mask)
        overlaps = []
        for axis, count in enumerate(grid):
            edges, cells = self._edges(axis) * (count / self.size), np.arange(count)[:, None]
            overlap = (np.minimum(edges[1:], cells + 1) - np.maximum(edges[:-1], cells)).clip(min=0)
            overlaps.append(overlap.astype(np.float32))
        return np.asarray(overlaps[0] @ mask.astype(np.float32) @ overlaps[1].T)

    def _edges(self, axis: int) -> np.ndarray:
        """Returns the positions of the edges of the original pixels in the square: one more than there are pixels."""
        low, high = self.content[axis], self.content[axis + 2]
        return np.linspace(low, high, (self.height, self.width)[axis] + 1)

    def _check(self, array: np.ndarray) -> None:
        assert array.shape[:2] == (self.height, self.width), f"{array.shape[:2]} in a letterbox of {self}"


def _resize(array: np.ndarray, box: Box, how: Image.Resampling) -> np.ndarray:
    size = (box.right - box.left, box.bottom - box.top)
    return np.asarray(Image.fromarray(array).resize(size, how))


def run_lengths(mask: np.ndarray) -> np.ndarray:
    """Returns the lengths of alternating runs over a bool mask, row by row (int32).

    The first run is of False and may have length 0.
    """
    flat = np.concatenate([[False], mask.ravel(), [not mask.flat[-1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(ends, prepend=0).astype(np.int32)


def from_run_lengths(runs: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns the bool mask that `run_lengths` encoded."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(shape)
