"""Scores students on fixed patients, with the same bootstrap replicates of the patients for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mmpkd.cohort.store import Store
from mmpkd.config import EvaluationConfig
from mmpkd.scoring import baselines, classify, localize, stats
from mmpkd.scoring.patients import by_patient
from mmpkd.scoring.stats import Floats
from mmpkd.scoring.validation import Evaluator, Labels
from mmpkd.student import Student

REPLICATES = 2000
PREFIX = "val/"  # of the name of a goal, which here is a score on another part


class Scored(NamedTuple):
    """A score on fixed patients, and under each of R replicates of a bootstrap over these patients."""

    value: float
    replicate_R: Floats


class PartScorer:
    """Scores students on fixed samples of a cohort.

    Args:
        store: the cohort.
        rows: the samples.
        config: how localisation is scored.
        goals: the scores, by the names that a sweep gives them, such as `val/auroc`.
        train_rows: training samples; their mean ROI is a baseline.
        labels: labels of the samples in the layout of the students' logits, if their tasks are not those of the store.
        train_store: the cohort of `train_rows`, if it is another one with the same ROI labels.
    """

    def __init__(
        self,
        store: Store,
        rows: NDArray[np.int64],
        config: EvaluationConfig,
        goals: Sequence[str],
        train_rows: NDArray[np.int64] | None = None,
        labels: Labels | None = None,
        train_store: Store | None = None,
    ):
        self._store, self._rows, self._config, self._goals = store, rows, config, goals
        self._train_rows, self._labels, self._train_store = train_rows, labels, train_store
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._evaluators: dict[tuple[int, int], Evaluator] = {}
        self._weight_RN = stats.patient_weights(store.patient_N[rows], REPLICATES)

    def score(self, student: Student) -> dict[str, Scored]:
        """Returns the goals of a student. Beside a localisation score stand those of maps that ignore the image, as
        `<goal>_chance` and so on.
        """
        student = student.to(self._device).eval()
        evaluator = self._evaluator(student.grid)
        logits_NK, map_NRhw = evaluator.predict(student)
        scored: dict[str, Scored] = {}
        for goal in self._goals:
            name = goal.removeprefix(PREFIX)
            if name == "auroc":
                scored[goal] = self._auroc(
                    evaluator, logits_NK, evaluator.target_NK, evaluator.known_NK, self._weight_RN
                )
            elif name == "auroc_patient":
                patients = by_patient(
                    logits_NK,
                    evaluator.target_NK,
                    evaluator.known_NK,
                    evaluator.tasks,
                    self._store.patient_N[self._rows],
                )
                weight_RP = self._weight_RN[:, patients.first_P]
                scored[goal] = self._auroc(
                    evaluator, patients.logits_PK, patients.target_PK, patients.known_PK, weight_RP
                )
            elif evaluator.regions is not None:
                values = {name: localize.score(map_NRhw, evaluator.regions)[name]} | _image_blind(evaluator, name)
                scored |= {
                    f"{PREFIX}{key}": _over_labels(value_NR, self._weight_RN) for key, value_NR in values.items()
                }
        return scored

    def _evaluator(self, grid: tuple[int, int]) -> Evaluator:
        if grid not in self._evaluators:
            self._evaluators[grid] = Evaluator(
                self._store,
                self._rows,
                self._config,
                grid,
                self._device,
                self._train_rows,
                self._labels,
                REPLICATES,
                goals=self._goals,
                train_store=self._train_store,
            )
        return self._evaluators[grid]

    @staticmethod
    def _auroc(
        evaluator: Evaluator, logits: Floats, target: NDArray[np.float32], known: NDArray[np.bool_], weights: Floats
    ) -> Scored:
        """Returns the AUROC over all tasks, as a sweep averages it."""
        odds, tasks = classify.log_odds(logits, evaluator.tasks), evaluator.tasks
        auroc_1K = stats.weighted_auroc(odds, target, known, np.ones((1, len(odds))))
        defined_K = np.isfinite(auroc_1K[0])
        replicate_RK = stats.weighted_auroc(odds, target, known, weights)
        value = float(classify.over_tasks(auroc_1K, defined_K, tasks)[0])
        return Scored(value, classify.over_tasks(replicate_RK, defined_K, tasks))


def _image_blind(evaluator: Evaluator, name: str) -> dict[str, Floats]:
    """Returns a localisation score of the maps that ignore the image, by the ending of its name."""
    assert evaluator.regions is not None
    maps = baselines.baseline_maps(evaluator.regions, evaluator.prior_Rhw)
    measured = {each: localize.measure(map_Phw, evaluator.regions) for each, map_Phw in maps.items()}
    scores = baselines.baseline_scores(measured, evaluator.regions)
    return {key: value_NR for key, value_NR in scores.items() if key.rpartition("_")[0] == name}


def _over_labels(value_NR: Floats, weight_RN: Floats) -> Scored:
    """Returns the mean over labels of the means over images with an ROI of the label."""
    defined_R = np.isfinite(value_NR).any(axis=0)
    ones_1N = np.ones((1, len(value_NR)))
    value = float(stats.macro(stats.weighted_mean(value_NR[:, defined_R], ones_1N))[0])
    return Scored(value, stats.macro(stats.weighted_mean(value_NR[:, defined_R], weight_RN)))
