"""Reads a mask file, and distinguishes regions of a mask from blurred edges of other regions.

Along the edge of a region, smoothing and lossy compression leave values between dark and bright, but these values
never fill a 3 x 3 block with equal or nearly equal values. Therefore a value that fills such a block is a region
(docs/decisions/images.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.formats.dicom import is_dicom, read_dicom
from mmpkd.cohort.formats.images import read_picture

MAX_GREY = 0.02  # share of a mask's pixels that may be between dark and bright without further checks
MAX_LABEL = 32  # if all values of a mask are below this, they are numbers of regions and not shades
FEW_VALUES = 16  # number of distinct values; a lossy or smoothed mask with edges steeper than one in 8 has more
REACH = 12  # largest distance in pixels of a bright pixel's edge, or its echo in an 8 x 8 block of a JPEG, from it
MAX_EDGE_WIDTH = 6  # largest width in pixels of the dark half of an edge, in a mask without lossy compression
ECHO_PIXELS = 64  # largest area of an echo (see `REACH`) in pixels
SHOWN_VALUES = 8
MAX_EDGE_VALUES = 2  # `mask_of_values` takes a mask literally if at most this many of its values fill no 3 x 3 block
NEIGHBOURS = np.ones((3, 3))
CHOOSE = "say which is the region with mask_value (reader table), or save the mask with two values"
LOSSY = "the mask has lossy edges and not just two values, so mask_value cannot choose; save it without loss"


def read_mask(root: Path, file: str, shape: tuple[int, ...], values: Sequence[int] = ()) -> np.ndarray:
    """Reads a mask, H x W bool: its bright part (`two_valued_mask`), or pixels with one of `values` (`mask_of_values`).

    Args:
        shape: shape of the image to which the mask belongs.
        values: values of the region in the mask file. Without values, the bright part is the region.

    Raises:
        BadSample: the file cannot be decoded, has another size than its image, or is refused by `two_valued_mask` or
            `mask_of_values`.
    """
    pixels, alpha = (read_dicom(root, file), None) if is_dicom(root, file) else read_picture(root, file)
    if pixels.shape[:2] != tuple(shape[:2]):
        sizes = [f"{width} x {height}" for height, width in (pixels.shape[:2], shape[:2])]
        raise BadSample(file, f"the mask is {sizes[0]} pixels, its image {sizes[1]}")
    if alpha is not None and not pixels.any() and alpha.min() < alpha.max():
        raise BadSample(file, "the mask is drawn in its transparency alone; save what is seen as black and white")
    return mask_of_values(pixels, values, file) if values else two_valued_mask(pixels, file)


def two_valued_mask(pixels: np.ndarray, file: str) -> np.ndarray:
    """Returns the pixels above half of the largest value, H x W bool.

    Raises:
        BadSample: `pixels`, H x W or H x W x 3, are a picture and not a mask, are bright everywhere, or hold regions
            with different values, so that some regions might be lost.
    """
    grey = _to_grey(pixels, file)
    values, counts = np.unique(grey, return_counts=True)
    largest = int(values[-1])
    mask_HW: np.ndarray = grey > largest / 2
    if mask_HW.all():
        raise BadSample(file, "the mask is bright all over")
    cropped = _crop_to_content(pixels, values[counts.argmax()], grey)
    is_exact = len(values) <= FEW_VALUES
    if len(values) > 2 or pixels.ndim == 3:
        _refuse_several(cropped if is_exact else _to_grey(cropped, file), values, is_exact, file)
    is_between = (values > largest / 8) & (values < largest * 7 / 8)
    if (share := counts[is_between].sum() / grey.size) > MAX_GREY and not _is_only_edges(grey, largest):
        raise BadSample(file, f"the mask holds shades of grey ({share:.0%} of it); two values are wanted")
    if len(values) > 2:
        _refuse_darker(_to_grey(cropped, file), largest, is_exact, file)
    return mask_HW


def mask_of_values(pixels: np.ndarray, values: Sequence[int], file: str) -> np.ndarray:
    """Returns the pixels of a mask that have one of `values`, H x W bool.

    If a mask of two values has lossy or smoothed edges, each of its pixels counts as the nearer of the two values.

    Raises:
        BadSample: the mask is in colour, or it has lossy or smoothed edges and more than two values.
    """
    grey = _to_grey(pixels, file)
    if pixels.ndim == 3 and np.ptp(pixels, axis=2).any():
        raise BadSample(file, "the mask is in colour; mask_value names a value of grey")
    present = np.unique(grey)
    num_edge_values = len(np.setdiff1d(present, _solid_values(grey)))  # values of edges, or of regions of a few pixels
    if num_edge_values > MAX_EDGE_VALUES:
        with suppress(BadSample):
            is_bright_HW, largest = two_valued_mask(grey, file), int(present[-1])
            if not any(largest / 8 < value < largest * 7 / 8 for value in values):
                return np.isin(is_bright_HW, [value > largest / 2 for value in values])
    if num_edge_values > FEW_VALUES:
        raise BadSample(file, LOSSY)
    return np.isin(grey, list(values))


def _to_grey(pixels: np.ndarray, file: str) -> np.ndarray:
    if pixels.ndim == 3 and pixels.dtype != np.uint8:
        raise BadSample(file, "the mask is in 16-bit colour; grey is wanted")
    if pixels.min() < 0:
        raise BadSample(file, f"the mask has values below 0 ({pixels.min()})")
    return pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))


def _crop_to_content(pixels: np.ndarray, ground: int, grey: np.ndarray) -> np.ndarray:
    """Crops `pixels` to the box of all pixels where `grey` differs from `ground`, plus a margin. The crop saves time,
    because masks are large."""
    rows, columns = (np.flatnonzero((grey != ground).any(axis=axis)) for axis in (1, 0))
    box = [slice(max(0, at[0] - REACH), at[-1] + REACH + 1) for at in (rows, columns) if len(at)]
    return pixels[tuple(box)]


def _refuse_several(pixels: np.ndarray, values: np.ndarray, is_exact: bool, file: str) -> None:
    """Checks that all regions have the same value or colour. In a lossy mask, similar values count as the same value.

    Raises:
        BadSample: the mask holds regions of several values or colours besides the background.
    """
    solid = values if values[-1] < MAX_LABEL else _solid_values(pixels)
    if not is_exact:
        solid = solid[np.diff(solid, prepend=solid[:1] - int(values[-1])) > values[-1] / 32]
    if len(solid) > 2:
        kind, named = "colours", ""
        if pixels.ndim == 2:
            kind, named = "values", f" ({', '.join(map(str, values[:SHOWN_VALUES]))})"
        raise BadSample(file, f"the mask holds {len(solid)} {kind}{named}, ground included; two are wanted: {CHOOSE}")


def _refuse_darker(grey: np.ndarray, largest: int, is_exact: bool, file: str) -> None:
    """Checks that no region is darker than the brightest region, because a darker region would be lost.

    Raises:
        BadSample: a darker region has almost one value, or lies apart from the bright region.
    """
    dark = [
        int(value) for value in _solid_values(grey) if value <= largest / 2
    ]  # values of the background, and of regions that seem dark only because a single pixel is much brighter
    steps = ndimage.maximum_filter(grey, 3).astype(int) - ndimage.minimum_filter(grey, 3)
    is_flat = (steps <= largest / 16) & (grey > largest / 8) & (grey < largest * 7 / 8)
    is_hidden = len(dark) > 1 and max(dark) - min(dark) > (0 if is_exact else largest / 32)
    if is_exact:  # without lossy compression, dark pixels far from the bright region are not its edge
        is_dark = (grey > largest / 8) & (grey <= largest / 2)
        is_hidden |= bool((ndimage.distance_transform_edt(grey <= largest / 2)[is_dark] > MAX_EDGE_WIDTH).any())
    if is_hidden or is_flat.any() or _num_islands(grey, largest, is_exact):
        raise BadSample(file, f"the mask holds a region darker than another, which might be lost: {CHOOSE}")


def _solid_values(pixels: np.ndarray) -> np.ndarray:
    """Returns the values that fill at least one 3 x 3 block. In an image H x W x 3, each colour is coded as a single
    number."""
    codes = pixels.astype(np.int32)
    if pixels.ndim == 3:
        codes = (codes * [1 << 16, 1 << 8, 1]).sum(axis=2)
    inner = ndimage.maximum_filter(codes, 3) == ndimage.minimum_filter(codes, 3)
    solid: np.ndarray = np.unique(codes[inner])
    return solid


def _num_islands(grey: np.ndarray, largest: int, is_exact: bool) -> int:
    """Returns the number of connected regions that hold no bright pixel.

    Regions that are echoes of a bright region's edge are not counted.
    """
    regions, count = ndimage.label(grey > largest / (32 if is_exact else 16), NEIGHBOURS)
    if count < 2:
        return 0
    numbers = range(1, count + 1)
    is_dark = ndimage.maximum(grey, regions, numbers) <= largest / 2
    if is_exact:
        return int(np.sum(is_dark))
    distance = ndimage.distance_transform_edt(grey <= largest / 2)
    is_far = np.asarray(ndimage.minimum(distance, regions, numbers)) > REACH
    is_large = ndimage.sum_labels(regions > 0, regions, numbers) > ECHO_PIXELS
    return int(np.sum(is_dark & (is_far | is_large)))


def _is_only_edges(grey: np.ndarray, largest: int) -> bool:
    """Returns whether the grey pixels of a mask are only edges of bright regions.

    They are edges if each of them is near both a dark and a bright pixel, and if there are at most as many grey pixels
    as bright ones.
    """
    is_bright, is_dark = grey >= largest * 7 / 8, grey <= largest / 8
    is_between = ~is_bright & ~is_dark
    if not is_dark.any() or is_between.sum() > is_bright.sum():
        return False
    return all(ndimage.distance_transform_edt(~near)[is_between].max() <= REACH for near in (is_bright, is_dark))
