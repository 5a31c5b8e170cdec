"""A file that draws a region to the mask that it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mmpkd.cohort.decode import read_image
from mmpkd.cohort.facts import BadSample

MAX_GREY = 0.02  # share of a mask's pixels that are neither dark nor bright; lossy edges are few


def read_mask(root: Path, file: str, shape: tuple[int, ...]) -> np.ndarray:
    """A mask as H x W bool, see `two_valued`.

    Raises:
        BadSample: it does not decode, is not two-valued, or `shape`, its image's, is another.
    """
    mask = read_image(root, file)
    if mask.shape[:2] != tuple(shape[:2]):
        sizes = [f"{width} x {height}" for height, width in (mask.shape[:2], shape[:2])]
        raise BadSample(file, f"the mask is {sizes[0]} pixels, its image {sizes[1]}")
    return two_valued(mask, file)


def two_valued(pixels: np.ndarray, file: str) -> np.ndarray:
    """H x W bool: above half of the largest value.

    Raises:
        BadSample: `pixels`, H x W or H x W x 3, are a picture, a map of numbered regions, or bright all over.
    """
    if pixels.ndim == 3 and pixels.dtype != np.uint8:
        raise BadSample(file, "the mask is in 16-bit colour; grey is wanted")
    grey = pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))
    largest = int(grey.max())
    if 1 < largest < 32 and len(values := np.unique(grey)) > 2:  # a map of numbered regions
        raise BadSample(file, f"the mask holds the values {', '.join(map(str, values))}; two are wanted")
    mask_HW: np.ndarray = grey > largest / 2
    if mask_HW.all():
        raise BadSample(file, "the mask is bright all over")
    if ((grey > largest / 8) & (grey < largest * 7 / 8)).mean() > MAX_GREY:
        raise BadSample(file, "the mask holds shades of grey; two values are wanted")
    return mask_HW
