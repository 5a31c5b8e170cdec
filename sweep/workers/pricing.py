"""Measures the price of a sweep by running real training steps in Ray workers like the workers of the trials.

`mmpkd.probe` measures in one process. Trials that share a machine slow each other down, so this module measures in
several workers at the same time, one for each slot of one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pandas as pd
import ray
from ray.exceptions import RayError

from mmpkd.cohort.facts import Facts
from mmpkd.config import TrialConfig
from mmpkd.probe import MAX_VALIDATED, Cost, Probe, StandIn, burden, stand_in, time_teacher
from mmpkd.teachers import resolve, sized
from mmpkd.types import UserError
from sweep.cluster import Reservation, count_machine_slots, count_slots, largest_machine_cores, reservation_for
from sweep.plan.plan import Plan
from sweep.plan.price import Price, TimedConfig, compute_price
from sweep.plan.timing import extremes, gains, mean_cost
from sweep.space.search_config import SearchConfig
from sweep.space.space import Space

EPOCH_BATCHES: Final = 4  # number of full batches in an epoch that is timed

Notify = Callable[[str], None]


def price_sweep(space: Space, planned: Plan, seconds: float, notify: Notify) -> Price:
    """Returns the price of a sweep on the running cluster.

    If `search.trials_per_device` is `auto`, this also finds the best number of trials per device.

    Args:
        seconds: duration for which each configuration is timed.
        notify: function that is called with a line that names the configuration being timed.

    Raises:
        UserError: no configuration could be timed. The message says why.
    """
    assert planned.example is not None and planned.facts is not None
    search, facts, threads = space.search, planned.facts, planned.example.threads
    store = stand_in(planned.example.cohort)
    stopwatch = Stopwatch(store, seconds, notify)
    configs_by_arm = {
        arm: [sized(config, facts) for config in extremes(configs, facts)] for arm, configs in planned.configs.items()
    }
    every_config = [config for configs in configs_by_arm.values() for config in configs]
    per_device = None if search.trials_per_device == "auto" else search.trials_per_device
    teacher_seconds = stopwatch.time_teachers(configs_by_arm, reservation_for(search, threads, per_device or 1))
    # A worker reports its peak memory so far, so the configuration with the largest burden comes last.
    every_config.sort(key=lambda config: burden(config, store.facts))
    if search.trials_per_device == "auto":
        per_device = stopwatch.find_trials_per_device(every_config[-1], threads)
    reservation = reservation_for(search, threads, per_device)
    timed = stopwatch.time_trials(every_config, reservation, count_machine_slots(reservation))
    if all(timing.cost is None for timing in timed):
        raise UserError(f"no configuration could be timed: {timed[0].problem}")
    timed_by_arm = {
        arm: [timing for timing in timed if timing.config in configs] for arm, configs in configs_by_arm.items()
    }
    slots = count_slots(reservation)
    return compute_price(
        space, store, timed_by_arm, reservation.devices, slots, teacher_seconds, planned.goals, per_device
    )


class Prober:
    """A Ray actor that runs one timing after another."""

    def prepare(self, facts: Facts, samples: pd.DataFrame, config: TrialConfig, widths: dict[str, int]) -> None:
        self._probe = Probe(config, StandIn(facts, samples), widths)

    def time_trial(self, seconds: float) -> Cost:
        return self._probe.cost(seconds)

    def time_teacher(self, *arguments: Any) -> tuple[float, int]:
        return time_teacher(*arguments)


class Stopwatch:
    """Times teachers and trials of one cohort.

    Args:
        seconds: duration for which each configuration is timed.
        notify: function that is called with a line that names the teacher or configuration being timed.
    """

    def __init__(self, store: StandIn, seconds: float, notify: Notify):
        self._store, self._seconds, self._notify = store, seconds, notify
        self._widths: dict[str, int] = {}  # width of teachers' embeddings, by the teacher's configuration as JSON

    def time_teachers(self, configs_by_arm: Mapping[str, Sequence[TrialConfig]], reservation: Reservation) -> float:
        """Returns the seconds to fit every active teacher of these configurations once.

        Raises:
            UserError: a teacher cannot be fitted. The message names the teacher's path in the space, and says why.
        """
        teachers = {
            config.teachers[name].model_dump_json(): (f"arms.{arm}.teachers.{name}", config.teachers[name], config)
            for arm, configs in configs_by_arm.items()
            for config in configs
            for name in config.active_teachers()
        }
        if not teachers:
            return 0.0
        self._notify("timing the teachers")
        total = 0.0
        with _probers(1, reservation) as (prober,):
            for key, (path, teacher, config) in teachers.items():
                try:
                    timing = prober.time_teacher.remote(resolve(teacher), self._store, config.cohort.fold)
                    seconds, self._widths[key] = _get(timing)
                except UserError as error:
                    raise UserError(f"{path}: {error}") from error
                total += seconds
        return total

    def time_trials(
        self, configs: Sequence[TrialConfig], reservation: Reservation, at_a_time: int
    ) -> list[TimedConfig]:
        """Times one configuration after the other, and returns their costs. While a configuration is timed, `at_a_time`
        trials of it run at the same time.

        Raises:
            UserError: the workers cannot be started.
        """
        timed: list[TimedConfig] = []
        with _probers(at_a_time, reservation) as probers:
            for index, config in enumerate(configs, start=1):
                self._notify(f"timing configuration {index} of {len(configs)}, {at_a_time} at a time")
                if timed and timed[-1].cost is None:  # the worker may be gone, and this one costs more
                    problem = "not timed, since a cheaper one could not be"
                    timed.append(TimedConfig(config, None, at_a_time, problem))
                else:
                    timed.append(self._time_trial(config, probers))
        return timed

    def _time_trial(self, config: TrialConfig, probers: Sequence[Any]) -> TimedConfig:
        samples = self._store.thinned(EPOCH_BATCHES * config.optimizer.batch_size, MAX_VALIDATED, config.cohort.fold)
        widths = {name: self._widths[config.teachers[name].model_dump_json()] for name in config.active_teachers()}
        try:
            _get([prober.prepare.remote(self._store.facts, samples, config, widths) for prober in probers])
            costs: list[Cost] = _get([prober.time_trial.remote(self._seconds) for prober in probers])
        except UserError as error:
            return TimedConfig(config, None, len(probers), str(error))
        return TimedConfig(config, mean_cost(costs), len(probers))

    def find_trials_per_device(self, config: TrialConfig, threads: int) -> int:
        """Returns the best number of trials per device.

        The number is doubled as long as the trials together train at least a tenth faster, and fit into the memory.
        """
        timed: list[TimedConfig] = []
        per_device = 1
        while (reservation := reservation_of_shared_device(per_device, threads)) is not None:
            timed += self.time_trials([config], reservation, per_device)
            if len(timed) > 1 and not gains(timed[-2], timed[-1]):
                break
            per_device *= 2
        return max(per_device // 2, 1)


def reservation_of_shared_device(per_device: int, threads: int) -> Reservation | None:
    """Returns the cores and the share of a GPU that a trial reserves if `per_device` trials share a device. Returns
    None if there would not be a core for each thread of a trial.
    """
    if per_device > 1 and per_device * threads > largest_machine_cores():
        return None
    return reservation_for(SearchConfig(), threads, per_device)


@contextmanager
def _probers(count: int, reservation: Reservation) -> Iterator[list[Any]]:
    actor_class = ray.remote(Prober).options(num_cpus=reservation.cpus, num_gpus=reservation.gpus)
    actors = [actor_class.remote() for _ in range(count)]
    try:
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)  # type: ignore[arg-type]


def _get(references: Any) -> Any:
    """Waits for the results of workers, and returns them.

    Raises:
        UserError: the worker raised a UserError, or the worker or Ray failed.
    """
    try:
        return ray.get(references)
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, UserError):
            raise cause from error
        # The text of the error is left out: it may quote a table, and this message reaches plan.json and MLflow.
        raise UserError(f"could not be timed: {type(cause).__name__}") from error
