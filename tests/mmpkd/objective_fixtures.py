"""Inputs for tests of every objective: both outputs with all fields filled, and a labelled batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmpkd.config import validate
from mmpkd.objectives import OBJECTIVES, Objective
from mmpkd.types import Batch, StudentOutput, Task, TeacherOutput, lay_out

Given = tuple[StudentOutput, TeacherOutput, Batch]

# Sizes differ from one another, so that a mixed-up axis is an error; K is 7 in both.
DIM, TEACHER_DIM, BATCH, BLOCKS = 6, 5, 16, 3
GRID, TEACHER_GRID = (2, 3), (4, 6)
MIXED = lay_out(
    [
        ("stage", "multiclass", ["a", "b", "c"]),
        ("ill", "binary", ["no", "yes"]),
        ("signs", "multilabel", ["x", "y", "z"]),
    ]
)
SOFTMAX = lay_out([("stage", "multiclass", ["a", "b", "c"]), ("grade", "multiclass", ["1", "2", "3", "4"])])


def build(kind: str, params: dict[str, object], tasks: tuple[Task, ...] = MIXED) -> Objective:
    torch.manual_seed(0)
    return OBJECTIVES[kind](validate(OBJECTIVES[kind].Params, params), tasks, DIM, TEACHER_DIM)


def outputs(
    tasks: tuple[Task, ...] = MIXED, requires_grad: bool = False, dtype: torch.dtype = torch.float32, size: int = BATCH
) -> Given:
    """Random outputs of both sides and random labels, all known; four patients have two samples each.

    With `requires_grad` every tensor of both outputs is a leaf that records its gradient.
    """
    g = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return leaf(torch.randn(*shape, generator=g))

    def leaf(values: Tensor) -> Tensor:
        return values.to(dtype).requires_grad_(requires_grad)

    num_logits, num_tokens = tasks[-1].columns.stop, 1 + GRID[0] * GRID[1]
    student = StudentOutput(
        logits_BK=draw(size, num_logits),
        embedding_BD=draw(size, DIM),
        hidden_BND={block: draw(size, num_tokens, DIM) for block in range(BLOCKS)},
        query_attention_BAN={
            block: leaf(torch.randn(size, 2, num_tokens, generator=g).softmax(dim=2)) for block in range(BLOCKS)
        },
        grid=GRID,
        num_prefix=1,
    )
    teacher = TeacherOutput(
        logits_BK=draw(size, num_logits),
        embedding_BD=draw(size, TEACHER_DIM),
        hidden_BD={layer: draw(size, TEACHER_DIM) for layer in range(3)},
        map_Bhw=leaf(torch.randn(size, 24, generator=g).softmax(dim=1).view(size, *TEACHER_GRID)),
    )
    target = torch.randint(2, (size, num_logits), generator=g).float()
    for task in tasks:
        if task.kind == "multiclass":
            chosen = torch.randint(task.num_logits, (size,), generator=g)
            target[:, task.columns] = torch.eye(task.num_logits)[chosen]
    batch = Batch(
        patient_B=torch.arange(size) % 12,
        image_BCHW=torch.rand(size, 1, 8, 12, generator=g),
        target_BK=target,
        known_BK=torch.ones(size, num_logits, dtype=torch.bool),
        rows_B=torch.arange(size),
    )
    return student, teacher, batch


def tensors_of(output: StudentOutput | TeacherOutput) -> dict[str, Tensor]:
    """Every tensor of an output under a name such as `logits_BK` or `hidden_BND.2`."""
    named: dict[str, Tensor] = {}
    for name, value in vars(output).items():
        if isinstance(value, Tensor):
            named[name] = value
        elif isinstance(value, dict):
            named |= {f"{name}.{layer}": tensor for layer, tensor in value.items()}
    return named


def take(given: Given, order: Tensor) -> Given:
    """The samples at `order`, of both outputs and the batch; gradients flow back to what was given."""
    student, teacher, batch = (changed(output, lambda values: values[order]) for output in given)
    return student, teacher, batch


def changed(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """An output or a batch of which every tensor is changed by a function."""

    def of(value: object) -> object:
        if isinstance(value, Tensor):
            return change(value)
        return {layer: change(tensor) for layer, tensor in value.items()} if isinstance(value, dict) else value

    return replace(output, **{name: of(value) for name, value in vars(output).items()})


def silenced(teacher: TeacherOutput, silent_B: Tensor) -> TeacherOutput:
    """The teacher with nothing to say about the samples where `silent_B`."""

    def cut(value: Tensor) -> Tensor:
        return torch.where(silent_B.view(-1, *[1] * (value.dim() - 1)), torch.nan, value.detach())

    assert teacher.logits_BK is not None and teacher.embedding_BD is not None and teacher.map_Bhw is not None
    return TeacherOutput(
        cut(teacher.logits_BK),
        cut(teacher.embedding_BD),
        {layer: cut(hidden) for layer, hidden in teacher.hidden_BD.items()},
        cut(teacher.map_Bhw),
    )
