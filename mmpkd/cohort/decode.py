"""Decodes one sample: reads its files as pixels, and converts the pixels to the square images of the store.

The functions of this file are called by several threads at once.
"""

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

COLOUR_RANGE = 8  # of 255: a pixel whose channels differ by this much has a colour; grey pixels of a JPEG differ less
MIN_COLOUR_SHARE = 0.001  # share of coloured pixels from which an image counts as coloured: a tint, or a coloured mark


class Clahe(NamedTuple):
    """The parameters of contrast limited adaptive histogram equalisation, which is applied to each image separately."""

    clip_limit: float
    tiles: int  # number of tiles along each side of the image


class Depth(NamedTuple):
    """The conversion of pixel values to 8 bits. It is the same for all images of a cohort, so that equal values have
    equal brightness in all of them."""

    bits: int = 8  # bits of an original pixel value, 8 or 16, with or without a sign
    window: tuple[float, float] | None = None  # the values that become 0 and 255; None keeps values as they are
    clahe: Clahe | None = None  # applied last, to the image in the size in which it is stored; None: no CLAHE


def read_depth(bits: int, window: Sequence[float] | None, clahe: Sequence[Any] | None = None) -> Depth:
    """Returns the Depth with the given fields, as read from JSON. Old files lack the field `clahe`, so it may be left
    out."""
    return Depth(bits, (window[0], window[1]) if window else None, Clahe(*clahe) if clahe else None)


def depth_of(manifest: Mapping[str, Any]) -> Depth:
    """Returns the Depth of a store's images, as its manifest states it."""
    return read_depth(manifest["bit_depth"], manifest["window"], manifest["clahe"])


class Appearance(NamedTuple):
    """Numbers that describe the brightness and colour of an image after the window is applied and before any CLAHE."""

    mean: float  # mean grey level, 0 to 255
    high: float  # 99th percentile of the grey levels, 0 to 255
    is_blank: bool  # all pixels have the same value
    is_coloured: bool  # the colour channels differ; a tint suffices
    modality: str = ""  # modality that the file states, see `mmpkd.cohort.formats.dicom.Unit`
    unit: str = ""
    is_stretched: bool = False  # the reader scaled the image by its own range of values, as for a slice of a volume


@dataclass(frozen=True)
class Roi:
    """The mask of one region and the region's label. Masks are run lengths (see `mmpkd.frames.run_lengths`)."""

    label: str
    runs: np.ndarray  # run lengths of the mask at the image's original size
    store_runs: np.ndarray  # run lengths of the mask in the stored square


@dataclass(frozen=True)
class Decoded:
    """A sample in the form in which it is stored. Its image comes first, followed by its views in the scan's order."""

    pixels_VCHW: np.ndarray
    height: int  # height of the original image in pixels
    width: int
    rois: tuple[Roi, ...]
    num_empty: int  # number of masks without a pixel; such a mask counts as no ROI
    appearances: tuple[Appearance, ...]  # appearance of the image, then the appearance of each view


def decode(raw: RawImage, size: int, channels: int, views: Sequence[str], depths: Sequence[Depth]) -> Decoded:
    """Converts an image and its views to 8 bits, and letterboxes the image, the views and the masks.

    Args:
        depths: the Depth of the image, then the Depth of each view.

    Raises:
        BadSample: the image has another bit depth than the cohort, or the options state a window that does not apply
            to the image's values.
    """
    assert set(raw.views) == set(views), f"views {sorted(raw.views)}, declared {sorted(views)}"
    if raw.is_stretched and depths[0].window is not None:
        raise BadSample("", "is a volume, whose values are spread by its own range: cohort.window does not apply to it")
    images = (raw.image, *(raw.views[name] for name in views))
    pixels = []
    for name, image, depth in zip((IMAGE, *views), images, depths, strict=True):
        try:
            pixels.append(to_stored_square(image, size, channels, depth))
        except BadSample as bad:
            raise BadSample(bad.file, bad.reason if name == IMAGE else f"its view {name!r} {bad.reason}") from None
    height, width = raw.image.shape[:2]
    letterbox = Letterbox(height, width, size)
    masks = [(label, mask) for label, mask in raw.rois if mask.any()]
    rois = tuple(Roi(label, run_lengths(mask), run_lengths(letterbox.store_mask(mask))) for label, mask in masks)
    appearances = tuple(
        measure_appearance(image, depth)._replace(
            modality=modality, unit=unit, is_stretched=raw.is_stretched and name == IMAGE
        )
        for name, image, depth in zip((IMAGE, *views), images, depths, strict=True)
        for modality, unit in (raw.units.get(name, ("", "")),)
    )
    return Decoded(np.stack(pixels), height, width, rois, len(raw.rois) - len(masks), appearances)


def measure_appearance(image: np.ndarray, depth: Depth) -> Appearance:
    """Returns the appearance of an image at its original size, from about 30,000 of its pixels."""
    step = max(1, math.isqrt(image.shape[0] * image.shape[1] // 30_000))
    pixels = to_8_bit(image[::step, ::step], depth)
    grey = _convert_channels(pixels, 1)
    is_blank = bool(grey.min() == grey.max()) and bool(image.min() == image.max())
    return Appearance(float(grey.mean()), float(np.percentile(grey, 99)), is_blank, is_coloured(pixels))


def is_coloured(pixels: np.ndarray) -> bool:
    """Whether the channels of an image, H x W x 3 uint8, differ; a tint or a mark suffices. An image without a third
    axis is grey."""
    return pixels.ndim == 3 and float((np.ptp(pixels, axis=2) >= COLOUR_RANGE).mean()) >= MIN_COLOUR_SHARE


def to_stored_square(image: np.ndarray, size: int, channels: int, depth: Depth) -> np.ndarray:
    """Returns an image in its stored form, C x size x size uint8: windowed, letterboxed, and equalised if `depth` has a
    CLAHE.

    Raises:
        BadSample: the image has another bit depth than `depth`, or all its values lie outside the window.
    """
    if image.dtype.itemsize * 8 != depth.bits:
        problem = (
            f"has {image.dtype.itemsize * 8}-bit pixels where the cohort's, or those that the student learnt from,"
        )
        raise BadSample(
            "", f"{problem} have {depth.bits} bits; bring all images (or all of one view) to the same depth"
        )
    if depth.window is not None and image.min() < image.max():
        low, high = depth.window
        if image.max() <= low or image.min() >= high:
            raise BadSample("", f"has all its values outside the window of {low:g} to {high:g}: it would be blank")
    letterbox = Letterbox(image.shape[0], image.shape[1], size)
    stored = letterbox.store_image(_convert_channels(to_8_bit(image, depth), channels))
    if depth.clahe is not None:
        box = letterbox.content
        content = stored[box.top : box.bottom, box.left : box.right]
        content[:] = _equalise(content, depth.clahe)
    return stored[None] if channels == 1 else stored.transpose(2, 0, 1)


def _convert_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Converts an image to grey, H x W, if `channels` is 1, or to RGB, H x W x 3, if `channels` is 3.

    The grey value of a coloured pixel is its ITU-R 601 luma.
    """
    mode = "L" if channels == 1 else "RGB"
    return np.asarray(Image.fromarray(image).convert(mode))


def _equalise(grey: np.ndarray, clahe: Clahe) -> np.ndarray:
    """Applies CLAHE (Zuiderveld 1994) to an image, H x W uint8; an image of a single value stays as it is."""
    from skimage.exposure import equalize_adapthist  # imported late, because most cohorts do not need it

    if grey.min() == grey.max():
        return grey
    tile = tuple(math.ceil(side / clahe.tiles) for side in grey.shape)
    even = equalize_adapthist(grey, kernel_size=tile, clip_limit=clahe.clip_limit)  # 0 to 1
    levels: np.ndarray = np.rint(255 * even).astype(np.uint8)
    return levels


def to_8_bit(image: np.ndarray, depth: Depth) -> np.ndarray:
    """Maps the window's limits linearly to 0 and 255 and clips values outside the window. If `depth` has no window, the
    image is returned unchanged."""
    grey: np.ndarray = image if depth.window is None else _grey_levels(depth, image.dtype.kind == "i")[image]
    return grey


@lru_cache(maxsize=8)
def _grey_levels(depth: Depth, is_signed: bool) -> np.ndarray:
    """Returns a lookup table with the grey level, 0 to 255, of every possible pixel value.

    A lookup needs no temporary images. Temporary images would be slow, because the threads would wait for each other
    while memory pages are allocated. The index of a negative value counts from the end of the table, as in numpy.
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
    """Returns about 100,000 evenly spaced pixels of an image. A window that is derived from such samples gives every
    image the same weight, regardless of its size."""
    pixels: np.ndarray = image.ravel()[:: max(1, image.size // 100_000)].copy()
    return pixels


def find_depth(pixels: Sequence[np.ndarray], windowed: bool) -> Depth:
    """Returns the Depth of a cohort from the `sample_pixels` of some of its images.

    The first image determines the bits. The window reaches from percentile 0.5 to percentile 99.5 of the pixels if the
    images have 16 bits or `windowed` is True. Otherwise there is no window.
    """
    bits = pixels[0].dtype.itemsize * 8 if pixels else 8
    if not pixels or (bits == 8 and not windowed):
        return Depth(bits)
    same_depth = [values for values in pixels if values.dtype.itemsize * 8 == bits]
    low, high = (float(value) for value in np.percentile(np.concatenate(same_depth), [0.5, 99.5]))
    return Depth(bits, (low, max(high, low + 1)))


def read_image(root: Path, file: str) -> np.ndarray:
    """Reads an image with pydicom or Pillow: H x W or H x W x 3, uint8, uint16 or int16.

    Transparent pixels become black, as in viewers.

    Raises:
        BadSample: the file is missing, unreadable or truncated, or reading it would lose information
            (docs/formats.md lists these cases).
    """
    return read_dicom(root, file) if is_dicom(root, file) else read_picture(root, file).pixels


def image_size(root: Path, file: str) -> tuple[int, int]:
    """Returns the height and width of an image in pixels, and reads only the file's header.

    Raises:
        BadSample: the file is missing or is not an image.
    """
    return read_size(root, file) if is_dicom(root, file) else picture_size(root, file)
