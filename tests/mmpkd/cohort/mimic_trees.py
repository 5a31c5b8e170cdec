"""A small MIMIC-CXR-JPG with the published layout and headers: ten patients, eleven studies, twelve images.

The first two digits of a study are 50 as those of a patient are 10. Every image is 48 x 64 (width x height).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

METADATA, SPLIT = "mimic-cxr-2.0.0-metadata.csv", "mimic-cxr-2.0.0-split.csv"
CHEXPERT, NEGBIO = "mimic-cxr-2.0.0-chexpert.csv", "mimic-cxr-2.0.0-negbio.csv"
EXPERT = "mimic-cxr-2.1.0-test-set-labeled.csv"
BOXES_CSV, BOXES_JSON = "MS_CXR_Local_Alignment_v1.1.0.csv", "MS_CXR_Local_Alignment_v1.1.0.json"
FINDINGS = [
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
]
HEADERS = {
    METADATA: [
        "dicom_id",
        "subject_id",
        "study_id",
        "PerformedProcedureStepDescription",
        "ViewPosition",
        "Rows",
        "Columns",
        "StudyDate",
        "StudyTime",
        "ProcedureCodeSequence_CodeMeaning",
        "ViewCodeSequence_CodeMeaning",
        "PatientOrientationCodeSequence_CodeMeaning",
    ],
    SPLIT: ["dicom_id", "study_id", "subject_id", "split"],
    CHEXPERT: ["subject_id", "study_id", *FINDINGS],
    NEGBIO: ["subject_id", "study_id", *FINDINGS],
    EXPERT: ["study_id", *("Airspace Opacity" if name == "Lung Opacity" else name for name in FINDINGS)],
}
WIDTH, HEIGHT = 48, 64
IMAGES = (  # number, patient, study, view, official part
    (1, 11, 11, "PA", "train"),
    (2, 11, 11, "LATERAL", "train"),
    (3, 12, 12, "AP", "train"),
    (4, 12, 22, "", "train"),
    (5, 13, 13, "PA", "train"),
    (6, 14, 14, "AP", "train"),
    (7, 15, 15, "PA", "validate"),
    (8, 16, 16, "AP", "validate"),
    (9, 17, 17, "PA", "test"),
    (10, 18, 18, "AP", "test"),
    (11, 19, 19, "PA", "train"),
    (12, 20, 20, "PA", "train"),
)
LABELS: dict[int, dict[str, str]] = {  # by study: 13 has no row, 14 a row without a label
    11: {"No Finding": "1.0"},
    12: {"Edema": "1.0", "Pneumonia": "-1.0", "Cardiomegaly": "0.0"},
    22: {"Support Devices": "1.0", "Pneumonia": "-1.0"},
    14: {},
    15: {"Edema": "1.0"},
    16: {"No Finding": "1.0"},
    17: {"Edema": "1.0", "Lung Opacity": "-1.0"},
    18: {"No Finding": "1.0", "Edema": "0.0"},
    19: {"Cardiomegaly": "1.0"},
    20: {"Edema": "1.0"},
}
BOXES = (  # image, finding, x, y, w, h: the two of Edema are one region
    (11, "Cardiomegaly", 10, 20, 30, 16),
    (11, "Edema", 0, 0, 4, 5),
    (11, "Edema", 2, 3, 4, 5),
    (12, "Edema", 40, 60, 8, 4),
)
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PORTABLE AP)
 
 INDICATION:  ___ year old with cough.
 
 FINDINGS:  The lungs
 are clear.
 
 IMPRESSION:  No acute process.
"""
Row = dict[str, str]
Tables = dict[str, list[Row]]


def dicom_id(number: int) -> str:
    return "-".join(f"{number * 1000 + group:08x}" for group in range(5))


def subject_id(number: int) -> str:
    return f"100000{number}"


def study_id(number: int) -> str:
    return f"500000{number}"


def image_file(number: int) -> str:
    (_, patient, study, *_) = IMAGES[number - 1]
    return f"files/p10/p{subject_id(patient)}/s{study_id(study)}/{dicom_id(number)}.jpg"


def report_file(number: int) -> str:
    return image_file(number).rsplit("/", 1)[0] + ".txt"


def tables() -> Tables:
    """The rows of every table, to be changed at will before they are written."""
    metadata, split = [], []
    for number, patient, study, view, part in IMAGES:
        ids = {"dicom_id": dicom_id(number), "subject_id": subject_id(patient), "study_id": study_id(study)}
        row = dict.fromkeys(HEADERS[METADATA], "")
        row |= {"ViewPosition": view, "Rows": str(HEIGHT), "Columns": str(WIDTH), "StudyDate": "21800506", **ids}
        metadata.append(row | {"PerformedProcedureStepDescription": "CHEST (PORTABLE AP)" if view == "AP" else ""})
        split.append({name: {**ids, "split": part}[name] for name in HEADERS[SPLIT]})
    patients = {study: patient for _, patient, study, *_ in IMAGES}
    chexpert = [
        dict.fromkeys(HEADERS[CHEXPERT], "")
        | {"subject_id": subject_id(patients[study]), "study_id": study_id(study), **labels}
        for study, labels in LABELS.items()
    ]
    negbio = [row | ({"Edema": "0.0"} if row["study_id"] == study_id(12) else {}) for row in chexpert]
    blank = dict.fromkeys(HEADERS[EXPERT], "")
    expert = [blank | {"study_id": study_id(17), "Edema": "0", "Airspace Opacity": "1"}]
    return {METADATA: metadata, SPLIT: split, CHEXPERT: chexpert, NEGBIO: negbio, EXPERT: expert}


def box_rows(boxes: Iterable[Sequence[Any]] = BOXES, prefix: str = "files/") -> list[Row]:
    """MS-CXR 1.1.0, all of them in its part `train`."""
    rows = []
    for number, finding, *frame in boxes:
        row = {"dicom_id": dicom_id(number), "category_name": finding, "label_text": "a phrase"}
        row |= {"path": prefix + image_file(number).removeprefix("files/")}
        row |= dict(zip("xywh", map(str, frame), strict=True))
        rows.append(row | {"image_width": str(WIDTH), "image_height": str(HEIGHT), "split": "train"})
    return rows


def write_boxes_json(path: Path, boxes: Iterable[Sequence[Any]] = BOXES) -> None:
    """COCO; the image's size stands on the annotation."""
    boxes = list(boxes)
    names = sorted({finding for _, finding, *_ in boxes})
    content = {
        "categories": [{"id": at + 1, "name": name} for at, name in enumerate(names)],
        "images": [
            {"id": 700 + number, "path": image_file(number), "file_name": f"{dicom_id(number)}.jpg"}
            for number in sorted({number for number, *_ in boxes})
        ],
        "annotations": [
            {"image_id": 700 + number, "category_id": names.index(finding) + 1, "bbox": frame, "label_text": "a phrase"}
            | {"width": WIDTH, "height": HEIGHT}
            for number, finding, *frame in boxes
        ],
    }
    path.write_text(json.dumps(content))


def pixels(number: int) -> np.ndarray:
    """H x W uint8, smooth, so that JPEG keeps it; another picture for each number."""
    coarse = np.random.default_rng(number).uniform(30, 210, (7, 6)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.uint8)


def as_csv(rows: Sequence[Mapping[str, str]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Zipped where the name says so."""
    content = as_csv(rows).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def write_tables(root: Path, changed: Tables, zipped: bool = False) -> None:
    for name, rows in changed.items():
        is_zipped = zipped and name != EXPERT  # that one is published plain
        write_table(root / (f"{name}.gz" if is_zipped else name), rows)


def write_tree(root: Path, zipped: bool = False) -> Path:
    """Tables, images and reports (none of study 16), boxes in both forms."""
    root.mkdir(parents=True, exist_ok=True)
    write_tables(root, tables(), zipped)
    for number, *_ in IMAGES:
        path = root / image_file(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(path, quality=95)
        if number != 8:
            (root / report_file(number)).write_text(REPORT)
    write_table(root / BOXES_CSV, box_rows())
    write_boxes_json(root / BOXES_JSON)
    return root
