"""Reads tables as text, and reports mistakes in tables in the same way for all readers.

A table is a CSV file (gzipped if its name ends in .gz), a Parquet file, or the first sheet of an .xlsx file. Rows are
numbered as in a spreadsheet: the header is row 1, and blank lines are not counted. A message about credentialed data
quotes no cell. It quotes no unexpected column name either, because such a name is really a cell if the header is
missing. Where options name the columns, one of these in the file shows that its header is there.
"""

from __future__ import annotations

import reprlib
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from lzma import LZMAError
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from mmpkd.cohort.facts import comparable_name
from mmpkd.cohort.formats.other_formats import recognise_format
from mmpkd.near_names import near
from mmpkd.types import CohortError, ConfigError, Mistake

FIRST_ROW = 2  # number of the first row of data; the header is row 1
NUM_SHOWN = 5  # maximum number of rows, and of values, that a message lists
KINDS = {".gz": "gzipped CSV", ".parquet": "Parquet", ".xlsx": "spreadsheet"}  # by suffix; any other is CSV
DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    SyntaxError,
    ImportError,
    LZMAError,
    zlib.error,
    BadZipFile,
)  # the errors that the libraries raise for a damaged file
HARMLESS = (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError)  # their messages quote no cell


def read_table(
    path: Path,
    wanted: Sequence[str],
    remedy: str,
    is_public: bool = False,
    also_named: Mapping[str, str] | None = None,
    options: Sequence[tuple[str, str]] = (),
) -> pd.DataFrame:
    """Reads a table. All cells are text without surrounding blanks, and missing cells are empty.

    The rows are in the order of the file. The file may have the wanted columns in any order among other columns, which
    keep their names.

    Args:
        wanted: names of the columns that the table must have. In the file they may be written in another case, or with
            blanks instead of underscores.
        remedy: end of the messages, which says what the user can do.
        is_public: whether messages may quote the file's column names.
        also_named: further names that a wanted column may have in the file, as a map from further to wanted names.
        options: see `missing_columns`. They name the wanted columns of a user's table.

    Raises:
        ConfigError: an option names a column that is missing.
        CohortError: the file is missing or damaged, a wanted column is missing or occurs twice, or there is no row.
    """
    try:
        table = _read_cells(path)
    except FileNotFoundError:
        raise CohortError(f"no {path.name} in {path.parent.absolute()}; {remedy}") from None
    except DAMAGED as error:
        text = error.strerror if isinstance(error, OSError) else str(error) if isinstance(error, HARMLESS) else None
        problem = type(error).__name__ + (f" ({text.strip()})" if text else "")
        other_format = recognise_format(path)
        if isinstance(error, pd.errors.ParserError):
            remedy = f"mend this line: a cell that holds a comma stands in double quotes; {remedy}"
        remedy = f"it {other_format}" if other_format else remedy
        raise CohortError(
            f"{path} is not a {KINDS.get(path.suffix.lower(), 'CSV')} file: {problem}; {remedy}"
        ) from None
    name_by_key = {_header_key(name): name for name in wanted}
    name_by_key |= {_header_key(other): name for other, name in (also_named or {}).items()}
    names = [name_by_key.get(_header_key(name), name) for name in table.columns]
    if missing := [name for name in wanted if name not in names]:
        present = ", ".join(names if is_public else [name for name in wanted if name in names]) or "none"
        among = "" if is_public else " of those wanted"
        other_format = recognise_format(path)
        if options and not other_format:
            raise ConfigError(missing_columns(path.name, options, names, is_public))
        remedy = f"it {other_format}" if other_format else remedy
        raise CohortError(f"{path}: no column {', '.join(missing)} (found{among}: {present}); {remedy}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        places = ", ".join(str(number) for number, name in enumerate(names, 1) if name in twice)
        shared = f", {', '.join(twice)}" if is_public else ""
        raise CohortError(f"{path}: columns {places} have the same name{shared}; {remedy}")
    if not len(table):
        raise CohortError(f"{path}: no row; {remedy}")
    return table.set_axis(names, axis=1)


def missing_columns(
    file: str, options: Sequence[tuple[str, str]], headers: Sequence[str], is_public: bool
) -> list[Mistake]:
    """Returns a mistake for each option of a reader that names a column which its table lacks.

    Args:
        file: name of the table.
        options: pairs of an option, as its dotted path, and the column that it names.
        headers: names of the columns of the table.
        is_public: whether messages may always show them. Otherwise they are shown if one of them is wanted: if none is,
            the header may be missing, and the first row holds cells.
    """
    shown = headers if is_public or {column for _, column in options} & set(headers) else []
    return [
        Mistake(option, f"{file} has no column {column!r}{near(column, shown)}")
        for option, column in options
        if column not in headers
    ]


def _read_cells(path: Path) -> pd.DataFrame:
    if path.suffix.lower() == ".parquet":  # pandas reads 2 as 2.0 in a column of whole numbers with gaps
        rows = pd.read_parquet(path).convert_dtypes().astype("string").reset_index(drop=True)
        header = [str(name) for name in rows.columns]
    else:  # the header is read as a row, because pandas would rename a repeated column and shift rows that are too long
        if path.suffix.lower() == ".xlsx":
            rows = pd.read_excel(path, header=None, dtype=str, keep_default_na=False)
        else:
            rows = pd.read_csv(path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        header, rows = list(rows.iloc[0].fillna("")), rows.iloc[1:].reset_index(drop=True)
    stripped: pd.DataFrame = rows.fillna("").apply(lambda column: column.str.strip())
    return stripped.set_axis([name.strip() or f"Unnamed: {index}" for index, name in enumerate(header)], axis=1)


def _header_key(name: str) -> str:
    return comparable_name(name).replace(" ", "_")


def refuse_rows(path: Path, wrong: Any, what: str, cells: pd.Series | None = None, unit: str = "row") -> None:
    """Checks that no row is wrong.

    Args:
        wrong: a bool per row.
        what: the part of the message that says what is wrong.
        cells: see `describe_rows`.
        unit: see `describe_rows`.

    Raises:
        CohortError: a row is wrong. The message lists the first wrong rows by `describe_rows`.
    """
    if rows := describe_rows(wrong, cells, unit):
        raise CohortError(f"{path}: {what}, in {rows}; correct it or take it out")


def describe_rows(wrong: Any, cells: pd.Series | None = None, unit: str = "row") -> str:
    """Lists the first rows that are wrong.

    Args:
        wrong: a bool per row.
        cells: the values that are listed with the rows. They may be passed for public data only. None lists no values.
        unit: name of the things that are counted. Rows are numbered as in the file; other things are counted from 1.

    Returns:
        The list as text. It is empty if no row is wrong.
    """
    positions = np.flatnonzero(np.asarray(wrong, bool))
    if not len(positions):
        return ""
    first, counted = (FIRST_ROW, " (the header is row 1)") if unit == "row" else (1, "")
    shown = ", ".join(str(position + first) for position in positions[:NUM_SHOWN])
    more = f" and {len(positions) - NUM_SHOWN} more" if len(positions) > NUM_SHOWN else ""
    values = [] if cells is None else list(cells.iloc[positions].dropna().unique()[:NUM_SHOWN])
    got = f", got {', '.join(map(reprlib.repr, values))}" if values else ""
    return f"{unit} {shown}{more}{counted}{got}"
