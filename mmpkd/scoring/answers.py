"""Scores students that answer questions on fixed patients, as `replicates` scores those that classify."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mmpkd.cohort.store import Store
from mmpkd.scoring import replicates, stats
from mmpkd.scoring.replicates import PREFIX, Scored
from mmpkd.vlm.scores.averages import bootstrapped, mean_and_error, patients_that_count
from mmpkd.vlm.scores.goals import own_scores, parts_of
from mmpkd.vlm.scores.yardsticks import GOALS, blind_answers
from mmpkd.vlm.student import VlmStudent
from mmpkd.vlm.training.items import Items


class AnswerScorer:
    """Scores students on the answered questions about fixed samples of a cohort.

    Args:
        store: the cohort.
        rows: the samples. The bootstrap is over their patients.
        goals: the scores, by the names that a sweep gives them, such as `val/answer`.
        train_rows: training samples, whose answers give those of the yardsticks that look at no image.
        batch_size: number of questions that are answered at once.
    """

    def __init__(
        self,
        store: Store,
        rows: NDArray[np.int64],
        goals: Sequence[str],
        train_rows: NDArray[np.int64],
        batch_size: int,
    ):
        self._store, self._rows, self._batch_size = store, rows, batch_size
        self._goals = [goal.removeprefix(PREFIX) for goal in goals]
        questions = store.questions
        self._judged = own_scores(questions)
        self._train, self._table = questions[questions["row"].isin(train_rows)], answered(store, rows)
        self._patient_P = np.unique(store.patient_N[rows])
        self._weight_RP = stats.patient_weights(self._patient_P, replicates.REPLICATES)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def score(self, student: VlmStudent) -> dict[str, Scored]:
        """Returns the goals of a student, which answers each question once. Beside a goal stands that of answers which
        look at no image, such as `<goal>_frequent`. A goal for which no answer counts is NaN.
        """
        vlm = student.vlm.to(self._device)
        items = Items(self._store, self._rows, student.config, vlm.processor)
        most = student.config.max_new_tokens
        texts, _ = items.answers(vlm, items.answered, most, self._batch_size, self._device)
        scored = self._scored(texts)
        unknown = Scored(float("nan"), np.full(len(self._weight_RP), np.nan))
        return {f"{PREFIX}{goal}": scored.get(goal, unknown) for goal in self._goals} | self._blind

    @cached_property
    def _blind(self) -> dict[str, Scored]:
        """The goals of answers that look at no image. They do not depend on the student."""
        scores: dict[str, Scored] = {}
        for name, responses in blind_answers(self._train, self._table).items():
            if (goal := GOALS[name]) in self._goals and goal in (scored := self._scored(responses)):
                scores[f"{PREFIX}{name}"] = scored[goal]
        return scores

    def _scored(self, responses: Sequence[str]) -> dict[str, Scored]:
        """Returns the goals of responses to all answered questions."""
        parts = parts_of(self._table.assign(response=list(responses)), self._judged)
        return {
            goal: Scored(mean_and_error(of_goal)[0], bootstrapped(of_goal, self._patient_P, self._weight_RP))
            for goal, of_goal in parts.items()
        }


def answered(store: Store, rows: NDArray[np.int64]) -> pd.DataFrame:
    """Returns the answered questions about some samples, with their patients, in the order of `Items.answered`."""
    questions = store.questions
    known = questions[questions["row"].isin(rows) & questions["answer"].notna()]
    return known.assign(patient=store.patient_N[known["row"].to_numpy(np.int64)])


def patients_counted(store: Store, rows: NDArray[np.int64]) -> dict[str, int]:
    """Returns for how many patients those of some samples count in each goal, such as `answer`, see
    `patients_that_count`. Goals for which no answer counts are absent.
    """
    table = answered(store, rows)
    parts = parts_of(table.assign(response=table["answer"]), own_scores(store.questions))
    return {goal: patients_that_count(of_goal) for goal, of_goal in parts.items()}
