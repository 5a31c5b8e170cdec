"""The interface of every teacher, and a teacher's configuration once its kind and parameters are resolved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from mmpkd.cohort.facts import Facts
from mmpkd.cohort.store import Store
from mmpkd.config import NetworkConfig, TeacherConfig
from mmpkd.types import Mistake, Offer, Strict, TeacherOutput


class TeacherParams(Strict):
    seed: Annotated[int, Field(ge=0)] = 0  # seed of folds and fitting; not the trial's seed: trials share the cache

    @property
    def passes(self) -> int:
        """Returns the number of passes over the samples in a fit; 1 if this number cannot be chosen."""
        return 1

    @property
    def near_label_inputs(self) -> tuple[str, ...]:
        """Returns the columns and report sections that nearly state the label and that the user asked for by name."""
        return ()


class CompositeParams(TeacherParams):
    """Parameters of a teacher that combines the logits of other teachers, its members."""

    members: dict[str, TeacherConfig]  # each written like an entry of `teachers`


class Inputs(NamedTuple):
    """The privileged columns and report sections that a teacher reads, for warnings about label leakage."""

    columns: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()  # names of report sections
    hidden_words: tuple[str, ...] | None = None  # masked in the sections beside the labels' names; None: no masking


@dataclass(frozen=True)
class StudentSize:
    """The size of the student, from which a teacher's own size follows where its configuration leaves it out."""

    network: NetworkConfig
    patch_size: int  # pixels
    dim: int
    depth: int
    heads: int


class Teacher(Protocol):
    """Learns a cohort's labels from a privileged modality, then predicts the labels of samples.

    `fitting.py` decides which samples it learns from. `cache.py` stores its outputs; for a teacher that sees the
    student's view, it stores the weights of its networks, which `online.py` runs at each step.
    """

    Params: ClassVar[type[TeacherParams]]
    VERSION: ClassVar[int]  # raise it when the same parameters give other numbers
    LEAKAGE_REMEDY: ClassVar[str]  # what the user can do if its inputs state the label; a phrase in the imperative
    sees_view: ClassVar[bool] = False  # whether its input depends on the augmented image; see `ViewTeacher`
    params: Any  # the parameters that `__init__` was given
    member_logits: Mapping[str, NDArray[np.float32]] = {}  # (N, K) per member of a composite teacher, set before `fit`

    def __init__(self, params: Any, facts: Facts) -> None:
        """Builds the teacher from its parameters, an instance of the class's `Params`."""

    @staticmethod
    def check(params: Any, facts: Facts) -> list[Mistake]:
        """Returns what is wrong with these parameters on this cohort, under paths relative to `params`."""

    @staticmethod
    def offers(params: Any, facts: Facts) -> Offer:
        """Returns what the teacher provides with these parameters, which have passed `check`."""

    @staticmethod
    def caveats(params: Any, facts: Facts) -> list[str]:
        """Returns remarks for a user who plans with these parameters, which have passed `check`."""
        return []

    @staticmethod
    def sources(params: Any) -> dict[str, Any]:
        """Returns everything besides `params` that determines the outputs (file contents, versions), for the cache
        address."""
        return {}

    @staticmethod
    def inputs(params: Any, facts: Facts) -> Inputs:
        """Returns the privileged columns and report sections that the teacher reads."""
        return Inputs()

    @staticmethod
    def sizes(params: Any, student: StudentSize) -> dict[str, Any]:
        """Returns values of parameters that the configuration leaves out and that follow from the student's size."""
        return {}

    @staticmethod
    def outline(params: Any, facts: Facts) -> str:
        """Describes the teacher in one line: kind of model, blocks x width, patch, image size, number of parameters."""

    def fit(self, store: Store, rows: NDArray[np.int64]) -> None:
        """Discards all earlier fits and learns from the samples at `rows`.

        Raises:
            TeacherError: the teacher cannot learn from these samples.
        """

    def outputs(self, store: Store, rows: NDArray[np.int64]) -> TeacherOutput:
        """Returns the teacher's outputs for the whole images of the samples at `rows`, as float32 on the CPU.

        The same samples always get the same outputs.
        """

    def head(self) -> nn.Linear | None:
        """Returns the layer of the last fit that computes the logits from the embedding; None if there is no such
        layer."""
        return None


class ViewTeacher(Teacher, Protocol):
    """A teacher that sees the student's view. It runs at each step of a training; see `online.py`.

    Its network maps a batch by modality to logits (B, K) and an embedding (B, D). The modalities are `image`
    (B, C, H, W), the student's view in [0, 1]; `view`, a further image of the sample in the same view, if
    `further_view` names one; and `table` (B, V), the numbers that the method `table` returns. The network ends with a
    linear layer called `head`, which computes the logits from D numbers. `fold_levels.py` changes its bias, so that
    the logits of the five fold models are comparable.
    """

    sees_view: ClassVar[bool] = True
    network: nn.Module  # network of the last fit; frozen

    @staticmethod
    def further_view(params: Any) -> str | None:
        """Returns the name of the further image that the network reads beside the student's; None if it reads none."""
        return None

    def table(self, store: Store, rows: NDArray[np.int64]) -> Tensor:
        """Returns the numbers (n, V) that the last fitted network reads, beside images, for the samples at `rows`."""

    @staticmethod
    def network_for(params: Any, facts: Facts, weights: Mapping[str, Tensor]) -> nn.Module:
        """Returns a network into which `weights`, the state of a fitted `network`, can be loaded."""

    @staticmethod
    def untrained(params: Any, facts: Facts) -> tuple[nn.Module, int]:
        """Returns an untrained network that costs as much as a fitted one, and V, the number of columns of its table.

        The weights are drawn by torch's global generator.
        """


@dataclass(frozen=True)
class ResolvedTeacher:
    """A teacher's configuration after its kind was looked up and its parameters were validated (`teachers.resolve`)."""

    kind: str
    teacher: type[Teacher]
    params: TeacherParams
    control: Literal["shuffled"] | None = None
    members: Mapping[str, ResolvedTeacher] = field(default_factory=dict)  # members of a composite teacher, by name

    @property
    def near_label_inputs(self) -> list[str]:
        """Returns the columns and sections that nearly state the label and that this teacher or a member reads."""
        names = [name for member in self.members.values() for name in member.near_label_inputs]
        return [*self.params.near_label_inputs, *names]

    def offers(self, facts: Facts) -> Offer:
        """Returns what the teacher provides. Its parameters must have passed `teachers.check`."""
        return self.teacher.offers(self.params, facts)

    def sources(self) -> dict[str, Any]:
        """Returns everything besides parameters that determines the outputs: the `sources` of the teacher and its
        members."""
        members = {
            name: {"version": member.teacher.VERSION, "sources": member.sources()}
            for name, member in self.members.items()
        }
        return self.teacher.sources(self.params) | members

    def outlines(self, path: str, facts: Facts) -> list[str]:
        """Describes the teacher at this path and each of its members, one line each."""
        lines = [f"{path}: {self.kind}, {self.teacher.outline(self.params, facts)}"]
        for name, member in self.members.items():
            lines += member.outlines(f"{path}.params.members.{name}", facts)
        return lines

    def caveats(self, facts: Facts) -> list[str]:
        """Returns remarks for a user who plans with this teacher, which has passed `teachers.check`."""
        names = ", ".join(self.params.near_label_inputs)
        lines = [f"reads {names}, which nearly states the label; its runs are tagged near_label"] if names else []
        lines += self.teacher.caveats(self.params, facts)
        for name, member in self.members.items():
            lines += [f"member {name} {line}" for line in member.caveats(facts)]
        return lines

    def single(self, path: str) -> Iterator[tuple[str, ResolvedTeacher]]:
        """Yields each teacher that reads a cohort, with its path: this teacher itself or, if it is composite, its
        members."""
        if not self.members:
            yield path, self
        for name, member in self.members.items():
            yield from member.single(f"{path}.params.members.{name}")
