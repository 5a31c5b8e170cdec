"""Relational distillation: distances and angles between samples are matched to those of the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmpkd.objectives.vectors import VectorObjective, VectorParams, masked_mean
from mmpkd.types import Batch, Mistake, StudentOutput, Task, TeacherOutput

COINCIDENT = 1e-4  # share of the mean distance; the direction between nearer samples is rounding noise


class RelationalParams(VectorParams):
    distance: Annotated[float, Field(ge=0)] = (
        1.0  # weight of the distances; the paper uses 25 for distances and 50 for angles
    )
    angle: Annotated[float, Field(ge=0)] = 2.0


class Relational(VectorObjective):
    """RKD (Park et al., CVPR 2019, arXiv 1904.05068, section 3.2): `distance` times the distance-wise loss plus `angle`
    times the angle-wise loss, between the student's vector and the teacher's embedding, whose widths may differ.

    Distance: Huber loss (delta 1) of the Euclidean distances of all pairs, divided by their mean. Angle: Huber loss of
    the cosines at the corners of all triples; memory and time grow with the cube of the batch size.

    Means run over distinct pairs and triples, so that the scale does not depend on the batch size. The authors' code
    divides by B^2 and B^3, which includes the pairs and triples that repeat a sample and are 0 by definition. It also
    leaves distances of 0 out of the mean distance; here they count, as in the paper. A triple whose corner coincides
    with another sample, for the student or the teacher, has no angle and is left out (in the authors' code its cosine
    is 0): equal rows of findings are common. Samples without an embedding (NaN) are left out; with fewer than three
    samples the term is 0.
    """

    Params = RelationalParams
    min_batch = 3  # a single distance, divided by its mean, is always 1

    def __init__(self, params: RelationalParams, tasks: Sequence[Task], student_dim: int, teacher_dim: int) -> None:
        super().__init__(params, tasks, student_dim, teacher_dim)
        self.distance = params.distance
        self.angle = params.angle

    @classmethod
    def check(cls, params: RelationalParams, tasks: Sequence[Task]) -> list[Mistake]:
        if params.distance == params.angle == 0:
            return [Mistake("params.angle", "distance and angle are both 0, so the term is 0; raise one of them")]
        return []

    def forward(self, student: StudentOutput, teacher: TeacherOutput, batch: Batch) -> Tensor:
        student_BD, teacher_BD, known_B = self.vectors(student, teacher)
        distinct_BB = ~torch.eye(len(known_B), dtype=torch.bool, device=known_B.device)
        pair_BB = known_B[:, None] & known_B & distinct_BB
        with torch.autocast(student_BD.device.type, enabled=False):  # autocast would multiply in bfloat16
            student_BBD, teacher_BBD = (x_BD[None] - x_BD[:, None] for x_BD in (student_BD.float(), teacher_BD.float()))
            student_BB, teacher_BB = relative_lengths(student_BBD, pair_BB), relative_lengths(teacher_BBD, pair_BB)
            term = self.distance * masked_mean(F.smooth_l1_loss(student_BB, teacher_BB, reduction="none"), pair_BB)
            if self.angle:
                side_BB = pair_BB & (student_BB > COINCIDENT) & (teacher_BB > COINCIDENT)
                triple_BBB = side_BB[:, :, None] & side_BB[:, None, :] & distinct_BB
                huber_BBB = F.smooth_l1_loss(corners(student_BBD), corners(teacher_BBD), reduction="none")
                term = term + self.angle * masked_mean(huber_BBB, triple_BBB)
        return term


def relative_lengths(difference_BBD: Tensor, pair_BB: Tensor) -> Tensor:
    """Returns Euclidean lengths divided by their mean over the pairs (B, B)."""
    length_BB: Tensor = torch.linalg.vector_norm(difference_BBD, dim=2)
    return length_BB / masked_mean(length_BB, pair_BB).clamp(min=torch.finfo(length_BB.dtype).tiny)


def corners(difference_BBD: Tensor) -> Tensor:
    """Returns the cosine of the angle at sample i between samples j and k (B, B, B), in the order i, j, k."""
    unit_BBD = F.normalize(difference_BBD, dim=2)
    return unit_BBD @ unit_BBD.transpose(1, 2)
