"""What every term of the loss is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from mmpkd.config import Strict
from mmpkd.types import Batch, Mistake, Needs, StudentOutput, Task, TeacherOutput


class Objective(nn.Module):
    """A term of the loss. Its own parameters join the optimiser and leave at export, unless a head of it answers.

    `heads` names what can answer in the student's place: parts of this module that only their answers train, and
    the further parts that each answer passes through. `needs` and `least_batch` may be set on the class or, where they
    depend on the parameters, in `__init__`; they are read when the plan is made, from an instance on the meta device.
    """

    Params: ClassVar[type[Strict]]
    needs: Needs
    least_batch: int = 1  # samples, of fewer of which this term says nothing: where it compares them
    heads: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, params: Any, tasks: Sequence[Task], student_dim: int, teacher_dim: int) -> None:
        """`params` is a `Params` of this objective; the dims are the widths of both embeddings."""
        super().__init__()

    @classmethod
    def check(cls, params: Any, tasks: Sequence[Task]) -> list[Mistake]:
        """What is wrong with this term on these tasks, under paths relative to the objective ('' for itself)."""
        return []

    def inherit(self, weight_KD: Tensor, bias_K: Tensor) -> None:
        """Takes over the teacher's classifier; called once, where `needs` names the `head`."""

    def head(self, name: str) -> nn.Module:
        """One of the `heads`, logits (B, K) from the student's embedding (B, D), sharing this module's weights."""
        raise NotImplementedError

    def forward(self, student: StudentOutput, teacher: TeacherOutput, batch: Batch) -> Tensor:
        """The unweighted term: a scalar >= 0, least where the student matches the teacher."""
        raise NotImplementedError
