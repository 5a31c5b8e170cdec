"""The tabular teacher: privileged columns into a linear model or a small MLP."""

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
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from mmpkd.cohort.facts import Column, Facts, admitted, check_columns, matching
from mmpkd.cohort.store import Store
from mmpkd.fit import seeded, task_loss
from mmpkd.teachers.teacher import Teacher, TeacherParams
from mmpkd.types import Mistake, Offer, Task, TeacherError, TeacherOutput

MISSING = "missing"


class TabularParams(TeacherParams):
    columns: tuple[str, ...] | None = None  # all descriptors and context by default; `slide_*` for all that fit it
    near_label: tuple[str, ...] = ()  # columns that nearly state the label, each asked for by name
    model: Literal["linear", "mlp"] = "linear"
    l2: Annotated[float, Field(gt=0)] = 1.0  # strength of the penalty
    hidden: Annotated[int, Field(gt=0)] = 32  # width of the MLP


class Tabular(Teacher):
    """Logits from privileged columns; its embedding is the layer that the logits are read from.

    Categories become one-hot and several-valued cells multi-hot, with the vocabulary of the training
    patients and missing as a value of its own; unseen values are ignored. Numbers are imputed by the
    median with a missing-indicator and scaled. `linear` is ridge-penalised logistic regression, one
    per task (scikit-learn), whose embedding is the encoded row; `mlp` is one hidden layer shared by
    all tasks, whose embedding is that layer. Unknown labels are left out of the fit.
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
        return Offer(frozenset({"logits", "embedding"}))

    def fit(self, store: Store, rows: NDArray[np.int64]) -> None:
        """Fit to the samples at `rows`.

        Raises:
            TeacherError: a task has a single class among them.
        """
        frame = self._frame(store, rows)
        self.encoder = ColumnTransformer([(column.name, *_encoding(column)) for column in self.columns])
        encoded_ND = _dense(self.encoder.fit_transform(frame))
        target_NK, known_NK = store.target_NK[rows], store.known_NK[rows]
        for task in self.tasks:
            _require_classes(task, target_NK, known_NK)
        self.model = (_fit_mlp if self.params.model == "mlp" else _fit_linear)(
            encoded_ND, target_NK, known_NK, self.tasks, self.params
        )

    def outputs(self, store: Store, rows: NDArray[np.int64]) -> TeacherOutput:
        """Logits (n, K) and embedding (n, D), float32, of the samples at `rows`."""
        encoded_ND = torch.from_numpy(_dense(self.encoder.transform(self._frame(store, rows))))
        with torch.inference_mode():
            embedding_ND = self.model[:-1](encoded_ND)
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


def _require_classes(task: Task, target_NK: NDArray[np.float32], known_NK: NDArray[np.bool_]) -> None:
    for index, name in zip(range(*task.columns.indices(target_NK.shape[1])), task.logit_names, strict=True):
        known = known_NK[:, index]
        positives = int(target_NK[known, index].sum())
        if positives in (0, int(known.sum())):
            raise TeacherError(
                f"task '{task.name}': {positives} of {int(known.sum())} training samples of a fold are '{name}'; "
                "a teacher needs both kinds in each of its five folds: merge rare classes"
            )


def _fit_linear(
    encoded_ND: NDArray[np.float32],
    target_NK: NDArray[np.float32],
    known_NK: NDArray[np.bool_],
    tasks: Sequence[Task],
    params: TabularParams,
) -> nn.Sequential:
    """Logistic regression per task (one per label of a multi-label task), as one linear layer."""
    layer = nn.Linear(encoded_ND.shape[1], target_NK.shape[1])
    weight, bias = np.zeros(layer.weight.shape), np.zeros(layer.bias.shape)
    for task in tasks:
        columns = range(*task.columns.indices(target_NK.shape[1]))
        groups = [columns] if task.kind == "multiclass" else [[column] for column in columns]
        for group in map(list, groups):
            known = known_NK[:, group[0]]
            target = target_NK[known][:, group]
            label = target.argmax(axis=1) if len(group) > 1 else target[:, 0]
            with threadpool_limits(1, "blas"):  # the same numbers on any number of cores
                model = LogisticRegression(C=1 / params.l2, max_iter=10_000).fit(encoded_ND[known], label)
            if len(group) == 2:  # scikit-learn gives two classes one logit: the second against the first
                weight[group[1]], bias[group[1]] = model.coef_[0], model.intercept_[0]
            else:
                weight[group], bias[group] = model.coef_, model.intercept_
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return nn.Sequential(nn.Identity(), layer)


def _fit_mlp(
    encoded_ND: NDArray[np.float32],
    target_NK: NDArray[np.float32],
    known_NK: NDArray[np.bool_],
    tasks: Sequence[Task],
    params: TabularParams,
) -> nn.Sequential:
    """One hidden layer, full-batch Adam; the penalty is l2 / N, as scikit-learn scales it.

    On one thread: the answers are cached for every thread count, and so small a model gains from none.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
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
    torch.set_num_threads(threads)
    return model
