"""`slide_*` stands for every matching column, in a tabular teacher and in the column map of a user's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmpkd.cohort import facts, reader_for
from mmpkd.cohort.chosen_columns import check_columns
from mmpkd.cohort.facts import Column, Facts, matching_names
from mmpkd.cohort.readers.table.params import TableParams
from mmpkd.cohort.readers.table.reader import Table
from mmpkd.teachers.columns import chosen_columns
from mmpkd.teachers.tabular import TabularParams
from mmpkd.types import ConfigError, lay_out
from tests.mmpkd.cohort_fixtures import PARAMS, cases, config, write_cohort

ROLES: dict[str, Any] = {
    "age": "context",
    "slide_1": "descriptor",
    "slide_0": "descriptor",
    "slide_age": "context",
    "slide_grade": "near_label",
    "slide_class": "forbidden",
    "slide_id": "id",
    "odd*": "descriptor",
    "odder": "descriptor",
}
FACTS = Facts(
    tasks=lay_out([("malignant", "binary", ("benign", "malignant"))]),
    columns={name: Column(name, role) for name, role in ROLES.items()},
    unlisted=("slide_scanner",),
    channels=1,
    image_size=32,
    roi_labels=(),
    views=(),
    sections={},
    credentialed=False,
    num_samples=4,
)


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        (["slide_*"], ["slide_1", "slide_0", "slide_age"]),  # in the cohort's order; not what nearly states the label
        (["*"], ["age", "slide_1", "slide_0", "slide_age", "odd*", "odder"]),  # as without `columns`
        (["slide_0", "slide_*", "*age"], ["slide_0", "slide_1", "slide_age", "age"]),  # each once
        (["odd*"], ["odd*"]),  # a column's own name goes before a pattern
        (["age"], ["age"]),
        ([], []),
    ],
)
def test_columns_that_a_teacher_reads(columns: list[str], chosen: list[str]) -> None:
    assert check_columns(columns, [], FACTS) == []
    assert chosen_columns(TabularParams(columns=tuple(columns)), FACTS) == chosen
    near = TabularParams(columns=tuple(columns), near_label=("slide_grade",))
    assert chosen_columns(near, FACTS) == [*chosen, "slide_grade"]


def test_without_columns_all_admitted_columns_are_read() -> None:
    assert chosen_columns(TabularParams(), FACTS) == ["age", "slide_1", "slide_0", "slide_age", "odd*", "odder"]


@pytest.mark.parametrize(
    ("columns", "near_label", "path", "message"),
    [
        (["slid_*"], [], "columns", "no column 'slid_*' (did you mean 'slide_"),
        (["Slide_*"], [], "columns", "no column 'Slide_*' (did you mean 'slide_"),  # case counts, as in names
        (["*_class"], [], "columns", "no column '*_class'"),  # forbidden
        (["*_scanner"], [], "columns", "no column '*_scanner'"),  # without a role
        (["*grade"], [], "columns", "no column '*grade'"),  # near the label, which a name must ask for
        ([], ["*grade"], "near_label", "no column '*grade'"),
        (["slide_*", "slide_*"], [], "columns", "'slide_*' is listed twice"),
        (["slide_?"], [], "columns", "no column 'slide_?'"),  # the star alone makes a pattern
    ],
)
def test_wrong_patterns_are_refused(columns: list[str], near_label: list[str], path: str, message: str) -> None:
    (mistake,) = check_columns(columns, near_label, FACTS)
    assert mistake.path == path and message in mistake.problem


def test_matching_by_hand() -> None:
    assert matching_names("a*", ["b", "ab", "a", "Ab"]) == ["ab", "a"]
    assert (
        matching_names("a", ["ab", "a"]) == ["a"] and matching_names("c", ["ab"]) == matching_names("c*", ["ab"]) == []
    )


SLIDES = {f"slide_{number}": [f"{index * (number + 1)}.5" for index in range(60)] for number in range(3)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "raw", cases().assign(**SLIDES))
    return tmp_path / "raw"


def with_columns(root: Path, **columns: Any) -> Any:
    return config(root, columns={**PARAMS["columns"], **columns})


def test_a_table_expands_a_pattern(root: Path) -> None:
    given = with_columns(root, **{"slide_*": {"role": "descriptor", "kind": "numeric"}, "slide_1": {"role": "id"}})
    scan = reader_for(given).scan()
    assert {name: (entry.role, entry.kind) for name, entry in scan.columns.items() if name.startswith("slide")} == {
        "slide_0": ("descriptor", "numeric"),
        "slide_1": ("id", "categorical"),  # its own line goes before a pattern
        "slide_2": ("descriptor", "numeric"),
    }
    assert scan.privileged["slide_2"].to_list() == [index * 3 + 0.5 for index in range(60)]
    assert "slide_1" not in scan.privileged and scan.unlisted == ("scanner",)


def test_a_pattern_skips_columns_with_another_use(root: Path) -> None:
    """Otherwise the teacher would read the label. A column belongs to the first of two matching patterns."""
    given = with_columns(root, **{"s*_2": {"role": "context"}, "*": {"role": "descriptor"}})
    columns = reader_for(given).scan().columns
    roles = {name: columns[name].role for name in ("pathology", "image", "mask", "patient", "biopsy", "birads", "age")}
    assert roles == {
        "pathology": "forbidden",
        "image": "id",
        "mask": "id",
        "patient": "id",
        "biopsy": "forbidden",
        "birads": "near_label",
        "age": "context",
    }
    assert [columns[name].role for name in ("slide_0", "slide_2", "scanner")] == ["descriptor", "context", "descriptor"]


def test_a_second_scan_gives_the_same_columns(root: Path) -> None:
    reader = reader_for(with_columns(root, **{"slide_*": {"role": "descriptor", "kind": "numeric"}}))
    assert isinstance(reader, Table)
    assert reader.scan().columns == reader.scan().columns


@pytest.mark.parametrize(
    ("pattern", "where", "message"),
    [
        ("slid_*", "slid_*", "cases.csv has no column 'slid_*' (did you mean 'slide_"),
        ("patho*", "patho*", "cases.csv has no column 'patho*' (did you mean 'pathology'"),  # read as the label
        ("sca*", "scanner", "not a finite number"),
    ],
)
def test_wrong_patterns_in_a_table_are_refused(root: Path, pattern: str, where: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        facts(with_columns(root, **{pattern: {"role": "descriptor", "kind": "numeric"}}))
    (mistake,) = raised.value.mistakes
    assert mistake.path == f"cohort.params.columns.{where}" and message in mistake.problem


def test_the_strictest_role_of_several_patterns_counts() -> None:
    """The order does not matter: a column that states the label must not enter through another pattern."""
    given = {"*_score": {"role": "descriptor"}, "birads*": {"role": "forbidden"}, "birads_2_*": {"role": "near_label"}}
    params = TableParams.model_validate({**PARAMS, "columns": given})
    spelt = params.expand_patterns(["birads_score", "birads_2_score", "shape_score"]).columns
    roles = {name: entry.role for name, entry in spelt.items() if "*" not in name}
    assert roles == {"birads_score": "forbidden", "birads_2_score": "forbidden", "shape_score": "descriptor"}
