"""One's own table: what it may say, and how it is told what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmpkd.cohort import facts, reader_for
from mmpkd.cohort.prepare import prepare
from mmpkd.types import CohortError, ConfigError
from tests.mmpkd.cohort_fixtures import PARAMS, cases, config, write_cohort

PARTS = ["train"] * 30 + ["val"] * 12 + ["test"] * 18


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "raw")
    return tmp_path / "raw"


def problems(root: Path, **params: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        facts(config(root, **params))
    return dict(caught.value.mistakes)


def test_facts(root: Path) -> None:
    known = facts(config(root))
    assert [task.name for task in known.tasks] == ["malignant"] and known.num_samples == 60
    assert known.roi_labels == ("lesion",) and known.channels == 1 and known.sections == {} and known.views == ()
    roles = {name: column.role for name, column in known.columns.items()}
    assert roles == {
        "shape": "descriptor",
        "signs": "descriptor",
        "age": "context",
        "birads": "near_label",
        "biopsy": "forbidden",
        "pathology": "forbidden",  # the label
        "image": "id",
        "patient": "id",
        "mask": "id",
    }
    assert (known.columns["signs"].kind, known.columns["signs"].separator) == ("multivalued", "|")
    assert known.unlisted == ("scanner",)


def test_private_unless_said_otherwise(root: Path) -> None:
    private = {name: value for name, value in PARAMS.items() if name != "credentialed"}
    assert reader_for(config(root).model_copy(update={"params": private})).credentialed


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_multiclass_multilabel_and_an_official_split(tmp_path: Path, suffix: str) -> None:
    table = cases()
    table["grade"] = np.resize(["1", "2", "3", ""], 60)
    table["edema"] = np.resize(["1", "0.0", ""], 60)
    table["part"] = PARTS
    root = tmp_path / "raw"
    write_cohort(root, table)
    stored = table.assign(
        grade=table["grade"].replace("", np.nan).astype(float), edema=table["edema"].replace("", np.nan).astype(float)
    )
    stored.to_parquet(root / "cases.parquet")
    tasks = {
        "grade": {"kind": "multiclass", "column": "grade", "labels": [1, 2, 3]},
        "findings": {"kind": "multilabel", "labels": ["edema"]},
    }
    store = prepare(config(root, file=f"cases.{suffix}", tasks=tasks, split="part"), tmp_path / "cache")
    assert [task.name for task in store.facts.tasks] == ["grade", "findings"]
    assert store.target_NK[:4].tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert store.known_NK[:4].tolist() == [[True] * 4, [True] * 4, [True, True, True, False], [False] * 3 + [True]]
    assert [len(store.rows(part)) for part in ("train", "val", "test")] == [30, 12, 18]


def test_all_header_mistakes_at_once(root: Path) -> None:
    found = problems(
        root,
        image="imag",
        split="part",
        masks={"lesion": "maks"},
        columns={"shap": {"role": "descriptor"}, "pathology": {"role": "descriptor"}},
        tasks={"t": {"kind": "multilabel", "labels": ["edema"]}, **PARAMS["tasks"]},
    )
    assert set(found) == {
        f"cohort.params.{path}"
        for path in ("image", "split", "masks.lesion", "columns.shap", "columns.pathology", "tasks.t.labels")
    }
    assert "no column 'imag' (did you mean 'image'" in found["cohort.params.image"]
    assert "its role is forbidden" in found["cohort.params.columns.pathology"]


def test_all_cell_mistakes_at_once(tmp_path: Path) -> None:
    table = cases()
    table["part"] = PARTS
    table.loc[0, "part"] = "dev"
    table.loc[3, "patient"] = ""
    table.loc[[4, 5], "pathology"] = "unclear"
    table.loc[6, "age"] = "old"
    table.loc[7, "age"] = "inf"
    table.loc[8, "image"] = "./case9.png"
    table.loc[10, "mask"] = "/masks/case10.png"
    write_cohort(tmp_path)
    table.to_csv(tmp_path / "cases.csv", index=False)
    found = problems(tmp_path, split="part")
    assert {path.removeprefix("cohort.params."): text for path, text in found.items()} == {
        "image": "1 cell is listed before (one row, one image): "
        "cases.csv row 11 (the header is row 1), got 'case9.png'",
        "patient": "1 cell is missing: cases.csv row 5 (the header is row 1)",
        "masks.lesion": "1 cell is absolute; paths are relative to cohort.root, "
        "unless cohort.allow_outside=true: "
        "cases.csv row 12 (the header is row 1), got '/masks/case10.png'",
        "split": "1 cell is not train, val or test; a column of folds holds none of these but test: "
        "cases.csv row 2 (the header is row 1), got 'dev'",
        "tasks.malignant": "2 cells are neither one of benign, malignant nor listed under `missing`, "
        "in column 'pathology': cases.csv row 6, 7 (the header is row 1), got 'unclear'",
        "columns.age": "2 cells are not a finite number: cases.csv row 8, 9 (the header is row 1), got 'old', 'inf'",
    }
    private = problems(tmp_path, split="part", credentialed=True)
    told = "2 cells are not a finite number: cases.csv row 8, 9 (the header is row 1)"
    assert private["cohort.params.columns.age"] == told


def test_blanks_are_missing_whatever_else_is(tmp_path: Path) -> None:
    table = cases()
    table["shape"] = np.resize(["oval", "", " ", "unclear"], 60)
    write_cohort(tmp_path / "raw", table)
    store = prepare(config(tmp_path / "raw", missing=["unclear"]), tmp_path / "cache")
    assert store.privileged(["shape"])["shape"].fillna("-").tolist() == ["oval", "-", "-", "-"] * 15


def test_values_of_a_cell_lose_the_blanks_around_them(tmp_path: Path) -> None:
    table = cases()
    table["signs"] = np.resize(["halo | shadow", "halo|shadow", " shadow |", "|", "n/a", "big halo"], 60)
    write_cohort(tmp_path / "raw", table)
    store = prepare(config(tmp_path / "raw"), tmp_path / "cache")
    found = store.privileged(["signs"])["signs"].fillna("-").tolist()
    assert found == ["halo|shadow", "halo|shadow", "shadow", "-", "-", "big halo"] * 10


def test_missing_may_cover_a_label(tmp_path: Path) -> None:
    table = cases()
    table.loc[[4, 5], "pathology"] = "unclear"
    write_cohort(tmp_path / "raw", table)
    store = prepare(config(tmp_path / "raw", missing=["", "n/a", "unclear"]), tmp_path / "cache")
    assert np.flatnonzero(~store.known_NK[:, 0]).tolist() == [4, 5] and (store.target_NK[[4, 5], 0] == 0).all()


@pytest.mark.parametrize(
    ("params", "path", "said"),
    [
        ({"file": "case.csv"}, "file", "no case.csv in "),
        ({"file": "/etc/cases.csv"}, "file", "must be relative to cohort.root"),
        ({"file": "images/case0.png"}, "file", "is not a CSV file"),
        ({"tasks": {}}, "tasks", "at least one task is needed"),
        ({"imge": "x"}, "imge", "unknown key (did you mean 'image'"),
        ({"columns": {"age": {}}}, "columns.age.role", "missing"),
        ({"columns": {"age": {"role": "label"}}}, "columns.age.role", "descriptor"),
        ({"columns": {"age": {"role": "context", "kind": "numeric", "separator": "|"}}}, "columns.age", "separator"),
        ({"tasks": {"m": {"kind": "binary", "labels": ["a", "b"]}}}, "tasks.m", "has a `column`"),
        ({"tasks": {"m": {"kind": "binary", "column": "pathology", "labels": ["a"]}}}, "tasks.m", "at least 2"),
    ],
)
def test_wrong_params(root: Path, params: dict[str, Any], path: str, said: str) -> None:
    found = problems(root, **params)
    assert said in found[f"cohort.params.{path}"], found


def test_a_task_with_one_class_is_refused_from_the_table_alone(tmp_path: Path) -> None:
    write_cohort(tmp_path, cases().assign(pathology="benign"))
    with pytest.raises(CohortError, match="task malignant has one class in the whole cohort: benign 60, malignant 0"):
        facts(config(tmp_path))
    part = cases().assign(part=PARTS)
    part.loc[part["part"] == "val", "pathology"] = "benign"
    write_cohort(tmp_path, part)
    with pytest.raises(CohortError, match="one class in part val: benign 12, malignant 0"):
        prepare(config(tmp_path, split="part"), tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.npy"))
