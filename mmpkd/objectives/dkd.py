"""Decoupled distillation: how sure the teacher is of the right class, and how it ranks the wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mmpkd.config import Strict
from mmpkd.objectives.logits import bernoulli_kl, softmax_kl, without_three_classes
from mmpkd.objectives.objective import Objective
from mmpkd.types import Batch, Mistake, Needs, StudentOutput, Task, TeacherOutput

AWAY = -1e9  # a logit without probability; finite, since 0 * inf is no number


class DKDParams(Strict):
    alpha: Annotated[float, Field(ge=0)] = 1.0  # of the target class against all others
    beta: Annotated[float, Field(ge=0)] = 8.0  # among the other classes
    temperature: Annotated[float, Field(gt=0)] = 4.0


class DKD(Objective):
    """T^2 (alpha TCKD + beta NCKD) at temperature T, averaged over samples, then over tasks.

    TCKD is the KL of (p_y, 1 - p_y) for the label y, NCKD the KL of the softmax over the other classes
    (Zhao et al. 2022, arXiv 2203.08679, equation 7). KD is TCKD + (1 - p_y) NCKD with p_y of the teacher:
    NCKD is freed of a weight that vanishes where the teacher is sure. Defaults are the paper's for
    CIFAR-100 (for ImageNet: alpha 1, beta 0.5, T 1); its warm-up over the first epochs is `schedule: warmup`.

    Needs tasks of three classes or more: with one other class NCKD is 0. Samples whose label is unknown,
    or for which the teacher has nothing to say (NaN), are left out.
    """

    Params = DKDParams
    needs = Needs(teacher=frozenset({"logits"}))

    def __init__(self, params: DKDParams, tasks: Sequence[Task], student_dim: int, teacher_dim: int) -> None:
        super().__init__(params, tasks, student_dim, teacher_dim)
        self.params = params
        self.tasks = tuple(tasks)

    @classmethod
    def check(cls, params: DKDParams, tasks: Sequence[Task]) -> list[Mistake]:
        mistakes: list[Mistake] = []
        if unfit := without_three_classes(tasks):
            problem = (
                f"needs tasks of three classes or more, one of which is right; the cohort has {unfit}: use `logits`"
            )
            mistakes.append(Mistake("", problem))
        if params.alpha == params.beta == 0:
            mistakes.append(Mistake("params.beta", "alpha and beta are both 0, so nothing is left to teach"))
        return mistakes

    def forward(self, student: StudentOutput, teacher: TeacherOutput, batch: Batch) -> Tensor:
        assert teacher.logits_BK is not None
        heard_B = teacher.logits_BK.isfinite().all(dim=1)
        student_BK = student.logits_BK.float() / self.params.temperature
        teacher_BK = teacher.logits_BK.detach().float().nan_to_num() / self.params.temperature
        total = student_BK.new_zeros(())
        for task in self.tasks:
            target_B = batch.target_BK[:, task.columns].argmax(dim=1)
            known_B = heard_B & batch.known_BK[:, task.columns].all(dim=1)
            sure_B, others_BC = parted(student_BK[:, task.columns], target_B)
            wanted_sure_B, wanted_others_BC = parted(teacher_BK[:, task.columns], target_B)
            tckd_B = bernoulli_kl(sure_B[:, None], wanted_sure_B[:, None])
            nckd_B = softmax_kl(others_BC, wanted_others_BC)
            each_B = self.params.alpha * tckd_B + self.params.beta * nckd_B
            total = total + torch.where(known_B, each_B, 0.0).sum() / known_B.sum().clamp(min=1)
        return total * self.params.temperature**2 / len(self.tasks)


def parted(logits_BC: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """Log odds of the target class against all others, shape B; and the logits without it, shape BC."""
    others_BC = logits_BC.scatter(1, target_B[:, None], AWAY)
    return logits_BC.gather(1, target_B[:, None])[:, 0] - others_BC.logsumexp(dim=1), others_BC
