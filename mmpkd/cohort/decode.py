"""One sample: files to pixels, pixels to the square the store keeps. Runs in several threads at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from mmpkd.cohort.dicom import is_dicom, read_dicom, read_size
from mmpkd.cohort.facts import BadSample, RawImage
from mmpkd.frames import Letterbox, run_lengths

ImageFile.MAXBLOCK = 1 << 22  # bytes that are decoded at one go: between two, threads wait for the interpreter
MAX_GREY = 0.02  # share of a mask's pixels that are neither dark nor bright; lossy edges are few


class Depth(NamedTuple):
    """How the pixel values of a cohort become 8 bits: alike in all images, so that brightness keeps its meaning."""

    bits: int = 8  # of the originals, 8 or 16
    window: tuple[float, float] | None = None  # values that become 0 and 255; None: kept as they are


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


def decode(raw: RawImage, size: int, channels: int, views: Sequence[str], depths: Sequence[Depth]) -> Decoded:
    """Letterbox an image, its views and its masks, at 8 bits; `depths` are the image's and then each view's.

    Raises:
        BadSample: the image's depth is not the cohort's.
    """
    assert set(raw.views) == set(views), f"views {sorted(raw.views)}, declared {sorted(views)}"
    images = (raw.image, *(raw.views[name] for name in views))
    pixels = [square(one, size, channels, depth) for one, depth in zip(images, depths, strict=True)]
    height, width = raw.image.shape[:2]
    letterbox = Letterbox(height, width, size)
    full = [(label, mask) for label, mask in raw.rois if mask.any()]
    rois = tuple(Roi(label, run_lengths(mask), run_lengths(letterbox.store_mask(mask))) for label, mask in full)
    return Decoded(np.stack(pixels), height, width, rois, len(raw.rois) - len(full))


def square(image: np.ndarray, size: int, channels: int, depth: Depth) -> np.ndarray:
    """C x size x size uint8."""
    if image.dtype.itemsize * 8 != depth.bits:
        found = f"has {image.dtype.itemsize * 8}-bit pixels where the first one of the cohort has {depth.bits}-bit ones"
        raise BadSample("", f"{found}; bring all images (or all of one view) to the same depth")
    letterbox = Letterbox(image.shape[0], image.shape[1], size)
    stored = letterbox.store_image(_with_channels(to_8_bit(image, depth), channels))
    return stored[None] if channels == 1 else stored.transpose(2, 0, 1)


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Grey as H x W (ITU-R 601 luma of a colour image), or colour as H x W x 3."""
    mode = "L" if channels == 1 else "RGB"
    return np.asarray(Image.fromarray(image).convert(mode))


def to_8_bit(image: np.ndarray, depth: Depth) -> np.ndarray:
    """Values from the window spread over 0 to 255, those outside clipped."""
    grey: np.ndarray = image if depth.window is None else _grey_levels(depth)[image]
    return grey


@lru_cache(maxsize=8)
def _grey_levels(depth: Depth) -> np.ndarray:
    """Of every value, 0 to 255: looking it up needs no temporary images, for whose pages threads would wait."""
    assert depth.window is not None
    low, high = depth.window
    scaled = (np.arange(1 << depth.bits, dtype=np.float32) - low) * (255 / (high - low))
    grey: np.ndarray = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return grey


def thinned(image: np.ndarray) -> np.ndarray:
    """Some 100,000 of its pixels, evenly spaced: every image weighs the same, whatever its size."""
    some: np.ndarray = image.ravel()[:: max(1, image.size // 100_000)].copy()
    return some


def find_depth(pixels: Sequence[np.ndarray], windowed: bool) -> Depth:
    """Of a cohort, from the `thinned` pixels of some of its images: the bits of the first and, of 16-bit or
    `windowed` ones, a window from percentile 0.5 to 99.5."""
    bits = pixels[0].dtype.itemsize * 8 if pixels else 8
    if not pixels or (bits == 8 and not windowed):
        return Depth(bits)
    alike = [one for one in pixels if one.dtype.itemsize * 8 == bits]
    low, high = (float(value) for value in np.percentile(np.concatenate(alike), [0.5, 99.5]))
    return Depth(bits, (low, max(high, low + 1)))


def read_image(root: Path, file: str) -> np.ndarray:
    """H x W or H x W x 3, uint8 or uint16, by pydicom or Pillow; transparent pixels become black, as viewers show them.

    Raises:
        BadSample: missing, unreadable, truncated, or of a pixel type that is not handled.
    """
    if is_dicom(root, file):
        return read_dicom(root, file)
    with _opened(root, file) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)  # as a viewer shows it, and as it was drawn on
        if image.mode.startswith("I"):
            return _16_bit(np.asarray(image), image.info.get("transparency"), file)
        if image.mode == "F":
            raise BadSample(file, "has floating-point pixels; 8 or 16 bits are wanted")
        if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            black = Image.new("RGBA", rgba.size, "black")
            return np.asarray(Image.alpha_composite(black, rgba).convert("RGB"))
        return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def image_size(root: Path, file: str) -> tuple[int, int]:
    """Height and width, from the header alone.

    Raises:
        BadSample: missing, or not an image.
    """
    if is_dicom(root, file):
        return read_size(root, file)
    with _opened(root, file) as image:
        return image.height, image.width


@contextmanager
def _opened(root: Path, file: str) -> Iterator[Image.Image]:
    """
    Raises:
        BadSample: whatever Pillow raises, on opening or while the image is used.
    """
    try:
        with Image.open(root / file) as image:
            yield image
    except BadSample:
        raise
    except UnidentifiedImageError:
        raise BadSample(file, "is not an image that Pillow or pydicom knows") from None
    except OSError as error:
        raise BadSample(file, f"cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged file: every format's decoder raises its own kind
        raise BadSample(file, f"does not decode: {str(error) or type(error).__name__}") from None


def _16_bit(pixels: np.ndarray, transparent: int | None, file: str) -> np.ndarray:
    if transparent is not None:
        pixels = np.where(pixels == transparent, 0, pixels)
    if pixels.dtype != np.uint16 and (pixels.min() < 0 or pixels.max() > 65535):
        raise BadSample(file, f"has pixels from {pixels.min()} to {pixels.max()}; 16 bits hold 0 to 65535")
    return pixels.astype(np.uint16)


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
