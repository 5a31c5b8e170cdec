"""Decoupled distillation: one term for the confidence in the right class, one for the ranking of the wrong classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from mmpkd.objectives.logits import bernoulli_kl, softmax_kl, without_three_classes
from mmpkd.objectives.objective import Objective
from mmpkd.types import Batch, Mistake, Needs, Strict, StudentOutput, Task, TeacherOutput

MASKED_LOGIT = -1e9  # gives probability 0; finite, because 0 * inf is NaN


class DKDParams(Strict):
    alpha: Annotated[float, Field(ge=0)] = 1.0  # weight of the target class against all others
    beta: Annotated[float, Field(ge=0)] = 8.0  # weight of the distribution over the other classes
    temperature: Annotated[float, Field(gt=0)] = 4.0


class DKD(Objective):
    """T^2 (alpha TCKD + beta NCKD) at temperature T, averaged over samples, then over tasks.

    TCKD is the KL divergence of (p_y, 1 - p_y) for the label y, NCKD that of the softmax over the other classes (Zhao
    et al. 2022, arXiv 2203.08679, equation 7). Ordinary KD is TCKD + (1 - p_y) NCKD with the p_y of the teacher; here
    NCKD lacks the factor 1 - p_y, which vanishes if the teacher is confident. Defaults are the paper's for CIFAR-100
    (for ImageNet: alpha 1, beta 0.5, T 1); its warm-up over the first epochs is `schedule: warmup`.

    DKD needs tasks of three classes or more: with a single other class, NCKD is 0. Samples whose label is unknown, and
    samples without an output of the teacher (NaN), are left out.
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
            mistakes.append(Mistake("params.beta", "alpha and beta are both 0, so the term is 0; raise one of them"))
        return mistakes

    def forward(self, student: StudentOutput, teacher: TeacherOutput, batch: Batch) -> Tensor:
        assert teacher.logits_BK is not None
        covered_B = teacher.logits_BK.isfinite().all(dim=1)
        student_BK = student.logits_BK.float() / self.params.temperature
        teacher_BK = teacher.logits_BK.detach().float().nan_to_num() / self.params.temperature
        total = student_BK.new_zeros(())
        for task in self.tasks:
            target_B = batch.target_BK[:, task.columns].argmax(dim=1)
            known_B = covered_B & batch.known_BK[:, task.columns].all(dim=1)
            target_odds_B, others_BC = split_target(student_BK[:, task.columns], target_B)
            teacher_odds_B, teacher_others_BC = split_target(teacher_BK[:, task.columns], target_B)
            tckd_B = bernoulli_kl(target_odds_B[:, None], teacher_odds_B[:, None])
            nckd_B = softmax_kl(others_BC, teacher_others_BC)
            loss_B = self.params.alpha * tckd_B + self.params.beta * nckd_B
            total = total + torch.where(known_B, loss_B, 0.0).sum() / known_B.sum().clamp(min=1)
        return total * self.params.temperature**2 / len(self.tasks)


def split_target(logits_BC: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the log odds (B) of the target class against all others, and logits (B, C) with this class masked."""
    others_BC = logits_BC.scatter(1, target_B[:, None], MASKED_LOGIT)
    return logits_BC.gather(1, target_B[:, None])[:, 0] - others_BC.logsumexp(dim=1), others_BC
