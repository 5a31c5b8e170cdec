"""MS-CXR: boxes of eight findings on MIMIC-CXR images (PhysioNet; Boecking et al., ECCV 2022), CSV or COCO JSON.

A box is its top left corner and its size, x, y, width and height in pixels of the full JPEG; some public loaders
misread it as two corners. CSV 1.1.0 has a column `split`, which is not to be trusted and not read; JSON states the
image's size on the annotation. Images are found by their dicom_id: `path` begins with `files/` or not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.formats.regions import box_mask
from mmpkd.cohort.formats.tables import read_table, refuse_rows
from mmpkd.cohort.readers.mimic_cxr.tables import IDS, MEND, SHAPES
from mmpkd.types import CohortError

BOXED = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Lung Opacity",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
)
FRAME = ("x", "y", "w", "h", "image_width", "image_height")


class Box(NamedTuple):
    """x, y: top left, from 0; all in pixels of the full image, whose own size it states."""

    finding: str
    x: float
    y: float
    width: float
    height: float
    image_width: float
    image_height: float


def read_boxes(path: Path) -> pd.DataFrame:
    """A row a box: dicom_id, category_name, x, y, w, h, image_width, image_height (floats), path (may be empty).

    Raises:
        CohortError: neither MS-CXR's CSV nor its COCO JSON; ids, findings or numbers that are none.
    """
    is_json = path.suffix == ".json"
    table, unit = (_from_json(path), "annotation") if is_json else (_from_csv(path), "row")
    wrong_id = ~table["dicom_id"].str.fullmatch(IDS["dicom_id"])
    refuse_rows(path, wrong_id, f"a dicom_id that is not {SHAPES['dicom_id']}", unit=unit)
    unknown = ~table["category_name"].isin(BOXED)
    refuse_rows(path, unknown, f"a finding that is none of {', '.join(BOXED)}", unit=unit)
    finite = np.isfinite(table[list(FRAME)].to_numpy(float)).all(axis=1)
    refuse_rows(path, ~finite, f"a {', '.join(FRAME)} that is not a number", unit=unit)
    return table


def _from_csv(path: Path) -> pd.DataFrame:
    table = read_table(path, ["dicom_id", "category_name", *FRAME], MEND)
    numbers = {name: pd.to_numeric(table[name], errors="coerce").astype(float) for name in FRAME}
    return table.assign(**numbers, path=table.get("path", ""))


def _from_json(path: Path) -> pd.DataFrame:
    try:
        return _annotations(path)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CohortError(f"{path} is not MS-CXR's COCO JSON file: {type(error).__name__}; {MEND}") from None


def _annotations(path: Path) -> pd.DataFrame:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if lacking := [name for name in ("categories", "images", "annotations") if name not in content]:
        raise CohortError(f"{path}: no {', '.join(lacking)}; {MEND}")
    names = {one["id"]: one["name"] for one in content["categories"]}
    images = {one["id"]: one for one in content["images"]}
    rows = []
    for number, one in enumerate(content["annotations"], 1):
        try:
            image, finding, (x, y, width, height) = images[one["image_id"]], names[one["category_id"]], one["bbox"]
            file = str(image.get("path") or image["file_name"])
            size = [one.get(name, image.get(name)) for name in ("width", "height")]
        except (KeyError, TypeError, ValueError, AttributeError):
            what = "its image or category is not listed, or its bbox is not x, y, width and height"
            raise CohortError(f"{path}: annotation {number}: {what}; {MEND}") from None
        numbers = [float(value) for value in (x, y, width, height, *size)]
        rows.append((PurePosixPath(file).stem, str(finding), *numbers, file))
    if not rows:
        raise CohortError(f"{path}: no box; {MEND}")
    return pd.DataFrame(rows, columns=["dicom_id", "category_name", *FRAME, "path"])


def held_out_part(patient: str) -> Literal["val", "test"]:
    """The part of a patient who has boxes, from the SHA-256 of the id: a third validates, two thirds test."""
    return "val" if int(hashlib.sha256(patient.encode()).hexdigest(), 16) % 3 == 0 else "test"


def boxes_by_image(table: pd.DataFrame) -> dict[str, list[Box]]:
    """The boxes of each image, by dicom_id."""
    boxes: dict[str, list[Box]] = {}
    for dicom_id, finding, *frame in table[["dicom_id", "category_name", *FRAME]].itertuples(index=False):
        boxes.setdefault(dicom_id, []).append(Box(finding, *frame))
    return boxes


def draw(boxes: Sequence[Box], shape: tuple[int, ...], file: str) -> list[tuple[str, np.ndarray]]:
    """(finding, H x W bool) pairs, in the order of `BOXED`: the union of each finding's boxes.

    Raises:
        BadSample: the image is not of the size that a box states, or a box is empty or reaches out of it.
    """
    masks: dict[str, np.ndarray] = {}
    for one in boxes:
        if (one.image_height, one.image_width) != shape[:2]:
            stated = f"{one.image_width:g} x {one.image_height:g}"
            raise BadSample(file, f"is {shape[1]} x {shape[0]} pixels, a box on it is of an image of {stated}")
        if one.width <= 0 or one.height <= 0:
            raise BadSample(file, "a box on it has no area")
        mask = box_mask((one.x, one.y, one.width, one.height), shape, file)
        masks[one.finding] = mask | masks.get(one.finding, False)
    return [(finding, masks[finding]) for finding in BOXED if finding in masks]
