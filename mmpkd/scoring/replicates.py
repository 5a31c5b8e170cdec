"""Scores students on fixed patients, with the same bootstrap replicates of the patients for all of them: students that
are tested on the same part, or the students of a cross-validation, each of which is tested on its own part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mmpkd.cohort.store import Store
from mmpkd.config import EvaluationConfig
from mmpkd.export.student_file import Exported
from mmpkd.scoring import baselines, classify, localize, stats
from mmpkd.scoring.patients import by_patient
from mmpkd.scoring.stats import Floats
from mmpkd.scoring.validation import Evaluator, Labels
from mmpkd.student import Student

REPLICATES = 2000
PREFIX = "val/"  # of the name of a goal, which here is a score on another part
OF_CLASSES = ("auroc", "auroc_patient")  # goals that need no map


class Scored(NamedTuple):
    """A score on fixed patients, and under each of R replicates of a bootstrap over these patients."""

    value: float
    replicate_R: Floats


class Predicted(NamedTuple):
    """What scores need of a student's outputs for some samples.

    Attributes:
        value_NR: localisation scores of each sample and ROI label, NaN without an ROI, by name, such as `pointing`.
            Beside them stand those of maps that ignore the image, such as `pointing_chance`.
    """

    logits_NK: Floats
    value_NR: Mapping[str, Floats]


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
        self._train_rows, self._train_store = train_rows, train_store
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._evaluators: dict[tuple[int, int], Evaluator] = {}
        self.labels = labels or Labels(store.facts.tasks, store.target_NK[rows], store.known_NK[rows])
        self.patient_N = store.patient_N[rows]
        self._weight_RN = stats.patient_weights(self.patient_N, REPLICATES)

    def score(self, exported: Exported) -> dict[str, Scored]:
        """Returns the goals of a student. Beside a localisation score stand those of maps that ignore the image, as
        `<goal>_chance` and so on.
        """
        predicted, one_N = self.predict(exported.student), np.zeros(len(self._rows), np.int64)
        return score_predictions(predicted, self.labels, self.patient_N, self._weight_RN, one_N, self._goals)

    def predict(self, student: Student) -> Predicted:
        """Returns what the goals need of a student's outputs."""
        student = student.to(self._device).eval()
        evaluator = self._evaluator(student.grid)
        logits_NK, map_NRhw = evaluator.predict(student)
        values: dict[str, Floats] = {}
        for goal in self._goals:
            name = goal.removeprefix(PREFIX)
            if name not in OF_CLASSES and evaluator.regions is not None:
                own = {name: localize.score(map_NRhw, evaluator.regions)[name]}
                values |= own | _image_blind(evaluator, name)
        return Predicted(logits_NK, values)

    def _evaluator(self, grid: tuple[int, int]) -> Evaluator:
        if grid not in self._evaluators:
            self._evaluators[grid] = Evaluator(
                self._store,
                self._rows,
                self._config,
                grid,
                self._device,
                self._train_rows,
                self.labels,
                REPLICATES,
                goals=self._goals,
                train_store=self._train_store,
            )
        return self._evaluators[grid]


class FoldScorer:
    """Scores the students of a cross-validation on all patients, each of whom one student has predicted.

    Args:
        parts: the scorers of the held-out parts. They are of one cohort, whose patients have the same codes in each.
        goals: the scores, by the names that a sweep gives them.
    """

    def __init__(self, parts: Sequence[PartScorer], goals: Sequence[str]):
        targets, known = (np.concatenate([part.labels[field] for part in parts]) for field in (1, 2))
        self._labels, self._goals = Labels(parts[0].labels.tasks, targets, known), goals
        self._patient_N = np.concatenate([part.patient_N for part in parts])
        self._fold_N = np.repeat(np.arange(len(parts)), [len(part.patient_N) for part in parts])
        self._weight_RN = stats.patient_weights(self._patient_N, REPLICATES)

    def score(self, predicted: Sequence[Predicted]) -> dict[str, Scored]:
        """Returns the goals, as `PartScorer` does. An AUROC counts pairs of samples of one fold.

        Args:
            predicted: what the student of each part predicts for it.
        """
        shared = [name for name in predicted[0].value_NR if all(name in each.value_NR for each in predicted)]
        pooled = Predicted(
            np.concatenate([each.logits_NK for each in predicted]),
            {name: np.concatenate([each.value_NR[name] for each in predicted]) for name in shared},
        )
        return score_predictions(pooled, self._labels, self._patient_N, self._weight_RN, self._fold_N, self._goals)


def score_predictions(
    predicted: Predicted,
    labels: Labels,
    patient_N: NDArray[np.int64],
    weight_RN: Floats,
    fold_N: NDArray[np.int64],
    goals: Sequence[str],
) -> dict[str, Scored]:
    """Returns the goals of a student, and the scores of all maps in `predicted`, by the names that a sweep gives them.

    Args:
        predicted: what a student, or the student of each fold, predicts for N samples.
        weight_RN: weight of each sample in each replicate (`stats.patient_weights`).
        fold_N: the fold of each sample. An AUROC counts pairs of samples of one fold.
        goals: see `PartScorer`.
    """
    scored: dict[str, Scored] = {}
    for goal in goals:
        name = goal.removeprefix(PREFIX)
        if name == "auroc":
            scored[goal] = _auroc(predicted.logits_NK, labels, weight_RN, fold_N)
        elif name == "auroc_patient":
            patients = by_patient(predicted.logits_NK, labels.target_NK, labels.known_NK, labels.tasks, patient_N)
            of_patients = Labels(labels.tasks, patients.target_PK, patients.known_PK)
            first_P = patients.first_P
            scored[goal] = _auroc(patients.logits_PK, of_patients, weight_RN[:, first_P], fold_N[first_P])
    localisation = {f"{PREFIX}{key}": _over_labels(value, weight_RN) for key, value in predicted.value_NR.items()}
    return scored | localisation


def _auroc(logits: Floats, labels: Labels, weights: Floats, folds: NDArray[np.int64]) -> Scored:
    """Returns the AUROC over all tasks, as a sweep averages it."""
    odds = classify.log_odds(logits, labels.tasks)
    auroc_1K = stats.auroc_within(odds, labels.target_NK, labels.known_NK, np.ones((1, len(odds))), folds)
    defined_K = np.isfinite(auroc_1K[0])
    replicate_RK = stats.auroc_within(odds, labels.target_NK, labels.known_NK, weights, folds)
    value = float(classify.over_tasks(auroc_1K, defined_K, labels.tasks)[0])
    return Scored(value, classify.over_tasks(replicate_RK, defined_K, labels.tasks))


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
