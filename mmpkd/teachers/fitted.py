"""What a training hears of its teachers, whether their answers are cached or they are asked at each step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from mmpkd.augment import View
from mmpkd.cohort.store import Store
from mmpkd.config import TrialConfig
from mmpkd.scoring.teacher_scores import by_teacher, in_words, score_in_words
from mmpkd.teachers import TEACHERS, sized
from mmpkd.teachers.cache import cached_outputs
from mmpkd.teachers.controls import shuffled_within_label
from mmpkd.teachers.online import online
from mmpkd.types import Needs, TeacherOutput


class FittedTeacher(Protocol):
    """A fitted teacher, as the training of a student has it."""

    @property
    def width(self) -> int:
        """Dimensions of the embedding; 0 where there is none."""

    @property
    def address(self) -> str:
        """Content hash of all that decides what it says."""

    @property
    def head(self) -> tuple[Tensor, Tensor] | None:
        """Weight (K, D) and bias (K) of the layer that reads its logits from its embedding, if it offers that."""

    @property
    def quality(self) -> Mapping[str, float]:
        """How good it is; see `quality.py`."""

    def at(self, rows_B: Tensor, image_BCHW: Tensor, view: View) -> TeacherOutput:
        """Of the samples at these positions in the store: their images as the student sees them, and the view that
        shows them so."""

    def only(self, needs: Needs) -> Self:
        """No more than is needed."""

    def to(self, device: torch.device) -> Self: ...


def quality_lines(config: TrialConfig, answers: Mapping[str, FittedTeacher]) -> list[str]:
    """A line for each teacher, and for each member of an ensemble: how good it is, and what is the matter with it."""
    lines = []
    for name, teacher in answers.items():
        scores = by_teacher({f"teacher/{name}/{key}": value for key, value in teacher.quality.items()})
        for own, quality in scores.items():
            shuffled = config.teachers[name].control == "shuffled"  # made to know nothing of the single sample
            told = f"{score_in_words(own, quality)}, shuffled" if shuffled else in_words(own, quality)
            own_fold = f"{quality['auroc']:.3f}"
            if math.isnan(quality["auroc"]):
                own_fold = "not scored, so it is not known whether it states the label: too few training patients"
            lines.append(f"teacher {told} (AUROC on validation; out of fold {own_fold})")
    return lines


def fit_teachers(config: TrialConfig, store: Store, cache: Path) -> dict[str, FittedTeacher]:
    """Every teacher that an objective of this configuration uses, fitted or found in the cache."""
    fold, answers, config = config.cohort.fold, dict[str, FittedTeacher](), sized(config, store.facts)
    for name in config.active_teachers():
        teacher = config.teachers[name]
        shuffled = teacher.control == "shuffled"
        if TEACHERS[teacher.kind].sees_view:
            asked = online(teacher, store, fold, cache, name)
            answers[name] = asked.shuffled(store, fold, config.seed) if shuffled else asked
        else:
            outputs = cached_outputs(teacher, store, fold, cache, name)
            answers[name] = shuffled_within_label(outputs, store, fold, config.seed) if shuffled else outputs
    return answers
