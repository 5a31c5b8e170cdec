"""Cross-modal mutual information: a critic tells true pairs of image and teacher from mixed ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmpkd.objectives.vectors import VectorObjective, VectorParams, masked_mean, negative_pairs
from mmpkd.types import Batch, StudentOutput, Task, TeacherOutput


class MutualInformationParams(VectorParams):
    width: Annotated[int, Field(gt=0)] = 128  # hidden units of the critic


class MutualInformation(VectorObjective):
    """CMIM's term (Sylvain et al. 2020, arXiv 2010.10593): maximise the mutual information between the
    student's vector and the teacher's embedding, so that the image learns what the other modality knows.

    Only the abstract and the references of that paper were at hand, which do not name the estimator. The
    Jensen-Shannon one is our choice (f-GAN, Nowozin et al. 2016, arXiv 1606.00709; Deep InfoMax, Hjelm et
    al. 2019, arXiv 1808.06670, equation 4): with the critic T,

        mean over true pairs of softplus(-T) + mean over mixed pairs of softplus(T),

    the negative of Deep InfoMax's bound: >= 0, 2 ln 2 where the critic knows nothing, and at the best critic
    2 ln 2 - 2 JSD(true || mixed). Critic and student descend it together, so it needs no second optimiser;
    the bound of MINE (Donsker-Varadhan), also in the references, has neither floor nor unbiased gradient.
    InfoNCE is the other usual estimator; that is `contrastive`, and is not offered twice.

    The critic is one hidden layer on both vectors side by side (Deep InfoMax's concatenation form), asked
    of all pairs of the batch. Mixed pairs are of different patients: images of one patient share a report,
    so they are left out. So are rows without an embedding (NaN); without a mixed pair the term is 0.
    """

    Params = MutualInformationParams
    least_batch = 2

    def __init__(
        self, params: MutualInformationParams, tasks: Sequence[Task], student_dim: int, teacher_dim: int
    ) -> None:
        super().__init__(params, tasks, student_dim, teacher_dim)
        # A linear map of two vectors side by side is the sum of one of each, which need not be asked B times.
        self.student_half = nn.Linear(student_dim, params.width)
        self.teacher_half = nn.Linear(teacher_dim, params.width, bias=False)
        self.score = nn.Linear(params.width, 1)

    def forward(self, student: StudentOutput, teacher: TeacherOutput, batch: Batch) -> Tensor:
        student_BD, teacher_BD, known_B = self.vectors(student, teacher)
        hidden_BBD = F.relu(self.student_half(student_BD)[:, None] + self.teacher_half(teacher_BD))
        score_BB = self.score(hidden_BBD)[:, :, 0].float()
        mixed_BB = negative_pairs(known_B, batch.patient_B)
        true = masked_mean(F.softplus(-score_BB.diagonal()), known_B)
        mixed = masked_mean(F.softplus(score_BB), mixed_BB)
        return torch.where(mixed_BB.any(), true + mixed, 0.0)
