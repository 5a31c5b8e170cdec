"""A small release_v0 of Derm7pt: the published header and strings, made-up cases, pictures of a few thousand pixels."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

HEADER = [
    *("case_num", "diagnosis", "seven_point_score", "pigment_network", "streaks", "pigmentation"),
    *("regression_structures", "dots_and_globules", "blue_whitish_veil", "vascular_structures"),
    *("level_of_diagnostic_difficulty", "elevation", "location", "sex", "management"),
    *("clinic", "derm", "case_id", "notes"),
]
STRINGS = {
    "diagnosis": "basal cell carcinoma,nevus,blue nevus,clark nevus,combined nevus,congenital nevus,dermal nevus,"
    "recurrent nevus,reed or spitz nevus,melanoma,melanoma (in situ),melanoma (less than 0.76 mm),"
    "melanoma (0.76 to 1.5 mm),melanoma (more than 1.5 mm),melanoma metastasis,dermatofibroma,lentigo,melanosis,"
    "miscellaneous,vascular lesion,seborrheic keratosis",
    "pigment_network": "absent,typical,atypical",
    "streaks": "absent,regular,irregular",
    "pigmentation": "absent,diffuse regular,localized regular,diffuse irregular,localized irregular",
    "regression_structures": "absent,blue areas,white areas,combinations",
    "dots_and_globules": "absent,regular,irregular",
    "blue_whitish_veil": "absent,present",
    "vascular_structures": "absent,arborizing,comma,hairpin,within regression,wreath,dotted,linear irregular",
    "level_of_diagnostic_difficulty": "low,medium,high",
    "elevation": "flat,palpable,nodular",
    "location": "back,lower limbs,head neck",
    "sex": "female,male",
    "management": "excision,clinical follow up,no further examination",
}
POINTS = {"atypical": 2, "present": 2, "dotted": 2, "linear irregular": 2, "irregular": 1}
POINTS |= dict.fromkeys(("diffuse irregular", "localized irregular", "blue areas", "white areas", "combinations"), 1)
PARTS = ("train", "valid", "test")
SIZE = (80, 90)  # H, W of a photograph; a dermoscopic picture is wider
NUM_CASES = 63  # each part meets each of the 21 diagnoses
UNPAIRED = 3  # position of the case whose photograph was replaced, as of case_num 565
Row = dict[str, str]


def made_up(num_cases: int = NUM_CASES) -> list[Row]:
    """Cases in which every string of every label occurs, case_num from 562 on."""
    rows = []
    for position in range(num_cases):
        strings = {name: every.split(",") for name, every in STRINGS.items()}
        row = {name: every[(position // len(PARTS)) % len(every)] for name, every in strings.items()}
        stem = f"NFL/Nfl{position:03d}"
        row |= {"case_num": str(562 + position), "clinic": f"{stem}.jpg", "derm": f"{stem}d.jpg"}
        row |= {"case_id": "1d171819" if position == 0 else "", "notes": ""}
        row["seven_point_score"] = str(sum(POINTS.get(value, 0) for value in row.values()))
        rows.append({name: row[name] for name in HEADER})
    rows[UNPAIRED] |= {"clinic": rows[UNPAIRED]["derm"], "notes": "Clinical missing, and replaced with derm"}
    return rows


def picture(file: str) -> np.ndarray:
    """H x W x 3 uint8: smooth colours, told by the file's name in lower case."""
    seed = sum(ord(letter) * 7**place for place, letter in enumerate(file.lower()[::-1]))
    random = np.random.default_rng(seed)
    height, width = SIZE[0], SIZE[1] + (30 if file.lower().endswith("d.jpg") else 0)
    row_HW1, column_HW1 = (axis[..., None] for axis in np.mgrid[:height, :width])
    waves_HWC = np.sin(row_HW1 / random.uniform(9, 20, 3)) * np.cos(column_HW1 / random.uniform(9, 20, 3))
    pixels_HWC: np.ndarray = (128 + 100 * waves_HWC).astype(np.uint8)
    return pixels_HWC


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_tables(root: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """meta/: the table, and every third case in each part."""
    write_csv(root / "meta" / "meta.csv", rows)
    for first, part in enumerate(PARTS):
        positions = range(first, len(rows), len(PARTS))
        write_csv(root / "meta" / f"{part}_indexes.csv", [{"indexes": str(position)} for position in positions])


def write_tree(root: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """A release_v0 in `root`; every fifth file is named in capitals, whatever the table says."""
    write_tables(root, rows)
    for file in {row[name] for row in rows for name in ("clinic", "derm")}:
        path = root / "images" / file
        if int(file[7:10]) % 5 == 0:
            path = path.with_name(path.name.upper())
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(file)).save(path, quality=95)
