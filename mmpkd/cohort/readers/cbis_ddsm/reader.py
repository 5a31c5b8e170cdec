"""Reads CBIS-DDSM, digitised film mammograms: four description files, and images in any layout of `files.py`.

Source: TCIA, doi 10.7937/K9/TCIA.2016.7O02S9CY; Lee et al., Sci Data 4:170177, 2017; CC BY 3.0. There are 3,103 images
of 1,566 patients with 3,568 abnormalities. The binary task is `malignant`; both BENIGN pathologies are benign.

- There are two official splits, one for masses and one for calcifications. 31 patients are in the training part of one
  split and in the test part of the other. The same is true of 29 of the 71 views that are stored twice. If both kinds
  are read, the 31 patients are removed from the training part (64 images). The other 42 views remain in the data twice,
  both times in the same part.
- An image shows up to seven abnormalities. 293 images show several, and 17 of these show both malignant and benign
  ones. By default a sample is an image. It is malignant if any of its abnormalities is malignant, and it has the union
  of the abnormalities' descriptors and the union of their masks.
- `assessment` (BI-RADS) nearly states the label. A `subtlety` or `breast_density` of 0 is a missing value.
- A cell of a descriptor joins several values by hyphens, in any order, and may repeat a value. LUCENT_CENTERED is the
  same value as LUCENT_CENTER.
- A crop and its mask may be swapped in file names and columns. Therefore the mask is identified by its content: it has
  the size of the mammogram and two values.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from PIL import Image
from pydantic import Field

from mmpkd.cohort.decode import image_size, read_image
from mmpkd.cohort.facts import ADMITTED, BadSample, Column, RawImage, Reader, Scan, encode_labels
from mmpkd.cohort.formats.masks import two_valued_mask
from mmpkd.cohort.formats.tables import read_table, refuse_rows
from mmpkd.cohort.readers.cbis_ddsm.files import Files
from mmpkd.types import CohortError, Strict, lay_out

Kind = Literal["mass", "calc"]
KINDS: tuple[Kind, ...] = ("mass", "calc")
REMEDY = "is it the description file as published?"
MISSING = ("", "N/A", "NA")
PATHOLOGY = {"MALIGNANT": "malignant", "BENIGN": "benign", "BENIGN_WITHOUT_CALLBACK": "benign"}
SAME_ATOM = {"LUCENT_CENTERED": "LUCENT_CENTER"}
MAX_RATIO = 1.25  # largest ratio of a side of a mask to the same side of its image, or the other way round
LESION = "lesion"
IMAGE, CROP, MASK = "image_file_path", "cropped_image_file_path", "roi_mask_file_path"

SHARED = (
    Column("patient_id", "id"),
    Column("abnormality_id", "id"),
    Column(IMAGE, "id"),
    Column(CROP, "id"),
    Column(MASK, "id"),
    Column("left_or_right_breast", "context"),
    Column("image_view", "context"),
    Column("breast_density", "descriptor"),
    Column("abnormality_type", "descriptor", "multivalued", "-"),
    Column("subtlety", "descriptor"),
    Column("assessment", "near_label"),
    Column("pathology", "forbidden"),
)
OF_KIND: dict[Kind, tuple[Column, ...]] = {
    "mass": (
        Column("mass_shape", "descriptor", "multivalued", "-"),
        Column("mass_margins", "descriptor", "multivalued", "-"),
    ),
    "calc": (
        Column("calc_type", "descriptor", "multivalued", "-"),
        Column("calc_distribution", "descriptor", "multivalued", "-"),
    ),
}


class CbisDdsmParams(Strict):
    kinds: tuple[Kind, ...] = Field(KINDS, min_length=1)
    rows: Literal["image", "abnormality"] = "image"  # what a sample is; an abnormality has its own region and label
    mixed: Literal["malignant", "left_out"] = "malignant"  # images with malignant and benign abnormalities


class CbisDdsm(Reader):
    """Reads a copy of CBIS-DDSM with its description files."""

    Params = CbisDdsmParams
    VERSION: ClassVar[int] = 2
    needs_root: ClassVar[bool] = True
    credentialed: ClassVar[bool] = False
    windowed: ClassVar[bool] = True  # the JPEG re-release has the same films at 8 bits

    def __init__(self, root: Path | None, params: CbisDdsmParams) -> None:
        assert root is not None
        self.root = root
        self.params = params
        # By sample: the file of its image, and for each of its masks the files that may be this mask
        self._files: dict[str, tuple[str, list[list[str]]]] = {}

    def scan(self) -> Scan:
        scan, stated = self.describe()
        files = Files(self.root)
        self._files = {}
        for sample, image, crop, mask in stated.itertuples():
            _, masks = self._files.setdefault(str(sample), (files.of(image)[0], []))
            masks.append(files.of(crop, mask))
        listed = {sample: [image, *chain.from_iterable(masks)] for sample, (image, masks) in self._files.items()}
        return replace(scan, files=listed, tables=[*scan.tables, *files.tables])

    def describe(self) -> tuple[Scan, pd.DataFrame]:
        """Returns the scan, made from the description files alone, and a table of the paths that these files state.

        The table has a row per abnormality, with the sample as index.
        """
        kinds = [kind for kind in KINDS if kind in self.params.kinds]
        columns = {column.name: column for column in (*SHARED, *(column for kind in kinds for column in OF_KIND[kind]))}
        paths = {(kind, part): self._description_path(kind, part) for kind in kinds for part in ("train", "test")}
        table = pd.concat([_read_description(path, *which) for which, path in paths.items()], ignore_index=True)
        table, notes = _without_shared_patients(table)
        table["sample"] = table[IMAGE].str.split("/").str[0]
        if self.params.rows == "abnormality":
            table["sample"] += "_" + table["abnormality_id"]
        groups = table.groupby("sample", sort=False)
        mixed = groups["pathology"].transform("nunique") > 1
        if num_mixed := table.loc[mixed, "sample"].nunique():
            notes.append(f"{num_mixed} images with malignant and benign abnormalities: {self.params.mixed}")
        if self.params.mixed == "left_out":
            table = table[~mixed]
            groups = table.groupby("sample", sort=False)
        (task,) = lay_out([("malignant", "binary", ("benign", "malignant"))])
        admitted = [column for column in columns.values() if column.role in (*ADMITTED, "near_label")]
        first = groups[["patient_id", "part"]].first()
        scan = Scan(
            tasks=(task,),
            samples=first.set_axis(["patient", "split"], axis=1),
            labels=encode_labels(task, groups["pathology"].max()),  # the largest name: m(alignant) comes after b
            privileged=pd.DataFrame({column.name: _join_values(table, column) for column in admitted}),
            columns=columns,
            unlisted=tuple(name for name in table.columns if name not in columns and name not in ("part", "sample")),
            channels=1,
            roi_labels=(LESION,),
            tables=[path.relative_to(self.root).as_posix() for path in paths.values()],
            notes=tuple(notes),
        )
        return scan, table.set_index("sample")[[IMAGE, CROP, MASK]]

    def load(self, sample_id: str) -> RawImage:
        if not self._files:
            self.scan()
        file, masks = self._files[sample_id]
        image = read_image(self.root, file)
        if image.ndim != 2:
            raise BadSample(file, "is in colour; a mammogram is grey")
        return RawImage(image, rois=[(LESION, _mask(self.root, files, image.shape)) for files in masks])

    def _description_path(self, kind: Kind, part: str) -> Path:
        name = f"{kind}_case_description_{part}_set.csv"
        for folder in (self.root, self.root / "csv"):
            if (folder / name).is_file():
                return folder / name
        other = "calc" if kind == "mass" else "mass"
        remedy = f"put the four description files there, or read one kind alone with cohort.params.kinds=[{other}]"
        raise CohortError(f"no {name} in {self.root.absolute()} or its folder csv: {remedy}")


def _read_description(path: Path, kind: Kind, part: str) -> pd.DataFrame:
    """Reads a description file as text. Missing cells are NaN.

    The column `pathology` holds the labels of the task, and the column `part` the official part.
    """
    table = read_table(path, [column.name for column in (*SHARED, *OF_KIND[kind])], REMEDY, is_public=True)
    table = table.mask(table.isin(MISSING))
    named = table[["patient_id", "abnormality_id", "pathology"]]
    refuse_rows(path, named.isna().any(axis=1), "no patient, abnormality or pathology")
    cells = table["pathology"]
    refuse_rows(path, ~cells.isin(PATHOLOGY), f"a pathology that is none of {', '.join(PATHOLOGY)}", cells)
    for column in (IMAGE, CROP, MASK):
        parts = table[column].fillna("").str.split("/")
        is_wrong = (parts.map(len) != 4) | parts.map(lambda each: bool({"", ".", ".."} & set(each)))
        refuse_rows(
            path, is_wrong, f"a {column} that is not folder/StudyUID/SeriesUID/file, as published", table[column]
        )
    refuse_rows(path, table.duplicated([IMAGE, "abnormality_id"]), "an abnormality that is listed before")
    place = "Training" if part == "train" else "Test"
    patient, breast, view = (table[name].fillna("") for name in ("patient_id", "left_or_right_breast", "image_view"))
    stated = table[IMAGE].str.split("/").str[0]
    is_wrong = stated != f"{kind.title()}-{place}_" + patient + "_" + breast + "_" + view
    refuse_rows(path, is_wrong, f"an {IMAGE} of another kind, part, patient, side or view", stated)
    table["pathology"] = table["pathology"].map(PATHOLOGY)
    for column in ("breast_density", "subtlety"):
        table[column] = table[column].mask(table[column] == "0")
    read: pd.DataFrame = table.assign(part=part)
    return read


def _without_shared_patients(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Removes the training rows of patients who are also in the test part. Returns the other rows, and notes about the
    removal."""
    shared = table.groupby("patient_id")["part"].transform("nunique") > 1
    is_removed = shared & (table["part"] == "train")
    kept = table[~is_removed]
    notes = []
    if is_removed.any():
        notes.append(
            f"{table.loc[shared, 'patient_id'].nunique()} patients are in the training part of one kind and in the "
            f"test part of the other: their {table.loc[is_removed, IMAGE].nunique()} training images are left out"
        )
    views = kept.groupby(["patient_id", "left_or_right_breast", "image_view"])["abnormality_type"].nunique()
    if twice := int((views > 1).sum()):
        notes.append(f"{twice} views are stored once for each kind, both in one part")
    return kept, notes


def _join_values(table: pd.DataFrame, column: Column) -> pd.Series:
    """Combines the cells of each sample's abnormalities in a column into one cell per sample.

    For a multivalued column, the cell holds the union of the values. For any other column, it holds the highest grade.
    The cell is NaN if no value is known.
    """
    cells = table[["sample", column.name]].dropna()
    if column.kind == "multivalued":
        cells[column.name] = cells[column.name].str.split("-")
        cells = cells.explode(column.name).replace(SAME_ATOM).drop_duplicates().sort_values(column.name)
        values: dict[str, list[str]] = {}  # a tenth of the time of a groupby
        for sample, value in zip(cells["sample"].tolist(), cells[column.name].tolist(), strict=True):
            values.setdefault(sample, []).append(value)
        joined = pd.Series({sample: "-".join(some) for sample, some in values.items()}, dtype=cells[column.name].dtype)
    else:
        joined = cells.groupby("sample")[column.name].max()
    return joined.reindex(table["sample"].unique()).rename_axis("sample")


def _mask(root: Path, files: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
    """Returns the mask of an abnormality, H x W bool, resized to the size of the image if needed.

    The mask is the one file of `files` with two values and with the image's size within the tolerance `MAX_RATIO`.

    Raises:
        BadSample: no file fits, or several different files fit equally well.
    """
    sizes = {file: image_size(root, file) for file in files}
    fits = [file for file, size in sizes.items() if _size_ratio(size, shape) <= MAX_RATIO]
    if not fits:
        listed = ", ".join(f"{width} x {height}" for height, width in sizes.values())
        raise BadSample(files[0], f"no mask: its region's files are {listed} pixels, the image {shape[1]} x {shape[0]}")
    masks = {}
    for file in fits:
        pixels = read_image(root, file)
        with suppress(BadSample):  # the file is a picture
            masks[file] = two_valued_mask(pixels, file)
    if not masks:
        raise BadSample(fits[0], "no mask: its region's files of the image's size hold more than two values")
    closest = min(_size_ratio(sizes[file], shape) for file in masks)
    best = [mask for file, mask in masks.items() if _size_ratio(sizes[file], shape) == closest]
    if len(best) > 1 and any(not np.array_equal(best[0], mask) for mask in best[1:]):
        raise BadSample(next(iter(masks)), f"{len(best)} different masks of one region")
    if best[0].shape == shape:
        return best[0]
    return np.asarray(Image.fromarray(best[0]).resize((shape[1], shape[0]), Image.Resampling.NEAREST))


def _size_ratio(size: tuple[int, int], shape: tuple[int, ...]) -> float:
    """Returns the larger of two factors, by which two images differ in height and in width. Each factor is at least
    1."""
    return max(max(sides) / max(1, min(sides)) for sides in zip(size, shape, strict=False))
