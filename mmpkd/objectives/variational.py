"""Variational information distillation: the student predicts the teacher's embedding as far as it can be known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpkd.objectives.vectors import VectorObjective, VectorParams, masked_mean
from mmpkd.types import Batch, StudentOutput, Task, TeacherOutput

INITIAL_VARIANCE = 5.0  # this and the floor are the authors'
FLOOR = 1e-5
# Adam moves a parameter by about the learning rate a step, whatever its gradient. At 1e-4 and 2,000 steps the
# authors' form leaves every variance at 4.9, where the term is a tenth of a squared error; held in hundredths
# the variances of a noisy linear target came within 15 % of the residuals they stand for.
RATE = 100.0


class Variational(VectorObjective):
    """VID (Ahn et al., CVPR 2019, arXiv 1904.05835): the negative log-likelihood of the
    teacher's embedding t under a Gaussian whose mean is a linear map of the student's vector and whose
    variance is learned for each dimension, v = softplus(rho) + floor; mean over dimensions and samples:

        ((mean - t)^2 / v + log v) / 2 - log(floor) / 2.

    The last part is a constant that keeps the term >= 0, where the authors' falls below (v = 1 is 5.76
    here, 0 there); gradients are the same. Dimensions that images cannot tell get a large variance and
    stop pulling. t passes a layer norm without parameters first, so that the initial variance and weights
    mean the same for every teacher. Rows without an embedding (NaN) are left out.

    The variance is a parameter of this module and trains: mdistiller keeps it in a plain list, which its
    optimiser never sees.
    """

    def __init__(self, params: VectorParams, tasks: Sequence[Task], student_dim: int, teacher_dim: int) -> None:
        super().__init__(params, tasks, student_dim, teacher_dim)
        self.mean = nn.Linear(student_dim, teacher_dim)
        initial = math.log(math.expm1(INITIAL_VARIANCE - FLOOR)) / RATE
        self.rho = nn.Parameter(torch.full((teacher_dim,), initial))

    def variance(self) -> Tensor:
        """Of each dimension of the normalised embedding, shape D."""
        return F.softplus(RATE * self.rho.float()) + FLOOR

    def forward(self, student: StudentOutput, teacher: TeacherOutput, batch: Batch) -> Tensor:
        student_BD, teacher_BD, known_B = self.vectors(student, teacher)
        target_BD = F.layer_norm(teacher_BD.float(), teacher_BD.shape[1:])
        variance_D = self.variance()
        squared_BD = (self.mean(student_BD).float() - target_BD).square()
        surprise_BD = (squared_BD / variance_D + (variance_D / FLOOR).log()) / 2
        return masked_mean(surprise_BD.mean(dim=1), known_B)
