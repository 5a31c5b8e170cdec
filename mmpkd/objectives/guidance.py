"""Deep Multimodal Guidance: the student learns to guess the latent that a teacher has of a superior image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmpkd.config import Strict
from mmpkd.objectives.objective import Objective
from mmpkd.types import Batch, Needs, StudentOutput, Task, TeacherOutput

LEAST = 16  # units of a hidden layer: all of a few can be dead at once


class GuidanceParams(Strict):
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.25  # after each hidden layer of the guide; before the joint head


class Guidance(Objective):
    """Mean squared error between G(z_I), guessed from the student's embedding, and the teacher's embedding z_S.

    Mallya and Hamarneh 2022 (arXiv 2203.05683). G, the part `guide`, is a bottleneck of linear layers with a ReLU
    and dropout between them, as in the authors' notebook for Derm7pt (2048, 1024, 512, 512, 1024, 2048) in
    proportion to both widths; their RadPath's lacks a layer. Theirs ends in a ReLU too, because their latents
    are not negative; those of a ViT have passed a LayerNorm and may be, so here it does not.

    Its two heads answer in the student's place: `superior`, the paper's G(I), is the teacher's own classifier D_S,
    frozen, on G(z_I); `joint`, its G(I)+I, is a linear layer of its own on z_I and G(z_I), in that notebook's
    order. The stages of a training say which part learns when, and which head answers (`search_spaces/guidance.yaml`).

    Rows without an embedding (NaN) are left out.
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
    """Logits (B, K) from the student's embedding (B, D), by way of the guide.

    Args:
        width: of what the guide says.
        classifier: reads what the guide says or, where it is wide enough for both, the embedding and that.
    """

    def __init__(self, guide: nn.Sequential, width: int, classifier: Frozen | Joint) -> None:
        super().__init__()
        self.guide = guide
        self.width = width
        self.classifier = classifier
        self.joint = classifier.weight.shape[1] > width

    @classmethod
    def empty(cls, student_dim: int, width: int, num_logits: int, joint: bool) -> Guided:
        """One to load weights into."""
        inputs = student_dim + width if joint else width
        return cls(guide(student_dim, width, 0.0), width, Frozen(inputs, num_logits))

    def forward(self, embedding_BD: Tensor) -> Tensor:
        guessed_BD = self.guide(embedding_BD)
        read_BD = torch.cat([embedding_BD, guessed_BD], dim=1) if self.joint else guessed_BD
        logits_BK: Tensor = self.classifier(read_BD)
        return logits_BK


class Joint(nn.Linear):
    """A linear layer behind dropout."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__(inputs, outputs)
        self.dropout = dropout

    def forward(self, x_BD: Tensor) -> Tensor:
        return super().forward(F.dropout(x_BD, self.dropout, self.training))


class Frozen(nn.Module):
    """A linear layer that nothing trains: what is in no optimiser cannot be let loose by mistake."""

    weight: Tensor
    bias: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(outputs, inputs))
        self.register_buffer("bias", torch.zeros(outputs))

    def forward(self, x_BD: Tensor) -> Tensor:
        return F.linear(x_BD, self.weight, self.bias)


def guide(student_dim: int, teacher_dim: int, dropout: float) -> nn.Sequential:
    """A half and a quarter of the student's width, then a quarter and a half of the teacher's, but LEAST at least."""
    halves = (student_dim // 2, student_dim // 4, teacher_dim // 4, teacher_dim // 2)
    widths = (student_dim, *(max(width, LEAST) for width in halves))
    layers: list[nn.Module] = []
    for one, following in pairwise(widths):
        layers += [nn.Linear(one, following), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], teacher_dim))
