"""Finds patients and values that are spelt in several ways; a patient with two spellings would count as two patients.

A cohort in which a patient is spelt in several ways (`spelling.group_spellings`) is refused. Warnings list patients'
names that may or may not be the same patient, such as `P-01` and `P_01`, and values of privileged columns that are
spelt in several ways.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mmpkd.cohort.facts import ADMITTED, Column, Scan
from mmpkd.cohort.formats.tables import NUM_SHOWN
from mmpkd.cohort.spelling import DIFFERENCE, group_loose_spellings, group_spellings, is_scientific, normalise_name
from mmpkd.types import CohortError

BLANK_WORDS = frozenset({"nan", "na", "n/a", "#n/a", "<na>", "null"})  # programs write these for a blank cell
NEARLY = "punctuation, accents or a word before a number"
UNNAMED = BLANK_WORDS | {"none", "nil", "unknown", "missing", "-", "--", "?", "."}


def refuse_patients(scan: Scan, reader: str, is_public: bool) -> None:
    """Checks that each patient's name has one spelling, was not truncated by a spreadsheet, has no replacement
    character in place of a lost one, and is not a word for a missing name such as `nan` that several samples share.

    Raises:
        CohortError: a check failed. The message states the number of patients and their rows, and also the spellings
            if the data are public.
    """
    patients = scan.samples["patient"].astype(str)
    counts = patients.value_counts()
    groups = group_spellings(counts.index)
    cut_off = [name for name in counts.index if is_scientific(name)]
    unnamed = [name for name in counts.index if normalise_name(name) in UNNAMED and counts[name] > 1]
    if groups:
        problem = f"{count_phrase(groups, 'patient')} spelt in several ways"
        problem += f", which {DIFFERENCE} and would count as several people"
        refused = [name for group in groups for name in group]
        remedy = (
            "Write each patient in one way in the source; different patients need names that differ in more than that"
        )
    elif cut_off:
        problem = f"{count_phrase(cut_off, 'patient')} written in scientific notation"
        problem += ", of which a spreadsheet cut off digits"
        refused = cut_off
        remedy = "Format the column of patients as text where it was written, and export it again"
    elif garbled := [name for name in counts.index if "\N{REPLACEMENT CHARACTER}" in name]:
        problem = f"{count_phrase(garbled, 'patient')} spelt with a character that stands for a lost one"
        refused = garbled
        remedy = "Export the table again as UTF-8 where it was written: several patients may have become one"
    elif unnamed:
        problem = f"{count_phrase(unnamed, 'patient')} called by a word that stands for a missing name"
        refused = unnamed
        remedy = "Say in the source whose these samples are, or take them out"
    else:
        return
    rows = _describe_rows(scan, patients.isin(refused), patients, is_public)
    raise CohortError(f"cohort {reader}: {problem}: {rows}. {remedy}.")


def warnings(scan: Scan, is_public: bool) -> list[str]:
    """Returns warnings about patients, and about values of privileged columns, that may be spelt in several ways."""
    sentences = []
    patients = scan.samples["patient"].astype(str)
    if groups := group_loose_spellings(patients.unique(), loosely=True):
        rows = _describe_rows(scan, patients.isin([name for group in groups for name in group]), patients, is_public)
        what = f"{count_phrase(groups, 'patient')} perhaps spelt in several ways, which differ only in {NEARLY}: {rows}"
        sentences.append(f"warning: {what}; if they are the same people, write each in one way in the source")
    for column in scan.columns.values():
        if column.role in (*ADMITTED, "near_label") and column.kind != "numeric" and column.name in scan.privileged:
            sentences += _column_warnings(column, scan.privileged[column.name], is_public)
    return sentences


def _column_warnings(column: Column, cells: pd.Series, is_public: bool) -> list[str]:
    names = {str(cell) for cell in cells.dropna().unique()}
    if column.separator is not None:
        names = {value for cell in names for value in cell.split(column.separator)}
    sentences = []
    if groups := group_spellings(names):
        example = f", such as {' and '.join(map(reprlib.repr, groups[0]))}" if is_public else ""
        what = f"{count_phrase(groups, 'value')} spelt in several ways, which {DIFFERENCE}{example}"
        sentences.append(f"warning: column {column.name!r}: {what}; each spelling counts as a value of its own")
    if blanks := sorted(name for name in names if normalise_name(name) in BLANK_WORDS):
        what = f"{', '.join(map(repr, blanks))} counts as a value of its own"
        remedy = "if it stands for a missing value, blank it in the source (the `table` reader has `missing` for that)"
        sentences.append(f"warning: column {column.name!r}: {what}; {remedy}")
    return sentences


def count_phrase(things: Sequence[Any], noun: str) -> str:
    """Returns the beginning of a sentence that counts `things`, such as '1 patient is' or '3 patients are'."""
    return f"1 {noun} is" if len(things) == 1 else f"{len(things)} {noun}s are"


def _describe_rows(scan: Scan, is_refused: pd.Series, names: pd.Series, is_public: bool) -> str:
    """Lists the first refused samples by their rows in the source table, or by their positions, counted from 1, if the
    scan states no rows."""
    positions = np.flatnonzero(is_refused.to_numpy(bool))
    has_rows = "row" in scan.samples
    numbers = scan.samples["row"].iloc[positions] if has_rows else positions + 1
    shown = ", ".join(str(number) for number in numbers[:NUM_SHOWN])
    more = f" and {len(positions) - NUM_SHOWN} more" if len(positions) > NUM_SHOWN else ""
    spellings = ", ".join(map(reprlib.repr, names.iloc[positions].unique()[:NUM_SHOWN]))
    return f"{'row' if has_rows else 'sample'} {shown}{more}{f', got {spellings}' if is_public else ''}"
