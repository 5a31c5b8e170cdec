"""Reads a picture file with Pillow, and refuses files from which Pillow would silently drop information.

docs/formats.md has a table that states for every format what is read and what is refused.
tests/mmpkd/cohort/test_formats.py tests a file for each cell of that table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffTags, UnidentifiedImageError

from mmpkd.cohort.facts import BadSample

ImageFile.MAXBLOCK = 1 << 22  # bytes decoded in one step; between steps threads wait for the interpreter's lock
FORMATS = ("PNG", "JPEG", "TIFF", "JPEG2000", "BMP", "GIF", "WEBP", "PPM")  # Pillow's names
ADMITTED = "PNG, JPEG, TIFF, JPEG 2000, BMP, GIF, WebP, PGM or PPM, DICOM"  # the names in messages
MODES = ("1", "L", "P", "RGB")  # Pillow's modes with 8 bits a channel and no transparency
TRANSPARENT_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
HEADER_BYTES = 1 << 20  # bytes read as header; in JPEG 2000 a large colour profile may precede the number of bits
UNNAMED = "a further channel that it does not name; grey, RGB or either with alpha is wanted"
IMAGEJ_IMAGES = re.compile(r"ImageJ=.*?\bimages=(\d+)", re.DOTALL)
ONE_FRAME = "one is wanted: save the one that is meant as a file of its own"
CONVERT = "save it as grey of 8 or 16 bits, or as RGB of 8 bits"


class Picture(NamedTuple):
    """The pixels of a picture file and their transparency."""

    pixels: np.ndarray  # H x W (x 3), uint8, uint16 or int16; transparent pixels are black
    alpha: np.ndarray | None  # H x W uint8, 0 where transparent; None where the file has no transparency


class ChannelDepth(NamedTuple):
    """The number of bits of a channel, and whether its values have a sign, as the file's header states."""

    bits: int
    is_signed: bool = False


def read_picture(root: Path, file: str) -> Picture:
    """Reads the picture of a file and rotates it as its EXIF orientation states.

    Raises:
        BadSample: the file is missing, unreadable or truncated, has a format that is not in `FORMATS` or several
            frames, or its bit depth or kind of colour cannot be read without a loss of information.
    """
    with _open_image(root, file) as opened:
        stored = _channel_depth(opened, root / file, file)
        _refuse_losses(opened, stored, file)
        opened.load()
        image = ImageOps.exif_transpose(opened)  # regions were drawn on the rotated picture, which viewers show
        if image.mode.startswith("I"):
            return Picture(_16_bit(np.asarray(image), stored, image.info.get("transparency"), file), None)
        if image.mode in TRANSPARENT_MODES or "transparency" in image.info:
            rgba = image.convert("RGBA")
            black = Image.new("RGBA", rgba.size, "black")
            shown = Image.alpha_composite(black, rgba).convert("RGB")
            return Picture(np.asarray(shown), np.asarray(rgba.getchannel("A")))
        return Picture(np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB")), None)


def picture_size(root: Path, file: str) -> tuple[int, int]:
    """Returns the height and width that `read_picture` would return, and reads only the file's header.

    Raises:
        BadSample: the file is missing, or is not an image.
    """
    with _open_image(root, file) as image:
        lies_on_its_side = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.width, image.height) if lies_on_its_side else (image.height, image.width)


@contextmanager
def _open_image(root: Path, file: str) -> Iterator[Image.Image]:
    """Context manager that opens a picture and replaces every error that Pillow raises within it by a BadSample.

    Raises:
        BadSample: Pillow raises an error, or the code within the context raises BadSample.
    """
    try:
        # A handle is passed because Pillow 13 maps plain TIFFs into memory if given a path, and then ignores rotation.
        with (root / file).open("rb") as handle, Image.open(handle, formats=FORMATS) as image:
            yield image
    except BadSample:
        raise
    except UnidentifiedImageError:
        raise BadSample(file, f"is not an image of a kind that is read here ({ADMITTED}), or is damaged") from None
    except OSError as error:
        raise BadSample(file, f"cannot be read: {error.strerror or error}") from None
    except Exception as error:  # each decoder raises exceptions of its own for a damaged file
        raise BadSample(file, f"does not decode: {str(error) or type(error).__name__}") from None


def _channel_depth(image: Image.Image, path: Path, file: str) -> ChannelDepth:
    """Reads the number of bits and the sign from the file's header, because Pillow's mode does not tell them. For
    example, Pillow reads 16-bit colour as 8-bit colour."""
    if image.format == "TIFF":
        return _tiff_depth(image, file)
    if image.format not in ("PNG", "JPEG2000", "PPM", "BMP"):
        return ChannelDepth(8)  # these formats have at most 8 bits, and no sign
    with path.open("rb") as opened:
        header = opened.read(HEADER_BYTES)
    if image.format == "PNG":
        return ChannelDepth(header[24])  # the bit depth in IHDR, which is always the first chunk
    if image.format == "BMP":
        if header[14] >= 40 and int.from_bytes(header[28:30], "little") == 32:  # bits per pixel
            raise BadSample(file, f"has {UNNAMED}")
        return ChannelDepth(8)
    if image.format == "PPM":
        return _ppm_depth(image, path, header, file)
    from pydicom.pixels.utils import get_j2k_parameters  # few cohorts need pydicom

    known = get_j2k_parameters(header)
    if not known or known["precision"] not in (8, 16):
        bits = f"{known['precision']}-bit pixels" if known else "no legible header"
        raise BadSample(file, f"is JPEG 2000 with {bits}; 8 or 16 bits are wanted")
    return ChannelDepth(known["precision"], known["is_signed"])


def _ppm_depth(image: Image.Image, path: Path, header: bytes, file: str) -> ChannelDepth:
    magic, _, _, *remainder = re.sub(rb"#[^\r\n]*", b"", header[:4096]).split(maxsplit=4)
    if magic not in (b"P2", b"P3", b"P5", b"P6"):  # a bitmap, or floating point
        return ChannelDepth(32 if image.mode == "F" else 1)
    if remainder[0] not in (b"255", b"65535"):
        largest = remainder[0].decode("ascii", "replace")
        raise BadSample(file, f"states {largest} as the largest value of its pixels; 255 or 65535 is wanted")
    stored = ChannelDepth(8 if remainder[0] == b"255" else 16)
    if magic in (b"P5", b"P6"):
        start = image.tile[0].offset  # type: ignore[attr-defined]
        length = image.width * image.height * (3 if magic == b"P6" else 1) * stored.bits // 8
        if path.stat().st_size > start + length + 2:  # a line end may follow
            raise BadSample(file, f"goes on after its first image; {ONE_FRAME}")
    return stored


def _tiff_depth(image: Image.Image, file: str) -> ChannelDepth:
    tags = image.tag_v2  # type: ignore[attr-defined]
    name = {tag.name: number for number, tag in TiffTags.TAGS_V2.items()}
    bits = max(tags.get(name["BitsPerSample"], (1,)))
    is_signed = 2 in tags.get(name["SampleFormat"], (1,))
    # ImageJ writes a stack as one page, and states the number of images in the description.
    num_images = IMAGEJ_IMAGES.match(str(tags.get(name["ImageDescription"], "")))
    if num_images and int(num_images[1]) > 1:
        raise BadSample(file, f"is a stack of {num_images[1]} images, as ImageJ writes it; {ONE_FRAME}")
    if 0 in tags.get(name["ExtraSamples"], ()):
        raise BadSample(file, f"has {UNNAMED}")
    if tags.get(name["PhotometricInterpretation"]) == 0 and bits > 8:
        raise BadSample(file, f"has {bits}-bit grey of which 0 is white; save it with 0 as black")
    return ChannelDepth(bits, is_signed)


def _refuse_losses(image: Image.Image, stored: ChannelDepth, file: str) -> None:
    if (frames := getattr(image, "n_frames", 1)) != 1:
        raise BadSample(file, f"has {frames} frames or pages; {ONE_FRAME}")
    if image.mode == "F":
        raise BadSample(file, f"has floating-point pixels; {CONVERT}")
    if not image.mode.startswith("I") and image.mode not in (*MODES, *TRANSPARENT_MODES):
        raise BadSample(file, f"has pixels of kind {image.mode}, which is neither grey nor RGB; {CONVERT}")
    if not image.mode.startswith("I") and stored.bits > 8:
        lost = "in colour or beside an alpha channel, of which 8 would be lost"
        raise BadSample(file, f"has {stored.bits} bits a channel {lost}; {CONVERT}")
    if stored.is_signed and (image.format != "TIFF" or stored.bits < 16):
        raise BadSample(file, f"has signed {stored.bits}-bit pixels; they are read of 16 bits in TIFF and DICOM alone")


def _16_bit(pixels: np.ndarray, stored: ChannelDepth, transparent: int | None, file: str) -> np.ndarray:
    """Converts pixels to uint16, or to int16 if any value is negative. Pixels with the transparent value become 0."""
    if transparent is not None:
        pixels = np.where(pixels == transparent, 0, pixels)
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 and stored.is_signed and low >= -32768 and high <= 32767:
        return pixels.astype(np.int16)
    if low < 0 or high > 65535:
        raise BadSample(file, f"has pixels from {low} to {high}; 16 bits hold 0 to 65535, or -32768 to 32767")
    return pixels.astype(np.uint16)
