"""One sample: files to pixels, pixels to the square the store keeps. Runs in several threads at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmpkd.cohort.facts import BadSample, RawImage
from mmpkd.cohort.formats.dicom import is_dicom, read_dicom, read_size
from mmpkd.cohort.formats.images import picture_size, read_picture
from mmpkd.config import IMAGE
from mmpkd.frames import Letterbox, run_lengths

DIFFERENT = 8  # range of a pixel's channels, of 255, from which they differ; grey that went through JPEG has less
COLOURED = 0.001  # share of such pixels from which an image is in colour: a tint, or a mark in colour


class Clahe(NamedTuple):
    """Contrast limited adaptive histogram equalisation, of each image by itself."""

    clip_limit: float
    tiles: int  # along either side


class Depth(NamedTuple):
    """How the pixel values of a cohort become 8 bits: alike in all images, so that brightness keeps its meaning."""

    bits: int = 8  # of the originals, 8 or 16, with or without a sign
    window: tuple[float, float] | None = None  # values that become 0 and 255; None: kept as they are
    clahe: Clahe | None = None  # applied last, to the image as it is stored


def read_depth(bits: int, window: Sequence[float] | None, clahe: Sequence[Any] | None = None) -> Depth:
    """A Depth from what JSON made of one; those written before there was a `clahe` lack it."""
    return Depth(bits, (window[0], window[1]) if window else None, Clahe(*clahe) if clahe else None)


def depth_of(manifest: Mapping[str, Any]) -> Depth:
    """Of a store's own images, from its manifest."""
    return read_depth(manifest["bit_depth"], manifest["window"], manifest["clahe"])


class Appearance(NamedTuple):
    """How an image looks in its window, before any CLAHE, by a few numbers."""

    mean: float  # 0 to 255
    high: float  # 99th percentile
    is_blank: bool  # one value all over
    is_coloured: bool  # its channels differ, be it by a tint
    modality: str = ""  # as the file states it, see `mmpkd.cohort.formats.dicom.Unit`
    unit: str = ""
    is_stretched: bool = False  # spread by its own range, as a slice of a volume is


@dataclass(frozen=True)
class Roi:
    """One region of one label, as run lengths (see `mmpkd.frames.run_lengths`)."""

    label: str
    runs: np.ndarray  # at original resolution
    store_runs: np.ndarray  # in the stored square


@dataclass(frozen=True)
class Decoded:
    """A sample as it is stored: the image, then its views in the order asked for."""

    pixels_VCHW: np.ndarray
    height: int  # original
    width: int
    rois: tuple[Roi, ...]
    num_empty: int  # masks without a pixel, which count as no ROI
    looks: tuple[Appearance, ...]  # of the image, then of each view


def decode(raw: RawImage, size: int, channels: int, views: Sequence[str], depths: Sequence[Depth]) -> Decoded:
    """Letterbox an image, its views and its masks, at 8 bits; `depths` are the image's and then each view's.

    Raises:
        BadSample: the image's depth is not the cohort's, or its values are not those that a stated window is of.
    """
    assert set(raw.views) == set(views), f"views {sorted(raw.views)}, declared {sorted(views)}"
    if raw.is_stretched and depths[0].window is not None:
        raise BadSample("", "is a volume, whose values are spread by its own range: cohort.window does not apply to it")
    images = (raw.image, *(raw.views[name] for name in views))
    pixels = []
    for name, one, depth in zip((IMAGE, *views), images, depths, strict=True):
        try:
            pixels.append(to_stored_square(one, size, channels, depth))
        except BadSample as bad:
            raise BadSample(bad.file, bad.reason if name == IMAGE else f"its view {name!r} {bad.reason}") from None
    height, width = raw.image.shape[:2]
    letterbox = Letterbox(height, width, size)
    full = [(label, mask) for label, mask in raw.rois if mask.any()]
    rois = tuple(Roi(label, run_lengths(mask), run_lengths(letterbox.store_mask(mask))) for label, mask in full)
    looks = tuple(
        Appearance(
            *measure_appearance(one, depth)[:4], *raw.units.get(name, ("", "")), raw.is_stretched and name == IMAGE
        )
        for name, one, depth in zip((IMAGE, *views), images, depths, strict=True)
    )
    return Decoded(np.stack(pixels), height, width, rois, len(raw.rois) - len(full), looks)


def measure_appearance(image: np.ndarray, depth: Depth) -> Appearance:
    """Of an image as a file has it, from some 30,000 of its pixels."""
    step = max(1, math.isqrt(image.shape[0] * image.shape[1] // 30_000))
    some = to_8_bit(image[::step, ::step], depth)
    is_coloured = some.ndim == 3 and float((np.ptp(some, axis=2) >= DIFFERENT).mean()) >= COLOURED
    grey = _convert_channels(some, 1)
    is_blank = bool(grey.min() == grey.max()) and bool(image.min() == image.max())
    return Appearance(float(grey.mean()), float(np.percentile(grey, 99)), is_blank, is_coloured)


def to_stored_square(image: np.ndarray, size: int, channels: int, depth: Depth) -> np.ndarray:
    """C x size x size uint8.

    Raises:
        BadSample: its depth is another, or all its values lie outside the window.
    """
    if image.dtype.itemsize * 8 != depth.bits:
        found = f"has {image.dtype.itemsize * 8}-bit pixels where the cohort's, or those that the student learnt from,"
        raise BadSample("", f"{found} have {depth.bits} bits; bring all images (or all of one view) to the same depth")
    if depth.window is not None and image.min() < image.max():
        low, high = depth.window
        if image.max() <= low or image.min() >= high:
            raise BadSample("", f"has all its values outside the window of {low:g} to {high:g}: nothing would be seen")
    letterbox = Letterbox(image.shape[0], image.shape[1], size)
    stored = letterbox.store_image(_convert_channels(to_8_bit(image, depth), channels))
    if depth.clahe is not None:
        box = letterbox.content
        content = stored[box.top : box.bottom, box.left : box.right]
        content[:] = _equalise(content, depth.clahe)
    return stored[None] if channels == 1 else stored.transpose(2, 0, 1)


def _convert_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Grey as H x W (ITU-R 601 luma of a colour image), or colour as H x W x 3."""
    mode = "L" if channels == 1 else "RGB"
    return np.asarray(Image.fromarray(image).convert(mode))


def _equalise(grey: np.ndarray, clahe: Clahe) -> np.ndarray:
    """H x W uint8 by CLAHE (Zuiderveld 1994); of one value all over, as it is."""
    from skimage.exposure import equalize_adapthist  # here, for most cohorts do without

    if grey.min() == grey.max():
        return grey
    tile = tuple(math.ceil(side / clahe.tiles) for side in grey.shape)
    even = equalize_adapthist(grey, kernel_size=tile, clip_limit=clahe.clip_limit)  # 0 to 1
    levels: np.ndarray = np.rint(255 * even).astype(np.uint8)
    return levels


def to_8_bit(image: np.ndarray, depth: Depth) -> np.ndarray:
    """Values from the window spread over 0 to 255, those outside clipped."""
    grey: np.ndarray = image if depth.window is None else _grey_levels(depth, image.dtype.kind == "i")[image]
    return grey


@lru_cache(maxsize=8)
def _grey_levels(depth: Depth, is_signed: bool) -> np.ndarray:
    """Of every value, 0 to 255: looking it up needs no temporary images, for whose pages threads would wait.

    Negative values count from the end of the table, as numpy's indices do.
    """
    assert depth.window is not None
    low, high = depth.window
    values = np.arange(1 << depth.bits)
    if is_signed:
        values[values >= 1 << (depth.bits - 1)] -= 1 << depth.bits
    scaled = (values.astype(np.float32) - low) * (255 / (high - low))
    grey: np.ndarray = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return grey


def sample_pixels(image: np.ndarray) -> np.ndarray:
    """Some 100,000 of its pixels, evenly spaced: every image weighs the same, whatever its size."""
    some: np.ndarray = image.ravel()[:: max(1, image.size // 100_000)].copy()
    return some


def find_depth(pixels: Sequence[np.ndarray], windowed: bool) -> Depth:
    """Of a cohort, from the `sample_pixels` pixels of some of its images: the bits of the first and, of 16-bit or
    `windowed` ones, a window from percentile 0.5 to 99.5."""
    bits = pixels[0].dtype.itemsize * 8 if pixels else 8
    if not pixels or (bits == 8 and not windowed):
        return Depth(bits)
    alike = [one for one in pixels if one.dtype.itemsize * 8 == bits]
    low, high = (float(value) for value in np.percentile(np.concatenate(alike), [0.5, 99.5]))
    return Depth(bits, (low, max(high, low + 1)))


def read_image(root: Path, file: str) -> np.ndarray:
    """H x W or H x W x 3, uint8, uint16 or int16, by pydicom or Pillow; transparent pixels are black, as in viewers.

    Raises:
        BadSample: missing, unreadable, truncated; or something in it would be lost, see docs/formats.md.
    """
    return read_dicom(root, file) if is_dicom(root, file) else read_picture(root, file).pixels


def image_size(root: Path, file: str) -> tuple[int, int]:
    """Height and width, from the header alone.

    Raises:
        BadSample: missing, or not an image.
    """
    return read_size(root, file) if is_dicom(root, file) else picture_size(root, file)
