"""What a sweep will cost, from timed steps: device-hours with and without early stopping, memory, bytes.

Nothing here touches a device; `timing.py` does. A trial's price is that of its epochs, as `Ledger`
counts: wall time of training and validation x the share of a GPU, or the cores where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from mmpkd.config import TrialConfig
from mmpkd.probe import Cost, StandIn
from sweep.space.draw import branches, count_branches
from sweep.space.space import Space

FEW: Final = 10  # trials a branch; with fewer an arm is looked at, not searched
COARSE: Final = 0.025  # standard error of AUROC; twice that is more than most teachers add


@dataclass(frozen=True)
class Timed:
    """A configuration and what it costs with `slots` of them at a time; `trouble` where it could not be timed."""

    config: TrialConfig
    cost: Cost | None
    slots: int
    trouble: str = ""


@dataclass(frozen=True)
class ArmPrice:
    """Device-seconds of one full-length trial, cheapest and dearest, and how many trials the arm will have."""

    arm: str
    low: float
    high: float
    trials: float

    @property
    def typical(self) -> float:
        return (self.low + self.high) / 2


@dataclass(frozen=True)
class Price:
    """Hours are device-hours, bytes are bytes, `wall_hours` a guess at what a clock will say."""

    arms: tuple[ArmPrice, ...]
    hours: float  # every trial at full length
    hours_halving: float  # with early stopping as configured; the same where it is off
    wall_hours: float
    teacher_seconds: float  # apart, once for all sweeps on this cohort
    cache_bytes: int
    checkpoint_bytes: int
    memory_bytes: int  # of the dearest trial
    device_bytes: int
    slots: int
    per_device: int | None  # trials to a device, where `search.trials_per_device` says or found it
    num_steps: int  # that were timed
    auroc_error: float | None  # of a validation AUROC of 0.75, see `auroc_error`; None: no label has two classes
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For a console, a few lines."""
        total = sum(arm.trials for arm in self.arms)
        each = "; ".join(f"{arm.arm} {arm.trials:.0f} x {_span(arm.low, arm.high)} device-seconds" for arm in self.arms)
        stopped = f", {self.hours_halving:.3g} with early stopping" if self.hours_halving < self.hours else ""
        found = [
            f"price: {self.hours:.3g} device-hours for {total:.0f} trials at full length{stopped} "
            f"(about {_clock(self.wall_hours * 3600)} of epochs with {self.slots} at a time; starting Ray and workers, "
            f"some seconds each, and fitting teachers come on top); {self.num_steps} steps timed",
            f"  {each}",
            f"  teachers, once and apart: {_clock(self.teacher_seconds)} unless they are in the cache",
            f"  disk: cache {_bytes(self.cache_bytes)}, checkpoints {_bytes(self.checkpoint_bytes)}; "
            f"memory of a trial {_bytes(self.memory_bytes)} of {_bytes(self.device_bytes)}"
            + (f"; {self.per_device} trials to a device" if self.per_device else ""),
        ]
        return found + [f"warning: {warning}" for warning in self.warnings]


def price(
    space: Space,
    store: StandIn,
    timed: Mapping[str, Sequence[Timed]],
    devices: float,
    slots: int,
    teacher_seconds: float,
    goals: Sequence[str],
    per_device: int | None = None,
) -> Price:
    """Puts a price on a sweep.

    Args:
        timed: by arm, its cheapest and its dearest configuration.
        devices: that a trial holds.
        slots: trials that run at a time in the whole cluster.
    """
    search = space.search
    known = [one for found in timed.values() for one in found if one.cost]
    epochs = known[0].config.epochs
    spans = {arm: _device_seconds(found, store, devices) for arm, found in timed.items()}
    arms = _dealt(spans, space.shares, search.trials)
    full = sum(arm.trials * arm.typical for arm in arms)
    stopping, share = search.early_stopping, 1.0
    if stopping and (rungs := stopping.rungs(epochs)):
        expected = [expected_epochs(arm.trials, epochs, rungs, stopping.reduction) / epochs for arm in arms]
        share = sum(part * arm.trials * arm.typical for part, arm in zip(expected, arms, strict=True)) / full
    complete = sum(arm.trials for arm in arms) * (share if share < 1 else 1)
    again = (search.repeats - 1) * sum(arm.typical * fronts(arm.trials * share, len(goals)) for arm in arms)
    dearest = max((one.cost for one in known if one.cost), key=lambda cost: cost.memory_bytes)
    hours, halved = (full + again) / 3600, (full * share + again) / 3600
    kept = slots + fronts(complete, len(goals))
    error = auroc_error(store, known[0].config.cohort.fold)
    return Price(
        arms=arms,
        hours=hours,
        hours_halving=halved,
        wall_hours=halved / devices / slots,
        teacher_seconds=teacher_seconds,
        cache_bytes=cache_bytes(store, [one.config for one in known]),
        checkpoint_bytes=round(max(one.cost.checkpoint_bytes for one in known if one.cost) * kept),
        memory_bytes=dearest.memory_bytes,
        device_bytes=dearest.device_bytes,
        slots=slots,
        per_device=per_device,
        num_steps=sum(one.cost.num_steps for one in known if one.cost),
        auroc_error=error if math.isfinite(error) else None,
        warnings=tuple(_warnings(space, store, arms, halved, known[0].config, timed)),
    )


def epoch_seconds(cost: Cost, config: TrialConfig, store: StandIn) -> float:
    """One epoch of training and its validation, as `EpochReport.seconds` will have it; of a training in stages,
    the earlier ones spread over the epochs of the last."""
    train, val = len(store.rows("train", config.cohort.fold)), len(store.rows("val", config.cohort.fold))
    passes = sum(stage.epochs or 0 for stage in config.staged()) / config.epochs
    return passes * train / cost.batch_size * cost.step_seconds + val * cost.validation_seconds


def expected_epochs(trials: float, epochs: int, rungs: Sequence[int], reduction: int) -> float:
    """Mean epochs of a trial under asynchronous halving, if trials come in no particular order.

    Of i that have come to a rung the last goes on with probability 1 - (h + 1)/i, h = (i - 2)(1 -
    1/reduction): it has to beat the interpolated percentile of the i - 1 before it, whose expectation
    among uniform values that is. The first always goes on. So few trials stop less often than
    1/reduction says.
    """
    there, total, before = trials, 0.0, 0
    for rung in rungs:
        total += there * (rung - before)
        there, before = _going_on(there, reduction), rung
    return (total + there * (epochs - before)) / trials if trials else float(epochs)


def _going_on(arriving: float, reduction: int) -> float:
    whole = math.floor(arriving)
    each = [1.0] + [1 - ((i - 2) * (1 - 1 / reduction) + 1) / i for i in range(2, whole + 2)]
    return float(sum(each[:whole]) + (arriving - whole) * each[whole])


def fronts(trials: float, goals: int) -> float:
    """How many of so many trials are on the front when they end, if goals are independent of each other.

    The i-th is with probability M_d(i)/i, where M_1 = 1 and M_d(i) = sum over j <= i of M_{d-1}(j)/j
    (Bentley et al. 1978).
    """
    count = max(round(trials), 1)
    most = np.ones(count)
    for _ in range(goals - 1):
        most = np.cumsum(most / np.arange(1, count + 1))
    return float(np.sum(most / np.arange(1, count + 1)))


def cache_bytes(store: StandIn, configs: Sequence[TrialConfig]) -> int:
    """Prepared images, and teachers' logits in float32 (embeddings add their width)."""
    facts = store.facts
    images = facts.num_samples * facts.channels * facts.image_size**2 * (1 + len(facts.views))
    teachers = {config.teachers[name].model_dump_json() for config in configs for name in config.active_teachers()}
    return int(images + len(teachers) * facts.num_samples * store.target_NK.shape[1] * 4)


def auroc_error(store: StandIn, fold: int) -> float:
    """Standard error of a validation AUROC of 0.75, over labels, counting patients (Hanley & McNeil 1982, eq. 1)."""
    rows = store.rows("val", fold)
    area, errors = 0.75, []
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    for target_N, known_N in zip(store.target_NK[rows].T, store.known_NK[rows].T, strict=True):
        patients = store.patient_N[rows]
        positive = len(np.unique(patients[known_N & (target_N == 1)]))
        negative = len(np.unique(patients[known_N & (target_N == 0)]))
        if positive and negative:
            spread = (positive - 1) * (first - area**2) + (negative - 1) * (second - area**2)
            errors.append(math.sqrt((area * (1 - area) + spread) / (positive * negative)))
    return math.sqrt(sum(error**2 for error in errors)) / len(errors) if errors else math.nan


def _device_seconds(found: Sequence[Timed], store: StandIn, devices: float) -> tuple[float, float]:
    each = [
        devices * one.config.epochs * epoch_seconds(one.cost, one.config, store)
        for one in found
        if one.cost is not None
    ]
    return (min(each), max(each)) if each else (math.nan, math.nan)


def _dealt(spans: Mapping[str, tuple[float, float]], shares: Mapping[str, float], trials: int) -> tuple[ArmPrice, ...]:
    """Trials by arm: one each, then in proportion to its share of device-hours, and against what one costs."""
    known = [sum(span) / 2 for span in spans.values() if not math.isnan(span[0])]
    typical = {arm: sum(span) / 2 if not math.isnan(span[0]) else max(known) for arm, span in spans.items()}
    rate = {arm: shares[arm] / typical[arm] for arm in spans}
    count, several = dict.fromkeys(spans, 1.0), set(spans)
    while several:  # those whose part is less than the one trial that they have leave the others the rest
        each = (trials - len(spans) + len(several)) / sum(rate[arm] for arm in several)
        enough = {arm for arm in several if rate[arm] * each >= 1}
        if enough == several:
            count |= {arm: rate[arm] * each for arm in several}
            break
        several = enough
    return tuple(
        ArmPrice(arm, *(span if not math.isnan(span[0]) else (typical[arm],) * 2), count[arm])
        for arm, span in spans.items()
    )


def _warnings(
    space: Space,
    store: StandIn,
    arms: Sequence[ArmPrice],
    hours: float,
    example: TrialConfig,
    timed: Mapping[str, Sequence[Timed]],
) -> list[str]:
    found = [f"arm {arm}: {one.trouble}" for arm, several in timed.items() for one in several if one.cost is None]
    budget, bought = space.search.budget_device_hours, 1.0
    if budget is not None and budget < hours:
        bought = budget / hours
        found.append(
            f"budget_device_hours={budget:g} will end the sweep after about {bought * space.search.trials:.0f} of "
            f"{space.search.trials} trials; all of them take {hours:.3g}"
        )
    for arm in arms:
        node = space.arms[arm.arm]
        ways = count_branches(node)
        free = max((len(branch.free) for branch in branches(node, arm.arm, 64)), default=0)
        if arm.trials * bought < FEW * ways and free:
            plural = f"{ways} branches of up to {free} dimensions" if ways > 1 else f"{free} dimensions"
            found.append(
                f"arm {arm.arm}: about {arm.trials * bought:.0f} trials for {plural} are a first look, no search; "
                f"{FEW} a branch would be {FEW * ways}"
            )
    error = auroc_error(store, example.cohort.fold)
    if error > COARSE:
        patients = len(np.unique(store.patient_N[store.rows("val", example.cohort.fold)]))
        found.append(
            f"{patients} validation patients give AUROC a standard error of about {error:.3f}: "
            f"trials closer than {2 * error:.2f} cannot be told apart"
        )
    return found


def _span(low: float, high: float) -> str:
    return f"{low:.3g}" if high < 1.05 * low else f"{low:.3g} to {high:.3g}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"
