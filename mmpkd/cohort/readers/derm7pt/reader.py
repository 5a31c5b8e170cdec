"""Reads Seven-Point Checklist Dermatology (Derm7pt) from its unpacked folder release_v0.

Source: http://derm.cs.sfu.ca; Kawahara et al., JBHI 23(2), 2019. There are 1,011 cases of a teaching atlas, each with a
clinical photograph (the image) and a dermoscopic picture (the view `dermoscopy`), labelled with a diagnosis and the
seven criteria. The diagnosis and the criteria are eight tasks with 24 classes. The raw strings are grouped into classes
as in the authors' `GroupInfrequent` (github.com/jeremykawahara/derm7pt, dataset.py).

- In nine cases the photograph is missing or was replaced: `clinic` and `derm` name the same file, as the column `notes`
  states. These cases are left out: case_num 565, 800, 824, 827, 833, 834, 839, 844, 851.
- DeepGuide (Mallya & Hamarneh, MICCAI 2022) intends to leave out these nine cases. However, its label files lack the
  cases one row further down (566, 801, 825, 828, 834, 835, 840, 845, 852), and keep eight pairs that are the same
  picture twice (two in train, five in val, one in test). With `unpaired: deepguide`, the reader reads DeepGuide's
  408 + 202 + 392 cases, so that results can be compared with DeepGuide's tables.
- No column identifies the patient (`case_id` is empty in most rows and otherwise unique), so each case counts as a
  patient.
- `seven_point_score` is the sum of the criteria, and `level_of_diagnostic_difficulty` and `management` were judged by
  people who knew the diagnosis, so these three columns are near labels. Sex, site and elevation are context.
- Some file names differ in case from the names in the table, so names are compared regardless of case.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from mmpkd.cohort.decode import read_image
from mmpkd.cohort.facts import ADMITTED, BadSample, Column, RawImage, Reader, Scan, encode_labels
from mmpkd.cohort.formats.tables import read_table, refuse_rows
from mmpkd.cohort.readers.derm7pt.classes import CLASSES, DEEPGUIDE_COUNTS, DEEPGUIDE_LACKS, DEEPGUIDE_PARTS, POINTS
from mmpkd.types import CohortError, Strict, lay_out

FOLDER = "release_v0"
META = "meta.csv"
REMEDY = f"is it {FOLDER} as published?"
PARTS = {"train": "train", "valid": "val", "test": "test"}  # a part's name in the index files: its name in a store
DERMOSCOPY = "dermoscopy"

COLUMNS = (
    Column("case_num", "id"),
    Column("case_id", "id"),
    Column("clinic", "id"),
    Column("derm", "id"),
    Column("elevation", "context"),
    Column("location", "context"),
    Column("sex", "context"),
    Column("seven_point_score", "near_label", "numeric"),
    Column("level_of_diagnostic_difficulty", "near_label"),
    Column("management", "near_label"),
    *(Column(name, "forbidden") for name in CLASSES),
)


class Derm7ptParams(Strict):
    border: int = Field(25, ge=0)  # pixels cut off at each side of both pictures, as in the authors' loader
    # left_out: cases without a photograph of their own are left out; deepguide: the cases that its label files lack are
    unpaired: Literal["left_out", "deepguide"] = "left_out"


class Derm7pt(Reader):
    """Reads the folder release_v0. The root is this folder or contains it."""

    Params = Derm7ptParams
    VERSION: ClassVar[int] = 1
    needs_root: ClassVar[bool] = True
    credentialed: ClassVar[bool] = False

    def __init__(self, root: Path | None, params: Derm7ptParams) -> None:
        assert root is not None
        self.root = root
        self.params = params
        self._files: dict[str, tuple[str, str]] = {}  # (photograph, dermoscopic picture) by sample

    def scan(self) -> Scan:
        table, unlisted = self._cases()
        in_part, kept = table["part"].notna(), _is_kept(table, self.params.unpaired)
        notes = [_left_out_note(table[in_part & ~kept], self.params.unpaired)]
        if not in_part.all():
            notes.append(f"cases that are in none of the index files, left out: {(~in_part).sum()}")
        if num_unpaired := int((table["clinic"] == table["derm"])[in_part & kept].sum()):
            notes.append(f"cases that stay though their photograph is the dermoscopic picture: {num_unpaired}")
        if self.params.border:
            notes.append(f"{self.params.border} pixels are cut off at each side of both pictures")
        table = table[in_part & kept].set_index("case_num").rename_axis("sample")
        self._files = {str(sample): (clinic, derm) for sample, clinic, derm in table[["clinic", "derm"]].itertuples()}
        admitted = [column for column in COLUMNS if column.role in (*ADMITTED, "near_label")]
        cells = table[[column.name for column in admitted]]
        privileged = cells.mask(cells == "").assign(seven_point_score=table["seven_point_score"].astype(float))
        tasks = lay_out(
            [(name, "binary" if len(each) == 2 else "multiclass", tuple(each)) for name, each in CLASSES.items()]
        )
        meta = self._base() / "meta"
        return Scan(
            tasks=tasks,
            samples=pd.DataFrame({"patient": table.index, "split": table["part"]}, index=table.index),
            labels=pd.concat([encode_labels(task, table[task.name]) for task in tasks], axis=1),
            privileged=privileged,
            columns={column.name: column for column in COLUMNS},
            unlisted=unlisted,
            channels=3,
            views=(DERMOSCOPY,),
            files={sample: list(dict.fromkeys(files)) for sample, files in self._files.items()},
            tables=[
                (meta / name).relative_to(self.root).as_posix()
                for name in (META, *(f"{part}_indexes.csv" for part in PARTS))
            ],
            notes=(*filter(None, notes), "a case is taken for a patient: no column says whose a lesion is"),
        )

    def deviations(self, scan: Scan) -> list[str]:
        """Describes how the cases of this copy differ from DeepGuide's choice of cases, which has published counts."""
        table, _ = self._cases()
        chosen = table[table["part"].notna() & _is_kept(table, "deepguide")]
        sentences = []
        for position, part in enumerate(PARTS.values()):
            cases = chosen[chosen["part"] == part]
            if len(cases) != DEEPGUIDE_PARTS[position]:
                sentences.append(f"part {part} has {len(cases)} of DeepGuide's {DEEPGUIDE_PARTS[position]} cases")
            for task, counts in DEEPGUIDE_COUNTS.items():
                actual = {name: int((cases[task] == name).sum()) for name in counts}
                if different := [name for name in counts if actual[name] != counts[name][position]]:
                    listed = ", ".join(f"{name} {actual[name]} for {counts[name][position]}" for name in different)
                    sentences.append(f"{task} in part {part}: {listed}")
        pictures = pd.concat([table["clinic"], table["derm"][table["clinic"] != table["derm"]]])
        if shared := int((pictures.value_counts() > 1).sum()):
            sentences.append(f"pictures that stand in several cases: {shared}")
        points_N = np.sum([(table[name] == label) * points for name, (label, points) in POINTS.items()], axis=0)
        if num_wrong := int((points_N != table["seven_point_score"].astype(int)).sum()):
            sentences.append(f"cases whose seven_point_score is not the sum of their criteria: {num_wrong}")
        return sentences

    def load(self, sample_id: str) -> RawImage:
        if not self._files:
            self.scan()
        files = self._files[sample_id]
        clinic, derm = (self._picture(file) for file in files)
        if files[0] != files[1] and np.array_equal(clinic, derm):
            raise BadSample(files[0], "is the dermoscopic picture under another name; the photograph is wanted")
        return RawImage(clinic, views={DERMOSCOPY: derm})

    def _picture(self, file: str) -> np.ndarray:
        pixels, border = read_image(self.root, file), self.params.border
        height, width = pixels.shape[:2]
        if pixels.ndim != 3:
            raise BadSample(file, "is grey; pictures of skin are in colour")
        if min(height, width) <= 2 * border:
            raise BadSample(file, f"is {width} x {height} pixels: nothing is left inside a border of {border}")
        return pixels[border : height - border, border : width - border]

    def _base(self) -> Path:
        for folder in (self.root, self.root / FOLDER):
            if (folder / "meta" / META).is_file() and (folder / "images").is_dir():
                return folder
        raise CohortError(
            f"{self.root.absolute()} is not a copy of Derm7pt: wanted meta/{META} and images/, there or in its folder "
            f"{FOLDER}; point cohort.root at the unpacked {FOLDER}"
        )

    def _cases(self) -> tuple[pd.DataFrame, tuple[str, ...]]:
        """Returns a table of all cases, and the names of the columns without a role.

        In the table, labels are names of classes, pictures are paths under the root, and `part` is NaN for a case that
        is in no part.
        """
        base = self._base()
        path = base / "meta" / META
        table = read_table(path, [column.name for column in COLUMNS], REMEDY, is_public=True)
        number, score = table["case_num"], table["seven_point_score"]
        refuse_rows(path, number == "", "no case_num")
        refuse_rows(path, number.duplicated(), "a case_num that is listed before", number)
        for name, classes in CLASSES.items():
            class_of = {raw: code for code, raws in classes.items() for raw in raws}
            wanted = f"a {name} that is none of {', '.join(class_of)}"
            refuse_rows(path, ~table[name].isin(class_of), wanted, table[name])
            table[name] = table[name].map(class_of)
        is_wrong = ~score.str.fullmatch("[0-9]{1,2}")
        refuse_rows(path, is_wrong, "a seven_point_score that is not a number of points", score)
        listing = _list_images(base / "images")
        for name in ("clinic", "derm"):
            stated = table[name]
            refuse_rows(path, stated == "", f"no {name}")
            matches = stated.map(lambda name: _matching_files(name, listing))
            problem = f"a {name} that several files are named by, but for case"
            refuse_rows(path, matches.str.len() > 1, problem, stated)
            folder = (base / "images").relative_to(self.root).as_posix()
            table[name] = [f"{folder}/{files[0]}" for files in matches]
        known = {column.name for column in COLUMNS}
        unlisted = tuple(str(name) for name in table.columns if name not in known)
        return table.assign(part=_part_of_cases(base / "meta", len(table))), unlisted


def _is_kept(table: pd.DataFrame, unpaired: Literal["left_out", "deepguide"]) -> pd.Series:
    if unpaired == "deepguide":
        return ~table["case_num"].isin(DEEPGUIDE_LACKS)
    return table["clinic"] != table["derm"]


def _left_out_note(cases: pd.DataFrame, unpaired: Literal["left_out", "deepguide"]) -> str:
    why = "whose photograph is missing or replaced" if unpaired == "left_out" else "that DeepGuide lacks"
    return f"cases {why}, left out: {len(cases)} (case_num {', '.join(cases['case_num'])})" if len(cases) else ""


def _part_of_cases(folder: Path, num_cases: int) -> pd.Series:
    """Returns the part of each case, or NaN for a case that is in no part.

    The index files of the parts hold the positions of cases in meta.csv, counted from 0.
    """
    part_N = np.full(num_cases, np.nan, object)
    for name, part in PARTS.items():
        path = folder / f"{name}_indexes.csv"
        cells = read_table(path, ["indexes"], REMEDY, is_public=True)["indexes"]
        inside = cells.map(lambda cell: cell.isascii() and cell.isdigit() and len(cell) < 10 and int(cell) < num_cases)
        refuse_rows(path, ~inside.astype(bool), f"not a position in {META}, 0 to {num_cases - 1}", cells)
        positions = cells.astype(int)
        refuse_rows(path, positions.duplicated(), "a position that is listed before", cells)
        elsewhere = pd.Series(part_N).notna()[positions]
        refuse_rows(path, elsewhere, "a position that another index file lists too", cells)
        part_N[positions.to_numpy()] = part
    return pd.Series(part_N)


def _list_images(folder: Path) -> dict[str, list[str]]:
    """Lists the files below a folder: maps each relative path in lower case to the paths as they are written."""
    listing: dict[str, list[str]] = {}
    for where, _, names in os.walk(folder, followlinks=True):
        for name in names:
            file = Path(where, name).relative_to(folder).as_posix()
            listing.setdefault(file.lower(), []).append(file)
    return listing


def _matching_files(stated: str, listing: Mapping[str, list[str]]) -> list[str]:
    """Returns the file with exactly the stated name. If it is missing, returns all files with names that differ from
    the stated one only in case. If these are missing too, returns the stated name itself."""
    alike = listing.get(stated.lower(), [])
    return alike if alike and stated not in alike else [stated]
