"""MS-CXR: boxes of eight findings on MIMIC-CXR images (PhysioNet; Boecking et al., ECCV 2022), CSV or COCO JSON.

A box is its top left corner and its size, x, y, width and height in pixels of the full JPEG; some public loaders
misread it as two corners. CSV 1.1.0 has a column `split`, which is not to be trusted and not read; JSON states the
image's size on the annotation. Images are found by their dicom_id: `path` begins with `files/` or not.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.mimic_tables import IDS, SHAPES, refuse_rows
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
SLACK = 1  # pixels that a rounded box may reach over an edge


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
    try:
        table = _from_json(path) if is_json else _from_csv(path)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        kind = "COCO JSON" if is_json else "CSV"
        raise CohortError(f"{path} is not MS-CXR's {kind} file: {type(error).__name__}; download it again") from None
    if not len(table):
        raise CohortError(f"{path}: no box; download it again")
    place = ("annotation", 1) if is_json else ("row", 2)
    wrong_id = ~table["dicom_id"].str.fullmatch(IDS["dicom_id"])
    refuse_rows(path, wrong_id, f"a dicom_id that is not {SHAPES['dicom_id']}", *place)
    refuse_rows(path, ~table["category_name"].isin(BOXED), f"a finding that is none of {', '.join(BOXED)}", *place)
    finite = np.isfinite(table[list(FRAME)].to_numpy())
    refuse_rows(path, ~finite.all(axis=1), f"a {', '.join(FRAME)} that is not a number", *place)
    return table


def _from_csv(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig").fillna("")
    table = table.set_axis([str(name).strip() for name in table.columns], axis=1)
    if lacking := [name for name in ("dicom_id", "category_name", *FRAME) if name not in table]:
        raise CohortError(f"{path}: no column {', '.join(lacking)}; is it MS-CXR's CSV file as published?")
    if "path" not in table:
        table["path"] = ""
    cells = table[["dicom_id", "category_name", *FRAME, "path"]].apply(lambda column: column.str.strip())
    for name in FRAME:
        cells[name] = pd.to_numeric(cells[name], errors="coerce").astype(float)
    read: pd.DataFrame = cells
    return read


def _from_json(path: Path) -> pd.DataFrame:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if lacking := [name for name in ("categories", "images", "annotations") if name not in content]:
        raise CohortError(f"{path}: no {', '.join(lacking)}; is it MS-CXR's COCO JSON as published?")
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
            raise CohortError(f"{path}: annotation {number}: {what}; download it again") from None
        numbers = [float(value) for value in (x, y, width, height, *size)]
        rows.append((PurePosixPath(file).stem, str(finding), *numbers, file))
    return pd.DataFrame(rows, columns=["dicom_id", "category_name", *FRAME, "path"])


def held_out(patient: str) -> Literal["val", "test"]:
    """The part of a patient who has boxes, from the SHA-256 of the id: a third validates, two thirds test."""
    return "val" if int(hashlib.sha256(patient.encode()).hexdigest(), 16) % 3 == 0 else "test"


def by_image(table: pd.DataFrame) -> dict[str, list[Box]]:
    """The boxes of each image, by dicom_id."""
    boxes: dict[str, list[Box]] = {}
    for dicom_id, finding, *frame in table[["dicom_id", "category_name", *FRAME]].itertuples(index=False):
        boxes.setdefault(dicom_id, []).append(Box(finding, *frame))
    return boxes


def draw(boxes: Sequence[Box], height: int, width: int, file: str) -> list[tuple[str, np.ndarray]]:
    """(finding, H x W bool) pairs, in the order of `BOXED`: the union of each finding's boxes.

    Raises:
        BadSample: the image is not of the size that a box states, or a box is empty or reaches out of it.
    """
    masks: dict[str, np.ndarray] = {}
    for one in boxes:
        if (one.image_width, one.image_height) != (width, height):
            stated = f"{one.image_width:g} x {one.image_height:g}"
            raise BadSample(file, f"is {width} x {height} pixels, a box on it is of an image of {stated}")
        if one.width <= 0 or one.height <= 0:
            raise BadSample(file, "a box on it has no area")
        right, bottom = one.x + one.width, one.y + one.height
        if one.x < -SLACK or one.y < -SLACK or right > width + SLACK or bottom > height + SLACK:
            wanted = "x, y, width and height are wanted, not corners"
            raise BadSample(file, f"a box reaches out of the image of {width} x {height}; {wanted}")
        mask = masks.setdefault(one.finding, np.zeros((height, width), bool))
        top, left = max(0, math.floor(one.y)), max(0, math.floor(one.x))
        mask[top : math.ceil(bottom), left : math.ceil(right)] = True
    return [(finding, masks[finding]) for finding in BOXED if finding in masks]
