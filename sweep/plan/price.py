"""Computes the price of a sweep from timed steps: device-hours with and without early stopping, memory, disk space.

This module only computes; `sweep.workers.pricing` measures on the devices. The price of a trial is the price of its
epochs in device-seconds, as `Ledger` counts them: wall time of training and validation times the trial's share of a
GPU, or times its number of cores if it has no GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from mmpkd.config import TrialConfig
from mmpkd.scoring.patients import FEW_PATIENTS, rarer_class, warn_of_few
from mmpkd.training.probe import Cost
from mmpkd.training.stand_in import StandIn
from sweep.pareto import NUM_BEST
from sweep.plan.dealing import deal_trials, luck_warnings
from sweep.plan.epoch_cost import epoch_seconds
from sweep.plan.expectations import auroc_error, expected_behind, expected_epochs, expected_front, validation_folds
from sweep.plan.packing import Packing
from sweep.selection import rule_of
from sweep.space.draw import branches, count_branches
from sweep.space.search_config import Equal
from sweep.space.space import Space

MIN_BRANCH_TRIALS: Final = 10  # with fewer trials per branch the sweep gives only a first impression
MAX_AUROC_ERROR: Final = 0.025  # standard error of AUROC; twice this value is more than most teachers add to AUROC


@dataclass(frozen=True)
class TimedConfig:
    """A configuration and its measured cost while `slots` trials of it run at the same time.

    Attributes:
        cost: measured cost, or None if the configuration could not be timed.
        problem: the reason why the configuration could not be timed.
    """

    config: TrialConfig
    cost: Cost | None
    slots: int
    problem: str = ""


@dataclass(frozen=True)
class ArmPrice:
    """What an arm gets, and what that costs.

    Attributes:
        low: device-seconds of a full-length trial of the cheapest configuration.
        high: device-seconds of a full-length trial of the most expensive configuration.
        trials: number of configurations that the arm gets.
        hours: device-hours of the arm if every trial runs at full length, including runs on further seeds.
        hours_halving: device-hours of the arm with early stopping as configured.
    """

    arm: str
    low: float
    high: float
    trials: int
    hours: float
    hours_halving: float


@dataclass(frozen=True)
class Price:
    """The price of a sweep. All hours are device-hours, except `wall_hours`, which estimates the elapsed time."""

    arms: tuple[ArmPrice, ...]
    equal: Equal  # what the arms share; `search.equal`
    hours: float  # if every trial runs at full length
    hours_halving: float  # with early stopping as configured; equal to `hours` without early stopping
    wall_hours: float
    teacher_seconds: float  # to fit the teachers, once for all sweeps on this cohort; not in the hours
    cache_bytes: int
    checkpoint_bytes: int
    memory_bytes: int  # of the trial that needs most memory
    device_bytes: int
    slots: int
    per_device: int | None  # trials per device; None if `search.cpus` and `search.gpus` set what trials reserve
    packing: Packing | None  # how `per_device` was measured; None if it was not
    num_steps: int  # number of timed steps
    auroc_error: float | None  # see the function `auroc_error`; None if no label has two classes
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """Returns the price as a few lines of text for a console."""
        total = sum(arm.trials for arm in self.arms)
        at_a_time = f"{self.slots} trial{'s' * (self.slots != 1)} at a time"
        shared = "the number of trials" if self.equal == "trials" else "the device-hours"
        lines = [
            f"price: about {clock(self.wall_hours * 3600)}, {at_a_time}, from {self.num_steps} timed training steps",
            f"  {self.hours:.3g} device-hours for {total} trials at full length{_stopped(self)}",
            "  (a device-hour is an hour of a whole GPU or, without a GPU, of a core)",
            "  starting Ray and workers, some seconds each, and fitting teachers come on top",
            f"  arms share {shared} (search.equal={self.equal}); each gets:",
            *(
                f"    {arm.arm}: {arm.trials} trial{'s' * (arm.trials != 1)}, {arm.hours:.3g} device-hours"
                f"{_stopped(arm)}; {_span(arm.low, arm.high)} s of a device for a trial"
                for arm in self.arms
            ),
            f"  fitting teachers: {clock(self.teacher_seconds)} once (0 s if cached), not included above",
            f"  disk: cache {_bytes(self.cache_bytes)}, checkpoints {_bytes(self.checkpoint_bytes)}; "
            f"memory of a trial {_bytes(self.memory_bytes)} of {_bytes(self.device_bytes)}"
            + (f"; {self.per_device} trials to a device" if self.per_device and not self.packing else ""),
            *([f"  {self.packing.line()}"] if self.packing else []),
        ]
        return lines + [f"warning: {warning}" for warning in self.warnings]


def compute_price(
    space: Space,
    store: StandIn,
    timed: Mapping[str, Sequence[TimedConfig]],
    devices: float,
    slots: int,
    teacher_seconds: float,
    goals: Sequence[str],
    per_device: int | None = None,
    packing: Packing | None = None,
) -> Price:
    """Returns the price of a sweep.

    Args:
        timed: maps each arm to its timed configurations, which are the cheapest and the most expensive.
        devices: the share of a GPU that a trial reserves, or its number of cores if it reserves no GPU.
        slots: the number of trials that run at a time in the whole cluster.
        per_device: the number of trials that share a device. The number is only printed on the console. If None, it is
            not printed.
        packing: the measurement that led to `per_device`, if there was one.
    """
    search = space.search
    measured = [(timing.config, timing.cost) for timings in timed.values() for timing in timings if timing.cost]
    costs = [cost for _, cost in measured]
    example = measured[0][0]
    spans = _device_seconds(timed, store, devices)
    typical = {arm: sum(span) / 2 for arm, span in spans.items()}
    trials, stopping = deal_trials(space, typical), search.early_stopping
    rungs = stopping.rungs(example.epochs) if stopping else []
    arms, complete = [], 0.0
    for arm, (low, high) in spans.items():
        count, part = trials[arm], 1.0
        if stopping and rungs:
            part = expected_epochs(count, example.epochs, rungs, stopping.reduction) / example.epochs
        further_seeds = (search.repeats - 1) * expected_front(count * part, len(goals))
        hours, hours_halving = ((count * of_each + further_seeds) * typical[arm] / 3600 for of_each in (1.0, part))
        arms.append(ArmPrice(arm, low, high, count, hours, hours_halving))
        complete += count * part
    hours, hours_halving = sum(arm.hours for arm in arms), sum(arm.hours_halving for arm in arms)
    largest = max(costs, key=lambda cost: cost.memory_bytes)
    behind = expected_behind(complete, len(rule_of(search.select).goals), NUM_BEST)
    checkpoints = slots + min(expected_front(complete, len(goals)) + behind, complete)
    error = auroc_error(store, example.cohort.fold, search.repeats)
    return Price(
        arms=tuple(arms),
        equal=search.equal,
        hours=hours,
        hours_halving=hours_halving,
        wall_hours=hours_halving / devices / slots,
        teacher_seconds=teacher_seconds,
        cache_bytes=cache_bytes(store, [config for config, _ in measured]),
        checkpoint_bytes=round(max(cost.checkpoint_bytes for cost in costs) * checkpoints),
        memory_bytes=largest.memory_bytes,
        device_bytes=largest.device_bytes,
        slots=slots,
        per_device=per_device,
        packing=packing,
        num_steps=sum(cost.num_steps for cost in costs),
        auroc_error=error if math.isfinite(error) else None,
        warnings=(
            *(packing.warnings() if packing else ()),
            *_warnings(space, store, arms, hours_halving, example, timed),
        ),
    )


def cache_bytes(store: StandIn, configs: Sequence[TrialConfig]) -> int:
    """Returns the bytes that the prepared images and the teachers' logits (float32) take in the cache. The teachers'
    embeddings are not counted.
    """
    facts = store.facts
    images = facts.num_samples * facts.channels * facts.image_size**2 * (1 + len(facts.views))
    teachers = {config.teachers[name].model_dump_json() for config in configs for name in config.active_teachers()}
    return int(images + len(teachers) * facts.num_samples * store.target_NK.shape[1] * 4)


def wall_seconds(stored: Mapping[str, Any] | None, num_ended: int, num_remaining: int) -> float | None:
    """Returns how many seconds the remaining trials of a sweep take by the price that its plan stores. Returns None if
    the plan has no price.
    """
    hours, total = (stored or {}).get("wall_hours"), num_ended + num_remaining
    return None if hours is None or not total else hours * 3600 * num_remaining / total


def _device_seconds(
    timed: Mapping[str, Sequence[TimedConfig]], store: StandIn, devices: float
) -> dict[str, tuple[float, float]]:
    """Returns the device-seconds of the cheapest and of the most expensive configuration of each arm. An arm of which
    no configuration could be timed is assumed to cost as much as a typical trial of the most expensive other arm.
    """
    seconds = {
        arm: [
            devices * timing.config.epochs * epoch_seconds(timing.cost, timing.config, store)
            for timing in timings
            if timing.cost is not None
        ]
        for arm, timings in timed.items()
    }
    highest = max((min(of_arm) + max(of_arm)) / 2 for of_arm in seconds.values() if of_arm)
    return {arm: (min(of_arm), max(of_arm)) if of_arm else (highest, highest) for arm, of_arm in seconds.items()}


def _warnings(
    space: Space,
    store: StandIn,
    arms: Sequence[ArmPrice],
    hours: float,
    example: TrialConfig,
    timed: Mapping[str, Sequence[TimedConfig]],
) -> list[str]:
    warnings = [
        f"arm {arm}: {timing.problem}" for arm, timings in timed.items() for timing in timings if timing.cost is None
    ]
    budget, affordable = space.search.budget_device_hours, 1.0
    if budget is not None and budget < hours:
        affordable = budget / hours
        number = sum(arm.trials for arm in arms)
        each = ", ".join(f"{arm.arm} {round(arm.trials * affordable)}" for arm in arms)
        warnings.append(
            f"budget_device_hours={budget:g} will end the sweep after about {affordable * number:.0f} of {number} "
            f"trials ({each}); all of them take {hours:.3g} device-hours"
        )
    if space.search.equal == "hours":
        warnings += luck_warnings({arm.arm: max(round(arm.trials * affordable), 1) for arm in arms})
    for arm in arms:
        node = space.arms[arm.arm]
        ways = count_branches(node)
        free = max((len(branch.free) for branch in branches(node, arm.arm, 64)), default=0)
        if arm.trials * affordable < MIN_BRANCH_TRIALS * ways and free:
            dimensions = f"{free} dimension{'s' * (free != 1)}"
            plural = f"{ways} branches of up to {dimensions}" if ways > 1 else dimensions
            about = round(arm.trials * affordable)
            give = "trial gives" if about == 1 else "trials give"
            warnings.append(
                f"arm {arm.arm}: about {about} {give} only a first impression of {plural}; "
                f"{MIN_BRANCH_TRIALS * ways} are advisable ({MIN_BRANCH_TRIALS} for each branch)"
            )
    folds = validation_folds(store, example.cohort.fold, space.search.repeats)
    error = auroc_error(store, example.cohort.fold, space.search.repeats)
    if error > MAX_AUROC_ERROR:
        patients = sum(len(np.unique(store.patient_N[store.rows("val", fold)])) for fold in folds)
        warnings.append(
            f"{patients} validation patients give an AUROC of 0.75 a standard error of about {error:.3f} (less near "
            f"1): two such trials that are closer than {2 * error:.2f} cannot be told apart"
        )
    rows_of_folds = [store.rows("val", fold) for fold in folds]
    rarer_FK = np.array(
        [rarer_class(store.target_NK[rows], store.known_NK[rows], store.patient_N[rows]) for rows in rows_of_folds]
    )
    fewest_K = np.where(rarer_FK > 0, rarer_FK, FEW_PATIENTS).min(axis=0)
    warnings += warn_of_few(fewest_K, store.facts.tasks, "validation patients")
    return warnings


def _stopped(price: Price | ArmPrice) -> str:
    return f", {price.hours_halving:.3g} with early stopping" if price.hours_halving < price.hours else ""


def _span(low: float, high: float) -> str:
    return f"{low:.3g}" if high < 1.05 * low else f"{low:.3g} to {high:.3g}"


def _bytes(count: float) -> str:
    power = min(int(math.log10(max(count, 1)) // 3), 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"


def clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"
