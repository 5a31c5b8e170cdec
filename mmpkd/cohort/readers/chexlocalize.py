"""Reads CheXlocalize, masks of ten findings on CheXpert's validation and test radiographs.

Sources: Saporta et al., Nature Machine Intelligence 2022, doi 10.1038/s42256-022-00536-x; CheXpert: Irvin et al., AAAI
2019, arXiv 1901.07031. The data are credentialed, so messages name rows instead of files. The cohort has no training
part. It is an external test for students that were trained on `mimic_cxr`, because both have the same labels.

Images     CheXpert/val/patient64541/study1/view1_frontal.jpg, and test/... CheXpert's own release calls val `valid`.
Labels     CheXpert/val_labels.csv (or valid.csv) and test_labels.csv with the columns Path and 14 findings. Only the
           table of val has the columns Sex, Age and AP/PA.
Masks      CheXlocalize/gt_segmentations_val.json and ..._test.json: size and counts of each finding's mask, by image
           (such as patient64541_study1_view1_frontal) and finding.

- The labels were made by radiologists: 1, 0, or empty for unknown. (CheXzero's `groundtruth.csv` is not read, because
  it lists studies.)
- Of a Path, only the text after val/, valid/ or test/ is used, because published paths begin differently:
  `CheXpert-v1.0/valid/...`, `CheXpert-v1.0-small/valid/...` and `test/...`. The view (frontal or lateral) is read from
  the file name, because the test table has no column for the view.
- Masks are COCO's compressed run lengths, column by column, at the size of the full images. They do not fit the smaller
  images of CheXpert-v1.0-small. The masks call Lung Opacity `Airspace Opacity`. An empty or missing mask counts as no
  ROI.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import field_validator

from mmpkd.cohort.decode import read_image
from mmpkd.cohort.facts import BadSample, Column, RawImage, Reader, Scan, label_columns
from mmpkd.cohort.formats.tables import FIRST_ROW, refuse_rows
from mmpkd.cohort.readers.mimic_cxr.tables import FINDINGS, REMEDY, VALUES, Finding, read_ids
from mmpkd.frames import from_run_lengths
from mmpkd.types import CohortError, ConfigError, Strict, lay_out

MASKED: dict[str, Finding] = {  # a finding's name in the mask files: its name in the label tables
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Edema": "Edema",
    "Enlarged Cardiomediastinum": "Enlarged Cardiomediastinum",
    "Lung Lesion": "Lung Lesion",
    "Airspace Opacity": "Lung Opacity",
    "Pleural Effusion": "Pleural Effusion",
    "Pneumothorax": "Pneumothorax",
    "Support Devices": "Support Devices",
}
TABLES = {"val": ("val_labels.csv", "valid.csv"), "test": ("test_labels.csv",)}
FOLDERS = {"val": ("val", "valid"), "test": ("test",)}
CONTEXT = (Column("Sex", "context"), Column("Age", "context", "numeric"), Column("AP/PA", "context"))
VIEW = "Frontal/Lateral"
PATH = (
    r"^(?:.*/)?(?P<folder>val|valid|test)/(?P<file>(?P<patient>patient[0-9]+)/study[0-9]+/"
    r"view[0-9]+_(?P<view>frontal|lateral)\.jpg)$"
)
KNOWN = {cell: value for cell, value in VALUES.items() if value != -1}
COUNTED = ("images", "patients", "images with masks")
PUBLISHED = {"val": (234, 200, 187), "test": (668, 500, None)}  # the authors state no count of masks for the test part


class ChexlocalizeParams(Strict):
    """The options. `images` is the folder of CheXpert's tables and images, and `masks` is the folder of the JSON files.
    Both are relative to the root."""

    parts: tuple[Literal["val", "test"], ...] = ("val", "test")
    labels: tuple[Finding, ...] = FINDINGS
    views: tuple[Literal["Frontal", "Lateral"], ...] = ("Frontal",)
    images: str = "CheXpert"
    masks: str = "CheXlocalize"

    @field_validator("images", "masks")
    @classmethod
    def _is_inside(cls, value: str) -> str:
        if PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts:
            raise ValueError("must be relative to cohort.root, and lie under it")
        return value

    @field_validator("parts", "labels", "views")
    @classmethod
    def _are_some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("lists none" if not value else "lists one twice")
        return value


class Part(NamedTuple):
    """The table of a part's images (see `_read_images`), and the paths of the part's files relative to the root."""

    images: pd.DataFrame
    unlisted: list[str]
    tables: tuple[str, str]
    notes: list[str]


class Chexlocalize(Reader):
    """Reads a copy of CheXpert and CheXlocalize, or only the val or test part of both. Images are 8-bit grey."""

    Params = ChexlocalizeParams
    VERSION: ClassVar[int] = 1
    needs_root: ClassVar[bool] = True
    credentialed: ClassVar[bool] = True

    def __init__(self, root: Path | None, params: ChexlocalizeParams) -> None:
        assert root is not None
        self.root = root
        self.params = params
        self._files: dict[str, list[str]] = {}  # image file by sample
        self._masks: dict[str, dict[str, Any]] = {}  # encoded masks by sample and finding
        self._counts: dict[str, tuple[int, ...]] = {}  # by part, how many things of each kind in `COUNTED` there are

    def scan(self) -> Scan:
        params = self.params
        parts = [self._read_part(part) for part in params.parts]
        notes = [note for part in parts for note in part.notes]
        table = pd.concat([part.images for part in parts])
        if shared := int((table.groupby("patient")["split"].nunique() > 1).sum()):
            raise CohortError(f"{shared} patients are in the tables of both parts; are they as published?")
        kept = table[VIEW].isin(params.views)
        if not kept.any():
            raise ConfigError.at("cohort.params.views", f"no image is {' or '.join(params.views)}")
        if not kept.all():
            notes.append(f"left out: {(~kept).sum()} images that are not {' or '.join(params.views)}")
        table = table[kept]
        self._files = {str(sample): [file] for sample, file in table["file"].items()}
        (task,) = lay_out([("findings", "multilabel", params.labels)])
        columns = [Column("Path", "id"), *CONTEXT, Column(VIEW, "context")]
        columns += [Column(name, "forbidden") for name in FINDINGS]
        return Scan(
            tasks=(task,),
            samples=table[["patient", "split", "row"]],
            labels=table[list(params.labels)].set_axis(label_columns([task]), axis=1),
            privileged=table[[*(column.name for column in CONTEXT), VIEW]],
            columns={column.name: column for column in columns},
            unlisted=tuple(dict.fromkeys(name for part in parts for name in part.unlisted)),
            channels=1,
            roi_labels=tuple(MASKED.values()),
            files=self._files,
            tables=[file for part in parts for file in part.tables],
            notes=tuple(notes),
        )

    def deviations(self, scan: Scan) -> list[str]:
        """Compares the counts in each part's tables with the counts that the authors state, whatever the options."""
        return [
            f"part {part} has {count} {noun}, published are {published}"
            for part, counts in self._counts.items()
            for noun, count, published in zip(COUNTED, counts, PUBLISHED[part], strict=True)
            if published not in (count, None)
        ]

    def load(self, sample_id: str) -> RawImage:
        if not self._files:
            self.scan()
        file = self._files[sample_id][0]
        image = read_image(self.root, file)
        masks = self._masks.get(sample_id, {})
        drawn = [(finding, decode_mask(mask, image.shape, file)) for finding, mask in masks.items()]
        return RawImage(image, rois=[(finding, mask) for finding, mask in drawn if mask is not None])

    def _read_part(self, part: str) -> Part:
        """Reads the tables of a part with frontal and lateral views. Keeps the masks and the counts in the reader."""
        table_file, folder = self._find_entry("images", TABLES[part]), self._find_entry("images", FOLDERS[part])
        masks_file = self._find_entry("masks", (f"gt_segmentations_{part}.json",))
        images, unlisted = _read_images(self.root / table_file, part)
        images["file"] = f"{folder}/" + images["file"]
        masks = _read_masks(self.root / masks_file)
        has_masks = images.index.isin(list(masks))
        if not has_masks.any():
            problem = f"none of its entries is of an image in {table_file}"
            raise CohortError(f"{self.root / masks_file}: {problem}; are both of the same part?")
        notes = []
        if num_bare := int((~has_masks).sum()):
            notes.append(f"{num_bare} of {len(has_masks)} {part} images have no masks, and so no ROI")
        if num_lost := len(masks) - int(has_masks.sum()):
            notes.append(f"{num_lost} entries of {masks_file} are of no image in {table_file}")
        self._masks |= masks
        self._counts[part] = (len(images), images["patient"].nunique(), int(has_masks.sum()))
        return Part(images, unlisted, (table_file, masks_file), notes)

    def _find_entry(self, option: str, names: Sequence[str]) -> str:
        """Returns the path, relative to the root, of the first of `names` that exists in the folder of an option.

        Raises:
            CohortError: none of the files or folders exists.
        """
        folder = PurePosixPath(getattr(self.params, option))
        for name in names:
            if (self.root / folder / name).exists():
                return (folder / name).as_posix()
        where = f"no {' and no '.join(names)} in {(self.root / folder).absolute()}"
        remedy = f"say where it is with cohort.params.{option}=DIR, or leave its part out with cohort.params.parts"
        raise CohortError(f"{where}: {remedy}")


def _read_images(path: Path, part: str) -> tuple[pd.DataFrame, list[str]]:
    """Returns a table with a row per image, and the names of the file's columns that have no role.

    The index is the sample id. The columns are patient, split, row, file (path in the part's folder), the context
    columns and 14 labels.
    """
    table = read_ids(path, ("Path", *FINDINGS), "Path", {"Airspace Opacity": "Lung Opacity"})
    parsed = table["Path"].str.extract(PATH)
    wanted = f"{' or '.join(FOLDERS[part])}/patient.../study.../view..._frontal.jpg (or _lateral.jpg)"
    refuse_rows(path, ~parsed["folder"].isin(FOLDERS[part]), f"a Path that does not end in {wanted}")
    refuse_rows(path, parsed["file"].duplicated(), "an image that is listed before")
    for name in FINDINGS:
        is_wrong = ~table[name].isin(list(KNOWN))
        refuse_rows(path, is_wrong, f"a label that is not 1, 0 or empty in column {name!r}")
    context = table.reindex(columns=[column.name for column in CONTEXT], fill_value="")
    refuse_rows(path, ~context["Age"].str.fullmatch(r"([0-9]{1,3}(\.0)?)?"), "an Age that is not a number of years")
    context = context.mask(context == "").assign(Age=pd.to_numeric(context["Age"]).astype(float))
    images = parsed[["patient", "file"]].join(context).assign(split=part)
    images[VIEW] = parsed["view"].str.capitalize()
    images["row"] = [f"{position + FIRST_ROW} of {path.name}" for position in range(len(table))]
    images = images.join(table[list(FINDINGS)].apply(lambda column: column.map(KNOWN).astype(float)))
    unlisted = [str(name) for name in table if name not in ("Path", *images)]
    return images.set_index(parsed["file"].str.removesuffix(".jpg").str.replace("/", "_").rename("sample")), unlisted


def _read_masks(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the masks by sample and finding, encoded as in the file.

    Raises:
        CohortError: the file is not JSON, or an image lacks an entry for one of the ten findings.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CohortError(f"{path} is not a JSON file: {type(error).__name__}; {REMEDY}") from None
    if not isinstance(content, dict):
        raise CohortError(f"{path}: wanted masks by image and finding; {REMEDY}")
    is_wrong = [not isinstance(masks, dict) or set(masks) != set(MASKED) for masks in content.values()]
    refuse_rows(path, is_wrong, f"not the masks of {', '.join(MASKED)}", unit="entry")
    return {sample: {finding: masks[name] for name, finding in MASKED.items()} for sample, masks in content.items()}


def decode_mask(mask: Any, shape: tuple[int, ...], file: str) -> np.ndarray | None:
    """Decodes a mask from its size and compressed counts. Returns H x W bool, or None if the mask is empty.

    Raises:
        BadSample: the mask is damaged, or has another size than its image.
    """
    height, width = shape[:2]
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str):
        raise BadSample(file, "a mask of it has no compressed counts")
    if mask.get("size") != [height, width]:
        remedy = "masks are of CheXpert's full images, not of CheXpert-v1.0-small"
        raise BadSample(file, f"is {width} x {height} pixels, a mask of it is of another size; {remedy}")
    try:
        runs = run_lengths(mask["counts"])
    except ValueError as error:
        raise BadSample(file, f"a mask of it does not decode: {error}") from None
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise BadSample(file, "a mask of it is damaged: its runs do not add up to the image")
    return from_run_lengths(np.array(runs), (width, height)).T if any(runs[1::2]) else None


def run_lengths(counts: str) -> list[int]:
    """Decodes COCO's string of run lengths (maskApi.c, rleFrString). Runs of background and mask alternate, and the
    first run is background.

    A number is split into groups of five bits, the lowest bits first. A group is written as the character with the code
    of `0` plus the group's value, plus 32 if another group follows. Bit 16 of the last group marks a negative number.
    From the fourth number on, a number is the difference between its run and the run two places earlier.

    Raises:
        ValueError: the string is damaged; the message says how.
    """
    runs: list[int] = []
    number = bits = 0
    for character in counts:
        group = ord(character) - ord("0")
        if not 0 <= group < 64 or bits > 30:  # 30 bits hold more pixels than any image has
            raise ValueError("a character or a number that no run length has")
        number |= (group & 31) << bits
        bits += 5
        if group & 32:
            continue
        number -= (group & 16) >> 4 << bits
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = bits = 0
    if bits:
        raise ValueError("it ends within a run length")
    return runs
