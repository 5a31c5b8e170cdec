"""Deep Multimodal Guidance: the student learns to predict the embedding that a teacher has of a superior image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmpkd.objectives.objective import Objective
from mmpkd.types import Batch, Needs, Strict, StudentOutput, Task, TeacherOutput

MIN_UNITS = 16  # smallest width of a hidden layer: with fewer, all ReLUs may be dead at once


class GuidanceParams(Strict):
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.25  # after each hidden layer of the guide; before the joint head


class Guidance(Objective):
    """Mean squared error between G(z_I), predicted from the student's embedding, and the teacher's embedding z_S.

    Mallya and Hamarneh 2022 (arXiv 2203.05683). G, the part `guide`, is a bottleneck of linear layers with a ReLU and
    dropout between them. Its widths are in the proportions of the authors' notebook for Derm7pt (2048, 1024, 512, 512,
    1024, 2048); the notebook for RadPath has one layer less. The authors' G also ends in a ReLU, because their latents
    are not negative; the embedding of a ViT has passed a LayerNorm and may be negative, so here G ends in a linear
    layer.

    The logits of its two heads can replace those of the student. `superior`, the paper's G(I), is the frozen classifier
    D_S of the teacher on G(z_I). `joint`, the paper's G(I)+I, is a new linear layer on z_I and G(z_I), in the order of
    the authors' notebook. The stages of a training determine which part learns when, and which head is scored
    (`search_spaces/guidance.yaml`).

    Samples without an embedding of the teacher (NaN) are left out.
    """

    Params = GuidanceParams
    needs = Needs(teacher=frozenset({"embedding", "head"}))
    heads: ClassVar[Mapping[str, tuple[str, ...]]] = {"superior": ("guide",), "joint": ("guide",)}

    def __init__(self, params: GuidanceParams, tasks: Sequence[Task], student_dim: int, teacher_dim: int) -> None:
        super().__init__(params, tasks, student_dim, teacher_dim)
        num_logits = tasks[-1].columns.stop
        self.width = teacher_dim
        self.guide = guide(student_dim, teacher_dim, params.dropout)
        self.superior = Frozen(teacher_dim, num_logits)
        self.joint = Joint(student_dim + teacher_dim, num_logits, params.dropout)

    def inherit(self, weight_KD: Tensor, bias_K: Tensor) -> None:
        self.superior.weight.copy_(weight_KD)
        self.superior.bias.copy_(bias_K)

    def forward(self, student: StudentOutput, teacher: TeacherOutput, batch: Batch) -> Tensor:
        assert teacher.embedding_BD is not None
        target_BD = teacher.embedding_BD.detach().float()
        known_B = target_BD.isfinite().all(dim=1)
        error_BD = self.guide(student.embedding_BD).float() - target_BD.nan_to_num()
        return torch.where(known_B, error_BD.square().mean(dim=1), 0.0).sum() / known_B.sum().clamp(min=1)

    def head(self, name: str) -> Guided:
        return Guided(self.guide, self.width, self.superior if name == "superior" else self.joint)


class Guided(nn.Module):
    """Maps the student's embedding (B, D) to logits (B, K) through the guide.

    Args:
        width: the width of the output of the guide.
        classifier: computes the logits. Its input is the output of the guide. If the classifier takes more than `width`
            values, its input is the student's embedding followed by that output.
    """

    def __init__(self, guide: nn.Sequential, width: int, classifier: Frozen | Joint) -> None:
        super().__init__()
        self.guide = guide
        self.width = width
        self.classifier = classifier
        self.joint = classifier.weight.shape[1] > width

    @classmethod
    def empty(cls, student_dim: int, width: int, num_logits: int, joint: bool) -> Guided:
        """Returns a module into which weights can be loaded."""
        inputs = student_dim + width if joint else width
        return cls(guide(student_dim, width, 0.0), width, Frozen(inputs, num_logits))

    def forward(self, embedding_BD: Tensor) -> Tensor:
        predicted_BD = self.guide(embedding_BD)
        input_BD = torch.cat([embedding_BD, predicted_BD], dim=1) if self.joint else predicted_BD
        logits_BK: Tensor = self.classifier(input_BD)
        return logits_BK


class Joint(nn.Linear):
    """Dropout followed by a linear layer."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__(inputs, outputs)
        self.dropout = dropout

    def forward(self, x_BD: Tensor) -> Tensor:
        return super().forward(F.dropout(x_BD, self.dropout, self.training))


class Frozen(nn.Module):
    """A linear layer whose weights are buffers, so that no optimiser can train it by mistake."""

    weight: Tensor
    bias: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(outputs, inputs))
        self.register_buffer("bias", torch.zeros(outputs))

    def forward(self, x_BD: Tensor) -> Tensor:
        return F.linear(x_BD, self.weight, self.bias)


def guide(student_dim: int, teacher_dim: int, dropout: float) -> nn.Sequential:
    """Returns layers with 1/2 and 1/4 of the student's width, then 1/4 and 1/2 of the teacher's, at least MIN_UNITS."""
    halves = (student_dim // 2, student_dim // 4, teacher_dim // 4, teacher_dim // 2)
    widths = (student_dim, *(max(width, MIN_UNITS) for width in halves))
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], teacher_dim))
