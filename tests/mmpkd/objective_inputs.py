"""Small inputs for the hand-worked tests of objectives: what a test does not name is left empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmpkd.config import validate
from mmpkd.objectives import OBJECTIVES, Objective
from mmpkd.types import Batch, StudentOutput, lay_out

TASKS = lay_out([("ill", "binary", ["no", "yes"])])


def objective(kind: str, student_dim: int = 2, teacher_dim: int = 2, **params: object) -> Any:
    """An objective of that kind, its parameters drawn from seed 0."""
    torch.manual_seed(0)
    built: Objective = OBJECTIVES[kind](validate(OBJECTIVES[kind].Params, params), TASKS, student_dim, teacher_dim)
    return built


def student(
    embedding: Tensor | None = None,
    hidden: Mapping[int, Tensor] | None = None,
    attention: Mapping[int, Tensor] | None = None,
    grid: tuple[int, int] = (1, 2),
    num_prefix: int = 1,
) -> StudentOutput:
    nothing = torch.empty(0)
    embedding = nothing if embedding is None else embedding
    return StudentOutput(nothing, embedding, hidden or {}, attention or {}, grid, num_prefix)


def batch(patients: Sequence[int] = ()) -> Batch:
    nothing = torch.empty(0)
    return Batch(torch.tensor(patients), nothing, nothing, nothing, nothing)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def set_identity(linear: Any) -> None:
    """Makes a square linear layer pass its input through."""
    with torch.no_grad():
        linear.weight.copy_(torch.eye(len(linear.weight)))
        if linear.bias is not None:
            linear.bias.zero_()
