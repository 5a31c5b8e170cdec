"""The tabular teacher: a linear model, a small MLP or boosted trees that predict labels from privileged columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from mmpkd.cohort.chosen_columns import check_columns
from mmpkd.cohort.facts import Facts
from mmpkd.cohort.store import Store
from mmpkd.fit import seeded, task_loss
from mmpkd.teachers.columns import ColumnsParams, Encoder, chosen_columns
from mmpkd.teachers.teacher import Inputs, Teacher
from mmpkd.teachers.training import classification_problems, fit_linear, one_thread, require_classes
from mmpkd.types import Mistake, Offer, Task, TeacherOutput


class TabularParams(ColumnsParams):
    model: Literal["linear", "mlp", "boosting"] = "linear"
    l2: Annotated[float, Field(gt=0)] = 1.0  # strength of the penalty
    hidden: Annotated[int, Field(gt=0)] = 32  # width of the MLP


class Tabular(Teacher):
    """Predicts logits from privileged columns. Its embedding is the layer from which the logits are computed.

    The columns may also be features that another network computed from a modality such as a slide or a volume: this is
    the way to teach from such modalities.

    `Encoder` encodes a row, with the vocabulary and scales of the training patients. `linear` is ridge-penalised
    logistic regression, one per task (scikit-learn), whose embedding is the encoded row. `mlp` has one hidden layer,
    shared by all tasks; this layer is the embedding. `boosting` is scikit-learn's histogram gradient boosting, one per
    task, which has no embedding. Unknown labels are left out of the fit.
    """

    Params = TabularParams
    VERSION = 1
    LEAKAGE_REMEDY = (
        "Give the columns that state it the role near_label or forbidden, or name the others in its `columns`"
    )

    def __init__(self, params: TabularParams, facts: Facts) -> None:
        self.params = params
        self.tasks = facts.tasks
        self.encoder = Encoder([facts.columns[name] for name in chosen_columns(params, facts)])

    @staticmethod
    def check(params: TabularParams, facts: Facts) -> list[Mistake]:
        """Returns what is wrong with the requested columns, under paths relative to `params`."""
        mistakes = check_columns(params.columns or (), params.near_label, facts)
        if not mistakes and not chosen_columns(params, facts):
            mistakes = [Mistake("columns", "the cohort has no descriptor or context column: name other columns")]
        return mistakes

    @staticmethod
    def offers(params: TabularParams, facts: Facts) -> Offer:
        return Offer(frozenset({"logits"} if params.model == "boosting" else {"logits", "embedding"}))

    @staticmethod
    def inputs(params: TabularParams, facts: Facts) -> Inputs:
        return Inputs(columns=tuple(chosen_columns(params, facts)))

    @staticmethod
    def outline(params: TabularParams, facts: Facts) -> str:
        hidden = f" of {params.hidden} hidden units" if params.model == "mlp" else ""
        return f"{params.model}{hidden} on {len(chosen_columns(params, facts))} columns"

    @one_thread()
    def fit(self, store: Store, rows: NDArray[np.int64]) -> None:
        """Fits to the samples at `rows`.

        Raises:
            TeacherError: a task has a single class among these samples.
        """
        encoded_ND = self.encoder.fit(store, rows)
        target_NK, known_NK = store.target_NK[rows], store.known_NK[rows]
        require_classes(self.tasks, target_NK, known_NK)
        training_data = encoded_ND, target_NK, known_NK, self.tasks
        if self.params.model == "boosting":
            self.boosters = _fit_boosting(*training_data, self.params)
        elif self.params.model == "mlp":
            self.model = _fit_mlp(*training_data, self.params)
        else:
            self.model = nn.Sequential(nn.Identity(), fit_linear(*training_data, self.params.l2))

    @one_thread()
    def outputs(self, store: Store, rows: NDArray[np.int64]) -> TeacherOutput:
        """Returns logits (n, K) and, except for boosted trees, embedding (n, D), float32, of the samples at `rows`."""
        encoded_ND = self.encoder(store, rows)
        if self.params.model == "boosting":
            logits_NK = torch.zeros(len(rows), store.target_NK.shape[1])
            for group, booster in self.boosters:
                logits = torch.from_numpy(booster.decision_function(encoded_ND)).float()
                # For two classes scikit-learn returns one logit: the second class against the first.
                logits_NK[:, group if logits.ndim > 1 else group[-1]] = logits
            return TeacherOutput(logits_BK=logits_NK)
        with torch.no_grad():
            embedding_ND = self.model[:-1](torch.from_numpy(encoded_ND))
            return TeacherOutput(logits_BK=self.model[-1](embedding_ND), embedding_BD=embedding_ND)


def _fit_boosting(
    encoded_ND: NDArray[np.float32],
    target_NK: NDArray[np.float32],
    known_NK: NDArray[np.bool_],
    tasks: Sequence[Task],
    params: TabularParams,
) -> list[tuple[list[int], Any]]:
    """Returns the logit columns and the booster of each problem. No early stopping: its split ignores patients."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    options = {"l2_regularization": params.l2, "early_stopping": False, "random_state": params.seed % 2**32}
    return [
        (group, HistGradientBoostingClassifier(**options).fit(encoded_ND[known_N], label))
        for group, known_N, label in classification_problems(tasks, target_NK, known_NK)
    ]


def _fit_mlp(
    encoded_ND: NDArray[np.float32],
    target_NK: NDArray[np.float32],
    known_NK: NDArray[np.bool_],
    tasks: Sequence[Task],
    params: TabularParams,
) -> nn.Sequential:
    """Returns a network with one hidden layer, fitted by full-batch Adam. The penalty is l2 / N, as in scikit-learn."""
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
