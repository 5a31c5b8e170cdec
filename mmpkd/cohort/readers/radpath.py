"""Reads CPM-RadPath 2020, MRI with histology: the training cases of the MICCAI challenge, as DeepGuide uses them.

The files under the root are:

    labels/split_1_train.csv  split_1_val.csv  split_1_test.csv     CPM_RadPath_2019_ID, class, age_in_days
    <ID>/<ID>_t1ce.nii.gz, and _t1, _t2, _flair                     240 x 240 x 155, skull-stripped
    slide_features.csv (or .parquet)                                CPM_RadPath_2019_ID, and a column per feature

There are 221 patients with one sample each, and three classes: G (glioblastoma), O (oligodendroglioma) and A
(astrocytoma). The label files are from github.com/mayurmallya/DeepGuide (Mallya & Hamarneh, MICCAI 2022), where one of
DeepGuide's five splits is released.

- The three channels of an image are three axial slices of one MR sequence. The option `slices` states their positions
  as shares of the brain's height. The data have no outlines of tumours, so the default positions are where most
  supratentorial gliomas are. All voxels that differ from the corner voxel are the foreground, that is, the brain.
- MR intensities have no unit, so the 0.5th and 99.5th percentiles of each volume's foreground become 0 and 255.
- Whole slides do not fit into a store. Instead, a patient's slide is a precomputed vector (in DeepGuide 512 numbers,
  the pooled features of CLAM), stored as numeric columns `slide_<name>`, which a tabular teacher can read.
- The terms of the challenge forbid showing its data, so messages name rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from mmpkd.cohort.facts import Column, RawImage, Reader, Scan, comparable_name, encode_labels
from mmpkd.cohort.formats.nifti import axial_slices, read_nifti
from mmpkd.cohort.formats.tables import FIRST_ROW, read_table, refuse_rows
from mmpkd.cohort.spelling import DIFFERENCE, strip_padding
from mmpkd.types import CohortError, Strict, lay_out

ID, CLASS, AGE = "CPM_RadPath_2019_ID", "class", "age_in_days"
LABELS = ("G", "O", "A")
PARTS = ("train", "val", "test")
SLIDE = "slide_"
SPLIT_1: Mapping[str, Mapping[str, int]] = {  # number of cases by part and class, counted in DeepGuide's label files
    "train": {"G": 103, "O": 24, "A": 38},
    "val": {"G": 15, "O": 5, "A": 8},
    "test": {"G": 15, "O": 5, "A": 8},
}
Share = Annotated[float, Field(ge=0, le=1)]


class RadPathParams(Strict):
    sequence: Literal["t1", "t1ce", "t2", "flair"] = "t1ce"
    # positions of the slices as shares of the brain's height, from 0 (lowest slice) to 1 (highest slice)
    slices: tuple[Share, Share, Share] = (0.45, 0.6, 0.75)
    split: int = Field(1, ge=1)
    labels: str = "labels"  # folder of the label files
    volumes: str = "."  # folder of the patients' folders
    features: str | None = "slide_features.csv"  # table of slide features; None: the MRI is used alone


class RadPath(Reader):
    """Reads the challenge's folders of MRI, DeepGuide's label files, and precomputed features of the slides."""

    Params = RadPathParams
    VERSION: ClassVar[int] = 1
    needs_root: ClassVar[bool] = True
    credentialed: ClassVar[bool] = True

    def __init__(self, root: Path | None, params: RadPathParams) -> None:
        assert root is not None
        self.root = root
        self.params = params

    def scan(self) -> Scan:
        params = self.params
        names = {part: f"{params.labels}/split_{params.split}_{part}.csv" for part in PARTS}
        cases = pd.concat([_cases(self.root / name, part) for part, name in names.items()])
        for part, name in names.items():
            twice = cases[ID].duplicated()[cases["part"] == part]
            refuse_rows(self.root / name, twice, "a patient that is listed before")
        cases = cases.set_index(cases[ID].rename("sample"))
        columns = [Column(ID, "id"), Column(CLASS, "forbidden"), Column(AGE, "context", "numeric")]
        privileged = cases[[AGE]].astype(float)
        notes = [f"three axial slices at {', '.join(f'{share:g}' for share in params.slices)} of the brain's height"]
        if params.features is not None:
            features = _features(self.root / params.features)
            known = {strip_padding(str(name)) for name in cases.index}
            is_wrong = ~features.index.isin(cases.index) & features.index.map(strip_padding).isin(known)
            what = f"a {ID} that the label files spell otherwise: they {DIFFERENCE}"
            refuse_rows(self.root / params.features, is_wrong, what)
            if not cases.index.isin(features.index).any():
                raise CohortError(f"{self.root / params.features}: none of its {ID} is one of the label files'")
            columns += [Column(str(name), "descriptor", "numeric") for name in features]
            if without := int((~cases.index.isin(features.index)).sum()):
                notes.append(f"patients without slide features: {without}")
            privileged = privileged.join(features)
        (task,) = lay_out([(CLASS, "multiclass", LABELS)])
        return Scan(
            tasks=(task,),
            samples=cases[["part", "row"]].set_axis(["split", "row"], axis=1).assign(patient=cases[ID]),
            labels=encode_labels(task, cases[CLASS]),
            privileged=privileged,
            columns={column.name: column for column in columns},
            channels=3,
            files={str(sample): [self._file(str(sample))] for sample in cases.index},
            tables=[*names.values(), *([params.features] if params.features is not None else [])],
            notes=tuple(notes),
        )

    def deviations(self, scan: Scan) -> list[str]:
        if self.params.split != 1:
            return [f"split {self.params.split}: DeepGuide released split 1 alone"]
        sentences = []
        for part, counts in SPLIT_1.items():
            actual = scan.labels[scan.samples["split"] == part].sum().set_axis(LABELS)
            if different := [name for name in LABELS if actual[name] != counts[name]]:
                listed = ", ".join(f"{name} {actual[name]:.0f} for {counts[name]}" for name in different)
                sentences.append(f"part {part}: {listed}")
        return sentences

    def load(self, sample_id: str) -> RawImage:
        file = self._file(sample_id)
        return RawImage(axial_slices(read_nifti(self.root, file), self.params.slices, file)[0], is_stretched=True)

    def _file(self, sample: str) -> str:
        return (Path(self.params.volumes) / sample / f"{sample}_{self.params.sequence}.nii.gz").as_posix()


def _cases(path: Path, part: str) -> pd.DataFrame:
    """Returns the three columns of a label file, and two more: `part`, and `row`, the file's row for messages."""
    remedy = "wanted a label file of DeepGuide; their folder is cohort.params.labels"
    table = read_table(path, [ID, CLASS, AGE], remedy)[[ID, CLASS, AGE]]
    for is_wrong, what in (
        (~table[ID].str.fullmatch("[A-Za-z0-9_-]+"), f"a {ID} that is not of letters, digits and underscores"),
        (~table[CLASS].isin(LABELS), f"a class that is none of {', '.join(LABELS)}"),
        (~table[AGE].str.fullmatch("[0-9]{1,5}|"), f"an {AGE} that is not a number of days"),
    ):
        refuse_rows(path, is_wrong, what)
    table[AGE] = pd.to_numeric(table[AGE])
    return table.assign(part=part, row=[f"{row} of {path.name}" for row in range(FIRST_ROW, len(table) + FIRST_ROW)])


def _features(path: Path) -> pd.DataFrame:
    """Returns the slide features as floats. The index is the patient, and the columns are named `slide_<name>`."""
    remedy = f"wanted {ID} and a column for each feature; without slides: cohort.params.features=null"
    table = read_table(path, [ID], remedy).set_index(ID).rename_axis("sample")
    refuse_rows(path, table.index.duplicated(), "a patient that is listed before")
    stated = [str(name) for name in table if comparable_name(str(name)) in (CLASS, AGE)]
    if stated or not len(table.columns):
        raise CohortError(f"{path}: the column {', '.join(stated) or ID} is no feature of a slide; {remedy}")
    numbers: pd.DataFrame = table.apply(pd.to_numeric, errors="coerce").astype(float)
    refuse_rows(path, ~np.isfinite(numbers).all(axis=1), "a feature that is not a finite number")
    return numbers.add_prefix(SLIDE)
