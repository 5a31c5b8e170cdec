"""Groups of patients or images: the columns that define them, and the members of each group."""

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

MIN_PATIENTS = 10  # smallest number of patients in a group with a row of its own
MAX_GROUPS = 12  # a numeric column with more values is grouped by quartiles
MAX_AGE = 200  # years
QUARTERS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")
AGE_BANDS = ((0, 40), (40, 60), (60, 80), (80, MAX_AGE))  # years, the lower end included
GROUP_WORDS = ("sex", "gender", "age", "density", "view", "ap")  # in the names of columns that define groups
AGE_UNITS = {"days": 365.25, "weeks": 365.25 / 7, "months": 12}  # units per year, by a word of a column's name


def groupings(store: Store, wanted: Sequence[str] | None) -> list[str]:
    """Returns the columns that define groups of patients or images: the wanted ones or, by default, those with a group
    word in their name.

    Columns that nearly state the label, and the column of folds, are used only if they are named.

    Raises:
        ConfigError: the store does not hold a wanted column.
    """
    columns = store.facts.columns.values()
    if wanted is None:
        admitted = [column.name for column in columns if column.role in ADMITTED]
        return [name for name in admitted if set(GROUP_WORDS) & set(_words(name))]
    held = [column.name for column in columns if column.role in (*ADMITTED, "near_label")]
    held += [name for name in (fold_column(store),) if name]
    mistakes = [Mistake("groups", _not_held(name, held, store.facts)) for name in wanted if name not in held]
    if mistakes:
        raise ConfigError(mistakes)
    return list(dict.fromkeys(wanted))


def _not_held(name: str, held: Sequence[str], facts: Facts) -> str:
    advice = "give it the role near_label to group by it: a teacher reads such a column only if it is named"
    if name in facts.columns:
        role = facts.columns[name].role
        if role == "forbidden":
            return f"column {name!r} is forbidden because it states the label, and is not stored"
        return f"column {name!r} is an identifier (role {role}), and is not stored"
    if name in facts.unlisted:
        return f"column {name!r} has no role in this cohort, so it is not stored; {advice}"
    return f"the cohort has no column {name!r} to group by{near(name, held)}"


def fold_column(store: Store) -> str | None:
    """Returns the column of a table that names a fold for each row, or None."""
    return next((name for name in map(store.manifest["params"].get, ("groups", "split")) if _notes(store, name)), None)


def fold_notes(store: Store, columns: Sequence[str]) -> list[str]:
    """Returns the notes about given folds in these columns. The preparation of the cohort has written them."""
    return [note for name in columns for note in _notes(store, name)]


def _notes(store: Store, name: str | None) -> list[str]:
    return [note for note in store.manifest["notes"] if name and note.startswith(given_in(name))]


def values_of(store: Store, columns: Sequence[str]) -> pd.DataFrame:
    """Returns the columns of `groupings` in the order of the store. Folds are numbers: the store lacks their names."""
    folds = fold_column(store)
    values = store.privileged([name for name in columns if name != folds])
    return values.assign(**{name: store.split_N for name in columns if name == folds})[list(columns)]


def reason_not_compared(name: str) -> str:
    """Returns a sentence that explains why `by_group` has no row for a column."""
    if "age" in _words(name):
        return f"groups by {name}: too few patients per age band to compare (fewer than {MIN_PATIENTS} in all but one)"
    return f"groups by {name}: fewer than two groups of {MIN_PATIENTS} patients or more, so there is nothing to compare"


def _words(name: str) -> list[str]:
    """Splits `breast_density`, `AgeInYears` and `ViewPosition` into breast, density; age, in, years; view, position."""
    return [word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)]


def groups(column: pd.Series, patient_N: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yields name and members of each group of a column: its values, age bands in years, or quartiles of other numbers.

    Groups of fewer than `MIN_PATIENTS` patients are merged, so that no table reveals a single patient.
    """
    name = str(column.name)
    if pd.api.types.is_numeric_dtype(column) and "age" in _words(name):
        years = column / next((per_year for unit, per_year in AGE_UNITS.items() if unit in _words(name)), 1)
        group_N = pd.Series("unknown", column.index)
        group_N[(years < 0) | (years >= MAX_AGE)] = f"not 0 to {MAX_AGE - 1} years"
        for low, high in _bands(years, patient_N):
            until = "years or more" if high == MAX_AGE else f"to {high - 1} years"
            group_N[(years >= low) & (years < high)] = f"{low} {until}"
    elif pd.api.types.is_numeric_dtype(column) and column.nunique() > MAX_GROUPS:
        rank = column.rank(method="average")  # so that equal values are in one quarter, the lowest that they reach
        quarter = np.searchsorted(rank.quantile([0.25, 0.5, 0.75]), rank)
        group_N = pd.Series(np.array(QUARTERS)[np.minimum(quarter, 3)], column.index).where(column.notna(), "unknown")
    else:
        group_N = column.astype("string").fillna("unknown").astype(str)
    members = {str(group): (group_N == group).to_numpy() for group in sorted(group_N.unique())}
    size = {group: len(np.unique(patient_N[mask])) for group, mask in members.items()}
    small = [group for group in members if size[group] < MIN_PATIENTS]
    if small and len(small) < len(members) and sum(size[group] for group in small) < MIN_PATIENTS:
        # Without a further group, the few patients could be inferred as those that the table does not show.
        small.append(min((group for group in members if group not in small), key=size.__getitem__))
    yield from ((group, mask) for group, mask in members.items() if group not in small)
    merged = np.any([members[group] for group in small], axis=0) if small else np.zeros(len(column), bool)
    if small and len(np.unique(patient_N[merged])) >= MIN_PATIENTS:
        yield "(all other)", merged


def _bands(years: pd.Series, patient_N: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Returns `AGE_BANDS`, with neighbours merged until each holds `MIN_PATIENTS` patients."""

    def is_small(low: int, high: int) -> bool:
        return len(np.unique(patient_N[((years >= low) & (years < high)).to_numpy()])) < MIN_PATIENTS

    bands: list[tuple[int, int]] = []
    for low, high in AGE_BANDS:
        bands.append((bands.pop()[0], high) if bands and is_small(*bands[-1]) else (low, high))
    if len(bands) > 1 and is_small(*bands[-1]):
        last = bands.pop()
        bands.append((bands.pop()[0], last[1]))
    return bands
