"""Feature distillation: a block of the student predicts the embedding or a hidden layer of the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmpkd.objectives.objective import Objective
from mmpkd.objectives.vectors import masked_mean
from mmpkd.types import Batch, Needs, Strict, StudentOutput, Task, TeacherOutput


class FeaturesParams(Strict):
    layer: Annotated[int, Field(ge=0)]  # block of the student, 0 is the first
    teacher_layer: Annotated[int, Field(ge=0)] | None = None  # hidden layer of the teacher; None: its embedding
    distance: Literal["cosine", "mse"] = "cosine"


class Features(Objective):
    """Distance between a linear projection of the student's CLS token after block `layer` and the teacher's embedding
    or its pooled hidden layer `teacher_layer`, averaged over samples.

    `mse` follows FitNets (Romero et al. 2015, arXiv 1412.6550, equation 3) with a layer norm without parameters on both
    sides, so that weights are comparable between teachers; `cosine` is 1 - cos. A text or tabular embedding has no
    spatial correspondence, so only the pooled token is aligned. Samples without an output of the teacher (NaN) are left
    out.
    """

    Params = FeaturesParams

    def __init__(self, params: FeaturesParams, tasks: Sequence[Task], student_dim: int, teacher_dim: int) -> None:
        super().__init__(params, tasks, student_dim, teacher_dim)
        self.layer = params.layer
        self.teacher_layer = params.teacher_layer
        self.distance = params.distance
        read = frozenset({params.layer})
        if params.teacher_layer is None:
            self.needs = Needs(read, frozenset({"embedding"}))
        else:
            self.needs = Needs(read, frozenset({"hidden"}), teacher_layers=frozenset({params.teacher_layer}))
        self.projection = nn.Linear(student_dim, teacher_dim)

    def forward(self, student: StudentOutput, teacher: TeacherOutput, batch: Batch) -> Tensor:
        output_BD = teacher.embedding_BD if self.teacher_layer is None else teacher.hidden_BD[self.teacher_layer]
        assert output_BD is not None
        target_BD = output_BD.detach().float()
        predicted_BD = self.projection(student.hidden_BND[self.layer][:, 0]).float()
        known_B = target_BD.isfinite().all(dim=1)
        if self.distance == "cosine":
            distance_B = 1 - F.cosine_similarity(predicted_BD, target_BD.nan_to_num(), dim=1)
        else:
            width = (target_BD.shape[1],)
            difference_BD = F.layer_norm(predicted_BD, width) - F.layer_norm(target_BD.nan_to_num(), width)
            distance_B = difference_BD.square().mean(dim=1)
        return masked_mean(distance_B, known_B)
