"""One name in two spellings: which pairs are one name, and what is said of patients, values, labels and folds."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mmpkd.cohort import facts, reader_for
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.spelling import group_loose_spellings, group_spellings, names_in_both
from mmpkd.config import CohortConfig
from mmpkd.training.stand_in import stand_in
from mmpkd.types import CohortError, ConfigError
from tests.mmpkd.cohort.derm7pt_trees import made_up
from tests.mmpkd.cohort.derm7pt_trees import write_tree as write_derm7pt
from tests.mmpkd.cohort.radpath_trees import write_tree as write_radpath
from tests.mmpkd.cohort_fixtures import cases, config, write_cohort

SAME = [
    ("00001", "1"),
    ("1", "1.0"),
    ("P01", "P1"),
    ("site1_07", "site1_7"),
    ("Ann", "ann"),
    ("P\u00a01", "P 1"),  # a non-breaking space
    ("P  1", "P 1"),
    ("\uff30\uff11", "P1"),  # full-width
    ("P1\u200b", "P1"),  # a character without a width
    ("P 1", "P01"),
    ("P\u20131", "P-1"),  # an en dash
    ("Jose\u0301", "Jos\u00e9"),
]


@pytest.mark.parametrize("pair", SAME)
def test_spellings_of_one_name(pair: tuple[str, str]) -> None:
    assert group_spellings(["other", *pair]) == [tuple(sorted(pair))]


@pytest.mark.parametrize(
    "names",
    [("1", "2"), ("10", "1"), ("P1", "P10"), ("1.05", "1.5"), ("a00b1", "a0b01"), ("1-11", "11-1"), ("1e5", "100000")],
)
def test_names_that_are_different(names: tuple[str, str]) -> None:
    assert group_spellings(names) == group_loose_spellings(names) == []
    assert names_in_both(names[:1], names[1:]) == names_in_both(names[1:], names[:1]) == set()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        *SAME,
        ("\ufeffp-0017", "P-17"),  # a byte order mark, as before the first cell of a file
        ("P\u200d1", "P1"),  # a joiner within
        ("\u3000P1\u3000", "P1"),  # blanks of East Asian width around
        ("P\u20071", "P1"),  # a blank of a digit's width within
        ("P\t1\n", "P1"),
        ("\uff10\uff11\uff0e\uff10", "1"),  # full-width 01.0
        ("\u0661\u0662", "12"),  # Arabic-Indic digits
        ("\u2212" + "1", "-1"),  # a minus sign
        ("0012.00", "12"),
        ("12.", "12"),
        ("+7", "7"),
        ("000", "0"),
        ("WEISS 3", "Wei\u00df 03"),
        ("\u212bsa", "\u00e5sa"),  # the sign of the angstrom
    ],
)
def test_a_name_of_another_cohort_in_another_spelling(name: str, other: str) -> None:
    assert names_in_both([name, "Q2"], ["q3", other]) == {name}
    assert names_in_both([other], [name]) == {other}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("1.50", "1.5"),
        ("1 11", "11 1"),  # number and site
        ("-1", "1"),
        ("100", "1"),
        ("0.1", "1"),
        ("P1a", "P1b"),
        ("1.0.1", "1.1"),  # places of a hierarchy
        ("2020-01-02", "2020-10-2"),
        ("0x10", "x10"),
        ("", "0"),
        ("a0001b", "a001b1"),
    ],
)
def test_a_name_of_another_cohort_that_only_looks_alike(name: str, other: str) -> None:
    assert not names_in_both([name], [other]) and not names_in_both([other], [name])


def test_random_names_do_not_meet_by_chance() -> None:
    """Names of fixed length, as programs draw them. Among longer ones of letters in both cases, case joins none."""
    rng = np.random.default_rng(0)
    for alphabet, length in (("0123456789abcdef", 8), (string.ascii_letters + string.digits, 8)):
        letters = rng.choice(list(alphabet), (8000, length))
        names = sorted(set(map("".join, letters)))
        assert group_spellings(names) == []
        assert not names_in_both(names[::2], names[1::2])


def test_names_that_differ_in_punctuation() -> None:
    assert group_spellings(["P-01", "P_01", "P01", "P02"]) == []
    assert group_loose_spellings(["P-01", "P_01", "P01", "P02"]) == [("P-01", "P01", "P_01")]


def with_patients(root: Path, names: dict[int, str]) -> Path:
    """The cohort of `write_cohort`, some rows of which are of patients of these names."""
    table = cases()
    table["patient"] = [f"Q{100 + index // 2}" for index in range(60)]
    for row, name in names.items():
        table.loc[row, "patient"] = name
    write_cohort(root, table)
    return root


@pytest.mark.parametrize(("first", "second"), SAME)
def test_a_patient_in_two_spellings_is_refused(tmp_path: Path, first: str, second: str) -> None:
    """Wherever a cohort is read: at planning, and when it is prepared."""
    root = with_patients(tmp_path, {0: first, 1: second})
    for read in (facts, stand_in, lambda asked: prepare(asked, tmp_path / "cache")):
        with pytest.raises(CohortError) as raised:
            read(config(root))
        assert "1 patient is spelt in several ways, which differ only in case" in str(raised.value)
        assert "row 2, 3, got " in str(raised.value) and "Write each patient in one way" in str(raised.value)
    with pytest.raises(CohortError) as raised:
        facts(config(root, credentialed=True))
    assert "row 2, 3. Write" in str(raised.value) and ", got " not in str(raised.value)


def test_patients_that_a_spreadsheet_cut_off_or_left_without_a_name(tmp_path: Path) -> None:
    with pytest.raises(
        CohortError, match=r"1 patient is written in scientific notation.*row 2, 3, got '1\.23457E\+09'"
    ):
        facts(config(with_patients(tmp_path / "a", {0: "1.23457E+09", 1: "1.23457E+09"})))
    with pytest.raises(CohortError, match=r"1 patient is called by a word that stands for a missing name: row 2, 5"):
        facts(config(with_patients(tmp_path / "b", {0: "nan", 3: "nan"})))


def test_patients_that_differ_in_punctuation_are_warned_about(tmp_path: Path) -> None:
    root = with_patients(tmp_path / "raw", {0: "P-01", 1: "P-01", 2: "P_01", 3: "P_01"})
    store = prepare(config(root, credentialed=True), tmp_path / "cache")
    (note,) = [note for note in store.manifest["notes"] if "patient" in note]
    assert note.startswith("warning: 1 patient is perhaps spelt in several ways") and "row 2, 3, 4, 5;" in note
    assert "P-01" not in note


def test_other_readers_hold_their_patients_to_the_same(tmp_path: Path) -> None:
    rows = made_up()
    rows[1] |= {"case_num": f"0{rows[0]['case_num']}"}
    write_derm7pt(tmp_path, rows)
    with pytest.raises(CohortError, match=r"cohort derm7pt: 1 patient is spelt in several ways"):
        facts(CohortConfig(reader="derm7pt", root=tmp_path))


def test_an_image_by_two_paths_is_warned_about(tmp_path: Path) -> None:
    write_cohort(tmp_path / "raw")
    for row, other in ((3, 2), (5, 2)):
        linked = tmp_path / "raw" / "images" / f"case{row}.png"
        linked.unlink()
        linked.symlink_to(f"case{other}.png")
    asked = config(tmp_path / "raw", credentialed=True)
    assert reader_for(asked).scan().notes == (
        "warning: 2 rows lead to the same file as a row before them, by another path: row 5, 7; "
        "one row, one image is wanted",
    )
    assert stand_in(asked).notes == reader_for(asked).scan().notes  # which a plan tells


def test_features_of_slides_that_are_spelt_otherwise(tmp_path: Path) -> None:
    root = write_radpath(tmp_path / "radpath")
    table = pd.read_csv(root / "slide_features.csv", dtype=str)
    table.iloc[2, 0] = str(table.iloc[2, 0]).lower()
    table.to_csv(root / "slide_features.csv", index=False)
    with pytest.raises(CohortError, match=r"that the label files spell otherwise: they differ only.* in row 4 "):
        reader_for(CohortConfig(reader="radpath", root=root)).scan()


def test_values_in_several_spellings_are_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = cases()
    table["shape"] = np.resize(["oval", "Oval", "round", "NaN"], 60)
    table["signs"] = np.resize(["halo|shadow", "Halo", "N/A"], 60)
    write_cohort(tmp_path / "raw", table)
    prepare(config(tmp_path / "raw", missing=["n/a"]), tmp_path / "cache")
    message = " ".join(capsys.readouterr().err.split())
    assert "column 'shape': 1 value is spelt in several ways, which differ only in case" in message
    assert "such as 'Oval' and 'oval'; each spelling counts as a value of its own" in message
    assert "column 'shape': 'NaN' counts as a value of its own; if it stands for a missing value" in message
    assert "column 'signs': 1 value is spelt in several ways" in message and "'Halo' and 'halo'" in message
    assert "column 'signs': 20 cells differ from a word under `missing` in case, blanks or padding only" in message
    prepare(config(tmp_path / "raw", missing=["n/a"]), tmp_path / "cache")
    assert "warning: column 'shape': 1 value is spelt in several ways" in capsys.readouterr().err, "and of the store"
    prepare(config(tmp_path / "raw", credentialed=True), tmp_path / "cache")
    assert "'oval'" not in capsys.readouterr().err


def label_problem(root: Path, cells: list[str], **task: Any) -> str:
    table = cases()
    table["pathology"] = np.resize(np.array(cells, object), 60)
    write_cohort(root, table)
    with pytest.raises(ConfigError) as raised:
        facts(config(root, tasks={"t": {"column": "pathology", **task}}, credentialed=True))
    return str(raised.value)


@pytest.mark.parametrize("cell", ["Benign", "be\u00adnign", "BENIGN"])
def test_a_class_in_another_spelling_is_refused_as_one(tmp_path: Path, cell: str) -> None:
    message = label_problem(tmp_path, ["benign", "malignant", cell], kind="binary", labels=["benign", "malignant"])
    assert "20 cells are spelt otherwise than a label (benign, malignant): they differ only in case" in message
    assert "row 4, 7" in message


def test_numbers_are_their_labels_however_they_are_written(tmp_path: Path) -> None:
    table = cases()
    table["grade"] = np.resize(["0.0", "1", "1.00", "00", ""], 60)
    table["edema"] = np.resize(["1.00", "TRUE", "0", "false", ""], 60)
    write_cohort(tmp_path / "raw", table)
    tasks = {
        "grade": {"kind": "binary", "column": "grade", "labels": [0, 1]},
        "findings": {"kind": "multilabel", "labels": ["edema"]},
    }
    store = prepare(config(tmp_path / "raw", tasks=tasks), tmp_path / "cache")
    assert store.target_NK[:5].tolist() == [[0, 1], [1, 1], [1, 0], [0, 0], [0, 0]]
    assert store.known_NK[:5].tolist() == [[True, True]] * 4 + [[False, False]]


@pytest.mark.parametrize("labels", [["benign", "Benign"], [1, "01"], ["a", "a "]])
def test_labels_that_are_one_label(labels: list[Any], tmp_path: Path) -> None:
    assert "labels are spelt in several ways" in label_problem(tmp_path, ["a"], kind="binary", labels=labels)


def test_a_column_in_two_spellings(tmp_path: Path) -> None:
    table = cases().assign(**{"Shape\u00a0": "x"})
    write_cohort(tmp_path, table)
    with pytest.raises(ConfigError, match="columns 'shape' and 'Shape' differ in case or spaces only"):
        reader_for(config(tmp_path)).scan()


@pytest.mark.parametrize(
    ("first", "second"),
    [("123-456", "123456"), ("1,234", "1234"), ("sub-01", "01"), ("P1", "1"), ("Müller", "Muller"), ("1 234", "1234")],
)
def test_patients_that_may_be_one(first: str, second: str) -> None:
    assert group_loose_spellings([first, second, "other"], loosely=True) == [tuple(sorted((first, second)))]


def test_patients_that_are_two() -> None:
    """Numbers within two sites, and initials, unless the plain number is there as well; the sign of a fold."""
    for names in (["1-12", "11-2"], ["A1", "B1"], ["P1", "P2", "3"], ["-1", "1"]):
        assert group_loose_spellings(names, loosely=names[0] != "-1") == []
    assert group_spellings(["P\N{ARABIC-INDIC DIGIT ONE}", "P1"]) == [("P1", "P\N{ARABIC-INDIC DIGIT ONE}")]


def test_patients_of_whom_a_letter_was_lost(tmp_path: Path) -> None:
    table = cases()
    table.loc[:3, "patient"] = "M\N{REPLACEMENT CHARACTER}ller"
    write_cohort(tmp_path / "raw", table)
    with pytest.raises(CohortError, match="1 patient is spelt with a character that stands for a lost one"):
        prepare(config(tmp_path / "raw"), tmp_path / "cache")


def test_quantities_that_are_read_as_categories_are_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = cases()
    table["age"], table["shape"] = range(60), np.resize(["1", "2", "3"], 60)  # a quantity, and a grade
    write_cohort(tmp_path / "raw", table)
    prepare(config(tmp_path / "raw", columns={"age": {"role": "context"}, "shape": {"role": "descriptor"}}), tmp_path)
    message = " ".join(capsys.readouterr().err.split())
    assert "column 'age': it has 60 different values, all of them numbers, and each is read as a category" in message
    assert "column 'shape'" not in message


def test_a_number_for_missing_that_is_padded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = cases()
    table["age"] = np.resize(["50", "61", "-999.0"], 60)
    write_cohort(tmp_path / "raw", table)
    columns = {"age": {"role": "context", "kind": "numeric"}}
    prepare(config(tmp_path / "raw", missing=[-999], columns=columns), tmp_path / "cache")
    assert "column 'age': 20 cells differ from a word under `missing`" in capsys.readouterr().err
