"""Image files for CBIS-DDSM's description files, in each of the three layouts: small, but of the published kinds.

A film is 16-bit; its crop is another size and grey; its mask is 8-bit, 0 and 255, of the film's size. Which of
the two names of a series the mask gets follows the description file, so mass and calc differ as they do there.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

IMAGE, CROP, MASK = "image file path", "cropped image file path", "ROI mask file path"
NAMES = [f"{kind}_case_description_{part}_set.csv" for kind in ("mass", "calc") for part in ("train", "test")]
SIZE = (60, 40)  # of a film, before its own few pixels more
JPEG_QUALITY = 95


def film(path: str) -> np.ndarray:
    """H x W uint16: a bright breast on black; the same for the same stated path."""
    random = np.random.default_rng(crc32(path.split("/")[0].encode()))
    height, width = SIZE[0] + int(random.integers(8)), SIZE[1] + int(random.integers(8))
    row_HW, column_HW = np.mgrid[:height, :width]
    breast_HW = ((row_HW - height / 2) / (0.45 * height)) ** 2 + (column_HW / (0.8 * width)) ** 2 < 1
    tissue_HW = 30_000 + 20_000 * np.sin(row_HW / random.uniform(6, 12)) * np.cos(column_HW / random.uniform(6, 12))
    return np.where(breast_HW, tissue_HW, 200).astype(np.uint16)


def region(path: str, shape: tuple[int, int]) -> np.ndarray:
    """H x W uint8 of 0 and 255: a rectangle."""
    random = np.random.default_rng(crc32(path.split("/")[0].encode()))
    top, left = (int(random.integers(4, side // 2)) for side in shape)
    mask_HW = np.zeros(shape, np.uint8)
    mask_HW[top : top + int(random.integers(4, 16)), left : left + int(random.integers(4, 14))] = 255
    return mask_HW


def read_rows(folder: Path, names: Iterable[str] = NAMES) -> list[dict[str, str]]:
    rows = []
    for name in names:
        with (folder / name).open(newline="") as file:
            rows += [{key: value.strip() for key, value in row.items()} for row in csv.DictReader(file)]
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """A description file, with the line end that its published form has inside quotes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    broken = CROP if "breast density" in rows[0] else MASK
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, broken: row[broken] + "\n"} for row in rows)


def write_tree(root: Path, rows: Iterable[Mapping[str, str]], layout: str) -> None:
    """The files that these rows state, under `root`."""
    info = []
    seen: set[str] = set()
    for row in rows:
        whole = film(row[IMAGE])
        mask = region(row[MASK], whole.shape)
        top, left = np.argwhere(mask).min(axis=0)
        crop = whole[top : top + 12, left : left + 12]
        for path, pixels, what in (
            (row[IMAGE], whole, "full mammogram images"),
            (row[CROP], crop, "cropped images"),
            (row[MASK], mask, "ROI mask images"),
        ):
            if path in seen:
                continue
            seen.add(path)
            shared = path != row[IMAGE] and row[CROP].split("/")[2] == row[MASK].split("/")[2]
            target = root / place(path, layout, "ROI mask images" if shared else what)
            target.parent.mkdir(parents=True, exist_ok=True)
            if layout == "jpeg":
                grey = pixels if pixels.dtype == np.uint8 else np.rint(pixels / 257).astype(np.uint8)
                Image.fromarray(grey).save(target, quality=JPEG_QUALITY)
                info.append({"PatientID": path.split("/")[0], "SeriesInstanceUID": path.split("/")[2]})
                info[-1] |= {"image_path": f"CBIS-DDSM/{target.relative_to(root)}", "SeriesDescription": what}
            else:
                write_dicom(target, pixels, PatientID=path.split("/")[0])
    if layout == "jpeg":
        (root / "csv").mkdir(exist_ok=True, parents=True)
        with (root / "csv" / "dicom_info.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(info[0]))
            writer.writeheader()
            writer.writerows(info)


def write_some(root: Path, descriptions: Path, layout: str) -> None:
    """The first three rows of each description file, and their images."""
    rows = {name: read_rows(descriptions, [name])[:3] for name in NAMES}
    for name, some in rows.items():
        write_rows(root / name, some)
    write_tree(root, [row for some in rows.values() for row in some], layout)


def place(path: str, layout: str, what: str) -> Path:
    """Where a stated path lies in a layout."""
    folder, study, series, name = path.split("/")
    number = int(name.removesuffix(".dcm")) + 1  # 000000.dcm is 1-1.dcm
    if layout == "jpeg":
        return Path("jpeg", series, f"{number}-{int(series[-3:]):03d}.jpg")
    if layout == "classic":
        return Path("CBIS-DDSM", path)
    return Path(
        "manifest-1",
        "CBIS-DDSM",
        folder,
        f"08-29-2017-DDSM-NA-{study[-5:]}",
        f"1.000000-{what}-{series[-5:]}",
        f"1-{number}.dcm",
    )


def write_dicom(path: Path, pixels: np.ndarray, **elements: object) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    data.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, 0
    data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
