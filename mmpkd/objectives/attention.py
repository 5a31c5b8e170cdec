"""Attention transfer: the attention map of the student is matched to the map of an image teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmpkd.objectives.objective import Objective
from mmpkd.objectives.vectors import masked_mean
from mmpkd.types import Batch, Mistake, Needs, Strict, StudentOutput, Task, TeacherOutput


class AttentionParams(Strict):
    layer: Annotated[int, Field(ge=0)]  # block of the student, 0 is the first
    form: Literal["activation", "query_kl", "query_l2"] = "query_kl"
    power: Annotated[int, Field(ge=1)] = 2  # exponent in the form `activation`


class Attention(Objective):
    """Distance between a map of the student's block `layer` and the teacher's map, averaged over samples.

    `activation` (Zagoruyko & Komodakis, ICLR 2017, arXiv 1612.03928): the map is the mean of |token|^power over the
    channels of the patch tokens. The distance is the squared L2 distance of the two maps, each L2-normalised, so it
    lies between 0 and 2 on any grid. The authors' code uses the mean over patches instead of the sum (their weight 1000
    is 1000 / patches here). Equation 2 of the paper has the distance without the square, and the sum over channels,
    which is the same after normalisation.

    `query_kl` and `query_l2` are our own forms for vision transformers: the map is the attention of the CLS token,
    averaged over heads, over the patches only (without prefix columns, renormalised). The distance is KL(teacher ||
    student) of the maps as distributions, or the same L2 distance as above. This attention map of the CLS token is also
    the map that is scored.

    The teacher's map is resampled bilinearly (area-weighted where it shrinks) to the student's grid, if they differ.
    Samples without a map of the teacher (NaN) are left out.
    """

    Params = AttentionParams

    def __init__(self, params: AttentionParams, tasks: Sequence[Task], student_dim: int, teacher_dim: int) -> None:
        super().__init__(params, tasks, student_dim, teacher_dim)
        self.layer = params.layer
        self.form = params.form
        self.power = params.power
        block, field = frozenset({params.layer}), frozenset({"map"})
        if params.form == "activation":
            self.needs = Needs(student_layers=block, teacher=field)
        else:
            self.needs = Needs(student_attention=block, teacher=field)

    @classmethod
    def check(cls, params: AttentionParams, tasks: Sequence[Task]) -> list[Mistake]:
        if params.form != "activation" and "power" in params.model_fields_set:
            return [
                Mistake("params.power", f"only form: activation has a power, got form: {params.form}; leave it out")
            ]
        return []

    def forward(self, student: StudentOutput, teacher: TeacherOutput, batch: Batch) -> Tensor:
        assert teacher.map_Bhw is not None
        teacher_Bhw = teacher.map_Bhw.detach().float()
        known_B = teacher_Bhw.isfinite().flatten(1).all(dim=1)
        teacher_Bhw = teacher_Bhw.nan_to_num()
        if teacher_Bhw.shape[1:] != student.grid:
            teacher_Bhw = F.interpolate(teacher_Bhw[:, None], student.grid, mode="bilinear", antialias=True)[:, 0]
        teacher_BP = teacher_Bhw.flatten(1)
        if self.form == "activation":
            patches_BPD = student.hidden_BND[self.layer][:, student.num_prefix :].float()
            student_BP = patches_BPD.abs().pow(self.power).mean(dim=2)
        else:
            student_BP = student.query_attention_BAN[self.layer].float().mean(dim=1)[:, student.num_prefix :]
        if self.form == "query_kl":
            # A sharp softmax underflows to 0, and log 0 would make the loss infinite.
            log_BP = F.normalize(student_BP, p=1, dim=1).clamp(min=1e-12).log()
            distance_B = F.kl_div(log_BP, F.normalize(teacher_BP, p=1, dim=1), reduction="none").sum(dim=1)
        else:
            distance_B = (F.normalize(student_BP, dim=1) - F.normalize(teacher_BP, dim=1)).square().sum(dim=1)
        return masked_mean(distance_B, known_B)
