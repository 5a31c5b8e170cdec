"""The shared parts of objectives between pooled vectors: the vectors, and the negative pairs of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mmpkd.objectives.objective import Objective
from mmpkd.types import Needs, Strict, StudentOutput, Task, TeacherOutput


class VectorParams(Strict):
    layer: Annotated[int, Field(ge=0)] | None = (
        None  # block of the student whose CLS token is used; None: its embedding
    )


class VectorObjective(Objective):
    """A term between a vector of the student and the embedding of the teacher."""

    Params = VectorParams

    def __init__(self, params: VectorParams, tasks: Sequence[Task], student_dim: int, teacher_dim: int) -> None:
        super().__init__(params, tasks, student_dim, teacher_dim)
        self.layer = params.layer
        blocks = frozenset[int]() if params.layer is None else frozenset({params.layer})
        self.needs = Needs(blocks, frozenset({"embedding"}))

    def vectors(self, student: StudentOutput, teacher: TeacherOutput) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the vectors of student and teacher (B, D), each with its own width, and a mask (B) of the samples for
        which the teacher has a vector. The teacher's vectors carry no gradient; a missing one is 0."""
        assert teacher.embedding_BD is not None
        teacher_BD = teacher.embedding_BD.detach()
        student_BD = student.embedding_BD if self.layer is None else student.hidden_BND[self.layer][:, 0]
        return student_BD, teacher_BD.nan_to_num(), teacher_BD.isfinite().all(dim=1)


def negative_pairs(known_B: Tensor, patient_B: Tensor) -> Tensor:
    """Returns a mask (B, B) of negative pairs: samples i and j are both in `known_B`, and of different patients.

    Images of one patient share a report or a row of findings, so their pairs are not mismatches.
    """
    return known_B[:, None] & known_B & (patient_B[:, None] != patient_B)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of the values inside the mask, or 0 if it is empty. Values outside get no gradient."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)
