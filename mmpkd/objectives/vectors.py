"""What the objectives between pooled vectors share: which vectors, and which pairs of samples are negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mmpkd.config import Strict
from mmpkd.objectives.objective import Objective
from mmpkd.types import Needs, StudentOutput, Task, TeacherOutput


class VectorParams(Strict):
    layer: Annotated[int, Field(ge=0)] | None = None  # block whose CLS token is read; None: the student's embedding


class VectorObjective(Objective):
    """A term between one vector of the student and the teacher's embedding."""

    Params = VectorParams

    def __init__(self, params: VectorParams, tasks: Sequence[Task], student_dim: int, teacher_dim: int) -> None:
        super().__init__(params, tasks, student_dim, teacher_dim)
        self.layer = params.layer
        blocks = frozenset[int]() if params.layer is None else frozenset({params.layer})
        self.needs = Needs(blocks, frozenset({"embedding"}))

    def vectors(self, student: StudentOutput, teacher: TeacherOutput) -> tuple[Tensor, Tensor, Tensor]:
        """The student's vector and the teacher's, which carries no gradient (BD, each of its own width),
        and whether the teacher has one (B); where it has none, its row is 0."""
        assert teacher.embedding_BD is not None
        teacher_BD = teacher.embedding_BD.detach()
        student_BD = student.embedding_BD if self.layer is None else student.hidden_BND[self.layer][:, 0]
        return student_BD, teacher_BD.nan_to_num(), teacher_BD.isfinite().all(dim=1)


def negative_pairs(known_B: Tensor, patient_B: Tensor) -> Tensor:
    """Whether samples i and j are a negative pair, shape BB: both known and of different patients.

    Images of one patient share a report or a row of findings, so they are no evidence of a mismatch.
    """
    return known_B[:, None] & known_B & (patient_B[:, None] != patient_B)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where the mask holds, 0 where it nowhere does; no other value gets a gradient."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)
