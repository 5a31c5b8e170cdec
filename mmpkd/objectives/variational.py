"""Variational information distillation: the student predicts the teacher's embedding and its own uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpkd.objectives.vectors import VectorObjective, VectorParams, masked_mean
from mmpkd.types import Batch, StudentOutput, Task, TeacherOutput

INITIAL_VARIANCE = 5.0  # as in the authors' code, like the floor
FLOOR = 1e-5
# Adam moves a parameter by about the learning rate in each step, whatever its gradient. At a rate of 1e-4 and 2,000
# steps, the authors' form leaves every variance at 4.9, where the term is a tenth of a squared error. With a parameter
# scaled by 100, the variances of a noisy linear target came within 15 % of the residuals that they estimate.
RATE = 100.0


class Variational(VectorObjective):
    """VID (Ahn et al., CVPR 2019, arXiv 1904.05835): the negative log-likelihood of the teacher's embedding t under a
    Gaussian. Its mean is a linear map of the student's vector, and its variance is learned for each dimension,
    v = softplus(rho) + floor. The term, averaged over dimensions and samples, is

        ((mean - t)^2 / v + log v) / 2 - log(floor) / 2.

    The last part is a constant that keeps the term >= 0; the authors' term can be negative (with mean = t and v = 1, it
    is 5.76 here and 0 for the authors). Gradients are the same. Dimensions that cannot be predicted from images get a
    large variance and lose influence. A layer norm without parameters is applied to t first, so that the initial
    variance and weights mean the same for every teacher. Samples without an embedding (NaN) are left out.

    The variance is a parameter of this module and is trained; mdistiller keeps it in a plain list, which its optimiser
    does not see.
    """

    def __init__(self, params: VectorParams, tasks: Sequence[Task], student_dim: int, teacher_dim: int) -> None:
        super().__init__(params, tasks, student_dim, teacher_dim)
        self.mean = nn.Linear(student_dim, teacher_dim)
        initial = math.log(math.expm1(INITIAL_VARIANCE - FLOOR)) / RATE
        self.rho = nn.Parameter(torch.full((teacher_dim,), initial))

    def variance(self) -> Tensor:
        """Returns the variance of each dimension of the normalised embedding (D)."""
        return F.softplus(RATE * self.rho.float()) + FLOOR

    def forward(self, student: StudentOutput, teacher: TeacherOutput, batch: Batch) -> Tensor:
        student_BD, teacher_BD, known_B = self.vectors(student, teacher)
        target_BD = F.layer_norm(teacher_BD.float(), teacher_BD.shape[1:])
        variance_D = self.variance()
        squared_BD = (self.mean(student_BD).float() - target_BD).square()
        nll_BD = (squared_BD / variance_D + (variance_D / FLOOR).log()) / 2
        return masked_mean(nll_BD.mean(dim=1), known_B)
