"""Logit distillation: the student matches the teacher's softened probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmpkd.config import Strict
from mmpkd.objectives.objective import Objective
from mmpkd.types import Batch, Needs, StudentOutput, Task, TeacherOutput


class LogitsParams(Strict):
    temperature: Annotated[float, Field(gt=0)] = 2.0


class Logits(Objective):
    """T^2 KL(teacher || student) at temperature T, averaged over samples, then over tasks.

    Softmax form for multi-class tasks (Hinton et al. 2015, arXiv 1503.02531, section 2); for binary
    and multi-label tasks the Bernoulli KL of each logit, averaged over logits. T^2 is kept at every
    weight, which keeps gradients comparable over temperatures; torchdistill's KDLoss drops it when
    alpha is 0 or None. The teacher's entropy is subtracted, so the term is 0 where both agree.

    Teacher targets count whether or not the sample's own label is known: that is their benefit.
    Rows for which the teacher has nothing to say (NaN) are left out.
    """

    Params = LogitsParams
    needs = Needs(teacher=frozenset({"logits"}))

    def __init__(self, params: LogitsParams, tasks: Sequence[Task], student_dim: int, teacher_dim: int) -> None:
        super().__init__(params, tasks, student_dim, teacher_dim)
        self.temperature = params.temperature
        self.tasks = tuple(tasks)

    def forward(self, student: StudentOutput, teacher: TeacherOutput, batch: Batch) -> Tensor:
        assert teacher.logits_BK is not None
        known_B = teacher.logits_BK.isfinite().all(dim=1)
        student_BK = student.logits_BK.float() / self.temperature
        teacher_BK = teacher.logits_BK.detach().float().nan_to_num() / self.temperature
        total_B = torch.zeros_like(student_BK[:, 0])
        for task in self.tasks:
            divergence = softmax_kl if task.kind == "multiclass" else bernoulli_kl
            total_B = total_B + divergence(student_BK[:, task.columns], teacher_BK[:, task.columns])
        mean = torch.where(known_B, total_B, 0.0).sum() / known_B.sum().clamp(min=1)
        return mean * self.temperature**2 / len(self.tasks)


def softmax_kl(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) of each sample, shape B."""
    kl_BC = F.kl_div(student_BC.log_softmax(1), teacher_BC.log_softmax(1), log_target=True, reduction="none")
    return kl_BC.sum(dim=1)


def bernoulli_kl(student_BL: Tensor, teacher_BL: Tensor) -> Tensor:
    """KL(Bernoulli(sigmoid(teacher)) || Bernoulli(sigmoid(student))), mean over labels; shape B."""
    target_BL = teacher_BL.sigmoid()
    cross_BL = F.binary_cross_entropy_with_logits(student_BL, target_BL, reduction="none")
    entropy_BL = F.binary_cross_entropy_with_logits(teacher_BL, target_BL, reduction="none")
    return (cross_BL - entropy_BL).mean(dim=1)
