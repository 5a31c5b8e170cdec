"""The tables of MIMIC-CXR-JPG: found zipped or not, held against what is published, and the label policies.

chexpert and negbio: `subject_id,study_id` and 14 findings a study; 1 found, 0 negated, -1 uncertain, empty not
mentioned, which is another thing than negated. test-set-labeled: `study_id` alone, and `Airspace Opacity` for
`Lung Opacity`. Messages name tables and rows, never a cell: these data are credentialed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

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
COUNTED = ("images", "studies", "patients", "frontal images")
PUBLISHED = {
    "train": (368_960, 222_758, 64_586, 248_020),
    "validate": (2_991, 1_808, 500, 2_041),
    "test": (5_159, 3_269, 293, 3_653),
}
FIRST_ROW = 2  # of the data: the header is row 1
NUM_SHOWN = 5


def find_table(root: Path, name: str) -> Path:
    """The table as published, `name`.gz, or unzipped.

    Raises:
        CohortError: neither is there.
    """
    for path in (root / f"{name}.gz", root / name):
        if path.is_file():
            return path
    raise CohortError(f"no {name}.gz and no {name} in {root.absolute()}: put it there, or mend cohort.root=DIR")


def read_table(path: Path, wanted: Sequence[str], key: str, also_named: dict[str, str] | None = None) -> pd.DataFrame:
    """Stripped strings, empty where missing, in the order of the file; ids have their published shape, `key` is unique.

    Raises:
        CohortError: not a CSV file, a column lacking, no row, ids that are none, a key that is listed twice.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig").fillna("")
    except (OSError, EOFError, ValueError, zlib.error) as error:  # what a damaged .gz raises, too
        kind = "gzipped CSV" if path.suffix == ".gz" else "CSV"
        raise CohortError(f"{path} is not a {kind} file: {type(error).__name__}; download it again") from None
    table = table.set_axis([str(name).strip() for name in table.columns], axis=1)
    if twice := [name for name in wanted if f"{name}.1" in table]:  # as pandas tells equal ones apart
        raise CohortError(f"{path}: several columns {', '.join(twice)}; is it the table as published?")
    table = table.rename(columns={old: new for old, new in (also_named or {}).items() if new not in table})
    if lacking := [name for name in wanted if name not in table]:
        found = ", ".join(name for name in wanted if name in table) or "none of them"
        what = f"no column {', '.join(lacking)} (of the columns wanted, found {found})"
        raise CohortError(f"{path}: {what}; is it the table as published?")
    if not len(table):
        raise CohortError(f"{path}: no row; download it again")
    table = table.apply(lambda column: column.str.strip())
    for name in (name for name in IDS if name in wanted):
        refuse_rows(path, ~table[name].str.fullmatch(IDS[name]), f"a {name} that is not {SHAPES[name]}, as published")
    refuse_rows(path, table[key].duplicated(), f"a {key} that is listed before")
    read: pd.DataFrame = table
    return read


def refuse_rows(path: Path, wrong: Any, what: str, unit: str = "row", first: int = FIRST_ROW) -> None:
    """
    Raises:
        CohortError: some of `wrong`, a bool per row, is True: names the table and the first such rows.
    """
    rows = [str(position + first) for position in np.flatnonzero(np.asarray(wrong, bool))]
    if rows:
        more = f" and {len(rows) - NUM_SHOWN} more" if len(rows) > NUM_SHOWN else ""
        counted = " (the header is row 1)" if first == FIRST_ROW else ""
        where = f"{unit} {', '.join(rows[:NUM_SHOWN])}{more}{counted}"
        raise CohortError(f"{path}: {what}, in {where}; mend it or take it out of the table")


def read_labels(path: Path, is_expert: bool) -> pd.DataFrame:
    """The 14 findings as given, by study: 1, 0, -1, or NaN for not mentioned; of a labeller with its `subject_id`.

    Raises:
        CohortError: see `read_table`; a value that is none of these.
    """
    ids = ["study_id"] if is_expert else ["subject_id", "study_id"]
    table = read_table(path, [*ids, *FINDINGS], "study_id", {"Airspace Opacity": "Lung Opacity"} if is_expert else None)
    for name in FINDINGS:
        wrong = ~table[name].isin(list(VALUES))
        refuse_rows(path, wrong, f"a label that is not 1, 0, -1 or empty in column {name!r}")
    given = pd.DataFrame({name: table[name].map(VALUES).astype(float) for name in FINDINGS})
    return given.assign(**{name: table[name] for name in ids}).set_index("study_id")


def decide(given_SK: np.ndarray, uncertain: Policy, empty: Policy, is_implied: bool) -> np.ndarray:
    """S x 14 of 1, 0 and NaN (unknown) from what was given (`read_labels`); S x 14 in the order of `FINDINGS`.

    A study without any label stays unknown whatever the policies say. `is_implied`: No Finding denies the
    abnormalities that are not mentioned, and an abnormality denies a No Finding that is not mentioned; before
    `empty` is asked. Support Devices are no abnormality (Irvin et al., AAAI 2019, arXiv 1901.07031).
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


def counted(table: pd.DataFrame) -> dict[str, tuple[int, ...]]:
    """What `COUNTED` names, by official part; `table` has split, study_id, subject_id and ViewPosition."""
    groups = table.groupby("split")
    frontal = table["ViewPosition"].isin(["AP", "PA"]).groupby(table["split"]).sum()
    counts = pd.concat([groups.size(), groups[["study_id", "subject_id"]].nunique(), frontal], axis=1)
    return {str(part): tuple(map(int, row)) for part, row in zip(counts.index, counts.to_numpy(), strict=True)}


def differences(counts: dict[str, tuple[int, ...]]) -> list[str]:
    """How `counted` tables differ from version 2.1.0 (MIT-LCP/mimic-cxr), a sentence each."""
    return [
        f"part {part} has {found:,} {what}, published are {published:,}"
        for part, row in PUBLISHED.items()
        for what, found, published in zip(COUNTED, counts.get(part, (0, 0, 0, 0)), row, strict=True)
        if found != published
    ]
