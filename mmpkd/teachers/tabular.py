"""The tabular teacher: privileged columns into a linear model, a small MLP or boosted trees."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import Field
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor, nn

from mmpkd.cohort.facts import Column, Facts, admitted, check_columns, matching
from mmpkd.cohort.store import Store
from mmpkd.fit import seeded, task_loss
from mmpkd.teachers.fitting import fit_linear, one_thread, questions, require_classes
from mmpkd.teachers.teacher import Teacher, TeacherParams
from mmpkd.types import Mistake, Offer, Task, TeacherOutput

MISSING = "missing"


class TabularParams(TeacherParams):
    columns: tuple[str, ...] | None = None  # all descriptors and context by default; `slide_*` for all that fit it
    near_label: tuple[str, ...] = ()  # columns that nearly state the label, each asked for by name
    model: Literal["linear", "mlp", "boosting"] = "linear"
    l2: Annotated[float, Field(gt=0)] = 1.0  # strength of the penalty
    hidden: Annotated[int, Field(gt=0)] = 32  # width of the MLP


class Tabular(Teacher):
    """Logits from privileged columns; its embedding is the layer that the logits are read from.

    The columns may as well be features that another network computed from a modality, such as a slide
    or a volume: that is how they are taught from.

    Categories become one-hot and several-valued cells multi-hot, with the vocabulary of the training
    patients and missing as a value of its own; unseen values are ignored. Numbers are imputed by the
    median with a missing-indicator and scaled. `linear` is ridge-penalised logistic regression, one
    per task (scikit-learn), whose embedding is the encoded row; `mlp` is one hidden layer shared by
    all tasks, whose embedding is that layer; `boosting` is scikit-learn's histogram gradient boosting,
    one per task, which has no embedding. Unknown labels are left out of the fit.
    """

    Params = TabularParams
    VERSION = 1  # raise it when the numbers change: it is part of the cache's address
    sees_view = False

    def __init__(self, params: TabularParams, facts: Facts) -> None:
        self.params = params
        self.tasks = facts.tasks
        self.columns = [facts.columns[name] for name in chosen_columns(params, facts)]

    @staticmethod
    def check(params: TabularParams, facts: Facts) -> list[Mistake]:
        """What is wrong with the columns asked for, under paths relative to `params`."""
        mistakes = check_columns(params.columns or (), params.near_label, facts)
        if not mistakes and not chosen_columns(params, facts):
            mistakes = [Mistake("columns", "the cohort offers no descriptor or context column: name some")]
        return mistakes

    @staticmethod
    def offers(params: TabularParams, facts: Facts) -> Offer:
        return Offer(frozenset({"logits"} if params.model == "boosting" else {"logits", "embedding"}))

    @one_thread()
    def fit(self, store: Store, rows: NDArray[np.int64]) -> None:
        """Fit to the samples at `rows`.

        Raises:
            TeacherError: a task has a single class among them.
        """
        frame = self._frame(store, rows)
        self.encoder = ColumnTransformer([(column.name, *_encoding(column)) for column in self.columns])
        encoded_ND = _dense(self.encoder.fit_transform(frame))
        target_NK, known_NK = store.target_NK[rows], store.known_NK[rows]
        require_classes(self.tasks, target_NK, known_NK)
        learnt = encoded_ND, target_NK, known_NK, self.tasks
        if self.params.model == "boosting":
            self.boosters = _fit_boosting(*learnt, self.params)
        elif self.params.model == "mlp":
            self.model = _fit_mlp(*learnt, self.params)
        else:
            self.model = nn.Sequential(nn.Identity(), fit_linear(*learnt, self.params.l2))

    @one_thread()
    def outputs(self, store: Store, rows: NDArray[np.int64]) -> TeacherOutput:
        """Logits (n, K) and, but of boosted trees, embedding (n, D), float32, of the samples at `rows`."""
        encoded_ND = _dense(self.encoder.transform(self._frame(store, rows)))
        if self.params.model == "boosting":
            logits_NK = torch.zeros(len(rows), store.target_NK.shape[1])
            for group, booster in self.boosters:
                said = torch.from_numpy(booster.decision_function(encoded_ND)).float()
                # Of two classes scikit-learn says one logit: the second against the first.
                logits_NK[:, group if said.ndim > 1 else group[-1]] = said
            return TeacherOutput(logits_BK=logits_NK)
        with torch.no_grad():
            embedding_ND = self.model[:-1](torch.from_numpy(encoded_ND))
            return TeacherOutput(logits_BK=self.model[-1](embedding_ND), embedding_BD=embedding_ND)

    def _frame(self, store: Store, rows: NDArray[np.int64]) -> pd.DataFrame:
        """The columns with missing values as the encoders want them: NaN in numbers, a word elsewhere."""
        frame: pd.DataFrame = store.privileged([column.name for column in self.columns]).iloc[rows].copy()
        for column in self.columns:
            if column.kind == "numeric":
                frame[column.name] = frame[column.name].astype(float)
            else:
                frame[column.name] = frame[column.name].astype(object).where(frame[column.name].notna(), MISSING)
        return frame


def chosen_columns(params: TabularParams, facts: Facts) -> list[str]:
    """The columns that a teacher reads, each once: those named or fitted, or every descriptor and context column."""
    usable = admitted(facts)
    named = [one for name in params.columns for one in matching(name, usable)] if params.columns is not None else usable
    return [*dict.fromkeys(named), *params.near_label]


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


def _fit_boosting(
    encoded_ND: NDArray[np.float32],
    target_NK: NDArray[np.float32],
    known_NK: NDArray[np.bool_],
    tasks: Sequence[Task],
    params: TabularParams,
) -> list[tuple[list[int], HistGradientBoostingClassifier]]:
    """A booster for each question, beside its columns. It stops early by no means: its own split knows no patients."""
    options = {"l2_regularization": params.l2, "early_stopping": False, "random_state": params.seed % 2**32}
    return [
        (group, HistGradientBoostingClassifier(**options).fit(encoded_ND[known_N], label))
        for group, known_N, label in questions(tasks, target_NK, known_NK)
    ]


def _fit_mlp(
    encoded_ND: NDArray[np.float32],
    target_NK: NDArray[np.float32],
    known_NK: NDArray[np.bool_],
    tasks: Sequence[Task],
    params: TabularParams,
) -> nn.Sequential:
    """One hidden layer, full-batch Adam; the penalty is l2 / N, as scikit-learn scales it."""
    encoded, target, known = map(torch.from_numpy, (encoded_ND, target_NK, known_NK))
    with seeded(params.seed, "tabular-mlp"):
        hidden = nn.Sequential(nn.Linear(encoded.shape[1], params.hidden), nn.GELU())
        model = nn.Sequential(*hidden, nn.Linear(params.hidden, target.shape[1]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        penalty: Tensor = sum((p.square().sum() for p in model.parameters() if p.ndim > 1), torch.zeros(()))
        loss = task_loss(model(encoded), target, known, tasks) + params.l2 / (2 * len(encoded)) * penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model
