"""Logit distillation: the student matches the softened probabilities of the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmpkd.objectives.objective import Objective
from mmpkd.types import Batch, Mistake, Needs, Strict, StudentOutput, Task, TeacherOutput


class LogitsParams(Strict):
    temperature: Annotated[float, Field(gt=0)] = 2.0
    standardize: bool = False  # z-score the logits over the classes of a sample, before the temperature


class Logits(Objective):
    """T^2 KL(teacher || student) at temperature T, averaged over samples, then over tasks.

    Multi-class tasks use the softmax form (Hinton et al. 2015, arXiv 1503.02531, section 2), binary and multi-label
    tasks the Bernoulli KL of each logit, averaged over logits. T^2 is kept at every weight, so that gradients are
    comparable between temperatures; torchdistill's KDLoss drops it when alpha is 0 or None. The teacher's entropy is
    subtracted, so the term is 0 where both agree.

    `standardize` takes the z-score of both sides over the classes (Sun et al. 2024, arXiv 2403.01427), so that the
    student follows the order and spacing of the teacher's logits, not their scale. The standard deviation is computed
    as in the authors' code (over C - 1, plus 1e-7). `standardize` needs tasks of three classes or more: with two
    classes, only the sign would be left, and independent sigmoids would lose the number of positive labels.

    Teacher targets count whether or not the label of the sample is known; this is a benefit of distillation. Samples
    without an output of the teacher (NaN) are left out.
    """

    Params = LogitsParams
    needs = Needs(teacher=frozenset({"logits"}))

    def __init__(self, params: LogitsParams, tasks: Sequence[Task], student_dim: int, teacher_dim: int) -> None:
        super().__init__(params, tasks, student_dim, teacher_dim)
        self.temperature = params.temperature
        self.standardize = params.standardize
        self.tasks = tuple(tasks)

    @classmethod
    def check(cls, params: LogitsParams, tasks: Sequence[Task]) -> list[Mistake]:
        if params.standardize and (unfit := without_three_classes(tasks)):
            problem = f"needs tasks of three classes or more, one of which is right; the cohort has {unfit}"
            return [Mistake("params.standardize", problem)]
        return []

    def forward(self, student: StudentOutput, teacher: TeacherOutput, batch: Batch) -> Tensor:
        assert teacher.logits_BK is not None
        known_B = teacher.logits_BK.isfinite().all(dim=1)
        both = student.logits_BK.float(), teacher.logits_BK.detach().float().nan_to_num()
        total_B = torch.zeros_like(both[0][:, 0])
        for task in self.tasks:
            student_BC, teacher_BC = (logits_BK[:, task.columns] for logits_BK in both)
            if self.standardize:
                student_BC, teacher_BC = z_score(student_BC), z_score(teacher_BC)
            divergence = softmax_kl if task.kind == "multiclass" else bernoulli_kl
            total_B = total_B + divergence(student_BC / self.temperature, teacher_BC / self.temperature)
        mean = torch.where(known_B, total_B, 0.0).sum() / known_B.sum().clamp(min=1)
        return mean * self.temperature**2 / len(self.tasks)


def softmax_kl(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """Returns KL(softmax(teacher) || softmax(student)) of each sample (B)."""
    kl_BC = F.kl_div(student_BC.log_softmax(1), teacher_BC.log_softmax(1), log_target=True, reduction="none")
    return kl_BC.sum(dim=1)


def bernoulli_kl(student_BL: Tensor, teacher_BL: Tensor) -> Tensor:
    """Returns KL(Bernoulli(sigmoid(teacher)) || Bernoulli(sigmoid(student))), averaged over labels (B)."""
    target_BL = teacher_BL.sigmoid()
    cross_BL = F.binary_cross_entropy_with_logits(student_BL, target_BL, reduction="none")
    entropy_BL = F.binary_cross_entropy_with_logits(teacher_BL, target_BL, reduction="none")
    return (cross_BL - entropy_BL).mean(dim=1)


def z_score(logits_BC: Tensor) -> Tensor:
    """Returns the logits minus their mean over the classes, divided by their standard deviation."""
    return (logits_BC - logits_BC.mean(dim=1, keepdim=True)) / (logits_BC.std(dim=1, keepdim=True) + 1e-7)


def without_three_classes(tasks: Sequence[Task]) -> str:
    """Returns the names of the tasks that are not a softmax over three or more classes, for a message."""
    unfit = [task for task in tasks if task.kind != "multiclass" or task.num_logits < 3]
    return ", ".join(f"{task.name} ({task.kind} of {len(task.labels)})" for task in unfit)
