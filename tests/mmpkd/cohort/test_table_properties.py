"""Whatever stands in a table's cells: a scan that holds what it promises, or a user's mistakes; no other error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mmpkd.cohort import reader_for
from mmpkd.cohort.facts import label_columns
from mmpkd.cohort.splits import assign
from mmpkd.types import ConfigError, UserError
from tests.mmpkd.cohort_fixtures import config

NUMBERS = ["0", "1", "1.0", "-1", "nan", "inf", "1e400", "[[0,0],[1,0],[0,1]]"]
WORDS = ["benign", "malignant", "train", "val", "test", "", " ", "n/a", "a|b", "|", "..", "/etc", "é", "=1+1", "\x00"]
CELL = st.one_of(st.sampled_from([*NUMBERS, *WORDS]), st.text(max_size=8))
NAMES = ["image", "patient", "pathology", "mask", "shape", "signs", "age", "birads", "biopsy", "part"]
NAMES += ["x", "y", "w", "h", "outline"]
PARAMS: dict[str, Any] = {
    "split": "part",
    "boxes": {"node": ["x", "y", "w", "h"]},
    "polygons": {"duct": "outline"},
    "text": {"findings": "signs"},
}
GOOD = ["a.png", "p", "benign", "", "oval", "halo", "40", "2", "negative", "train", "", "", "", "", ""]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("raw")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(CELL, min_size=15, max_size=15), max_size=4), st.sampled_from(["utf-8", "utf-8-sig"]))
@example([GOOD, ["b.png", *GOOD[1:]]], "utf-8")
@example([GOOD, GOOD], "utf-8")
@example([], "utf-8-sig")
def test_any_cells(root: Path, rows: list[list[str]], encoding: str) -> None:
    table = pd.DataFrame(rows, columns=NAMES)
    table.to_csv(root / "cases.csv", index=False, encoding=encoding, errors="replace")
    try:
        scan = reader_for(config(root, **PARAMS)).scan()
    except ConfigError as error:
        assert error.mistakes and all(mistake.path.startswith("cohort.params") for mistake in error.mistakes)
        return
    ids = scan.samples.index
    assert ids.is_unique and len(ids) == len(scan.files) == len(scan.labels) == len(scan.privileged)
    assert list(scan.labels) == label_columns(scan.tasks) and scan.labels.stack().isin([0, 1]).all()
    assert not {"biopsy", "pathology", "patient"} & set(scan.privileged)
    assert not any(file.startswith("/") for files in scan.files.values() for file in files)
    try:
        parts = assign(scan)
    except UserError:
        return
    assert parts.notna().all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.sampled_from(["cases.csv", "cases.parquet"]))
@example(b'"', "cases.csv")
@example(b"\xff\xfe\x00", "cases.csv")
@example(b"PAR1PAR1", "cases.parquet")
def test_any_bytes(root: Path, content: bytes, file: str) -> None:
    (root / file).write_bytes(content)
    with pytest.raises(ConfigError):
        reader_for(config(root, file=file)).scan()
