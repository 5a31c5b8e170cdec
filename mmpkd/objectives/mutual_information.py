"""Cross-modal mutual information: a critic distinguishes true pairs of image and teacher from mixed pairs."""

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
    """The term of CMIM (Sylvain et al. 2020, arXiv 2010.10593): maximises the mutual information between the student's
    vector and the teacher's embedding, so that the image representation acquires what the other modality contains.

    Only the abstract and the references of that paper were available, which do not name the estimator. We chose the
    Jensen-Shannon estimator (f-GAN, Nowozin et al. 2016, arXiv 1606.00709; Deep InfoMax, Hjelm et al. 2019, arXiv
    1808.06670, equation 4). With the critic T, the term is

        mean over true pairs of softplus(-T) + mean over mixed pairs of softplus(T),

    the negative of Deep InfoMax's bound. It is >= 0, equals 2 ln 2 for an uninformative critic, and 2 ln 2 -
    2 JSD(true || mixed) for the best critic. Critic and student minimise it together, so it needs no second optimiser.
    The bound of MINE (Donsker-Varadhan), also in the references, has no lower bound and a biased gradient. InfoNCE, the
    other common estimator, is the objective `contrastive`.

    The critic has one hidden layer on both vectors side by side (the concatenation form of Deep InfoMax), and is
    evaluated on all pairs of the batch. Mixed pairs are of different patients: images of one patient share a report, so
    their pairs are left out, and so are samples without an embedding (NaN). Without a mixed pair the term is 0.
    """

    Params = MutualInformationParams
    min_batch = 2

    def __init__(
        self, params: MutualInformationParams, tasks: Sequence[Task], student_dim: int, teacher_dim: int
    ) -> None:
        super().__init__(params, tasks, student_dim, teacher_dim)
        # A linear map of two concatenated vectors is the sum of two maps, each of which is computed once per sample.
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
