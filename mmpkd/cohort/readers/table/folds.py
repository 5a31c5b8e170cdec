"""Reads the parts or folds that a user's table states: official parts, folds by name, or a fold for each site."""

from __future__ import annotations

import re
from typing import NamedTuple

import pandas as pd

from mmpkd.cohort.identities import BLANK_WORDS
from mmpkd.cohort.readers.table.mistakes import cell_mistakes
from mmpkd.cohort.readers.table.params import TableParams
from mmpkd.cohort.spelling import DIFFERENCE, group_loose_spellings, group_spellings, normalise_name, strip_padding
from mmpkd.cohort.splits import FOLD, PARTS
from mmpkd.near_names import near
from mmpkd.types import Mistake

TEST = "test"
PART_WORDS = {
    *("train", "training", "trainset", "trainingset", "val", "valid", "validation", "validate", "validating", "valset"),
    *("validationset", "dev", "devset", "development", "tune", "tuning", "test", "testing", "testset", "holdout"),
}  # words for parts, which cannot be names of folds
SHORT_WORDS = {"tr", "trn", "va", "vl", "te", "ts", "tst"}  # may be sites; parts only if all names are words for parts


class GivenSplit(NamedTuple):
    """The parts that a table states. `split` is the part of each row, named as in `Scan.samples`. None means that the
    table states no parts, so that patients are dealt into folds."""

    split: pd.Series | None
    notes: list[str]
    mistakes: list[Mistake]


def read_split(cells: pd.DataFrame, params: TableParams) -> GivenSplit:
    """Returns the split that the columns of the options `split` and `groups` state. Blank cells of `cells` are NaN."""
    if params.split is None:
        if params.groups is not None:
            return _read_folds(cells, params, "groups", params.groups)
        wanted = "names a fold of the column under `split` or `groups`, and neither is there"
        return GivenSplit(None, [], [] if params.test_fold is None else _mistake("test_fold", wanted))
    names = cells[params.split]
    if mistakes := cell_mistakes(params, "split", "missing; every row needs a part or a fold", names, names.isna()):
        return GivenSplit(None, [], mistakes)
    parts = names.map(normalise_name)
    words = set(parts)
    if words != {TEST} and not _part_words_in(words - {TEST}):
        if params.groups is not None:
            remedy = f"column {params.split!r} states folds already; leave one of `split` and `groups` out"
            return GivenSplit(None, [], _mistake("groups", remedy))
        return _read_folds(cells, params, "split", params.split)
    wanted = "not train, val or test; a column of folds holds none of these but test"
    mistakes = cell_mistakes(params, "split", wanted, names, ~parts.isin(PARTS))
    if params.test_fold is not None:
        mistakes += _mistake("test_fold", f"column {params.split!r} states what is sealed: test; leave test_fold out")
    if params.groups is None or mistakes:
        return GivenSplit(parts, [], mistakes)
    if "val" in words or "train" not in words:
        has = "states who validates" if "val" in words else "has no part train to make folds of"
        return GivenSplit(parts, [], _mistake("groups", f"column {params.split!r} {has}; leave groups out"))
    given = _read_folds(cells[(parts == "train").to_numpy()], params, "groups", params.groups, is_sealed=True)
    if given.split is None:
        return given
    parts[(parts == "train").to_numpy()] = given.split.to_numpy()
    return GivenSplit(parts, given.notes, [])


def _part_words_in(names: set[str]) -> set[str]:
    """Returns the names that are words for a part, such as `dev` and `train_set`, and therefore cannot name a fold.

    Args:
        names: normalised names.
    """
    parts = {name for name in names if PART_WORDS & set(re.findall(r"[^\W\d_]+", name)) or name == "hold-out"}
    return names if names and names <= parts | SHORT_WORDS else parts


def _mistake(key: str, problem: str) -> list[Mistake]:
    return [Mistake(f"cohort.params.{key}", problem)]


def _read_folds(cells: pd.DataFrame, params: TableParams, key: str, column: str, is_sealed: bool = False) -> GivenSplit:
    """Returns the folds that a column names. One of the folds is sealed as test, unless `is_sealed` states that other
    rows are sealed already.

    The sealed fold is the one called test. If no fold has this name, it is the fold that the option `test_fold` names,
    or by default the last one in the order of names, where 2 comes before 10.
    """
    names = cells[column]
    texts = names.dropna().map(normalise_name)
    mistakes = cell_mistakes(params, key, "missing; every row needs a fold", names, names.isna())
    is_wrong = texts.isin(BLANK_WORDS)
    mistakes += cell_mistakes(params, key, "a word that stands for a missing fold", names, is_wrong)
    unique = list(names.dropna().unique())
    spelt = [name for group in (*group_spellings(unique), *group_loose_spellings(unique)) for name in group]
    what = f"spelt in several ways, which {DIFFERENCE}, or in punctuation; each spelling would be a fold of its own"
    mistakes += cell_mistakes(params, key, what, names, names.isin(spelt))
    if key == "groups":
        is_wrong = texts.isin(_part_words_in(set(texts)))
        mistakes += cell_mistakes(
            params, key, "a part and no group; a column of parts belongs under `split`", names, is_wrong
        )
    several = names.groupby(cells[params.patient]).transform("nunique") > 1
    what = "of patients who are in several folds; give all rows of a patient one fold, or take the patient out"
    mistakes += cell_mistakes(params, key, what, names, several)
    folds = sorted(unique, key=_sort_key)
    sealed, wrong_test = _sealed_fold(folds, params, is_sealed)
    mistakes += wrong_test
    folds = [name for name in folds if name != sealed]
    if len(folds) < 2 and not mistakes:
        has = f"{len(folds)} fold{'s' * (len(folds) != 1)} beside the sealed part"
        remedy = "name more, or leave the column out, and patients are dealt into five"
        mistakes += _mistake(key, f"column {column!r} has {has}; one validates and one trains at least: {remedy}")
    if mistakes:
        return GivenSplit(None, [], mistakes)
    numbers = {name: f"{FOLD}{number}" for number, name in enumerate(folds)}
    if sealed is not None:
        numbers[sealed] = TEST
    return GivenSplit(names.map(numbers), [_fold_note(folds, sealed, params, column)], [])


def _sealed_fold(folds: list[str], params: TableParams, is_sealed: bool) -> tuple[str | None, list[Mistake]]:
    """Returns the name of the fold that is sealed as test, or None, and the mistakes in the option `test_fold`."""
    if is_sealed or not folds:
        return None, []
    called_test = [name for name in folds if normalise_name(name) == TEST]
    if params.test_fold is None:
        return (called_test or folds)[-1], []
    chosen = [name for name in folds if strip_padding(name) == strip_padding(params.test_fold)]
    if called_test and chosen != called_test:
        return None, _mistake("test_fold", "some rows are in the fold test, which is sealed; leave test_fold out")
    if not chosen:
        known = near(params.test_fold, [] if params.credentialed else folds)
        return None, _mistake("test_fold", f"no fold is called {params.test_fold!r}{known}")
    return chosen[0], []


def _sort_key(name: str) -> list[tuple[int, int, str]]:
    """Returns the sort key of a name. Runs of digits are sorted as numbers, and come before letters."""
    runs = re.findall(r"[0-9]{1,18}|[^0-9]+", strip_padding(name))
    return [(0, int(run), "") if run.isdigit() else (1, 0, run) for run in runs]


def _fold_note(folds: list[str], sealed: str | None, params: TableParams, column: str) -> str:
    """Returns the note that states the number of each fold. The note names the folds only if the data are public."""
    if params.credentialed:
        which = "called test" if sealed is not None and normalise_name(sealed) == TEST else "whose name comes last"
        which = "that test_fold names" if params.test_fold is not None else which
        each = "each of its values validates in turn"
        each += "" if sealed is None else f" but the one {which}, which is sealed as test"
        numbers = f"those that do are folds 0 to {len(folds) - 1}, in the order of their names"
        remedy = "cohort.params.credentialed=false prints which name is which fold, if the data are public"
        return f"{given_in(column)}: {each}; {numbers}. {remedy}"
    listed = ", ".join(f"{number} is {name!r}" for number, name in enumerate(folds))
    seal = "" if sealed is None else f"; sealed as test is {sealed!r}"
    return f"{given_in(column)}: {listed}{seal}"


def given_in(column: str) -> str:
    """Returns the first words of the note which says that a column of the table gives the folds.

    `mmpkd/scoring/grouping.py` searches the notes for this text to learn which column gives the folds.
    """
    return f"folds are given in column {column!r}"
