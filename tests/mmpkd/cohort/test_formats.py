"""Every cell of the tables in docs/formats.md: a file of that format with that feature is read right or refused."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom import Dataset

from mmpkd.cohort.decode import image_size, read_image
from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.formats.nifti import read_nifti
from tests.mmpkd.cohort.cbis_trees import write_dicom

PAGE = Path(__file__).parents[3] / "docs" / "formats.md"
FORMATS = ("PNG", "JPEG", "TIFF", "JPEG 2000", "BMP", "GIF", "WebP", "PGM, PPM", "DICOM", "NIfTI")
FEATURES = {
    "frames": "several frames, pages or volumes",
    "grey 8": "grey, 8 bits",
    "grey 16": "grey, 16 bits, or 12 bits stored in 16",
    "few": "1 to 7 bits",
    "signed": "signed 16 bits",
    "odd": "signed 8 bits, or a largest value other than 255 or 65535",
    "wide": "values beyond 16 bits, floating point, fractions",
    "colour 8": "colour, 8 bits per channel",
    "colour 16": "colour, 16 bits per channel",
    "palette": "palette",
    "alpha": "transparency, 8 bits (becomes black)",
    "alpha 16": "transparency, 16 bits per channel",
    "inverse": "0 is white, 8 bits",
    "inverse 16": "0 is white, 12 or 16 bits",
    "other": "CMYK, LAB, YCbCr or channels without a name",
    "units": "slope and intercept, padding value",
    "table": "values from a lookup table, or scaled in functional groups",
    "turned": "EXIF orientation",
    "cut": "truncated file",
}
GREY = np.array([[0, 7, 200], [255, 128, 90]], np.uint8)
LARGE = np.kron(GREY, np.ones((16, 16), np.uint8))
DEEP = np.array([[0, 300, 4095], [9, 1000, 2]], np.uint16)
SIGNED = np.array([[-1000, 0, 3000], [5, -1, 70]], np.int16)
RGB = np.array([[[255, 0, 0], [9, 8, 7], [0, 0, 0]], [[1, 2, 3], [0, 255, 0], [60, 60, 60]]], np.uint8)
DEEP_RGB = RGB.astype(np.uint16) * 16
RGBA = np.dstack([RGB, np.array([[255, 255, 255], [255, 255, 0]], np.uint8)])
SHOWN = RGB * (RGBA[..., 3:] > 0).astype(np.uint8)
SIXTEENTHS = np.array([[0, 15, 3]], np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
OTHER_NOISE = NOISE[::-1].copy()
TRANSFORMED = Dataset()
TRANSFORMED.PixelValueTransformationSequence = []
PADDED = np.array([[60000, 0, 4095], [9, 60000, 2]], np.uint16)  # beyond the 12 bits stated, as scanners do
TWELVE: dict[str, Any] = {"BitsStored": 12, "HighBit": 11}


class Case(NamedTuple):
    """A file of `format` with `feature`, as written by `write`; what is read of it, or why it is refused."""

    format: str
    feature: str
    write: Callable[[Path], None]
    wanted: np.ndarray | str
    tolerance: int = 0


def saved(pixels: np.ndarray, form: str, **options: Any) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(pixels).save(path, form, **options)


def converted(mode: str, form: str) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(RGB).convert(mode).save(path, form)


def animated(form: str) -> Callable[[Path], None]:
    frames = [Image.fromarray(one) for one in (NOISE, OTHER_NOISE)]
    return lambda path: frames[0].save(path, form, save_all=True, append_images=frames[1:])


def cut(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def written(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])

    return written


def tiff(pixels: np.ndarray, **options: Any) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, pixels, **options)


def png(pixels: np.ndarray, colour_type: int, bits: int) -> Callable[[Path], None]:
    """What Pillow does not write: `pixels` H x W x C, or H x bytes of packed grey."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = pixels.shape[0], pixels.shape[1] * (8 // bits if bits < 8 else 1)
    rows = b"".join(b"\0" + row.astype(f">u{max(1, bits // 8)}").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + content) and None


def j2k(pixels: np.ndarray, depth_byte: int | None = None) -> Callable[[Path], None]:
    """Lossless; `depth_byte` is written over the bits less one (and the sign, 0x80) of each channel."""

    def written(path: Path) -> None:
        Image.fromarray(pixels).save(path, "JPEG2000", irreversible=False)
        content = bytearray(path.read_bytes())
        at = content.index(b"\xff\x4f\xff\x51") + 42
        for channel in range(0 if depth_byte is None else pixels[0, 0].size):
            content[at + 3 * channel] = depth_byte or 0
        path.write_bytes(content)

    return written


def turned(form: str) -> Callable[[Path], None]:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise
    return saved(LARGE, form, exif=exif)


def pnm(header: str, pixels: np.ndarray) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(header.encode() + b"\n" + pixels.tobytes()) and None


def dicom(pixels: np.ndarray, **elements: Any) -> Callable[[Path], None]:
    return lambda path: write_dicom(path, pixels, **elements)


def nifti(voxels: np.ndarray, slope: float = 1, intercept: float = 0) -> Callable[[Path], None]:
    def written(path: Path) -> None:
        image = nibabel.Nifti1Image(voxels, np.eye(4), dtype=voxels.dtype)
        image.header.set_slope_inter(slope, intercept)
        image.to_filename(path)

    return written


def voxels(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, :, None]


PALETTE = np.array([[0, 1, 2]], np.uint8)


def palette(form: str, **options: Any) -> Callable[[Path], None]:
    def written(path: Path) -> None:
        image = Image.fromarray(PALETTE).convert("P")
        image.putpalette([9, 8, 7, 200, 100, 50, 255, 255, 255])
        image.save(path, form, **options)

    return written


COLOURS = np.array([[[9, 8, 7], [200, 100, 50], [255, 255, 255]]], np.uint8)
ONE_CLEAR = COLOURS * np.array([[[1], [0], [1]]], np.uint8)
ONE_BIT = np.array([[True, False, True, True, False, False, True, False]])
PLAIN, YBR = (np.full((8, 8, 3), colour, np.uint8) for colour in ((197, 35, 58), (86, 112, 207)))  # the same red
FRAMES, COLOUR_16 = "frames or pages; one is wanted", "has 16 bits a channel in colour"
CUT = "cannot be read|not an image"
OTHER = "neither grey nor RGB"
big, inverse = {"byteorder": ">"}, {"photometric": "miniswhite"}
EXTRA = {"photometric": "rgb", "extrasamples": ["unspecified"]}
CASES = [
    Case("PNG", "frames", animated("PNG"), FRAMES),
    Case("PNG", "grey 8", saved(GREY, "PNG"), GREY),
    Case("PNG", "grey 16", saved(DEEP, "PNG"), DEEP),
    Case("PNG", "few", saved(ONE_BIT, "PNG"), ONE_BIT * np.uint8(255)),
    Case("PNG", "few", png(np.array([[0x0F, 0x30]], np.uint8), 0, 4), np.array([[0, 255, 51, 0]])),
    Case("PNG", "colour 8", saved(RGB, "PNG"), RGB),
    Case("PNG", "colour 16", png(DEEP_RGB, 2, 16), COLOUR_16),
    Case("PNG", "palette", palette("PNG"), COLOURS),
    Case("PNG", "alpha", saved(RGBA, "PNG"), SHOWN),
    Case("PNG", "alpha", palette("PNG", transparency=1), ONE_CLEAR),
    Case("PNG", "alpha", png(np.array([[[9, 255], [200, 0]]]), 4, 8), np.array([[[9] * 3, [0] * 3]])),
    Case("PNG", "alpha 16", png(np.dstack([DEEP, DEEP]), 4, 16), COLOUR_16),
    Case("PNG", "alpha 16", png(np.dstack([DEEP_RGB, DEEP]), 6, 16), COLOUR_16),
    Case("PNG", "turned", turned("PNG"), np.rot90(LARGE, -1)),
    Case("PNG", "cut", cut(saved(NOISE, "PNG")), CUT),
    Case("JPEG", "frames", animated("MPO"), FRAMES),
    Case("JPEG", "grey 8", saved(NOISE, "JPEG", quality=100), NOISE, 3),
    Case("JPEG", "colour 8", saved(PLAIN, "JPEG"), PLAIN, 3),
    Case("JPEG", "other", converted("CMYK", "JPEG"), OTHER),
    Case("JPEG", "turned", turned("JPEG"), np.rot90(LARGE, -1), 9),
    Case("JPEG", "cut", cut(saved(NOISE, "JPEG")), CUT),
    Case("TIFF", "frames", animated("TIFF"), FRAMES),
    Case("TIFF", "grey 8", tiff(GREY), GREY),
    Case("TIFF", "grey 16", tiff(DEEP), DEEP),
    Case("TIFF", "grey 16", tiff(DEEP, **big), DEEP),
    Case("TIFF", "few", saved(ONE_BIT, "TIFF"), ONE_BIT * np.uint8(255)),
    Case("TIFF", "signed", tiff(SIGNED), SIGNED),
    Case("TIFF", "signed", tiff(SIGNED, **big), SIGNED),
    Case("TIFF", "odd", tiff(GREY.astype(np.int8)), "signed 8-bit pixels"),
    Case("TIFF", "wide", tiff(DEEP.astype(np.float32)), "floating-point pixels"),
    Case("TIFF", "wide", tiff(DEEP.astype(np.uint32) * 1000), "16 bits hold 0 to 65535"),
    Case("TIFF", "wide", tiff(np.full((2, 2), 2**32 - 1, np.uint32)), "16 bits hold 0 to 65535"),
    Case("TIFF", "wide", tiff(np.full((2, 2), 0.5)), "not an image"),
    Case("TIFF", "colour 8", tiff(RGB), RGB),
    Case("TIFF", "colour 8", tiff(RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"), RGB),
    Case("TIFF", "colour 16", tiff(DEEP_RGB), COLOUR_16),
    Case("TIFF", "palette", palette("TIFF"), COLOURS),
    Case("TIFF", "alpha", tiff(RGBA, photometric="rgb", extrasamples=["unassalpha"]), SHOWN),
    Case("TIFF", "alpha", tiff(np.dstack([SHOWN, RGBA[..., 3]]), extrasamples=["assocalpha"]), SHOWN),
    Case("TIFF", "alpha 16", tiff(np.dstack([DEEP_RGB, DEEP]), extrasamples=["unassalpha"]), COLOUR_16),
    Case("TIFF", "inverse", tiff(GREY, **inverse), 255 - GREY),
    Case("TIFF", "inverse 16", tiff(DEEP, **inverse), "16-bit grey of which 0 is white"),
    Case("TIFF", "other", converted("CMYK", "TIFF"), OTHER),
    Case("TIFF", "other", converted("LAB", "TIFF"), OTHER),
    Case("TIFF", "other", converted("YCbCr", "TIFF"), OTHER),
    Case("TIFF", "other", tiff(RGBA, **EXTRA), "a further channel that it does not name"),
    Case("TIFF", "turned", turned("TIFF"), np.rot90(LARGE, -1)),
    Case("TIFF", "cut", cut(saved(NOISE, "TIFF")), CUT),
    Case("TIFF", "cut", cut(saved(NOISE, "TIFF", compression="tiff_lzw")), CUT),
    Case("JPEG 2000", "grey 8", j2k(NOISE), NOISE),
    Case("JPEG 2000", "grey 16", j2k(DEEP), DEEP),
    Case("JPEG 2000", "few", j2k(GREY, 3), "JPEG 2000 with 4-bit pixels"),
    Case("JPEG 2000", "signed", j2k(DEEP, 0x80 | 15), "signed 16-bit pixels"),
    Case("JPEG 2000", "odd", j2k(DEEP, 11), "JPEG 2000 with 12-bit pixels"),
    Case("JPEG 2000", "odd", j2k(GREY, 0x80 | 7), "signed 8-bit pixels"),
    Case("JPEG 2000", "colour 8", j2k(RGB), RGB),
    Case("JPEG 2000", "colour 16", j2k(RGB, 15), COLOUR_16),
    Case("JPEG 2000", "alpha", j2k(RGBA), SHOWN),
    Case("JPEG 2000", "alpha 16", j2k(RGBA, 15), COLOUR_16),
    Case("JPEG 2000", "cut", cut(j2k(NOISE)), CUT),
    Case("BMP", "grey 8", saved(GREY, "BMP"), GREY),
    Case("BMP", "few", saved(ONE_BIT, "BMP"), ONE_BIT * np.uint8(255)),
    Case("BMP", "colour 8", saved(RGB, "BMP"), RGB),
    Case("BMP", "palette", palette("BMP"), COLOURS),
    Case("BMP", "alpha", saved(RGBA, "BMP"), "a further channel that it does not name"),
    Case("BMP", "cut", cut(saved(NOISE, "BMP")), CUT),
    Case("GIF", "frames", animated("GIF"), FRAMES),
    Case("GIF", "grey 8", saved(GREY, "GIF"), GREY),
    Case("GIF", "palette", palette("GIF"), COLOURS),
    Case("GIF", "alpha", palette("GIF", transparency=1), ONE_CLEAR),
    Case("GIF", "cut", cut(saved(NOISE, "GIF")), CUT),
    Case("WebP", "frames", animated("WEBP"), FRAMES),
    Case("WebP", "colour 8", saved(RGB, "WEBP", lossless=True), RGB),
    Case("WebP", "alpha", saved(RGBA, "WEBP", lossless=True, exact=True), SHOWN),
    Case("WebP", "turned", turned("WEBP"), np.rot90(np.dstack([LARGE] * 3), -1), 9),
    Case("WebP", "cut", cut(saved(NOISE, "WEBP")), CUT),
    Case("PGM, PPM", "frames", pnm("P5 3 1 255", np.tile(GREY, (2, 1))), "one is wanted"),
    Case("PGM, PPM", "grey 8", pnm("P5 # a comment\n3 2 255", GREY), GREY),
    Case("PGM, PPM", "grey 16", pnm("P5 3 2 65535", DEEP.astype(">u2")), DEEP),
    Case("PGM, PPM", "few", saved(ONE_BIT, "PPM"), ONE_BIT * np.uint8(255)),
    Case("PGM, PPM", "odd", pnm("P5 3 2 4095", DEEP.astype(">u2")), "states 4095 as the largest value"),
    Case("PGM, PPM", "odd", pnm("P5 3 1 15", SIXTEENTHS), "states 15 as the largest value"),
    Case("PGM, PPM", "wide", pnm("Pf 3 2 -1.0", DEEP.astype("<f4")), "floating-point pixels"),
    Case("PGM, PPM", "colour 8", pnm("P6 3 2 255", RGB), RGB),
    Case("PGM, PPM", "colour 16", pnm("P6 3 2 65535", DEEP_RGB.astype(">u2")), COLOUR_16),
    Case("PGM, PPM", "cut", cut(pnm("P5 64 64 255", NOISE)), CUT),
    Case("DICOM", "frames", dicom(GREY, NumberOfFrames=2), "has 2 frames"),
    Case("DICOM", "grey 8", dicom(GREY), GREY),
    Case("DICOM", "grey 16", dicom(DEEP), DEEP),
    Case("DICOM", "grey 16", dicom(DEEP, BitsStored=12, HighBit=11), DEEP),
    Case("DICOM", "few", dicom(SIXTEENTHS, BitsStored=4, HighBit=3), np.array([[0, 255, 51]])),
    Case("DICOM", "signed", dicom(SIGNED, PixelRepresentation=1), SIGNED),
    Case("DICOM", "odd", dicom(GREY.astype(np.int8), PixelRepresentation=1), "8 bits hold 0 to 255"),
    Case("DICOM", "wide", dicom(DEEP.astype(np.uint32) * 1000), "32-bit pixels"),
    Case("DICOM", "wide", dicom(DEEP, RescaleSlope="0.3", RescaleIntercept="0"), "whole numbers of 8 or 16 bits"),
    Case("DICOM", "odd", dicom(DEEP * 2, BitsStored=12, HighBit=11), "the 12 bits that it states hold 0 to 4095"),
    Case("DICOM", "colour 8", dicom(RGB), RGB),
    Case("DICOM", "colour 8", dicom(YBR, PhotometricInterpretation="YBR_FULL"), PLAIN, 2),
    Case("DICOM", "colour 16", dicom(DEEP_RGB), DEEP_RGB),
    Case("DICOM", "palette", dicom(PALETTE, PhotometricInterpretation="PALETTE COLOR"), "PALETTE COLOR is not handled"),
    Case("DICOM", "inverse", dicom(GREY, PhotometricInterpretation="MONOCHROME1"), 255 - GREY),
    Case("DICOM", "inverse 16", dicom(DEEP, PhotometricInterpretation="MONOCHROME1", **TWELVE), 4095 - DEEP),
    Case("DICOM", "other", dicom(RGB, PhotometricInterpretation="YBR_PARTIAL_420"), "YBR_PARTIAL_420 is not handled"),
    Case("DICOM", "other", dicom(RGB, PhotometricInterpretation="HSV"), "HSV is not handled"),
    Case("DICOM", "other", dicom(GREY, PresentationLUTShape="INVERSE"), "says both that 0 is black"),
    Case("DICOM", "units", dicom(DEEP, RescaleSlope="2", RescaleIntercept="-1024"), 2 * DEEP.astype(int) - 1024),
    Case("DICOM", "units", dicom(DEEP, PixelPaddingValue=4095), np.where(DEEP == 4095, 0, DEEP)),
    Case("DICOM", "units", dicom(PADDED, PixelPaddingValue=60000, **TWELVE), PADDED % 60000),
    Case("DICOM", "table", dicom(DEEP, ModalityLUTSequence=[]), "Modality LUT Sequence"),
    Case("DICOM", "table", dicom(DEEP, SharedFunctionalGroupsSequence=[TRANSFORMED]), "stand in functional groups"),
    Case("DICOM", "cut", cut(dicom(NOISE)), "do not decode"),
    Case("NIfTI", "frames", nifti(np.zeros((3, 2, 2, 4), np.int16)), "a volume has three"),
    Case("NIfTI", "grey 8", nifti(voxels(GREY)), voxels(GREY)),
    Case("NIfTI", "grey 16", nifti(voxels(DEEP)), voxels(DEEP)),
    Case("NIfTI", "signed", nifti(voxels(SIGNED)), voxels(SIGNED)),
    Case("NIfTI", "signed", nifti(voxels(SIGNED).astype(">i2")), voxels(SIGNED)),
    Case("NIfTI", "odd", nifti(voxels(GREY // 2).astype(np.int8)), voxels(GREY // 2)),
    Case("NIfTI", "wide", nifti(voxels(GREY).astype(np.float32)), voxels(GREY)),
    Case("NIfTI", "wide", nifti(voxels(SIGNED).astype(np.float64)), voxels(SIGNED)),
    Case("NIfTI", "colour 8", nifti(np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])), "no real numbers"),
    Case("NIfTI", "units", nifti(voxels(DEEP), 2, -1024), voxels(2 * DEEP.astype(int) - 1024)),
    Case("NIfTI", "cut", cut(nifti(voxels(NOISE))), "truncated or damaged"),
]  # fmt: skip


def name(case: Case) -> str:
    return f"{case.format}, {FEATURES[case.feature]}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_cell_is_right_or_refused(case: Case, tmp_path: Path) -> None:
    is_volume = case.format == "NIfTI"
    file = "it.nii" if is_volume else "it.dcm" if case.format == "DICOM" else "it"
    case.write(tmp_path / file)
    read = partial(read_nifti if is_volume else read_image, tmp_path, file)
    if isinstance(case.wanted, str):
        with pytest.raises(BadSample) as caught:
            read()
        assert re.search(case.wanted, caught.value.reason)
        return
    pixels = read()
    assert pixels.shape == case.wanted.shape or (
        pixels.ndim == 3 and case.wanted.ndim == 2 and np.ptp(pixels, 2).max() == 0
    )
    pixels = pixels if pixels.shape == case.wanted.shape else pixels[..., 0]
    assert np.abs(pixels.astype(int) - case.wanted.astype(int)).max() <= case.tolerance
    if not is_volume:
        assert image_size(tmp_path, file) == pixels.shape[:2]


@pytest.mark.parametrize("formats", [FORMATS[:5], FORMATS[5:]])
def test_the_page_says_what_the_cases_show(formats: tuple[str, ...]) -> None:
    """Fails with the table that the page should hold; ten formats are wider than a page."""
    lines = [f"| | {' | '.join(formats)} |", f"|---{'|---' * len(formats)}|"]
    for feature, words in FEATURES.items():
        cells = []
        for form in formats:
            cases = [case for case in CASES if (case.format, case.feature) == (form, feature)]
            outcomes = {"refused" if isinstance(case.wanted, str) else "right" for case in cases}
            assert len(outcomes) <= 1, f"{form}, {words}: both right and refused"
            cells.append(next(iter(outcomes), "-"))
        lines.append(f"| {words} | {' | '.join(cells)} |")
    table = "\n".join(lines)
    assert table in PAGE.read_text(), f"docs/formats.md should hold\n{table}"
