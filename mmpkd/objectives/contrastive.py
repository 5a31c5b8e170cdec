"""Cross-modal contrast: an image is matched to its own teacher embedding among those of other patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmpkd.objectives.vectors import VectorObjective, VectorParams, masked_mean, negative_pairs
from mmpkd.types import Batch, StudentOutput, Task, TeacherOutput


class ContrastiveParams(VectorParams):
    temperature: Annotated[float, Field(gt=0)] = 0.07  # fixed here; CLIP learns it
    width: Annotated[int, Field(gt=0)] = 128  # width of the common space, as in CRD


class Contrastive(VectorObjective):
    """Symmetric InfoNCE (CLIP: Radford et al. 2021, arXiv 2103.00020, figure 3; InfoNCE: van den Oord et al.
    2018, arXiv 1807.03748, equation 4): the cross-entropy of identifying the partner of a sample within the batch, from
    the student to the teacher and back; the mean of both over samples.

    Both vectors are projected linearly to `width` and L2-normalised, as in CRD (Tian et al., ICLR 2020,
    arXiv 1910.10699). The memory bank of CRD is not used: negatives come from the batch. Other images of the same
    patient share a report, so they are neither positives nor negatives. Samples without an embedding (NaN) are left out
    on both sides; a sample without a negative adds 0.
    """

    Params = ContrastiveParams
    min_batch = 2

    def __init__(self, params: ContrastiveParams, tasks: Sequence[Task], student_dim: int, teacher_dim: int) -> None:
        super().__init__(params, tasks, student_dim, teacher_dim)
        self.temperature = params.temperature
        self.student_projection = nn.Linear(student_dim, params.width)
        self.teacher_projection = nn.Linear(teacher_dim, params.width)

    def forward(self, student: StudentOutput, teacher: TeacherOutput, batch: Batch) -> Tensor:
        student_BD, teacher_BD, known_B = self.vectors(student, teacher)
        image_BD = F.normalize(self.student_projection(student_BD).float(), dim=1)
        privileged_BD = F.normalize(self.teacher_projection(teacher_BD).float(), dim=1)
        index_B = torch.arange(len(known_B), device=known_B.device)
        kept_BB = negative_pairs(known_B, batch.patient_B) | (index_B[:, None] == index_B)
        with torch.autocast(student_BD.device.type, enabled=False):  # autocast would multiply in bfloat16
            score_BB = (image_BD @ privileged_BD.T / self.temperature).masked_fill(~kept_BB, -torch.inf)
        forward_B = F.cross_entropy(score_BB, index_B, reduction="none")
        backward_B = F.cross_entropy(score_BB.T, index_B, reduction="none")
        return masked_mean((forward_B + backward_B) / 2, known_B)
