"""Which privileged columns a teacher reads, and how they are encoded as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmpkd.cohort.facts import Column, Facts, admitted_columns, matching_names
from mmpkd.cohort.store import Store
from mmpkd.teachers.teacher import TeacherParams

MISSING = "missing"


class ColumnsParams(TeacherParams):
    columns: tuple[str, ...] | None = None  # all descriptor and context columns by default; `slide_*` is a pattern
    near_label: tuple[str, ...] = ()  # columns that nearly state the label; each must be named

    @property
    def near_label_inputs(self) -> tuple[str, ...]:
        return self.near_label


def chosen_columns(params: ColumnsParams, facts: Facts) -> list[str]:
    """Returns the columns that a teacher reads, each once.

    First come the columns that `columns` names or matches by a pattern; by default, these are all descriptor and
    context columns. The named near-label columns follow.
    """
    names = admitted_columns(facts)
    if params.columns is not None:
        names = [name for pattern in params.columns for name in matching_names(pattern, names)]
    return [*dict.fromkeys(names), *params.near_label]


class Encoder:
    """Encodes the rows of a table as numbers, with the vocabulary and scales of the samples it was fitted to.

    Categories become one-hot and cells with several values multi-hot; a missing cell is a value of its own, and unseen
    values are ignored. Numbers are imputed by the median with a missing-indicator, and scaled.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = columns

    def fit(self, store: Store, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Learns the encoding from the samples at `rows`, and returns their encoded rows (n, V)."""
        from sklearn.compose import ColumnTransformer

        self.transformer = ColumnTransformer([(column.name, *_encoding(column)) for column in self.columns])
        return _dense(self.transformer.fit_transform(self._frame(store, rows)))

    def __call__(self, store: Store, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the encoded rows (n, V) of the samples at `rows`."""
        return _dense(self.transformer.transform(self._frame(store, rows)))

    @property
    def column_V(self) -> NDArray[np.int64]:
        """Returns the index of the column that each of the V numbers encodes."""
        slices = [self.transformer.output_indices_[column.name] for column in self.columns]
        return np.concatenate([np.full(part.stop - part.start, index) for index, part in enumerate(slices)])

    def _frame(self, store: Store, rows: NDArray[np.int64]) -> pd.DataFrame:
        """Returns the columns at `rows`. A missing value becomes what the encoders expect: NaN in a number, else a
        word."""
        frame: pd.DataFrame = store.privileged([column.name for column in self.columns]).iloc[rows].copy()
        for column in self.columns:
            if column.kind == "numeric":
                frame[column.name] = frame[column.name].astype(float)
            else:
                frame[column.name] = frame[column.name].astype(object).where(frame[column.name].notna(), MISSING)
        return frame


def _encoding(column: Column) -> tuple[Any, str | list[str]]:
    """Returns the scikit-learn transformer of a column, and the column selector that it needs (1-D for text)."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    if column.kind == "numeric":
        imputer = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
        return make_pipeline(imputer, StandardScaler()), [column.name]
    if column.kind == "multivalued":
        return CountVectorizer(analyzer=partial(str.split, sep=column.separator), binary=True), column.name
    return OneHotEncoder(handle_unknown="ignore"), [column.name]


def _dense(encoded: Any) -> NDArray[np.float32]:
    dense = encoded.toarray() if hasattr(encoded, "toarray") else encoded
    return np.ascontiguousarray(dense, dtype=np.float32)
