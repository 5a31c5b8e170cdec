"""The vocabulary: what travels between the rooms of this package, and nothing else.

Shape legend, used in every name that ends in capitals:
    B batch    N tokens (prefix + patches), or samples of a store    P patches    D width
    A heads    T tasks    K logits over all tasks    C channels    H, W pixels    h, w patch grid
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

if TYPE_CHECKING:  # named only: the space of a sweep is read without loading torch
    from torch import Tensor

TaskKind = Literal["binary", "multiclass", "multilabel"]


@dataclass(frozen=True)
class Task:
    """One question asked of an image, and where its logits stand among the K of all tasks.

    `binary` has one logit (sigmoid) and `labels` = (negative, positive); `multiclass` has one logit
    per class (softmax); `multilabel` has one logit per label (independent sigmoids).
    """

    name: str
    kind: TaskKind
    labels: tuple[str, ...]
    start: int

    @property
    def num_logits(self) -> int:
        return 1 if self.kind == "binary" else len(self.labels)

    @property
    def columns(self) -> slice:
        """This task's columns among the K logits."""
        return slice(self.start, self.start + self.num_logits)

    @property
    def logit_names(self) -> tuple[str, ...]:
        """One name per logit: the positive class of a binary task, every label otherwise."""
        return self.labels[1:] if self.kind == "binary" else self.labels


def lay_out(tasks: Sequence[tuple[str, TaskKind, Sequence[str]]]) -> tuple[Task, ...]:
    """Tasks laid side by side over the K logits, in the order given.

    Raises:
        ConfigError: two of them, or of their labels, would be scored under one name.
    """
    laid: list[Task] = []
    for name, kind, labels in tasks:
        start = laid[-1].columns.stop if laid else 0
        laid.append(Task(name, kind, tuple(labels), start))
    names = [*(task.name for task in laid), *(f"{task.name}/{label}" for task in laid for label in task.logit_names)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        problem = f"two tasks or labels would be scored under the name {twice[0]!r}; name one of them otherwise"
        raise ConfigError.at("cohort.params.tasks", problem)
    return tuple(laid)


@dataclass(frozen=True)
class Batch:
    """What the student and the objectives may see. Never a privileged field, never an ROI.

    `target_BK` is multi-hot (one-hot over the columns of a multi-class task); where `known_BK` is
    False the label is unknown and the target is 0. NaN became this mask once, in the store.
    """

    sample_ids: tuple[str, ...]
    patient_B: Tensor  # integer code of the patient
    image_BCHW: Tensor  # float in [0, 1]
    target_BK: Tensor
    known_BK: Tensor
    rows_B: Tensor  # positions in the store, which is how cached teacher outputs are found


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher says of some samples; a sample of which it has nothing to say is NaN.

    `hidden_BD` is pooled, by layer (0 is the first), and as wide as the embedding. `map_Bhw` is where
    the teacher looks, on its own grid: not negative, each map sums to 1, moved as the batch's images are.
    """

    logits_BK: Tensor | None = None
    embedding_BD: Tensor | None = None
    hidden_BD: Mapping[int, Tensor] = field(default_factory=dict)
    map_Bhw: Tensor | None = None


@dataclass(frozen=True)
class StudentOutput:
    logits_BK: Tensor
    embedding_BD: Tensor
    hidden_BND: Mapping[int, Tensor]  # by block, 0 is the first; prefix tokens lead
    query_attention_BAN: Mapping[int, Tensor]  # by block: the CLS token's row, prefix columns lead
    grid: tuple[int, int]
    num_prefix: int


@dataclass(frozen=True)
class Needs:
    """What an objective reads: blocks of the student, fields of its teacher's output."""

    student_layers: frozenset[int] = frozenset()  # whose tokens
    teacher: frozenset[str] = frozenset()  # of logits, embedding, hidden, map, head
    student_attention: frozenset[int] = frozenset()  # blocks whose CLS rows
    teacher_layers: frozenset[int] = frozenset()  # of hidden


@dataclass(frozen=True)
class Offer:
    """What a teacher provides: fields of its output (logits, embedding, hidden, map), how many hidden layers, and
    `head`, the linear layer that its logits are read from its embedding by."""

    fields: frozenset[str]
    layers: int = 0


@dataclass(frozen=True)
class EpochReport:
    """What a training tells the world after each epoch; plain numbers, safe to log anywhere."""

    epoch: int  # epochs finished, so the first report says 1
    step: int
    seconds: float  # wall time of this epoch, validation included
    terms: Mapping[str, float]  # unweighted mean of each loss term over the epoch
    metrics: Mapping[str, float]


class Mistake(NamedTuple):
    """One thing wrong in a configuration: where, and what was got and wanted."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" if self.path else self.problem


class UserError(Exception):
    """A mistake of the user's, told on one screen without a traceback; exit status 2."""


class ConfigError(UserError):
    """Everything wrong with a configuration, all at once."""

    def __init__(self, mistakes: Sequence[Mistake]):
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))

    @classmethod
    def at(cls, path: str, problem: str) -> Self:
        return cls([Mistake(path, problem)])

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[Mistake, ...]]]:
        return type(self), (self.mistakes,)  # crosses process borders whole


class CohortError(UserError):
    """The data on disk are not what the reader needs. Names the file, or of a credentialed cohort the row."""


class TeacherError(UserError):
    """A teacher cannot be fitted or does not provide what is asked of it."""


class DivergedError(UserError):
    """A loss term stopped being a finite number; names the term and the step."""
