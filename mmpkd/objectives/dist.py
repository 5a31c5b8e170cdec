"""DIST: the predictions of the student are correlated with those of the teacher, over classes and over samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmpkd.objectives.logits import without_three_classes
from mmpkd.objectives.objective import Objective
from mmpkd.types import Batch, Mistake, Needs, Strict, StudentOutput, Task, TeacherOutput

MIN_SAMPLES = 8  # fewer samples give no meaningful correlation


class DISTParams(Strict):
    beta: Annotated[float, Field(ge=0)] = 1.0  # inter-class: over the classes of each sample
    gamma: Annotated[float, Field(ge=0)] = 1.0  # intra-class: over the samples of each class


class DIST(Objective):
    """beta (1 - Pearson over the classes of a sample) + gamma (1 - Pearson of a class over the batch); mean over tasks.

    For multi-class tasks, the correlation is that of softmax probabilities without a temperature (Huang et al. 2022,
    arXiv 2205.10536, equations 6 to 9). Binary and multi-label tasks correlate the logits of each label over the batch,
    and have no inter-class term: independent sigmoids are not a distribution over classes. A task of two classes has no
    inter-class term either, because the correlation over two classes is +1 or -1 and its gradient 0. In all these
    cases, only the gamma term is left.

    A row or column that does not vary on one side has no correlation and is left out of the mean (the authors' code
    counts it as 1). The term of gamma is left out for a batch with fewer than eight samples, such as the last one of an
    epoch: use batches of 64 or more. Teacher targets count whether or not the label of the sample is known. Samples
    without an output of the teacher (NaN) are left out.
    """

    Params = DISTParams
    needs = Needs(teacher=frozenset({"logits"}))

    def __init__(self, params: DISTParams, tasks: Sequence[Task], student_dim: int, teacher_dim: int) -> None:
        super().__init__(params, tasks, student_dim, teacher_dim)
        self.params = params
        self.min_batch = MIN_SAMPLES if params.gamma else 1
        self.tasks = tuple(tasks)

    @classmethod
    def check(cls, params: DISTParams, tasks: Sequence[Task]) -> list[Mistake]:
        if params.gamma == 0 and (two_class_tasks := without_three_classes(tasks)):
            return [Mistake("params.gamma", f"must be above 0: it is the only term for {two_class_tasks}")]
        if params.beta == params.gamma == 0:
            return [Mistake("params.gamma", "beta and gamma are both 0, so the term is 0; raise one of them")]
        return []

    def forward(self, student: StudentOutput, teacher: TeacherOutput, batch: Batch) -> Tensor:
        assert teacher.logits_BK is not None
        covered_B = teacher.logits_BK.isfinite().all(dim=1)
        both = student.logits_BK.float(), teacher.logits_BK.detach().float().nan_to_num()
        total = both[0].new_zeros(())
        for task in self.tasks:
            student_BC, teacher_BC = (logits_BK[:, task.columns] for logits_BK in both)
            every_C = torch.ones_like(student_BC[0], dtype=torch.bool)
            if task.kind == "multiclass":
                student_BC, teacher_BC = student_BC.softmax(dim=1), teacher_BC.softmax(dim=1)
                if task.num_logits > 2:
                    total = total + self.params.beta * unlikeness(student_BC.T, teacher_BC.T, every_C, covered_B)
            enough_C = every_C & (covered_B.sum() >= MIN_SAMPLES)
            total = total + self.params.gamma * unlikeness(student_BC, teacher_BC, covered_B, enough_C)
        return total / len(self.tasks)


def unlikeness(student_RC: Tensor, teacher_RC: Tensor, row_R: Tensor, column_C: Tensor) -> Tensor:
    """Returns 1 - Pearson over the rows in `row_R`, averaged over the columns in `column_C` that vary on both sides."""
    unit: list[Tensor] = []
    for values_RC in (student_RC, teacher_RC):
        kept_RC = torch.where(row_R[:, None], values_RC, 0.0)
        centred_RC = torch.where(row_R[:, None], kept_RC - kept_RC.sum(dim=0) / row_R.sum().clamp(min=1), 0.0)
        # After rounding, a constant column still varies by about 1e-7 of its size.
        column_C = column_C & (centred_RC.square().sum(dim=0) > 1e-12 * kept_RC.square().sum(dim=0))
        unit.append(F.normalize(centred_RC, dim=0, eps=1e-30))
    distance_C = 1 - (unit[0] * unit[1]).sum(dim=0)
    return torch.where(column_C, distance_C, 0.0).sum() / column_C.sum().clamp(min=1)
