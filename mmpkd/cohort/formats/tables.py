"""Tables on disk as text, and how they are refused: in one way, whichever reader asks.

CSV (zipped where the name ends in .gz), Parquet, or the first sheet of an .xlsx. Rows are numbered as a spreadsheet
numbers them, blank lines left out: the header is row 1. Of credentialed data no message holds a cell, nor the name of
a column that was not asked for: where the header is missing, that is a cell.
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
from mmpkd.types import CohortError

FIRST_ROW = 2  # of the data
NUM_SHOWN = 5  # rows, and values, that a message names
KINDS = {".gz": "gzipped CSV", ".parquet": "Parquet", ".xlsx": "spreadsheet"}  # by suffix; all else is CSV
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
)  # what the libraries raise
HARMLESS = (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError)  # their words hold no cell


def read_table(
    path: Path, wanted: Sequence[str], mend: str, is_public: bool = False, also_named: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Stripped text, empty where missing, in the order of the file.

    The columns wanted may be spelt in another case, with blanks for underscores, or as `also_named` says (other name:
    name wanted), and stand in any order among others; those keep their names.

    Raises:
        CohortError: the file is missing or damaged, a column is lacking or stands twice, there is no row; ends with
            `mend`.
    """
    try:
        table = _read_cells(path)
    except FileNotFoundError:
        raise CohortError(f"no {path.name} in {path.parent.absolute()}; {mend}") from None
    except DAMAGED as error:
        words = error.strerror if isinstance(error, OSError) else str(error) if isinstance(error, HARMLESS) else None
        why = type(error).__name__ + (f" ({words.strip()})" if words else "")
        doubt = recognise_format(path)
        mend = f"it {doubt}" if doubt else mend
        raise CohortError(f"{path} is not a {KINDS.get(path.suffix.lower(), 'CSV')} file: {why}; {mend}") from None
    spelt = {_header_key(name): name for name in wanted}
    spelt |= {_header_key(other): name for other, name in (also_named or {}).items()}
    names = [spelt.get(_header_key(name), name) for name in table.columns]
    if lacking := [name for name in wanted if name not in names]:
        found = ", ".join(names if is_public else [name for name in wanted if name in names]) or "none"
        among = "" if is_public else " of those wanted"
        doubt = recognise_format(path)
        mend = f"it {doubt}" if doubt else mend
        raise CohortError(f"{path}: no column {', '.join(lacking)} (found{among}: {found}); {mend}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        places = ", ".join(str(at) for at, name in enumerate(names, 1) if name in twice)
        called = f", {', '.join(twice)}" if is_public else ""
        raise CohortError(f"{path}: columns {places} have the same name{called}; {mend}")
    if not len(table):
        raise CohortError(f"{path}: no row; {mend}")
    return table.set_axis(names, axis=1)


def _read_cells(path: Path) -> pd.DataFrame:
    if path.suffix.lower() == ".parquet":  # 2.0 in a column of whole numbers and gaps is read as 2
        rows = pd.read_parquet(path).convert_dtypes().astype("string").reset_index(drop=True)
        header = [str(name) for name in rows.columns]
    else:  # the header is read as a row: pandas would rename a column that stands twice, and shift long rows
        if path.suffix.lower() == ".xlsx":
            rows = pd.read_excel(path, header=None, dtype=str, keep_default_na=False)
        else:
            rows = pd.read_csv(path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        header, rows = list(rows.iloc[0].fillna("")), rows.iloc[1:].reset_index(drop=True)
    stripped: pd.DataFrame = rows.fillna("").apply(lambda column: column.str.strip())
    return stripped.set_axis([name.strip() or f"Unnamed: {at}" for at, name in enumerate(header)], axis=1)


def _header_key(name: str) -> str:
    return comparable_name(name).replace(" ", "_")


def refuse_rows(path: Path, wrong: Any, what: str, cells: pd.Series | None = None, unit: str = "row") -> None:
    """
    Raises:
        CohortError: some of `wrong`, a bool per row, is True; see `describe_rows`.
    """
    if told := describe_rows(wrong, cells, unit):
        raise CohortError(f"{path}: {what}, in {told}; mend it or take it out")


def describe_rows(wrong: Any, cells: pd.Series | None = None, unit: str = "row") -> str:
    """The first rows of `wrong`, a bool per row, and what `cells` hold there, which only public data may tell.

    Empty if none is wrong. Another `unit` than rows is counted from 1.
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
