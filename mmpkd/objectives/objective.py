"""The interface of every objective, a term of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from mmpkd.types import Batch, Mistake, Needs, Strict, StudentOutput, Task, TeacherOutput


class Objective(nn.Module):
    """A term of the loss. Its own parameters join the optimiser, and are not exported unless one of its heads is used.

    The keys of `heads` name the parts of this module that can compute logits in place of the student's. The value of a
    key names the further parts through which the logits of this head are computed. A head is trained only through its
    logits. `needs` and `min_batch` may be set on the class or, if they depend on the parameters, in `__init__`. A plan
    reads them from an instance on the meta device.
    """

    Params: ClassVar[type[Strict]]
    needs: Needs
    min_batch: int = 1  # smallest batch that defines the term; above 1 if it compares samples
    heads: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, params: Any, tasks: Sequence[Task], student_dim: int, teacher_dim: int) -> None:
        """Builds the objective.

        Args:
            params: a `Params` of this objective.
            student_dim, teacher_dim: widths of the embeddings of student and teacher.
        """
        super().__init__()

    @classmethod
    def check(cls, params: Any, tasks: Sequence[Task]) -> list[Mistake]:
        """Returns what is wrong with this term on these tasks, under paths relative to the objective.

        The path '' is that of the objective itself.
        """
        return []

    def inherit(self, weight_KD: Tensor, bias_K: Tensor) -> None:
        """Copies the teacher's classifier into this objective. This method is called once, if `needs` names the
        `head`."""

    def head(self, name: str) -> nn.Module:
        """Returns one of the `heads` as a module that maps the student's embedding (B, D) to logits (B, K). It shares
        its weights with this module."""
        raise NotImplementedError

    def forward(self, student: StudentOutput, teacher: TeacherOutput, batch: Batch) -> Tensor:
        """Returns the unweighted term: a scalar >= 0 that is smallest if the student matches the teacher."""
        raise NotImplementedError
