"""Students in files, made without a training: random weights, temperatures and thresholds, for tests of exports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from students import drawn

from mmpkd.cohort.decode import Depth
from mmpkd.config import StudentConfig
from mmpkd.export import student_file
from mmpkd.export.student_file import Card
from mmpkd.objectives.guidance import Guided
from mmpkd.student import build_student
from mmpkd.types import TaskKind, lay_out

BINARY = [("malignant", "binary", ("benign", "malignant"))]
MULTICLASS = [("pattern", "multiclass", ("round", "oval", "other"))]
MULTILABEL = [*BINARY, ("signs", "multilabel", ("halo", "spicules, long"))]
SIZE = 32
EIGHT_BITS = Depth()


def write_student(
    folder: Path,
    tasks: Sequence[tuple[str, TaskKind, Sequence[str]]],
    channels: int = 1,
    joint: bool | None = None,
    map: str = "cls_attention",
    depth: Depth = EIGHT_BITS,
) -> Path:
    """Writes a student of two blocks and returns its file.

    Args:
        joint: whether the head of a guided student takes the student's embedding as well; None: not guided.
    """
    placed = lay_out(tasks)
    config = StudentConfig(model="vit_tiny_patch16_224", patch_size=8, embed_dim=24, depth=2, num_heads=2)
    student = drawn(build_student(config, SIZE, channels, placed[-1].columns.stop), 0.3)
    if joint is not None:
        student.head = Guided.empty(24, 16, placed[-1].columns.stop, joint)
        student = drawn(student, 0.3)
        for buffer in student.head.classifier.buffers():  # a frozen classifier has no parameters
            buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(1)))
    labels = [f"{task.name}/{name}" for task in placed if task.kind != "multiclass" for name in task.logit_names]
    card = Card(
        model=config.model_dump(mode="json", exclude={"reads"}),
        mean=tuple(student.mean.flatten().tolist()),
        std=tuple(student.std.flatten().tolist()),
        tasks=placed,
        channels=channels,
        image_size=SIZE,
        depth=depth,
        map=map,
        temperature={task.name: 1.5 + count for count, task in enumerate(placed)},
        threshold={label: 0.4 for label in labels},
        map_threshold={},
        source="0",
        cohort="0",
        fold=0,
        trial="0",
        credentialed=False,
        head=None if joint is None else {"width": 16, "joint": joint},
    )
    folder.mkdir(parents=True)
    return student_file.write(folder, student, card, np.arange(3))
