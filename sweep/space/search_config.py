"""Defines how a space is searched: the section `search` of a space file, and the scores that a sweep can maximise."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from mmpkd.types import Positive, Strict
from sweep.search.samplers import SAMPLERS
from sweep.selection import Select

# The scores that a sweep can maximise (higher is better for all) and what the cohort must have for each.
SCORES: Final = {
    "val/auroc": "classes",
    "val/auroc_patient": "several images of a patient",
    "val/pointing": "ROIs",
    "val/mass": "ROIs",
    "val/pixel_ap": "ROIs",
    "val/answer": "questions",
    "val/recall50": "questions about places",
}
ANSWER: Final = "val/answer"  # the goal that chooses among students that answer, unless `select` names another
ANSWERED: Final = ("questions", "questions about places")  # what a cohort has whose students answer
PLACES: Final = ("ROIs", "questions about places")  # what a cohort has for a score of localisation


def are_of_answers(goals: Sequence[str]) -> bool:
    """Returns whether goals score a student that answers questions."""
    return any(SCORES.get(goal) in ANSWERED for goal in goals)


def is_of_places(goal: str) -> bool:
    """Returns whether a goal scores localisation: where a student looks, or where it points."""
    return SCORES.get(goal) in PLACES


class EarlyStopping(Strict):
    """Asynchronous halving on all goals: at epochs grace x reduction^k the best 1/reduction of an arm's trials go on.

    The default of `grace` is epochs / reduction. Trials are then ranked only once, at the same point of their
    learning-rate schedule for every value of `epochs`. With a fixed `grace` of a few epochs, long trainings would be
    ranked by the speed of their warm-up, and short trainings would be ranked a second time just before the end. Both
    would leave few complete trials, and only complete trials can enter the front.
    """

    grace: Positive | None = None  # epochs that every trial gets
    reduction: Annotated[int, Field(ge=2)] = 3

    def rungs(self, epochs: int) -> list[int]:
        """Returns the epochs at which trials are ranked. The last epoch is never one of them, because nothing is left
        to decide.
        """
        rungs, epoch = [], self.grace or math.ceil(epochs / self.reduction)
        while epoch < epochs:
            rungs.append(epoch)
            epoch *= self.reduction
        return rungs


def _false_to_none(value: object) -> object:
    return None if value is False else value


def _name_or_absolute_path(value: str | None) -> str | None:
    """Returns the name or the address of a sweep unchanged, and makes a path absolute, because the next driver may run
    in another folder.
    """
    is_path = value and os.sep in value and "://" not in value
    return os.path.abspath(os.path.expanduser(value)) if value and is_path else value


FalseToNone = BeforeValidator(_false_to_none, json_schema_input_type=EarlyStopping | Literal[False] | None)
Share = Annotated[float, Field(gt=0, le=1)]
Equal: TypeAlias = Literal["trials", "hours"]


def _per_device(value: object) -> object:
    if value is None or value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("wants a whole number above 0, or auto")


PerDevice = Annotated[
    int | Literal["auto"] | None,
    BeforeValidator(_per_device, json_schema_input_type=Annotated[int, Field(ge=1)] | Literal["auto"] | None),
]
if TYPE_CHECKING:
    SamplerName = str
else:  # at run time: the names of the dictionary, which mypy cannot read
    SamplerName = Literal[tuple(SAMPLERS)]
Point = Mapping[str, Any]
WarmStart = Annotated[str | None, AfterValidator(_name_or_absolute_path)]


class SearchConfig(Strict):
    """How to search a space. The sampler's seed is not set here; it is the `seed` of the trials."""

    maximize: Annotated[tuple[str, ...], Field(min_length=1)] | None = None  # val/auroc; with ROIs val/pointing too
    # The rule that chooses the trial of best.yaml: a goal, or a Selection. In a tie the lowest number is chosen. For
    # students that answer, `space.py` sets another default.
    select: Select = "val/auroc"
    trials: Positive = 32  # number of configurations, over all arms
    budget_device_hours: Annotated[float, Field(gt=0)] | None = None  # wall time x GPUs (or cores) of all trials
    deadline: datetime | None = None  # no trial runs later; local time unless it names a zone
    plateau: Annotated[int, Field(ge=2)] | None = None  # stop after this many without 1 % more hypervolume
    equal: Equal = "trials"  # what arms get equally or by `shares`: numbers of trials, or device-hours
    shares: Mapping[str, Share] = {}  # share by arm; unnamed arms divide the remainder equally
    sampler: SamplerName = "gp"
    warm_start: WarmStart = None  # name or folder of a sweep of the same cohort; samplers learn its results
    points: tuple[Point, ...] = ()  # tried first: {arm: NAME, path of a leaf: value}; other leaves are sampled
    repeats: Positive = 1  # number of seeds that a configuration needs to enter the front
    keep: Literal["best", "all"] = "best"  # the complete trials whose students are kept
    early_stopping: Annotated[EarlyStopping | None, FalseToNone] = EarlyStopping()  # false or null switches it off
    # A number or 'auto', which measures it; a device is a GPU or, without GPUs, all cores of a machine. With GPUs it is
    # 'auto' unless this key or `gpus` is set: see `wanted_per_device` in `sweep/cluster.py`.
    trials_per_device: PerDevice = None
    cpus: Annotated[float, Field(gt=0)] | None = None  # cores reserved for a trial; `threads` of them by default
    gpus: Annotated[float, Field(ge=0, le=1)] | None = None  # share of a GPU reserved for a trial, and of its memory
    # Most trials that are requested at once, running ones included. By default as many as the cluster has room for or
    # may get room for by its configuration, and one more: see `trials_at_a_time` in `sweep/cluster.py`.
    at_a_time: Positive | None = None
    max_failures: Annotated[int, Field(ge=0)] = 3  # how often a trial is tried again after its worker died
