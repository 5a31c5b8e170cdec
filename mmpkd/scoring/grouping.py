"""Which columns tell groups of patients or images apart, and who is in each group."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmpkd.cohort.facts import ADMITTED, Facts
from mmpkd.cohort.readers.table.folds import given_in
from mmpkd.cohort.store import Store
from mmpkd.near_names import near
from mmpkd.types import ConfigError, Mistake

FEWEST = 10  # patients of a group that is told apart
MOST_GROUPS = 12
OLDEST = 200
QUARTERS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")
AGE_BANDS = ((0, 40), (40, 60), (60, 80), (80, OLDEST))  # years, the lower end included
GROUPING = ("sex", "gender", "age", "density", "view", "ap")  # words of column names
AGE_UNITS = {"days": 365.25, "weeks": 365.25 / 7, "months": 12}  # in a year, by a word of a column's name


def groupings(store: Store, wanted: Sequence[str] | None) -> list[str]:
    """The columns that tell groups of patients or images apart: those wanted, or those whose names say so.

    Columns that nearly state the label, and the column that names the folds, have to be wanted by name.

    Raises:
        ConfigError: a column that the store does not hold.
    """
    columns = store.facts.columns.values()
    if wanted is None:
        return [one.name for one in columns if one.role in ADMITTED and set(GROUPING) & set(_words(one.name))]
    held = [one.name for one in columns if one.role in (*ADMITTED, "near_label")]
    held += [name for name in (fold_column(store),) if name]
    mistakes = [Mistake("groups", _not_held(name, held, store.facts)) for name in wanted if name not in held]
    if mistakes:
        raise ConfigError(mistakes)
    return list(dict.fromkeys(wanted))


def _not_held(name: str, held: Sequence[str], facts: Facts) -> str:
    mend = "a column for groups alone has the role near_label, which no teacher reads unless it names the column"
    if name in facts.columns:
        role = facts.columns[name].role
        if role == "forbidden":
            return f"column {name!r} is forbidden: it states the label, and is not stored"
        return f"column {name!r} only names things (role {role}), and is not stored"
    if name in facts.unlisted:
        return f"column {name!r} has no role in this cohort, so it is not stored; {mend}"
    return f"the cohort has no column {name!r} to group by{near(name, held)}"


def fold_column(store: Store) -> str | None:
    """The column of a table that names a fold for each row; None where there is none."""
    return next((name for name in map(store.manifest["params"].get, ("groups", "split")) if _notes(store, name)), None)


def fold_notes(store: Store, columns: Sequence[str]) -> list[str]:
    """What was noted, when the cohort was prepared, of the folds that one of these columns names."""
    return [note for name in columns for note in _notes(store, name)]


def _notes(store: Store, name: str | None) -> list[str]:
    return [note for note in store.manifest["notes"] if name and note.startswith(given_in(name))]


def values_of(store: Store, columns: Sequence[str]) -> pd.DataFrame:
    """The columns of `groupings` in the order of the store; of folds the number alone, for names are not stored."""
    folds = fold_column(store)
    values = store.privileged([name for name in columns if name != folds])
    return values.assign(**{name: store.split_N for name in columns if name == folds})[list(columns)]


def alone(name: str) -> str:
    """A sentence on a column of which `by_group` has no row."""
    if "age" in _words(name):
        return f"groups by {name}: too few patients per age band to tell apart (fewer than {FEWEST} in all but one)"
    return f"groups by {name}: fewer than two groups of {FEWEST} patients or more, so there is nothing to compare"


def _words(name: str) -> list[str]:
    """Of `breast_density`, `AgeInYears` and `ViewPosition`: breast, density; age, in, years; view, position."""
    return [word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)]


def groups(column: pd.Series, patient_N: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Name and members of each group of a column: its values, bands of age in years, or quartiles of other numbers.

    Groups of fewer than `FEWEST` patients are taken together, so that no table tells of a single patient.
    """
    name = str(column.name)
    if pd.api.types.is_numeric_dtype(column) and "age" in _words(name):
        years = column / next((many for unit, many in AGE_UNITS.items() if unit in _words(name)), 1)
        named = pd.Series("unknown", column.index)
        named[(years < 0) | (years >= OLDEST)] = f"not 0 to {OLDEST - 1} years"
        for low, high in _bands(years, patient_N):
            until = "years or more" if high == OLDEST else f"to {high - 1} years"
            named[(years >= low) & (years < high)] = f"{low} {until}"
    elif pd.api.types.is_numeric_dtype(column) and column.nunique() > MOST_GROUPS:
        rank = column.rank(method="average")
        quarter = np.searchsorted(rank.quantile([0.25, 0.5, 0.75]), rank)  # of a value that many share one, the lowest
        named = pd.Series(np.array(QUARTERS)[np.minimum(quarter, 3)], column.index).where(column.notna(), "unknown")
    else:
        named = column.astype("string").fillna("unknown").astype(str)
    members = {str(one): (named == one).to_numpy() for one in sorted(named.unique())}
    size = {one: len(np.unique(patient_N[mask])) for one, mask in members.items()}
    few = [one for one in members if size[one] < FEWEST]
    if few and len(few) < len(members) and sum(size[one] for one in few) < FEWEST:  # else they were all but the shown
        few.append(min((one for one in members if one not in few), key=size.__getitem__))
    yield from ((one, mask) for one, mask in members.items() if one not in few)
    rest = np.any([members[one] for one in few], axis=0) if few else np.zeros(len(column), bool)
    if few and len(np.unique(patient_N[rest])) >= FEWEST:
        yield "(all other)", rest


def _bands(years: pd.Series, patient_N: NDArray[np.int64]) -> list[tuple[int, int]]:
    """`AGE_BANDS`, neighbours taken together until each holds `FEWEST` patients."""

    def is_small(low: int, high: int) -> bool:
        return len(np.unique(patient_N[((years >= low) & (years < high)).to_numpy()])) < FEWEST

    bands: list[tuple[int, int]] = []
    for low, high in AGE_BANDS:
        bands.append((bands.pop()[0], high) if bands and is_small(*bands[-1]) else (low, high))
    if len(bands) > 1 and is_small(*bands[-1]):
        last = bands.pop()
        bands.append((bands.pop()[0], last[1]))
    return bands
