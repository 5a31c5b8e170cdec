"""How a space is searched: the section `search` of a space file, and the scores that a sweep can maximise."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from mmpkd.config import Positive, Strict
from sweep.search.samplers import SAMPLERS

# The scores that a sweep can maximise (higher is better for all) and what the cohort must have for each.
SCORES: Final = {
    "val/auroc": "",
    "val/auroc_patient": "several images of a patient",
    "val/pointing": "ROIs",
    "val/mass": "ROIs",
    "val/pixel_ap": "ROIs",
}


class EarlyStopping(Strict):
    """Asynchronous halving on all goals: at epochs grace x reduction^k the best 1/reduction of an arm go on.

    By default `grace` is epochs / reduction. Trials are then ranked once, after the same share of their learning-rate
    schedule whatever `epochs` is. A fixed grace of a few epochs would rank long sweeps by the speed of the warm-up, and
    short ones a second time just before the end. Both leave few complete trials, and only these can enter the front.
    """

    grace: Positive | None = None  # epochs that every trial gets
    reduction: Annotated[int, Field(ge=2)] = 3

    def rungs(self, epochs: int) -> list[int]:
        """Returns the epochs at which trials are ranked; never the last epoch, where nothing is left to decide."""
        rungs, epoch = [], self.grace or math.ceil(epochs / self.reduction)
        while epoch < epochs:
            rungs.append(epoch)
            epoch *= self.reduction
        return rungs


def _false_to_none(value: object) -> object:
    return None if value is False else value


def _name_or_absolute_path(value: str | None) -> str | None:
    """Returns the name of a sweep unchanged and a path as absolute: the next driver may run in another folder."""
    return os.path.abspath(os.path.expanduser(value)) if value and os.sep in value else value


FalseToNone = BeforeValidator(_false_to_none, json_schema_input_type=EarlyStopping | Literal[False] | None)
Share = Annotated[float, Field(gt=0, le=1)]


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
else:  # a name of the dictionary, which mypy cannot read
    SamplerName = Literal[tuple(SAMPLERS)]
Point = Mapping[str, Any]
WarmStart = Annotated[str | None, AfterValidator(_name_or_absolute_path)]


class SearchConfig(Strict):
    """How to search. The seed of the sampler is the `seed` of the trials."""

    maximize: Annotated[tuple[str, ...], Field(min_length=1)] | None = None  # val/auroc, with ROIs val/pointing too
    select: str = "val/auroc"  # the goal that picks best.yaml from the front
    trials: Positive = 32  # configurations started, over all arms
    budget_device_hours: Annotated[float, Field(gt=0)] | None = None  # wall time x GPUs (else cores) of all trials
    deadline: datetime | None = None  # nothing runs later; local time unless it names a zone
    plateau: Annotated[int, Field(ge=2)] | None = None  # complete trials of an arm without 1 % more hypervolume: enough
    shares: Mapping[str, Share] = {}  # of device-hours, by arm; arms not named share the rest equally
    sampler: SamplerName = "tpe"
    warm_start: WarmStart = None  # a sweep of the same cohort, by name or folder, whose results the samplers begin with
    points: tuple[Point, ...] = ()  # tried first: {arm: NAME, path of a leaf: value}, what is left out is sampled
    repeats: Positive = 1  # seeds that a complete trial needs before it may enter the front
    early_stopping: Annotated[EarlyStopping | None, FalseToNone] = EarlyStopping()  # false or null: off
    trials_per_device: PerDevice = None  # a number or 'auto'; a device is a GPU, or else all cores of a machine
    cpus: Annotated[float, Field(gt=0)] | None = None  # cores reserved for a trial; `threads` of them by default
    gpus: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of a GPU reserved for a trial
    max_failures: Annotated[int, Field(ge=0)] = 3  # times that a trial whose worker died is tried again
