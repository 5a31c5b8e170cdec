"""Privileged columns as numbers, for the teachers that read a table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mmpkd.cohort.facts import Column, Facts, admitted_columns, matching_names
from mmpkd.cohort.store import Store
from mmpkd.teachers.teacher import TeacherParams

MISSING = "missing"


class ColumnsParams(TeacherParams):
    columns: tuple[str, ...] | None = None  # all descriptors and context by default; `slide_*` for all that fit it
    near_label: tuple[str, ...] = ()  # columns that nearly state the label, each asked for by name


def chosen_columns(params: ColumnsParams, facts: Facts) -> list[str]:
    """The columns that a teacher reads, each once: those named or fitted, or every descriptor and context column."""
    usable = admitted_columns(facts)
    named = (
        [one for name in params.columns for one in matching_names(name, usable)]
        if params.columns is not None
        else usable
    )
    return [*dict.fromkeys(named), *params.near_label]


class Encoder:
    """Rows of a table as numbers, as the samples it was fitted to have them.

    Categories become one-hot and several-valued cells multi-hot, with the vocabulary of those samples
    and missing as a value of its own; unseen values are ignored. Numbers are imputed by the median with a
    missing-indicator and scaled.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = columns

    def fit(self, store: Store, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Learns the encoding from the samples at `rows`, and gives them in it: (n, V)."""
        self.transformer = ColumnTransformer([(column.name, *_encoding(column)) for column in self.columns])
        return _dense(self.transformer.fit_transform(self._frame(store, rows)))

    def __call__(self, store: Store, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The samples at `rows`, (n, V)."""
        return _dense(self.transformer.transform(self._frame(store, rows)))

    @property
    def column_V(self) -> NDArray[np.int64]:
        """Which column each of the V numbers is of."""
        places = [self.transformer.output_indices_[column.name] for column in self.columns]
        return np.concatenate([np.full(one.stop - one.start, index) for index, one in enumerate(places)])

    def _frame(self, store: Store, rows: NDArray[np.int64]) -> pd.DataFrame:
        """The columns with missing values as the encoders want them: NaN in numbers, a word elsewhere."""
        frame: pd.DataFrame = store.privileged([column.name for column in self.columns]).iloc[rows].copy()
        for column in self.columns:
            if column.kind == "numeric":
                frame[column.name] = frame[column.name].astype(float)
            else:
                frame[column.name] = frame[column.name].astype(object).where(frame[column.name].notna(), MISSING)
        return frame


def _encoding(column: Column) -> tuple[Any, str | list[str]]:
    """The scikit-learn transformer of a column, and the selector it wants (text as 1-D)."""
    if column.kind == "numeric":
        imputer = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
        return make_pipeline(imputer, StandardScaler()), [column.name]
    if column.kind == "multivalued":
        return CountVectorizer(analyzer=partial(str.split, sep=column.separator), binary=True), column.name
    return OneHotEncoder(handle_unknown="ignore"), [column.name]


def _dense(encoded: Any) -> NDArray[np.float32]:
    dense = encoded.toarray() if hasattr(encoded, "toarray") else encoded
    return np.ascontiguousarray(dense, dtype=np.float32)
