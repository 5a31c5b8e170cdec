"""Reads MS-CXR, boxes of eight findings on MIMIC-CXR images, from its CSV or COCO JSON file.

Source: PhysioNet; Boecking et al., ECCV 2022. A box consists of its top left corner and its size: x, y, width and
height in pixels of the full JPEG. Some public loaders misread boxes as two corners. The CSV of version 1.1.0 has a
column `split`, which is not read because it is unreliable. The JSON file states the size of the image in each
annotation. Images are found by their dicom_id, because `path` does not always begin with `files/`.
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
from mmpkd.cohort.readers.mimic_cxr.tables import IDS, REMEDY, SHAPES
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
    """A box of a finding: x and y of its top left corner, its width and height, and the size of the image. All numbers
    are in pixels of the full image, and x and y are counted from 0."""

    finding: str
    x: float
    y: float
    width: float
    height: float
    image_width: float
    image_height: float


def read_boxes(path: Path) -> pd.DataFrame:
    """Returns a table with a row per box.

    The columns are dicom_id, category_name, the floats x, y, w, h, image_width and image_height, and path, which is
    empty if the file states none.

    Raises:
        CohortError: the file is neither MS-CXR's CSV nor its COCO JSON, or an id, a finding or a number is invalid.
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
    table = read_table(path, ["dicom_id", "category_name", *FRAME], REMEDY)
    numbers = {name: pd.to_numeric(table[name], errors="coerce").astype(float) for name in FRAME}
    return table.assign(**numbers, path=table.get("path", ""))


def _from_json(path: Path) -> pd.DataFrame:
    try:
        return _annotations(path)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CohortError(f"{path} is not MS-CXR's COCO JSON file: {type(error).__name__}; {REMEDY}") from None


def _annotations(path: Path) -> pd.DataFrame:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if lacking := [name for name in ("categories", "images", "annotations") if name not in content]:
        raise CohortError(f"{path}: no {', '.join(lacking)}; {REMEDY}")
    names = {category["id"]: category["name"] for category in content["categories"]}
    images = {image["id"]: image for image in content["images"]}
    rows = []
    for number, annotation in enumerate(content["annotations"], 1):
        try:
            image, finding = images[annotation["image_id"]], names[annotation["category_id"]]
            x, y, width, height = annotation["bbox"]
            file = str(image.get("path") or image["file_name"])
            size = [annotation.get(name, image.get(name)) for name in ("width", "height")]
        except (KeyError, TypeError, ValueError, AttributeError):
            what = "its image or category is not listed, or its bbox is not x, y, width and height"
            raise CohortError(f"{path}: annotation {number}: {what}; {REMEDY}") from None
        numbers = [float(value) for value in (x, y, width, height, *size)]
        rows.append((PurePosixPath(file).stem, str(finding), *numbers, file))
    if not rows:
        raise CohortError(f"{path}: no box; {REMEDY}")
    return pd.DataFrame(rows, columns=["dicom_id", "category_name", *FRAME, "path"])


def held_out_part(patient: str) -> Literal["val", "test"]:
    """Returns the part of a patient who has boxes. The SHA-256 of the id assigns a third of these patients to val and
    two thirds to test."""
    return "val" if int(hashlib.sha256(patient.encode()).hexdigest(), 16) % 3 == 0 else "test"


def boxes_by_image(table: pd.DataFrame) -> dict[str, list[Box]]:
    """Returns the boxes of each image, by dicom_id."""
    boxes: dict[str, list[Box]] = {}
    for dicom_id, finding, *frame in table[["dicom_id", "category_name", *FRAME]].itertuples(index=False):
        boxes.setdefault(dicom_id, []).append(Box(finding, *frame))
    return boxes


def draw(boxes: Sequence[Box], shape: tuple[int, ...], file: str) -> list[tuple[str, np.ndarray]]:
    """Returns a mask for each finding that has boxes, as (finding, H x W bool) pairs in the order of `BOXED`.

    The mask is the union of the finding's boxes.

    Raises:
        BadSample: the image does not have the size that a box states, or a box is empty or reaches beyond the image.
    """
    masks: dict[str, np.ndarray] = {}
    for box in boxes:
        if (box.image_height, box.image_width) != shape[:2]:
            stated = f"{box.image_width:g} x {box.image_height:g}"
            raise BadSample(file, f"is {shape[1]} x {shape[0]} pixels, a box on it is of an image of {stated}")
        if box.width <= 0 or box.height <= 0:
            raise BadSample(file, "a box on it has no area")
        mask = box_mask((box.x, box.y, box.width, box.height), shape, file)
        masks[box.finding] = mask | masks.get(box.finding, False)
    return [(finding, masks[finding]) for finding in BOXED if finding in masks]
