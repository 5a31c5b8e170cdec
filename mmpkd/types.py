"""The types that the modules of this package exchange.

Shape legend, used in every name that ends in capitals:
    B batch    N tokens (prefix + patches), or samples of a store    P patches    D width
    A heads    T tasks    K logits over all tasks    C channels    H, W pixels    h, w patch grid
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field, model_serializer

if TYPE_CHECKING:  # for annotations only: reading the space of a sweep must not load torch
    from torch import Tensor

TaskKind = Literal["binary", "multiclass", "multilabel"]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """Base of every configuration: immutable; refuses unknown keys and non-finite numbers.

    `LATER` names the fields that were added to a class after its first release. While they have their defaults they are
    not dumped, so that fingerprints and cache addresses (hashes of dumps) stay as they were before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = dump(self)
        for name in self.LATER:
            if getattr(self, name) == type(self).model_fields[name].default:
                content.pop(name, None)
        return content

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """Returns the content, as pydantic does."""
        with _interrupts():
            return super().model_dump(**options)

    def model_dump_json(self, **options: Any) -> str:
        """Returns the content as JSON, as pydantic does."""
        with _interrupts():
            return super().model_dump_json(**options)


@contextmanager
def _interrupts() -> Iterator[None]:
    """A context manager. A signal that arrives in `Strict._without_later` stays a KeyboardInterrupt, which pydantic
    wraps in an error of its own.
    """
    try:
        yield
    except ValueError as error:  # pydantic's error of a serialization is one
        if ": KeyboardInterrupt" not in str(error):  # of nested configurations it keeps the name only
            raise
        raise KeyboardInterrupt from None


@dataclass(frozen=True)
class Task:
    """A classification task, and the position of its logits among the K logits of all tasks.

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
        """The columns of this task among the K logits."""
        return slice(self.start, self.start + self.num_logits)

    @property
    def logit_names(self) -> tuple[str, ...]:
        """One name per logit: the positive class of a binary task, every label otherwise."""
        return self.labels[1:] if self.kind == "binary" else self.labels


def lay_out(tasks: Sequence[tuple[str, TaskKind, Sequence[str]]]) -> tuple[Task, ...]:
    """Returns the tasks in the order given, with the positions of their logits: the logits of a task follow those of
    the previous task.

    Raises:
        ConfigError: two tasks, or two labels, would be scored under the same name.
    """
    placed: list[Task] = []
    for name, kind, labels in tasks:
        start = placed[-1].columns.stop if placed else 0
        placed.append(Task(name, kind, tuple(labels), start))
    names = [task.name for task in placed]
    names += [f"{task.name}/{label}" for task in placed for label in task.logit_names]
    if duplicates := [name for name, count in Counter(names).items() if count > 1]:
        problem = f"two tasks or labels would be scored under the name {duplicates[0]!r}; rename one of them"
        raise ConfigError.at("cohort.params.tasks", problem)
    return tuple(placed)


@dataclass(frozen=True)
class Batch:
    """A batch of samples: everything that the student and the objectives may see. It never holds a privileged field or
    an ROI.

    `target_BK` is multi-hot (one-hot over the columns of a multi-class task). Where `known_BK` is
    False the label is unknown and the target is 0. The store derives this mask once, from labels that are NaN.
    """

    patient_B: Tensor  # integer code of the patient
    image_BCHW: Tensor  # float in [0, 1]
    target_BK: Tensor
    known_BK: Tensor
    rows_B: Tensor  # positions in the store, by which cached teacher outputs are looked up


@dataclass(frozen=True)
class TeacherOutput:
    """The outputs of a teacher for some samples. They are NaN for a sample without the teacher's input.

    `hidden_BD` holds the pooled tokens of each layer (0 is the first); these tokens are as wide as the embedding.
    `map_Bhw` is the teacher's saliency map on its own grid: not negative, sums to 1, and moved as the images of the
    batch are.
    """

    logits_BK: Tensor | None = None
    embedding_BD: Tensor | None = None
    hidden_BD: Mapping[int, Tensor] = field(default_factory=dict)
    map_Bhw: Tensor | None = None


@dataclass(frozen=True)
class StudentOutput:
    """The outputs of the student for a batch. Hidden tokens and attention are those of the requested blocks only."""

    logits_BK: Tensor
    embedding_BD: Tensor
    hidden_BND: Mapping[int, Tensor]  # by block, 0 is the first; prefix tokens come first
    query_attention_BAN: Mapping[int, Tensor]  # by block: the row of the CLS token; prefix columns come first
    grid: tuple[int, int]
    num_prefix: int


@dataclass(frozen=True)
class Needs:
    """What an objective reads: blocks of the student and fields of its teacher's output."""

    student_layers: frozenset[int] = frozenset()  # blocks whose tokens are read
    teacher: frozenset[str] = frozenset()  # a subset of: logits, embedding, hidden, map, head
    student_attention: frozenset[int] = frozenset()  # blocks whose CLS attention rows are read
    teacher_layers: frozenset[int] = frozenset()  # hidden layers of the teacher


@dataclass(frozen=True)
class Offer:
    """What a teacher provides: fields of its output (logits, embedding, hidden, map), the number of its hidden
    layers, and `head`, the linear layer that computes its logits from its embedding."""

    fields: frozenset[str]
    layers: int = 0


@dataclass(frozen=True)
class EpochReport:
    """The report of a training after each epoch: plain numbers, safe to log anywhere."""

    epoch: int  # number of finished epochs: 1 in the first report
    step: int
    seconds: float  # wall time of this epoch, validation included
    terms: Mapping[str, float]  # unweighted mean of each loss term over the epoch
    metrics: Mapping[str, float]  # the goals alone, unless the epoch is scored completely


class SharedCache(Protocol):
    """Interface to a cache that several machines share, for a training that works in a cache on its own machine.

    An entry is a folder or a file of the cache. Its name is its path in the cache, such as `teachers/tabular-0123`.
    """

    def fetch(self, entry: str) -> Path | None:
        """Returns a complete copy of an entry: the copy on this machine, or else a new copy of the shared entry.
        Returns None if neither exists.
        """

    def publish(self, entry: str) -> None:
        """Copies an entry that was made on this machine to the shared cache, unless it is there already."""


class Mistake(NamedTuple):
    """A mistake in a configuration: its dotted path, and what was given and wanted."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" if self.path else self.problem


class UserError(Exception):
    """A mistake of the user, shown on one screen without a traceback; exit status 2."""


class ConfigError(UserError):
    """All mistakes in a configuration, reported together."""

    def __init__(self, mistakes: Sequence[Mistake]):
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))

    @classmethod
    def at(cls, path: str, problem: str) -> Self:
        """Returns the error for a single mistake at a dotted path."""
        return cls([Mistake(path, problem)])

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[Mistake, ...]]]:
        return type(self), (self.mistakes,)  # keeps the mistakes when the error is pickled for another process


class CohortError(UserError):
    """The data on disk are not what the reader needs. The message names the file or, in a cohort with restricted access
    (credentialed), the row instead."""


class TeacherError(UserError):
    """A teacher cannot be fitted, or does not provide an output that is required."""


class DivergedError(UserError):
    """A loss term is no longer a finite number. The message names the term and the step."""
