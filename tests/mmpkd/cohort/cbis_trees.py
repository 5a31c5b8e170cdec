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
    coarse = Image.fromarray(random.uniform(10_000, 50_000, (12, 10)).astype(np.float32))
    tissue_HW = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))
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


# Rows as published in form, and no patient's: file, patient, breast, view, abnormality, two descriptors, assessment,
# pathology, subtlety, density. P_00002 has two lesions in one image; P_00004 is in a training and in a test file.
INVENTED = """
mass-train P_00001 LEFT  CC  1 IRREGULAR-ARCHITECTURAL_DISTORTION SPICULATED      4 MALIGNANT               4 3
mass-train P_00001 LEFT  MLO 1 IRREGULAR-ARCHITECTURAL_DISTORTION SPICULATED      4 MALIGNANT               4 3
mass-train P_00003 RIGHT CC  1 ROUND                              CIRCUMSCRIBED   2 BENIGN_WITHOUT_CALLBACK 0 0
mass-train P_00002 RIGHT CC  1 OVAL                               CIRCUMSCRIBED   3 BENIGN                  5 2
mass-train P_00002 RIGHT CC  2 IRREGULAR                          SPICULATED      5 MALIGNANT               5 2
mass-train P_00004 LEFT  CC  1 OVAL                               OBSCURED        3 BENIGN                  2 1
mass-train P_00005 LEFT  CC  1 OVAL-LOBULATED                     N/A             3 BENIGN                  3 2
mass-train P_00006 LEFT  CC  1 ROUND                              ILL_DEFINED     4 MALIGNANT               3 2
mass-train P_00007 LEFT  CC  1 LOBULATED-OVAL                     OBSCURED        3 BENIGN                  3 4
mass-test  P_00010 LEFT  CC  1 IRREGULAR                          SPICULATED      5 MALIGNANT               5 1
mass-test  P_00011 LEFT  CC  1 OVAL                               CIRCUMSCRIBED   2 BENIGN                  3 2
mass-test  P_00012 RIGHT MLO 1 OVAL                               CIRCUMSCRIBED   2 BENIGN                  3 2
calc-train P_00020 LEFT  CC  1 PLEOMORPHIC                        CLUSTERED       4 MALIGNANT               3 2
calc-train P_00021 LEFT  CC  1 LUCENT_CENTERED                    N/A             2 BENIGN_WITHOUT_CALLBACK 5 2
calc-train P_00022 RIGHT CC  1 PUNCTATE-PLEOMORPHIC               CLUSTERED       4 BENIGN                  2 3
calc-train P_00023 RIGHT CC  1 PLEOMORPHIC                        SEGMENTAL       5 MALIGNANT               4 3
calc-test  P_00004 RIGHT CC  1 LUCENT_CENTER                      N/A             2 BENIGN                  4 1
calc-test  P_00030 LEFT  CC  1 PLEOMORPHIC                        LINEAR-SEGMENTAL 5 MALIGNANT              4 2
calc-test  P_00031 LEFT  CC  1 PUNCTATE                           REGIONAL        3 BENIGN                  2 2
"""


def invented_rows() -> dict[str, list[dict[str, str]]]:
    """Rows of each description file, for whoever does not have the published ones."""
    found: dict[str, list[dict[str, str]]] = {name: [] for name in NAMES}
    for number, line in enumerate(INVENTED.strip().splitlines()):
        which, patient, breast, view, abnormality, first, second, *judged = line.split()
        assessment, pathology, subtlety, density = judged
        kind, part = which.split("-")
        is_mass, uid = kind == "mass", f"1.3.6.1.4.1.9590.100.1.2.{100 + number:05}"
        film = f"{kind.title()}-{'Training' if part == 'train' else 'Test'}_{patient}_{breast}_{view}"
        # Crop and mask are two images of a series, which follow each other in the one order or in the other.
        crop, mask = (f"{film}_{abnormality}/{uid}71/{uid}72/00000{at:d}.dcm" for at in (not is_mass, is_mass))
        whole = next((row[IMAGE] for row in found[NAMES[0]] if row[IMAGE].startswith(f"{film}/")), "")
        found[f"{kind}_case_description_{part}_set.csv"].append(
            {
                "patient_id": patient,
                "breast_density" if is_mass else "breast density": density,
                "left or right breast": breast,
                "image view": view,
                "abnormality id": abnormality,
                "abnormality type": "mass" if is_mass else "calcification",
                "mass shape" if is_mass else "calc type": first,
                "mass margins" if is_mass else "calc distribution": second,
                "assessment": assessment,
                "pathology": pathology,
                "subtlety": subtlety,
                IMAGE: whole or f"{film}/{uid}61/{uid}62/000000.dcm",
                CROP: crop,
                MASK: mask,
            }
        )
    return found


def write_some(root: Path, layout: str, most: int | None = 3) -> None:
    """The first invented rows of each description file, and their images."""
    rows = {name: some[:most] for name, some in invented_rows().items()}
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
