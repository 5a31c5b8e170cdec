"""Measures the price of a sweep by running real training steps in Ray workers like the workers of the trials.

`mmpkd.training.probe` measures in one process. Trials that share a machine slow each other down, so this module
measures in several workers at the same time, one for each slot of one machine.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import pandas as pd
import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mmpkd.cohort.facts import Facts
from mmpkd.config import TrialConfig
from mmpkd.teachers import resolve, sized
from mmpkd.teachers.teacher import ResolvedTeacher
from mmpkd.training.probe import MAX_VALIDATED, Cost, Probe, time_teacher
from mmpkd.training.stand_in import StandIn, stand_in
from mmpkd.types import UserError
from mmpkd.vlm.config import VlmConfig
from mmpkd.vlm.training.probe import VlmProbe
from sweep.cluster import (
    ROUNDING,
    Reservation,
    cluster_address,
    cores_per_device,
    count_machine_slots,
    count_slots,
    reservation_for,
    wanted_per_device,
)
from sweep.plan.epoch_cost import epoch_seconds
from sweep.plan.packing import NO_CORES, TOO_SHORT, Packing
from sweep.plan.plan import Plan
from sweep.plan.price import Price, TimedConfig, compute_price
from sweep.plan.timing import burden, cost_identity, extremes, mean_cost, throughput
from sweep.space.search_config import SearchConfig
from sweep.space.space import Space
from sweep.workers.first_machine import has_room
from sweep.workers.nodes import enter_reserved_device

EPOCH_BATCHES: Final = 4  # number of full batches in an epoch that is timed

Notify = Callable[[str], None]


def price_sweep(space: Space, planned: Plan, seconds: float, notify: Notify) -> Price:
    """Returns the price of a sweep on the running cluster.

    If the number of trials per device is not set (see `wanted_per_device`), this also finds the best number.

    Args:
        seconds: duration for which each configuration is timed.
        notify: function that is called with a line that names the configuration being timed.

    Raises:
        UserError: no configuration could be timed, or no machine is there yet. The message says why.
    """
    assert planned.example is not None and planned.facts is not None
    search, facts, threads = space.search, planned.facts, planned.example.threads
    store = stand_in(planned.example.cohort)
    configs_by_arm = {
        arm: [sized(config, facts) for config in extremes(configs, facts)] for arm, configs in planned.configs.items()
    }
    stopwatch = Stopwatch(store, configs_by_arm, seconds, notify)
    distinct = {cost_identity(config): config for configs in configs_by_arm.values() for config in configs}
    wanted, packing = wanted_per_device(search), None
    per_device = 1 if wanted == "auto" else wanted
    if cluster_address() and not has_room(reservation_for(search, threads, per_device)):
        raise UserError("no machine of the cluster has room for a trial yet; the next start of the sweep measures one")
    # A worker reports its peak memory so far, so the configuration with the largest burden comes last.
    every_config = sorted(distinct.values(), key=lambda config: burden(config, store.facts))
    if wanted == "auto":
        packing = stopwatch.measure_packing(every_config[-1], search)
        per_device = packing.best
    reservation = reservation_for(search, threads, per_device)
    timed = stopwatch.time_trials(every_config, reservation, count_machine_slots(reservation))
    if all(timing.cost is None for timing in timed):
        raise UserError(f"no configuration could be timed: {timed[0].problem}")
    timed_by_identity = {cost_identity(timing.config): timing for timing in timed}
    timed_by_arm = {
        arm: [replace(timed_by_identity[cost_identity(config)], config=config) for config in configs]
        for arm, configs in configs_by_arm.items()
    }
    slots, teachers = count_slots(reservation), stopwatch.teacher_seconds
    slots = min(slots, search.at_a_time or slots)
    return compute_price(
        space, store, timed_by_arm, reservation.devices, slots, teachers, planned.goals, per_device, packing
    )


class Prober:
    """A Ray actor that runs one timing after another.

    Args:
        gpus: share of a GPU that the actor has reserved.
    """

    def __init__(self, gpus: float):
        enter_reserved_device(gpus)
        self._probe: Probe | VlmProbe | None = None

    def prepare(
        self,
        facts: Facts,
        samples: pd.DataFrame,
        questions: pd.DataFrame | None,
        config: TrialConfig,
        widths: dict[str, int],
    ) -> None:
        self._probe = None  # its memory must be free before the next one is measured
        gc.collect()
        store = StandIn(facts, samples, questions=questions)
        self._probe = VlmProbe(config, store) if isinstance(config.student, VlmConfig) else Probe(config, store, widths)

    def time_trial(self, seconds: float) -> Cost:
        assert self._probe is not None
        return self._probe.cost(seconds)

    def time_teacher(self, *arguments: Any) -> tuple[float, int]:
        return time_teacher(*arguments)


class Stopwatch:
    """Times teachers and trials of one cohort.

    Args:
        configs_by_arm: configurations whose active teachers are timed.
        seconds: duration for which each configuration is timed.
        notify: function that is called with a line that names the teacher or configuration being timed.

    Attributes:
        teacher_seconds: time to fit every teacher once. It is 0 until `time_trials` has been called.
    """

    def __init__(
        self, store: StandIn, configs_by_arm: Mapping[str, Sequence[TrialConfig]], seconds: float, notify: Notify
    ):
        self._store, self._seconds, self._notify = store, seconds, notify
        self._teachers = {  # path in the space, teacher, and a configuration that has it, by the teacher as JSON
            config.teachers[name].model_dump_json(): (f"arms.{arm}.teachers.{name}", config.teachers[name], config)
            for arm, configs in configs_by_arm.items()
            for config in configs
            for name in config.active_teachers()
        }
        self._widths: dict[str, int] = {}  # width of teachers' embeddings, by the same JSON
        self.teacher_seconds = 0.0

    def _time_teachers(self, prober: Any) -> None:
        """Times each teacher, and each member of a composite teacher, once in a worker.

        Teachers with the same parameters are the same fit in the cache, whether or not they are members or controls.

        Raises:
            UserError: a teacher cannot be fitted. The message names the teacher's path in the space, and says why.
        """
        self._notify("timing the teachers")
        timed: dict[tuple[str, str], tuple[float, int]] = {}  # seconds and width, by kind and parameters
        for key, (path, teacher, config) in self._teachers.items():
            resolved = resolve(teacher)
            for part in _single_teachers(resolved):
                identity = part.kind, part.params.model_dump_json()
                if identity not in timed:
                    try:
                        (timed[identity],) = _get([prober.time_teacher.remote(part, self._store, config.cohort.fold)])
                    except UserError as error:
                        raise UserError(f"{path}: {error}") from error
            self._widths[key] = 0 if resolved.members else timed[identity][1]
        self.teacher_seconds = sum(seconds for seconds, _ in timed.values())

    def time_trials(
        self, configs: Sequence[TrialConfig], reservation: Reservation, at_a_time: int
    ) -> list[TimedConfig]:
        """Times one configuration after the other, and returns their costs. While a configuration is timed, `at_a_time`
        trials of it run at the same time.

        The first call times the teachers beforehand, in the first of its workers, because a worker of their own would
        take seconds to start. The peak memory of that worker then includes their fit, as in a trial that fits them.

        Raises:
            UserError: the workers cannot be started, or a teacher cannot be fitted.
        """
        timed: list[TimedConfig] = []
        with _probers(at_a_time, reservation) as probers:
            if self._teachers and not self._widths:
                self._time_teachers(probers[0])
            for index, config in enumerate(configs, start=1):
                self._notify(f"timing configuration {index} of {len(configs)}, {at_a_time} at a time")
                if timed and timed[-1].cost is None:  # the worker may be gone, and this one costs more
                    problem = "not timed, since a cheaper one could not be"
                    timed.append(TimedConfig(config, None, at_a_time, problem))
                else:
                    timed.append(self._time_trial(config, probers))
        costs = [timing.cost for timing in timed if timing.cost is not None]
        self.teacher_seconds = max([self.teacher_seconds, *(cost.teacher_seconds for cost in costs)])
        return timed

    def _time_trial(self, config: TrialConfig, probers: Sequence[Any]) -> TimedConfig:
        samples = self._store.thinned(EPOCH_BATCHES * config.optimizer.batch_size, MAX_VALIDATED, config.cohort.fold)
        widths = {name: self._widths[config.teachers[name].model_dump_json()] for name in config.active_teachers()}
        try:
            built = self._store.facts, samples, self._store.raw_questions, config, widths
            _get([prober.prepare.remote(*built) for prober in probers])
            costs: list[Cost] = _get([prober.time_trial.remote(self._seconds) for prober in probers])
        except UserError as error:
            return TimedConfig(config, None, len(probers), str(error))
        return TimedConfig(config, mean_cost(costs), len(probers))

    def measure_packing(self, config: TrialConfig, search: SearchConfig) -> Packing:
        """Measures how fast trials of a configuration train when 1, 2, 4, ... of them share a device. The number is
        doubled as long as it pays, there are cores for the trials, and the next measurement takes less time than it can
        save: at best, twice as many trials to a device halve the time of the sweep.
        """
        rates: list[tuple[int, float]] = []
        for per_device in (2**power for power in itertools.count()):
            if per_device > 1 and per_device * (search.cpus or config.threads) > cores_per_device():
                return Packing(tuple(rates), NO_CORES)
            reservation, started = reservation_for(search, config.threads, per_device), time.monotonic()
            (timed,) = self.time_trials([config], reservation, per_device)
            rates.append((per_device, throughput(timed)))
            packing = Packing(tuple(rates))
            if packing.best != per_device or not throughput(timed):
                return packing
            assert timed.cost is not None
            of_trial = config.epochs * epoch_seconds(timed.cost, config, self._store)
            of_sweep = search.trials * search.repeats * of_trial / count_slots(reservation)
            if of_sweep / 2 < time.monotonic() - started:
                return Packing(tuple(rates), TOO_SHORT)
        raise AssertionError("unreachable")


def _single_teachers(teacher: ResolvedTeacher) -> Iterator[ResolvedTeacher]:
    """Yields the teacher itself or, if it is composite, the teachers of which it is made."""
    for member in teacher.members.values():
        yield from _single_teachers(member)
    if not teacher.members:
        yield teacher


@contextmanager
def _probers(count: int, reservation: Reservation) -> Iterator[list[Any]]:
    """Starts workers on a single machine, and on a single GPU if their shares fit on it, and ends them afterwards."""
    bundle, gpus = {"CPU": count * reservation.cpus}, count * reservation.gpus
    if gpus:
        bundle["GPU"] = gpus if gpus < 1 else math.ceil(gpus - ROUNDING)  # Ray reserves a part of one GPU or whole GPUs
    together = placement_group([bundle])
    strategy = PlacementGroupSchedulingStrategy(together, placement_group_bundle_index=0)
    actor_class = ray.remote(Prober).options(
        num_cpus=reservation.cpus, num_gpus=reservation.gpus, scheduling_strategy=strategy
    )
    actors = [actor_class.remote(reservation.gpus) for _ in range(count)]
    try:
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)  # type: ignore[arg-type]
        remove_placement_group(together)


def _get(references: Sequence[Any]) -> Any:
    """Waits for the results of all workers, and returns them. It waits for all of them even if one fails, because a
    worker that is ended in the middle of its work on a GPU can disturb others that use the same MPS.

    Raises:
        UserError: the worker raised a UserError, or the worker or Ray failed.
    """
    try:
        ray.wait(list(references), num_returns=len(references))
        return ray.get(references)
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, UserError):
            raise cause from error
        # The text of the error is left out: it may quote a table, and this message reaches plan.json and MLflow.
        raise UserError(f"could not be timed: {type(cause).__name__}") from error
