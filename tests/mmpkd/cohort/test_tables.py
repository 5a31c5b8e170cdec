"""Tables as text, whatever form they lie in; and what is said of those that are not as they should be."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from mmpkd.cohort.formats.tables import describe_rows, read_table, refuse_rows
from mmpkd.types import CohortError

MEND = "is it mine?"
WANTED = ["case_id", "Age"]
CELLS = [["a", "041", "x, y"], ["b", "", 'two\nlines "q"']]  # of case_id, Age and note
TEXT = 'Case ID, age ,note\na,041 ,"x, y"\n b,,"two\nlines ""q"""\n'


def plain(path: Path) -> None:
    path.write_text(TEXT)


def from_windows(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace('"\n', '"\r\n').replace("note\n", "note\r\n").encode() + b"\r\n")


def zipped(path: Path) -> None:
    path.write_bytes(gzip.compress(TEXT.encode()))


def frame() -> pd.DataFrame:
    return pd.DataFrame(CELLS, columns=["Case ID", " age", "note"], index=[7, 7])  # as concat leaves it


FORMS: list[tuple[str, Callable[[Path], None]]] = [
    ("a.csv", plain),
    ("b.csv", from_windows),
    ("a.csv.gz", zipped),
    ("a.parquet", lambda path: frame().to_parquet(path)),
    ("a.xlsx", lambda path: frame().to_excel(path, index=False)),
]


@pytest.mark.parametrize(("name", "write"), FORMS)
def test_every_form_is_the_same_text(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    table = read_table(tmp_path / name, WANTED, MEND)
    assert list(table) == ["case_id", "Age", "note"] and list(table.index) == [0, 1]
    assert table.to_numpy().tolist() == CELLS


def test_other_names_other_order_short_rows_and_no_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",years,CASE_ID\n0,5,a\n\n1\n")
    table = read_table(path, WANTED, MEND, also_named={"Years": "Age"})
    assert table.to_dict("list") == {"Unnamed: 0": ["0", "1"], "Age": ["5", ""], "case_id": ["a", ""]}


def test_numbers_of_a_parquet_file_are_written_as_in_a_csv(tmp_path: Path) -> None:
    table = pd.DataFrame({"case_id": [1, 2], "Age": [2.0, None], "share": [0.1 + 0.2, 1]})
    table.to_parquet(tmp_path / "a.parquet")
    read = read_table(tmp_path / "a.parquet", WANTED, MEND)
    assert read.to_numpy().tolist() == [["1", "2", "0.30000000000000004"], ["2", "", "1.0"]]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("case_id,note\n1,2\n", "no column Age (found of those wanted: case_id)"),
        ("1234,5678\n1,2\n", "no column case_id, Age (found of those wanted: none)"),
        ("case_id,Age,age\n1,2,3\n", "columns 2, 3 have the same name;"),
        ("case_id,Age,note,note\n1,2,3,4\n", "columns 3, 4 have the same name;"),
        ("case_id,Age\n", "no row"),
        ("case_id,Age\n1,2,3\n", "ParserError (Error tokenizing data. C error: Expected 2 fields in line 2, saw 3)"),
        ("", "EmptyDataError (No columns to parse from file)"),
        (b"case_id,Age\n\xe9,2\n", "UnicodeDecodeError ('utf-8' codec can't decode byte 0xe9"),
    ],
)
def test_what_is_not_the_table_wanted(tmp_path: Path, content: str | bytes, told: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CohortError) as raised:
        read_table(path, WANTED, MEND)
    message = str(raised.value)
    assert told in message and message.startswith(str(path)) and message.endswith(f"; {MEND}")
    assert "1234" not in message.replace(str(tmp_path), "")  # a header that is missing: a cell


@pytest.mark.parametrize(("name", "write"), FORMS[2:])
def test_files_that_are_damaged_missing_or_folders(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    path = tmp_path / name
    with pytest.raises(CohortError, match=rf"no {name} in {tmp_path}; is it mine\?"):
        read_table(path, WANTED, MEND)
    write(path)
    for content in (b"", b"1234", path.read_bytes()[:50]):
        path.write_bytes(content)
        with pytest.raises(CohortError, match=rf"{name} is not a (gzipped CSV|Parquet|spreadsheet) file: ") as raised:
            read_table(path, WANTED, MEND)
        assert "1234" not in str(raised.value).replace(str(tmp_path), "")
    path.unlink()
    path.mkdir()
    with pytest.raises(CohortError):
        read_table(path, WANTED, MEND)


def test_of_public_data_the_columns_found_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("case_id;Age\n1;2\n")
    with pytest.raises(CohortError, match=r"no column case_id, Age \(found: case_id;Age\)"):
        read_table(tmp_path / "a.csv", WANTED, MEND, is_public=True)
    (tmp_path / "a.csv").write_text("case_id,note,Age,note\n1,2,3,4\n")
    with pytest.raises(CohortError, match="columns 2, 4 have the same name, note; "):
        read_table(tmp_path / "a.csv", WANTED, MEND, is_public=True)


def test_rows_are_named_and_values_only_where_they_are_given() -> None:
    wrong = [False, True, False, True]
    cells = pd.Series(["a", "b", "c", "b"])
    assert describe_rows(wrong) == "row 3, 5 (the header is row 1)"
    assert describe_rows(pd.Series(wrong, index=[3, 1, 1, 0]), cells) == "row 3, 5 (the header is row 1), got 'b'"
    assert describe_rows([True] * 8) == "row 2, 3, 4, 5, 6 and 3 more (the header is row 1)"
    assert describe_rows(wrong, unit="annotation") == "annotation 2, 4" and describe_rows([False, False]) == ""
    assert len(describe_rows([True], pd.Series(["a report " * 1000]))) < 100
    refuse_rows(Path("a.csv"), [False], "nothing")
    with pytest.raises(
        CohortError, match=r"^a\.csv: a letter, in row 3, 5 \(the header is row 1\), got 'b'; correct it"
    ):
        refuse_rows(Path("a.csv"), wrong, "a letter", cells)
