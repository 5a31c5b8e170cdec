"""CPM-RadPath 2020 (the MICCAI challenge's training cases), MRI with histology, as DeepGuide uses it.

    labels/split_1_train.csv  split_1_val.csv  split_1_test.csv     CPM_RadPath_2019_ID, class, age_in_days
    <ID>/<ID>_t1ce.nii.gz, and _t1, _t2, _flair                     240 x 240 x 155, skull-stripped
    slide_features.csv (or .parquet)                                CPM_RadPath_2019_ID, and a column per feature

221 patients, one sample each, of three classes: G glioblastoma, O oligodendroglioma, A astrocytoma. The label files are
those of github.com/mayurmallya/DeepGuide (Mallya & Hamarneh, MICCAI 2022), which released one of its five splits.

- The image is three axial slices of one sequence as its three channels, at `slices` of the brain's height. No tumour is
  outlined, so the default is where most supratentorial gliomas are; the foreground is what is not the corner's value.
- MR intensities have no unit: each volume's own 0.5th and 99.5th percentiles of the foreground become 0 and 255.
- Whole slides do not fit a store: a patient's slide is a vector that was computed before (DeepGuide's: 512 numbers, the
  pooled features of CLAM). It is stored as numeric columns `slide_<name>`, so that a tabular teacher reads them.
- The challenge's terms do not let its data be shown, so messages name rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from mmpkd.cohort.facts import BadSample, Column, RawImage, Reader, Scan, encode, same_name
from mmpkd.cohort.nifti import read_nifti
from mmpkd.config import Strict
from mmpkd.types import CohortError, lay_out

ID, CLASS, AGE = "CPM_RadPath_2019_ID", "class", "age_in_days"
LABELS = ("G", "O", "A")
PARTS = ("train", "val", "test")
SLIDE = "slide_"
PERCENTILES = (0.5, 99.5)
NUM_SHOWN = 5
SPLIT_1: Mapping[str, Mapping[str, int]] = {  # counted in DeepGuide's label files
    "train": {"G": 103, "O": 24, "A": 38},
    "val": {"G": 15, "O": 5, "A": 8},
    "test": {"G": 15, "O": 5, "A": 8},
}
Share = Annotated[float, Field(ge=0, le=1)]


class RadPathParams(Strict):
    sequence: Literal["t1", "t1ce", "t2", "flair"] = "t1ce"
    slices: tuple[Share, Share, Share] = (
        0.45,
        0.6,
        0.75,
    )  # of the brain's height, from its lowest slice to its highest
    split: int = Field(1, ge=1)
    labels: str = "labels"  # folder of the label files
    volumes: str = "."  # folder of the patients' folders
    features: str | None = "slide_features.csv"  # None: MRI alone


class RadPath(Reader):
    """The challenge's folders, DeepGuide's label files, and slide features."""

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
        twice = cases["row"][cases[ID].duplicated()]
        if len(twice):
            raise CohortError(f"{self.root / params.labels}: a patient that is listed before, in {_some(twice)}")
        cases = cases.set_index(cases[ID].rename("sample"))
        columns = [Column(ID, "id"), Column(CLASS, "forbidden"), Column(AGE, "context", "numeric")]
        privileged = cases[[AGE]].astype(float)
        notes = [f"three axial slices at {', '.join(f'{share:g}' for share in params.slices)} of the brain's height"]
        if params.features is not None:
            features = _features(self.root / params.features)
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
            labels=encode(task, cases[CLASS]),
            privileged=privileged,
            columns={one.name: one for one in columns},
            channels=3,
            files={str(sample): [self._file(str(sample))] for sample in cases.index},
            tables=[*names.values(), *([params.features] if params.features is not None else [])],
            notes=tuple(notes),
        )

    def deviations(self, scan: Scan) -> list[str]:
        if self.params.split != 1:
            return [f"split {self.params.split}: DeepGuide released split 1 alone"]
        said = []
        for part, counts in SPLIT_1.items():
            found = scan.labels[scan.samples["split"] == part].sum().set_axis(LABELS)
            if apart := [name for name in LABELS if found[name] != counts[name]]:
                said.append(f"part {part}: {', '.join(f'{one} {found[one]:.0f} for {counts[one]}' for one in apart)}")
        return said

    def load(self, sample_id: str) -> RawImage:
        file = self._file(sample_id)
        voxels_XYZ = read_nifti(self.root, file)
        brain_XYZ = voxels_XYZ != voxels_XYZ[0, 0, 0]
        levels = np.flatnonzero(brain_XYZ.any(axis=(0, 1)))
        if not len(levels):
            raise BadSample(file, "has the same value everywhere")
        low, high = np.percentile(voxels_XYZ[brain_XYZ], PERCENTILES)
        chosen = [round(levels[0] + share * (levels[-1] - levels[0])) for share in self.params.slices]
        slices_XYC = (voxels_XYZ[:, :, chosen] - low) / max(float(high - low), 1e-6)
        slices_XYC = np.where(brain_XYZ[:, :, chosen], slices_XYC.clip(0, 1), 0)
        return RawImage(np.rot90((255 * slices_XYC).round().astype(np.uint8)))  # the front on top

    def _file(self, sample: str) -> str:
        return (Path(self.params.volumes) / sample / f"{sample}_{self.params.sequence}.nii.gz").as_posix()


def _cases(path: Path, part: str) -> pd.DataFrame:
    """One label file: the three columns, `part`, and `row` for messages."""
    whole = _table(path)
    if lacking := [name for name in (ID, CLASS, AGE) if name not in whole]:
        raise CohortError(f"{path}: no column {', '.join(lacking)}; is it DeepGuide's label file?")
    table: pd.DataFrame = whole[[ID, CLASS, AGE]].apply(lambda column: column.str.strip())
    if not len(table):
        raise CohortError(f"{path}: no row")
    table["row"] = [f"{position + 2} of {path.name}" for position in range(len(table))]
    for wrong, what in (
        (~table[ID].str.fullmatch("[A-Za-z0-9_-]+"), f"a {ID} that is not of letters, digits and underscores"),
        (~table[CLASS].isin(LABELS), f"a class that is none of {', '.join(LABELS)}"),
        (~table[AGE].str.fullmatch("[0-9]{1,5}|"), f"an {AGE} that is not a number of days"),
    ):
        if wrong.any():
            raise CohortError(f"{path}: {what}, in {_some(table['row'][wrong])}")
    table[AGE] = pd.to_numeric(table[AGE])
    table["part"] = part
    return table


def _features(path: Path) -> pd.DataFrame:
    """Slide features as floats, index = patient, columns `slide_<name>`."""
    table = _table(path)
    if ID not in table or table.shape[1] < 2:
        raise CohortError(f"{path}: wanted the column {ID} and a column for each feature")
    rows = pd.Series([f"{position + 2} of {path.name}" for position in range(len(table))])
    table[ID] = table[ID].str.strip()
    if table[ID].duplicated().any():
        raise CohortError(f"{path}: a patient that is listed before, in {_some(rows[table[ID].duplicated()])}")
    if stated := [name for name in (CLASS, AGE) if name in table]:
        raise CohortError(f"{path}: the column {', '.join(stated)} is no feature of a slide; take it out")
    names = [name for name in table if name != ID]
    numbers = table[names].apply(pd.to_numeric, errors="coerce").astype(float)
    if (wrong := ~np.isfinite(numbers).all(axis=1)).any():
        raise CohortError(f"{path}: a feature that is not a finite number, in {_some(rows[wrong])}")
    features: pd.DataFrame = numbers.set_axis([f"{SLIDE}{name}" for name in names], axis=1)
    return features.set_index(table[ID].rename("sample"))


def _table(path: Path) -> pd.DataFrame:
    """Cells as text, names as ours where they differ in case or spaces only."""
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path).astype(str)
        else:
            table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig").fillna(
                ""
            )
    except FileNotFoundError:
        mend = "the label files' folder is cohort.params.labels; without slides: cohort.params.features=null"
        raise CohortError(f"no {path.name} in {path.parent.absolute()}; {mend}") from None
    except (OSError, ValueError) as error:
        raise CohortError(f"{path} cannot be read as a table: {type(error).__name__}") from None
    ours = {same_name(name): name for name in (ID, CLASS, AGE)}
    return table.set_axis([ours.get(same_name(str(name)), str(name).strip()) for name in table.columns], axis=1)


def _some(rows: pd.Series) -> str:
    more = f" and {len(rows) - NUM_SHOWN} more" if len(rows) > NUM_SHOWN else ""
    return f"row {', '.join(rows[:NUM_SHOWN])}{more} (the header is row 1)"
