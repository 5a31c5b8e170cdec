"""Folds that a table states: which are they, which is sealed, and what is no split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mmpkd.cohort import facts
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import TrialConfig
from mmpkd.training.stand_in import stand_in
from mmpkd.types import CohortError, ConfigError
from sweep.search.repeats import repeat_config
from tests.mmpkd.cohort_fixtures import cases, config, write_cohort


def table_of(names: list[str], **columns: list[str]) -> pd.DataFrame:
    """Two rows a patient, every second patient malignant; the columns repeat their cells, a patient each."""
    table = cases()
    table["pathology"] = np.where(np.arange(60) // 2 // len(names) % 2, "malignant", "benign")
    for column, cells in {"part": names, **columns}.items():
        table[column] = np.repeat(np.resize(np.array(cells, object), 30), 2)
    return table


def store_of(tmp_path: Path, names: list[str], **params: Any) -> tuple[Store, np.ndarray]:
    """The prepared cohort, and the name of each sample's fold."""
    table = write_cohort(tmp_path / "raw", table_of(names))
    return prepare(config(tmp_path / "raw", **{"split": "part", **params}), tmp_path / "cache"), table[
        "part"
    ].to_numpy()


def names_at(store: Store, names: np.ndarray) -> dict[str, list[list[str]]]:
    return {
        part: [sorted(set(names[store.rows(part, fold)])) for fold in range(store.num_folds)]
        for part in ("train", "val", "test")
    }


@pytest.mark.parametrize("key", ["split", "groups"])
def test_each_name_is_a_fold_and_the_last_is_sealed(tmp_path: Path, key: str) -> None:
    store, names = store_of(tmp_path, ["10", "9", "2"], **{"split": None, key: "part"})
    assert names_at(store, names) == {
        "train": [["9"], ["2"]],
        "val": [["2"], ["9"]],  # in the order of numbers
        "test": [["10"], ["10"]],
    }
    assert "folds are given in column 'part': 0 is '2', 1 is '9'; sealed as test is '10'" in store.manifest["notes"]


def test_which_site_is_sealed_may_be_named(tmp_path: Path) -> None:
    store, names = store_of(tmp_path, ["Boston", "Lodz", "Turku"], split=None, groups="part", test_fold="Boston")
    assert names_at(store, names) == {
        "train": [["Turku"], ["Lodz"]],
        "val": [["Lodz"], ["Turku"]],
        "test": [["Boston"], ["Boston"]],
    }


@pytest.mark.parametrize(
    ("names", "test_fold", "sealed"),
    [
        (["A", "B", "C", "D"], "B", "B"),
        (["0", "1", "2", "3"], 0, "0"),
        (["A", "Test", "z"], None, "Test"),
        (["VA", "Devon", "Testville"], None, "VA"),  # sites, whatever they remind of
    ],
)
def test_the_fold_that_is_sealed_may_be_named(tmp_path: Path, names: list[str], test_fold: Any, sealed: str) -> None:
    """Sealed: neither trained on nor validated on, whichever fold validates."""
    store, name_N = store_of(tmp_path, names, test_fold=test_fold)
    assert store.num_folds == len(names) - 1
    parts = names_at(store, name_N)
    assert parts["test"] == [[sealed]] * store.num_folds
    assert len({name for (name,) in parts["val"]}) == store.num_folds
    for train, val in zip(parts["train"], parts["val"], strict=True):
        assert sorted(train + val + [sealed]) == sorted(names)


def test_further_seeds_move_over_the_folds_that_are_not_sealed(tmp_path: Path) -> None:
    store, names = store_of(tmp_path, ["A", "B", "C", "D"], test_fold="B")
    first = TrialConfig(cohort=config(tmp_path / "raw").model_copy(update={"fold": 1}))
    folds = [repeat_config(first, turn, store.num_folds).cohort.fold for turn in range(5)]
    assert [set(names[store.rows("val", fold)]) for fold in folds] == [{"C"}, {"D"}, {"A"}, {"C"}, {"D"}]
    assert not any(set(names[store.rows("train", fold)]) & {"B"} for fold in folds)


def test_sites_of_an_official_training_part(tmp_path: Path) -> None:
    """The official test part stays sealed, though patients of all sites are in it, and need no site."""
    table = table_of(["train", "train", "train", "test"], site=["A", "B"])
    table.loc[table["part"] == "test", "site"] = ""
    write_cohort(tmp_path / "raw", table)
    store = prepare(config(tmp_path / "raw", split="part", groups="site"), tmp_path / "cache")
    part, site = table["part"].to_numpy(), table["site"].to_numpy()
    assert set(part[store.rows("test")]) == {"test"} and len(store.rows("test")) == (part == "test").sum()
    assert [set(site[store.rows("val", fold)]) for fold in (0, 1)] == [{"A"}, {"B"}]
    assert [set(site[store.rows("train", fold)]) for fold in (0, 1)] == [{"B"}, {"A"}]


def test_a_fold_that_is_not_there(tmp_path: Path) -> None:
    store, _ = store_of(tmp_path, ["A", "B", "C"])
    table = stand_in(config(tmp_path / "raw", split="part"))
    for cohort in (store, table):
        with pytest.raises(
            CohortError, match=r"cohort\.fold=2: this cohort can validate on the folds 0 to 1; the sealed"
        ):
            cohort.rows("train", 2)
    assert [table.rows("val", fold).tolist() for fold in (0, 1)] == [
        store.rows("val", fold).tolist() for fold in (0, 1)
    ]


def test_a_private_table_does_not_name_its_sites(tmp_path: Path) -> None:
    store, _ = store_of(tmp_path, ["Boston", "Lodz", "Turku"], credentialed=True)
    message = (
        "folds are given in column 'part': each of its values validates in turn but the one whose name comes last, "
        "which is sealed as test; those that do are folds 0 to 1, in the order of their names. "
        "cohort.params.credentialed=false prints which name is which fold, if the data are public"
    )
    assert message in store.manifest["notes"]
    assert not any(name in (store.path / "manifest.json").read_text() for name in ("Boston", "Lodz", "Turku"))


def test_parts_are_parts_in_any_spelling(tmp_path: Path) -> None:
    store, names = store_of(tmp_path, ["Train", "train ", " VAL", "val", "Test\u00a0", "test", "TRAIN"])
    assert store.num_folds == 1
    sets = [{name.strip().lower() for name in names[store.rows(part)]} for part in ("train", "val", "test")]
    assert sets == [{"train"}, {"val"}, {"test"}]


def problem(root: Path, table: pd.DataFrame, **params: Any) -> dict[str, str]:
    write_cohort(root, table)
    with pytest.raises(ConfigError) as raised:
        facts(config(root, **{"split": "part", "credentialed": True, **params}))
    assert "Lodz" not in str(raised.value)
    return {mistake.path.removeprefix("cohort.params."): mistake.problem for mistake in raised.value.mistakes}


@pytest.mark.parametrize(
    ("names", "params", "key", "message"),
    [
        (["training", "validation", "testing"], {}, "split", "60 cells are not train, val or test"),
        (["train_set", "val_set", "test_set"], {}, "split", "60 cells are not train, val or test"),
        (["tr", "va", "te"], {}, "split", "60 cells are not train, val or test"),
        (["Lodz", "A", "dev 1"], {}, "split", "60 cells are not train, val or test"),
        (["Site-1", "Site_1", "B"], {}, "split", "40 cells are spelt in several ways"),
        (["train", "val", "Lodz"], {}, "split", "20 cells are not train, val or test; a column of folds"),
        (["Lodz", "Boston"], {}, "split", "has 1 fold beside the sealed part; one validates and one trains at least"),
        (["Lodz", "test"], {}, "split", "has 1 fold beside the sealed part"),
        (["Lodz"], {}, "split", "has 0 folds beside the sealed part"),
        (["Lodz", "A", ""], {}, "split", "20 cells are missing; every row needs a part or a fold"),
        (["Lodz", "A", "nan"], {}, "split", "20 cells are a word that stands for a missing fold"),
        (["Lodz", "A", "B", "b"], {}, "split", "cells are spelt in several ways, which differ only in case"),
        (["1", "2", "3", "3.0"], {}, "split", "cells are spelt in several ways"),
        (["Lodz", "A", "B"], {"test_fold": "C"}, "test_fold", "no fold is called 'C'"),
        (["Lodz", "A", "test"], {"test_fold": "A"}, "test_fold", "some rows are in the fold test, which is sealed"),
        (["train", "val", "test"], {"test_fold": "A"}, "test_fold", "states what is sealed: test; leave test_fold out"),
        (["train", "val", "test"], {"groups": "site"}, "groups", "states who validates; leave groups out"),
        (["Lodz", "A", "B"], {"groups": "site"}, "groups", "states folds already; leave one of `split` and `groups`"),
        (["train", "test"], {"split": None, "groups": "part"}, "groups", "a part and no group; a column of parts"),
        (["A"], {"split": None, "test_fold": "A"}, "test_fold", "names a fold of the column under `split` or `groups`"),
        (["A"], {"groups": "sites"}, "groups", "no column 'sites'"),
    ],
)
def test_what_is_no_split(tmp_path: Path, names: list[str], params: dict[str, Any], key: str, message: str) -> None:
    assert message in problem(tmp_path, table_of(names, site=["X", "Y", "Z"]), **params)[key]


@pytest.mark.parametrize("key", ["split", "groups"])
def test_a_patient_of_two_sites(tmp_path: Path, key: str) -> None:
    table = table_of(["A", "B", "C"])
    table.loc[0, "part"] = "B"
    message = problem(tmp_path, table, **{"split": None, key: "part"})[key]
    assert message.startswith("2 cells are of patients who are in several folds; give all rows of a patient one fold")
    assert "cases.csv row 2, 3 (the header is row 1)" in message


def test_a_fold_with_one_class_is_refused(tmp_path: Path) -> None:
    table = table_of(["A", "B", "C"])
    table.loc[table["part"] == "B", "pathology"] = "benign"
    write_cohort(tmp_path / "raw", table)
    with pytest.raises(CohortError, match=r"cohort\.fold=2: this cohort can validate on the folds 0 to 1"):
        facts(config(tmp_path / "raw", split="part").model_copy(update={"fold": 2}))
    with pytest.raises(CohortError, match="task malignant has one class in part fold1: benign 20, malignant 0"):
        prepare(config(tmp_path / "raw", split="part"), tmp_path / "cache")
