"""How many patients of a part decide each score, and whether they suffice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmpkd.cohort.store import Store
from mmpkd.scoring.answers import patients_counted
from mmpkd.scoring.patients import by_patient, rarer_class
from mmpkd.scoring.validation import Labels
from sweep.space.search_config import are_of_answers, is_of_places
from sweep.verdict.power import MIN_RARER, too_few_patients

OF_PATIENTS: Final = "val/auroc_patient"


@dataclass(frozen=True)
class Patients:
    """How many patients of the tested part decide a score.

    Attributes:
        all: all patients.
        rarer: those of the rarer class of the label that has fewest; they decide an AUROC. 0 for questions.
        with_roi: those with an ROI, who decide a localisation score; 0 without ROIs. For questions: for how many
            patients those with boxes count (`averages.patients_that_count`).
        answered: for how many patients those with answered questions count, who decide the score of answers.
    """

    all: int
    rarer: int
    with_roi: int
    answered: int = 0

    def deciding(self, goal: str) -> int:
        if is_of_places(goal):
            return self.with_roi
        return self.answered if are_of_answers([goal]) else self.rarer

    def too_few(self, goal: str) -> str:
        """Returns why nothing can be told of a score; empty if the patients suffice. With few patients, resamplings of
        them hardly differ, so that the error is too small.
        """
        count = self.deciding(goal)
        if count >= MIN_RARER:
            return ""
        if not (is_of_places(goal) or are_of_answers([goal])):
            return too_few_patients(count)
        if are_of_answers([goal]) and not count:
            return "No question of these patients counts for this score."
        counted = f"Only {count} {'patient has' if count == 1 else 'patients have'} a region"
        if are_of_answers([goal]):
            counted = f"The patients count as {count}, because modalities count equally and some have few patients"
        return f"{counted}; with fewer than {MIN_RARER} the uncertainty of a score is not known well enough."

    def in_words(self, goals: Sequence[str]) -> str:
        """Returns the numbers that decide the scores, to follow the number of all patients."""
        of_places = any(map(is_of_places, goals))
        if are_of_answers(goals):
            counted = [f"as {self.answered} for the answers"] * any(not is_of_places(goal) for goal in goals)
            return "counted " + " and ".join([*counted, *[f"as {self.with_roi} for the boxes"] * of_places])
        return f"{self.rarer} of the rarer class" + f" and {self.with_roi} with a region" * of_places


def patients_of(store: Store, rows: NDArray[np.int64], goal: str, labels: Labels | None = None) -> Patients:
    """Returns how many patients among the samples decide each score.

    Args:
        goal: the primary score. That of patients leaves out those whose images disagree.
        labels: labels of the samples, if the students' tasks are not those of the store.
    """
    patient_N = store.patient_N[rows]
    if store.facts.questions is not None:
        counted = patients_counted(store, rows)
        return Patients(len(np.unique(patient_N)), 0, counted.get("recall50", 0), counted.get("answer", 0))
    tasks, target_NK, known_NK = labels or (store.facts.tasks, store.target_NK[rows], store.known_NK[rows])
    if goal == OF_PATIENTS:
        each = by_patient(np.zeros(target_NK.shape), target_NK, known_NK, tasks, patient_N)
        rarer_K = rarer_class(each.target_PK, each.known_PK, np.arange(len(each.first_P)))
    else:
        rarer_K = rarer_class(target_NK, known_NK, patient_N)
    rarer_K = rarer_K[rarer_K > 0]
    with_roi = [bool(store.rois(int(row))) for row in rows]
    return Patients(
        len(np.unique(patient_N)), int(rarer_K.min()) if rarer_K.size else 0, len(np.unique(patient_N[with_roi]))
    )
