"""Reads the pixels of a DICOM file."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from mmpkd.cohort.facts import BadSample

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # the number of pixels above which Pillow refuses its own formats
CODE = re.compile("[A-Z0-9_]{1,16}")  # a DICOM code string without blanks
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # pydicom returns these as RGB


class Unit(NamedTuple):
    """Modality and unit of pixel values as DICOM codes. A code is empty if the file does not state it."""

    modality: str = ""
    unit: str = ""


def is_dicom(root: Path, file: str) -> bool:
    """Returns whether a file is DICOM: it has a suffix of DICOM, or the mark `DICM` after its preamble. The mark is
    checked because many archives use no suffix."""
    if file.lower().endswith((".dcm", ".dicom")):
        return True
    try:
        with (root / file).open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except (OSError, ValueError):
        return False  # the error is reported later, when the file is read


def read_size(root: Path, file: str) -> tuple[int, int]:
    """Returns the height and width of an image in pixels, and reads only the file's header.

    Raises:
        BadSample: the file is missing, or is not a DICOM file with an image.
    """
    return _size(_read(root, file, stop_before_pixels=True), file)


def read_spacing(root: Path, file: str) -> float | None:
    """Returns the distance of neighbouring columns in millimetres, from the element Pixel Spacing (DICOM PS3.3,
    10.7.1.3), or None if the file does not state it. Imager Pixel Spacing is not used, because it is measured at the
    detector and not in the patient.

    Raises:
        BadSample: the file is missing, or is not a DICOM file.
    """
    data = _read(root, file, stop_before_pixels=True)
    try:
        spacing = float(data.PixelSpacing[1])
    except Exception:  # it is missing, or damaged: elements are decoded on access, which may raise any exception
        return None
    return spacing if 0 < spacing < math.inf else None


def unit_of(root: Path, file: str) -> Unit:
    """Returns the modality and the unit that a file states. The unit of a CT that states a rescale slope and intercept
    but no unit is the Hounsfield unit.

    Raises:
        BadSample: the file is missing, or is not a DICOM file.
    """
    data = _read(root, file, stop_before_pixels=True)
    modality, *stated = (_read_code(data, name) for name in ("Modality", "RescaleType", "Units"))
    unit = next((code for code in stated if code not in ("", "US")), "")  # US: unspecified
    if not unit and modality == "CT" and "RescaleIntercept" in data and "US" not in stated:
        unit = "HU"
    return Unit(modality, unit)


def _read_code(data: Dataset, name: str) -> str:
    """Returns the code that an element holds. The text is empty if the element holds anything else, because that may be
    patient data."""
    try:
        value = str(data.get(name, ""))
    except Exception:  # elements are decoded on access, and a damaged one may raise any exception
        return ""
    return value if CODE.fullmatch(value) else ""


def read_dicom(root: Path, file: str) -> np.ndarray:
    """Reads the pixels of a file: H x W, or H x W x 3 in colour; uint8, uint16 or int16; larger values are brighter.

    MONOCHROME1 images, where 0 is white, are inverted over the range that their bits can hold. The rescale slope and
    intercept are applied, and the results must be whole numbers of at most 16 bits. Display windows are not applied.
    Pixels with the padding value get the smallest value of the other pixels. Values with fewer than 8 bits are scaled
    to the range 0 to 255.

    Raises:
        BadSample: the file is missing or truncated, has several frames, or has a photometric interpretation or depth
            that is not handled.
    """
    from pydicom import Dataset
    from pydicom.pixels.processing import apply_rescale

    height, width = read_size(root, file)  # the size is checked first, because there may be too many pixels to read
    data = _read(root, file)
    try:
        photometric, bits = str(data.PhotometricInterpretation), int(data.BitsStored)
        is_grey, is_signed = photometric in GREY, bool(data.get("PixelRepresentation", 0))
        if not (is_grey or photometric in COLOURS):
            raise BadSample(file, f"photometric interpretation {photometric} is not handled")
        if int(data.get("HighBit", bits - 1)) != bits - 1:
            raise BadSample(file, f"its {bits} bits are not the lowest of each pixel; that is not handled")
        if "ModalityLUTSequence" in data:
            raise BadSample(file, "its values are looked up in a table (Modality LUT Sequence); that is not handled")
        shared = data.get("SharedFunctionalGroupsSequence") or [Dataset()]
        per_frame = data.get("PerFrameFunctionalGroupsSequence") or [Dataset()]
        if any("PixelValueTransformationSequence" in group for group in (*shared, *per_frame)):
            raise BadSample(file, "its slope and intercept stand in functional groups; that is not handled")
        is_inverse = data.get("PresentationLUTShape") == "INVERSE"
        if photometric == "MONOCHROME2" and is_inverse:
            raise BadSample(file, "says both that 0 is black (MONOCHROME2) and that it is white (INVERSE)")
        if not is_signed:  # else pydicom clears bits above the stated ones, which changes larger values
            data.pixel_array_options(correct_unused_bits=False)
        pixels = np.asarray(data.pixel_array)  # YBR is converted to RGB
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)
        is_padding = _padding_mask(data, pixels) if is_grey else None
        imaged = pixels if is_padding is None or is_padding.all() else pixels[~is_padding]
        if imaged.min() < low or imaged.max() > high:
            wanted = f"the {bits} bits that it states hold {low} to {high}"
            raise BadSample(file, f"has pixels from {imaged.min()} to {imaged.max()}; {wanted}")
        if photometric == "MONOCHROME1":
            pixels = (-1 if is_signed else (1 << bits) - 1) - pixels.astype(np.int64)
        if is_grey:
            pixels = apply_rescale(pixels, data)
        if is_padding is not None and is_padding.any() and not is_padding.all():
            pixels = np.where(is_padding, pixels[~is_padding].min(), pixels)
        if bits < 8:
            pixels = np.rint(pixels.clip(0) * (255 / ((1 << bits) - 1)))
    except BadSample:
        raise
    except Exception as error:  # each decoder has its own exceptions, with texts that may quote the file's elements
        problem = f"its pixels do not decode ({type(error).__name__})"
        raise BadSample(file, f"{problem}: {_transfer_syntax(data)}") from None
    colours = () if is_grey else (3,)
    if pixels.shape != (height, width, *colours):
        wanted = " x ".join(map(str, (height, width, *colours)))
        raise BadSample(file, f"its pixels are {' x '.join(map(str, pixels.shape))}, its header says {wanted}")
    return _to_integers(pixels, bits, file)


def _read(root: Path, file: str, stop_before_pixels: bool = False) -> Dataset:
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    try:
        with (root / file).open("rb") as opened:
            if opened.read(132)[128:] == b"DICM":
                meta = read_file_meta_info(root / file)
                if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                    raise BadSample(file, "is deflated as a whole, and may inflate to anything; that is not handled")
        return dcmread(root / file, stop_before_pixels=stop_before_pixels)
    except BadSample:
        raise
    except OSError as error:
        raise BadSample(file, f"cannot be read: {error.strerror or type(error).__name__}") from None
    except Exception as error:
        raise BadSample(file, f"is not a DICOM file ({type(error).__name__})") from None


def _size(data: Dataset, file: str) -> tuple[int, int]:
    try:
        height, width, frames = int(data.Rows), int(data.Columns), int(data.get("NumberOfFrames") or 1)
    except Exception:  # elements are decoded on access, and a damaged one may raise any exception
        raise BadSample(file, "is a DICOM file without an image") from None
    if height * width > MAX_PIXELS:
        raise BadSample(file, f"has {height * width:,} pixels; {MAX_PIXELS:,} at most are decoded")
    if frames != 1:
        raise BadSample(file, f"has {frames} frames; one is wanted")
    return height, width


def _transfer_syntax(data: Dataset) -> str:
    """Describes the compression of the pixels, and names the package that may decode them."""
    try:
        syntax = data.file_meta.TransferSyntaxUID
        return f"{syntax.name}{'; pip install pylibjpeg[all] may decode it' if syntax.is_compressed else ''}"
    except Exception:
        return "unknown transfer syntax"


def _padding_mask(data: Dataset, pixels: np.ndarray) -> np.ndarray | None:
    """Returns the mask of a grey image's padding pixels (DICOM PS3.3 C.7.5.1.1.2), H x W bool. None means that the file
    states no padding value."""
    value = data.get("PixelPaddingValue")
    if value is None:
        return None
    limit = data.get("PixelPaddingRangeLimit", value)
    inside: np.ndarray = (pixels >= min(value, limit)) & (pixels <= max(value, limit))
    return inside


def _to_integers(pixels: np.ndarray, bits: int, file: str) -> np.ndarray:
    """Converts pixels to uint8, to uint16, or to int16 if any value is negative. Raises BadSample if values would be
    lost."""
    if bits > 16 or (pixels.dtype.kind == "f" and not np.array_equal(pixels, np.rint(pixels))):
        raise BadSample(file, f"has {bits}-bit pixels of type {pixels.dtype}; whole numbers of 8 or 16 bits are wanted")
    low, high = int(pixels.min()), int(pixels.max())
    if bits > 8 and -32768 <= low < 0 and high <= 32767:
        return pixels.astype(np.int16)
    largest = 255 if bits <= 8 else 65535
    if low < 0 or high > largest:
        raise BadSample(file, f"has pixels from {low} to {high}; {largest.bit_length()} bits hold 0 to {largest}")
    return pixels.astype(np.uint8 if bits <= 8 else np.uint16)
