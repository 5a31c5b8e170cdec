"""What every teacher is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from mmpkd.cohort.facts import Facts
from mmpkd.cohort.store import Store
from mmpkd.config import NetworkConfig, Strict
from mmpkd.types import Mistake, Offer, TeacherOutput


class TeacherParams(Strict):
    seed: Annotated[int, Field(ge=0)] = 0  # of folds and fitting; not the trial's, so that trials share the answers

    @property
    def passes(self) -> int:
        """How often a fit goes over its samples, as far as that can be chosen."""
        return 1


@dataclass(frozen=True)
class Size:
    """Of a student: what a teacher that is built here is measured by, where its own size is left out."""

    network: NetworkConfig
    patch_size: int  # pixels
    dim: int
    depth: int
    heads: int


class Teacher(Protocol):
    """Learns a cohort's labels from a privileged modality, then answers about samples.

    `cache.py` decides which samples it may learn from, and caches its answers; of one that sees the student's
    view `online.py` caches the weights, and asks it at each step.
    """

    Params: ClassVar[type[TeacherParams]]
    VERSION: ClassVar[int]  # raise it when the same parameters come to give other numbers
    sees_view: ClassVar[bool]  # whether its input depends on the augmented image; then it cannot be cached

    def __init__(self, params: Any, facts: Facts) -> None:
        """`params` is a `Params` of this teacher."""

    @staticmethod
    def check(params: Any, facts: Facts) -> list[Mistake]:
        """What is wrong with these parameters on this cohort, under paths relative to `params`."""

    @staticmethod
    def offers(params: Any, facts: Facts) -> Offer:
        """What it provides with these parameters, which have passed `check`."""

    @staticmethod
    def caveats(params: Any, facts: Facts) -> list[str]:
        """What whoever plans with it should know, though nothing is wrong; its parameters have passed `check`."""
        return []

    @staticmethod
    def sources(params: Any) -> dict[str, Any]:
        """What else decides its numbers: contents of files, versions; part of the cache's address."""
        return {}

    @staticmethod
    def sized(params: Any, student: Size) -> dict[str, Any]:
        """Parameters that its configuration leaves out and that follow the student's size; valid ones are given."""
        return {}

    @staticmethod
    def outline(params: Any, facts: Facts) -> str:
        """What it will be: kind of model, blocks x width, patch, image size, parameters; one line."""

    def fit(self, store: Store, rows: NDArray[np.int64]) -> None:
        """Forget everything and learn from the samples at `rows`.

        Raises:
            TeacherError: these samples cannot teach.
        """

    def outputs(self, store: Store, rows: NDArray[np.int64]) -> TeacherOutput:
        """Answers about the samples at `rows`, of whole images, float32 on the CPU; the same ones each time."""

    def head(self) -> nn.Linear | None:
        """Of the last fit the layer that reads logits from the embedding, if it `offers` one."""
        return None
