"""Reads the tables of MIMIC-CXR-JPG, gzipped or not, checks that they are as published, and applies label policies.

The tables chexpert and negbio have the columns `subject_id` and `study_id` and 14 findings per study. A finding is 1
(present), 0 (negated), -1 (uncertain) or empty (not mentioned, which is not the same as negated). The table
test-set-labeled has no `subject_id`, and calls `Lung Opacity` `Airspace Opacity`. Messages name tables and rows but
quote no cell, because these data are credentialed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd

from mmpkd.cohort.formats.tables import FIRST_ROW, read_table, refuse_rows
from mmpkd.types import CohortError

Finding = Literal[
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
Policy = Literal["ignore", "zero", "one"]
FINDINGS: tuple[Finding, ...] = get_args(Finding)
NO_FINDING = FINDINGS.index("No Finding")
ABNORMAL = [at for at, name in enumerate(FINDINGS) if name not in ("No Finding", "Support Devices")]
MEANING: dict[Policy, float] = {"ignore": np.nan, "zero": 0.0, "one": 1.0}
VALUES = {"": np.nan, "1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "-1": -1.0, "-1.0": -1.0}
IDS = {"dicom_id": "[0-9a-f]{8}(-[0-9a-f]{8}){4}", "subject_id": "[0-9]{8}", "study_id": "[0-9]{8}"}
SHAPES = {"dicom_id": "five groups of 8 hexadecimal digits", "subject_id": "8 digits", "study_id": "8 digits"}
METADATA, SPLIT = "mimic-cxr-2.0.0-metadata.csv", "mimic-cxr-2.0.0-split.csv"
LABELS = {name: f"mimic-cxr-2.0.0-{name}.csv" for name in ("chexpert", "negbio")}
EXPERT = "mimic-cxr-2.1.0-test-set-labeled.csv"
COUNTED = ("images", "studies", "patients", "frontal images")
PUBLISHED = {
    "train": (368_960, 222_758, 64_586, 248_020),
    "validate": (2_991, 1_808, 500, 2_041),
    "test": (5_159, 3_269, 293, 3_653),
}
REMEDY = "is it the file as published? Else download it again"


def find_table(root: Path, name: str) -> Path:
    """Returns the path of the table `name`: the gzipped file `name`.gz as published, or else the unzipped file.

    Raises:
        CohortError: neither of the two files exists.
    """
    for path in (root / f"{name}.gz", root / name):
        if path.is_file():
            return path
    raise CohortError(f"no {name}.gz and no {name} in {root.absolute()}: put it there, or correct cohort.root=DIR")


def read_ids(path: Path, wanted: Sequence[str], key: str, also_named: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Reads a table as text by `formats.tables.read_table`. Checks the form of its ids, and that no value of the column
    `key` is repeated.

    Raises:
        CohortError: the table is not as published.
    """
    table = read_table(path, wanted, REMEDY, also_named=also_named)
    for name in (name for name in IDS if name in wanted):
        refuse_rows(path, ~table[name].str.fullmatch(IDS[name]), f"a {name} that is not {SHAPES[name]}, as published")
    refuse_rows(path, table[key].duplicated(), f"a {key} that is listed before")
    return table


def read_labels(path: Path, is_expert: bool) -> pd.DataFrame:
    """Returns the 14 findings by study as the table states them: 1, 0, -1, or NaN for not mentioned.

    Unless `is_expert`, the result also has the column `subject_id`, which the experts' table lacks.

    Raises:
        CohortError: the table is not as published, or a finding is not 1, 0, -1 or empty.
    """
    ids = ["study_id"] if is_expert else ["subject_id", "study_id"]
    table = read_ids(path, [*ids, *FINDINGS], "study_id", {"Airspace Opacity": "Lung Opacity"} if is_expert else None)
    for name in FINDINGS:
        is_wrong = ~table[name].isin(list(VALUES))
        refuse_rows(path, is_wrong, f"a label that is not 1, 0, -1 or empty in column {name!r}")
    given = pd.DataFrame({name: table[name].map(VALUES).astype(float) for name in FINDINGS})
    return given.assign(**{name: table[name] for name in ids}).set_index("study_id")


def label_images(
    root: Path, table: pd.DataFrame, labeller: str, is_test_expert: bool, notes: list[str]
) -> tuple[np.ndarray, list[Path]]:
    """Returns the findings of each image, N x 14 (values as in `read_labels`), and the paths of the label tables.

    Args:
        table: a row per image with the columns study_id, subject_id, `part`, and `row` (the row in the metadata).
        labeller: name of the program that made the labels, a key of `LABELS`.
        is_test_expert: whether the test part has the experts' labels instead of the labeller's.
        notes: list to which notes about the labels are appended.

    Raises:
        CohortError: a label table is missing or not as published, or the tables do not belong together.
    """
    paths = [find_table(root, LABELS[labeller])]
    given = read_labels(paths[0], is_expert=False)
    stated = given["subject_id"].reindex(table["study_id"]).to_numpy()
    differs = pd.notna(stated) & (stated != table["subject_id"].to_numpy())
    is_wrong = np.bincount(
        table.loc[differs, "row"] - FIRST_ROW
    )  # positions are rows of the whole metadata, because `table` may lack some rows
    what = f"another subject_id than {paths[0].name} has for the study (are both of one download?)"
    refuse_rows(find_table(root, METADATA), is_wrong, what)
    given_NK = given[list(FINDINGS)].reindex(table["study_id"]).to_numpy(float, copy=True)
    if is_test_expert:
        paths.append(find_table(root, EXPERT))
        expert = read_labels(paths[1], is_expert=True)
        is_test = (table["part"] == "test").to_numpy()
        has_expert = table.loc[is_test, "study_id"].isin(expert.index)
        if not has_expert.any():
            raise CohortError(f"{paths[1]}: none of its studies is in the test part; is this the whole data set?")
        given_NK[is_test] = expert[list(FINDINGS)].reindex(table.loc[is_test, "study_id"]).to_numpy(float)
        notes.append(f"test labels are the experts'; {(~has_expert).sum()} of {is_test.sum()} test images have none")
    unlabelled = np.isnan(given_NK).all(axis=1)
    if unlabelled.any():
        studies = table.loc[unlabelled, "study_id"].nunique()
        notes.append(f"{unlabelled.sum()} images of {studies} studies have no label: all unknown")
    return given_NK, paths


def decide_labels(given_SK: np.ndarray, uncertain: Policy, empty: Policy, is_implied: bool) -> np.ndarray:
    """Applies the label policies to the findings of S studies, S x 14 in the order of `FINDINGS`.

    A study without any label stays unknown under every policy. `is_implied` takes effect before the policy `empty`: a
    positive No Finding then negates all abnormalities that are not mentioned, and a positive abnormality negates a No
    Finding that is not mentioned. Support Devices are not an abnormality (Irvin et al., AAAI 2019, arXiv 1901.07031).

    Args:
        given_SK: findings with the values of `read_labels`.
        uncertain: policy for the value -1.
        empty: policy for findings that are not mentioned.

    Returns:
        S x 14 of 1, 0 and NaN (unknown).
    """
    open_SK = np.isnan(given_SK)
    decided_SK = np.where(given_SK == -1, MEANING[uncertain], given_SK)
    if is_implied:
        is_free_S = given_SK[:, NO_FINDING] == 1
        has_any_S = (decided_SK[:, ABNORMAL] == 1).any(axis=1)
        denied_SK = np.zeros_like(open_SK)
        denied_SK[:, ABNORMAL] = is_free_S[:, None]
        denied_SK[:, NO_FINDING] = has_any_S
        decided_SK[open_SK & denied_SK] = 0
        open_SK &= ~denied_SK
    decided_SK[open_SK] = MEANING[empty]
    decided_SK[np.isnan(given_SK).all(axis=1)] = np.nan
    return decided_SK


def count_images(table: pd.DataFrame) -> dict[str, tuple[int, ...]]:
    """Returns, for each official part, the number of things of each kind in `COUNTED`.

    Args:
        table: a row per image with the columns split, study_id, subject_id and ViewPosition.
    """
    groups = table.groupby("split")
    frontal = table["ViewPosition"].isin(["AP", "PA"]).groupby(table["split"]).sum()
    counts = pd.concat([groups.size(), groups[["study_id", "subject_id"]].nunique(), frontal], axis=1)
    return {str(part): tuple(map(int, row)) for part, row in zip(counts.index, counts.to_numpy(), strict=True)}


def describe_differences(counts: dict[str, tuple[int, ...]]) -> list[str]:
    """Returns a sentence for each difference between counts of `count_images` and the counts of version 2.1.0, which
    are taken from MIT-LCP/mimic-cxr."""
    return [
        f"part {part} has {count:,} {noun}, published are {published:,}"
        for part, row in PUBLISHED.items()
        for noun, count, published in zip(COUNTED, counts.get(part, (0, 0, 0, 0)), row, strict=True)
        if count != published
    ]
