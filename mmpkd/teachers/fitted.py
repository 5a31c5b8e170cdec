"""The interface through which the training of a student uses fitted teachers, cached or running at each step."""

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
from mmpkd.teachers import resolve, sized
from mmpkd.teachers.cache import cached_outputs
from mmpkd.teachers.online import online
from mmpkd.teachers.teacher import ResolvedTeacher
from mmpkd.types import Needs, SharedCache, TeacherOutput


class FittedTeacher(Protocol):
    """A fitted teacher: its outputs for the samples of a store."""

    @property
    def width(self) -> int:
        """Returns the number of dimensions of the embedding; 0 if the teacher has no embedding."""

    @property
    def address(self) -> str:
        """Returns the content hash of everything that determines the teacher's outputs."""

    @property
    def head(self) -> tuple[Tensor, Tensor] | None:
        """Returns weight (K, D) and bias (K) of the layer from embedding to logits; None if the teacher offers none."""

    @property
    def quality(self) -> Mapping[str, float]:
        """Returns the teacher's scores; see `quality.py`."""

    @property
    def recordable(self) -> bool:
        """Whether `at` can be part of a CUDA graph: nothing in it depends on the values of tensors."""

    def at(self, rows_B: Tensor, image_BCHW: Tensor, view: View) -> TeacherOutput:
        """Returns the teacher's outputs for the samples at these positions in the store.

        Args:
            image_BCHW: the images of these samples as the student sees them.
            view: the view that these images show.
        """

    def only(self, needs: Needs) -> Self:
        """Returns the same teacher without the outputs that are not needed."""

    def to(self, device: torch.device) -> Self: ...

    def shuffled(self, store: Store, fold: int, seed: int) -> Self:
        """Returns the negative control; see `controls.py`."""


def quality_lines(config: TrialConfig, teachers: Mapping[str, FittedTeacher]) -> list[str]:
    """Returns a line for each teacher and each member of an ensemble, with the scores and the flaws of the teacher or
    member."""
    lines = []
    for name, teacher in teachers.items():
        scores = by_teacher({f"teacher/{name}/{key}": value for key, value in teacher.quality.items()})
        for path, quality in scores.items():
            shuffled = config.teachers[name].control == "shuffled"  # its flaws are intended
            summary = f"{score_in_words(path, quality)}, shuffled" if shuffled else in_words(path, quality)
            out_of_fold = f"{quality['auroc']:.3f}"
            if math.isnan(quality["auroc"]):
                out_of_fold = "not scored, so it is unknown whether it states the label: too few training patients"
            lines.append(f"teacher {summary} (AUROC on validation; out of fold {out_of_fold})")
    return lines


def fit_teachers(
    config: TrialConfig, store: Store, cache: Path, shared: SharedCache | None = None
) -> dict[str, FittedTeacher]:
    """Returns every teacher that an active objective uses, fitted or loaded from the cache."""
    fold, config, fitted = config.cohort.fold, sized(config, store.facts), dict[str, FittedTeacher]()
    for name in config.active_teachers():
        teacher = resolve(config.teachers[name])
        outputs = fit_teacher(teacher, store, fold, cache, name, shared)
        fitted[name] = outputs.shuffled(store, fold, config.seed) if teacher.control == "shuffled" else outputs
    return fitted


def fit_teacher(
    teacher: ResolvedTeacher, store: Store, fold: int, cache: Path, name: str, shared: SharedCache | None = None
) -> FittedTeacher:
    """Returns a teacher, fitted or loaded from the cache; see `cache.fit_or_load`."""
    get = online if teacher.teacher.sees_view else cached_outputs
    fitted: FittedTeacher = get(teacher, store, fold, cache, name, shared)
    return fitted
