"""Defines the data types that the packages of a sweep exchange. Nothing here needs Ray, Optuna or MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict

from mmpkd.config import IMAGE
from mmpkd.types import SharedCache
from mmpkd.vlm.config import DistillationConfig

Values: TypeAlias = Sequence[float]  # one value per goal, in the order of `search.maximize`; higher is better
State: TypeAlias = Literal["running", "complete", "pruned", "failed"]


class Places(TypedDict):
    """Where workers find the files of a sweep."""

    folder: str  # path or address of the sweep's folder, which the driver and all workers can read
    cache: str  # path or address of the cache
    store: str  # folder of the prepared cohort; a worker neither needs nor reads raw data
    scratch: Scratch | None  # None: a worker reads the cache and writes the sweep's folder without copies on its disk


class Job(Places):
    """A trial as the driver gives it to a worker. It holds only plain values, in which Ray Tune finds no search space
    of its own to resolve.
    """

    number: int
    arm: str
    repeat_of: int | None  # number of the first trial of the configuration, if this trial runs it on a further seed
    trial: str  # the TrialConfig as JSON
    goals: list[str]
    rungs: list[int]  # the epochs at which the trial may be stopped early


class Scratch(TypedDict):
    """The use that workers make of the disk of their node."""

    folder: str  # the folder on every node; empty: a folder below the folder of temporary files
    gigabytes: float  # most gigabytes (10^9 bytes) that copies of the cache may take; 0: half of the disk
    sweep: str  # the sweep's identity, the name of its folder of checkpoints


class PlacedJob(Job):
    """A job whose `cache` and `store` are folders that its worker reads, perhaps copies on the disk of its node."""

    shared: SharedCache | None  # the cache of which `cache` holds copies


@dataclass(frozen=True)
class Placement:
    """Where the open trials of a sweep are.

    Attributes:
        running: the number of trials that have a worker.
        starting: the number of trials that have a place, in which their worker is starting.
        waiting: the number of trials that wait for a place.
    """

    running: int = 0
    starting: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class Record:
    """A trial as the sweep's Optuna storage records it.

    Attributes:
        seconds: seconds of training and validation over all epochs, without starting workers and fitting teachers.
        sampled: the drawn values by leaf name.
        metrics: the metrics of the last epoch.
        config: the TrialConfig as JSON.
        cause: the kind of a failure in one word: diverged, memory, worker or error.
        device_seconds: seconds times the share of a GPU that the trial held, or times its cores if it held no GPU.
        repeat_of: the number of the first trial of the configuration, if this trial runs it on a further seed. None for
            a first trial.
        turn: the number of this further seed, counted from 1. It is 0 for a first trial.
    """

    number: int
    arm: str
    state: State
    epochs: int
    seconds: float
    sampled: Mapping[str, Any]
    metrics: Mapping[str, float]
    config: str
    error: str = ""
    cause: str = ""
    device_seconds: float = 0.0
    repeat_of: int | None = None
    turn: int = 0

    @property
    def configuration(self) -> int:
        """The number that identifies the trial's configuration: the number of the first trial that ran the
        configuration.
        """
        return self.number if self.repeat_of is None else self.repeat_of

    @property
    def reference(self) -> bool:
        """Whether the student reads an input at test that the clinic will not have. Such a trial is shown but never
        chosen.
        """
        reads = json.loads(self.config).get("student", {}).get("reads", [IMAGE])
        return bool(reads != [IMAGE])

    @property
    def control(self) -> str:
        """Names of the teachers with shuffled outputs. A gain of this trial cannot come from the knowledge of these
        teachers.
        """
        config = json.loads(self.config)
        shuffled = [name for name, teacher in config.get("teachers", {}).items() if teacher.get("control")]
        distillation = DistillationConfig.model_validate(config.get("distillation", {}))
        return ", ".join([*shuffled, *shuffled_teacher_of(distillation)])

    def values(self, goals: Sequence[str]) -> tuple[float, ...]:
        return tuple(self.metrics[goal] for goal in goals)


@dataclass(frozen=True)
class Arrival:
    """The arrival of a trial at a rung. The sweep's storage keeps all arrivals, and a restarted driver rebuilds its
    rungs from them.
    """

    number: int
    arm: str
    rung: int  # the epoch of the rung
    values: tuple[float, ...]
    goes_on: bool


@dataclass(frozen=True)
class Ending:
    """How a trial ended.

    Attributes:
        learned: the values that the sampler learns from a trial that is not complete, or None if it learns nothing.
    """

    state: State
    epochs: int
    seconds: float
    device_seconds: float
    metrics: Mapping[str, float]
    error: str = ""
    cause: str = ""
    learned: Values | None = None


@dataclass(frozen=True)
class Halt:
    """The reason why the driver stops while trials are running. The trials keep their checkpoints and wait for the next
    driver.
    """

    kind: Literal["limit", "requested", "memory", "broken"]
    reason: str = ""


def shuffled_teacher_of(distillation: DistillationConfig) -> list[str]:
    """Returns the section of the teacher of a student that answers, if its outputs are shuffled and used."""
    teacher = distillation.teacher if distillation.needs_teacher else None
    return ["distillation.teacher"] if teacher is not None and teacher.control else []
