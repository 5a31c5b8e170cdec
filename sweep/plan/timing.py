"""Real steps of real students, timed in Ray workers of the kind that will run the trials, all at a time.

What `mmpkd/probe.py` measures in one process is measured here in as many as there are slots on one
machine, since trials that share a machine slow each other down.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import pandas as pd
import ray
from ray.exceptions import RayError

from mmpkd.cohort.facts import Facts
from mmpkd.config import TrialConfig
from mmpkd.probe import MAX_VALIDATED, Cost, Probe, StandIn, burden, stand_in, time_teacher
from mmpkd.teachers import sized
from mmpkd.types import UserError
from sweep.plan.plan import Plan
from sweep.plan.price import Price, Timed, price
from sweep.space.space import SearchConfig, Space
from sweep.workers.tune import Share, cores_of_a_machine, share_of, slots

BATCHES: Final = 4  # whole ones that a timed epoch holds
GAIN: Final = 1.1  # in throughput; with less, twice as many trials to a device are not worth their memory
SPARE: Final = 0.9  # of a device's memory that trials may fill

Say = Callable[[str], None]


def priced(space: Space, planned: Plan, seconds: float, say: Say) -> Price:
    """What a sweep will cost on the cluster that runs, and how many trials share a device if that is `auto`.

    Args:
        seconds: how long each configuration is timed.

    Raises:
        UserError: nothing could be timed, and why.
    """
    assert planned.example is not None and planned.facts is not None
    search, threads = space.search, planned.example.threads
    store = stand_in(planned.example.cohort)
    timing = Timing(store, seconds, say)
    facts = planned.facts
    chosen = {
        arm: [sized(config, facts) for config in extremes(configs, facts)] for arm, configs in planned.configs.items()
    }
    every = [config for configs in chosen.values() for config in configs]
    per_device = None if search.trials_per_device == "auto" else search.trials_per_device
    teachers = timing.teachers(chosen, share_of(search, threads, per_device or 1))
    every.sort(key=lambda config: burden(config, store.facts))  # memory is counted by its peak, so the dearest last
    if search.trials_per_device == "auto":
        per_device = timing.packing(every[-1], threads)
    share = share_of(search, threads, per_device)
    timed = timing.trials(every, share, on_a_machine(share))
    if all(one.cost is None for one in timed):
        raise UserError(f"no configuration could be timed: {timed[0].trouble}")
    by_arm = {arm: [one for one in timed if one.config in configs] for arm, configs in chosen.items()}
    return price(space, store, by_arm, share.devices, slots(share), teachers, planned.goals, per_device)


def extremes(configs: Sequence[TrialConfig], facts: Facts) -> list[TrialConfig]:
    """The cheapest and the dearest, as far as can be told without timing; one where all are alike."""

    def kinds(config: TrialConfig) -> tuple[tuple[float, int, int], list[str]]:
        return burden(config, facts), sorted(str(one.kind) for one in config.active_objectives().values())

    ordered = sorted(((kinds(config), index) for index, config in enumerate(configs)))
    cheapest, dearest = ordered[0], ordered[-1]
    return [configs[index] for index in ([cheapest[1]] if cheapest[0] == dearest[0] else [cheapest[1], dearest[1]])]


class Prober:
    """A Ray actor: serves one timing after another."""

    def prepare(self, facts: Facts, samples: pd.DataFrame, config: TrialConfig, widths: dict[str, int]) -> None:
        self._probe = Probe(config, StandIn(facts, samples), widths)

    def cost(self, seconds: float) -> Cost:
        return self._probe.cost(seconds)

    def teacher(self, *arguments: Any) -> tuple[float, int]:
        return time_teacher(*arguments)


class Timing:
    """The stop-watch of one cohort.

    Args:
        seconds: how long each configuration is timed.
        say: told what is being timed.
    """

    def __init__(self, store: StandIn, seconds: float, say: Say):
        self._store, self._seconds, self._say = store, seconds, say
        self._widths: dict[str, int] = {}  # of teachers' embeddings, by the teacher's own configuration

    def teachers(self, chosen: Mapping[str, Sequence[TrialConfig]], share: Share) -> float:
        """Seconds to fit every teacher that these configurations of each arm listen to, each once.

        Raises:
            UserError: one cannot be fitted; where it stands, and why.
        """
        needed = {
            config.teachers[name].model_dump_json(): (f"arms.{arm}.teachers.{name}", config.teachers[name], config)
            for arm, configs in chosen.items()
            for config in configs
            for name in config.active_teachers()
        }
        if not needed:
            return 0.0
        self._say("timing the teachers")
        total = 0.0
        with _probers(1, share) as (prober,):
            for key, (path, teacher, config) in needed.items():
                try:
                    asked = prober.teacher.remote(teacher, self._store, config.cohort.fold)
                    seconds, self._widths[key] = _got(asked)
                except UserError as error:
                    raise UserError(f"{path}: {error}") from error
                total += seconds
        return total

    def trials(self, configs: Sequence[TrialConfig], share: Share, count: int) -> list[Timed]:
        """What configurations cost while `count` trials run on such a share each, one after the other.

        Raises:
            UserError: the workers cannot be started.
        """
        timed: list[Timed] = []
        with _probers(count, share) as probers:
            for index, config in enumerate(configs, start=1):
                self._say(f"timing configuration {index} of {len(configs)}, {count} at a time")
                failed = bool(timed) and timed[-1].cost is None  # the worker may be gone; the dearest come last
                skipped = Timed(config, None, count, "not timed, since a cheaper one could not be")
                timed.append(skipped if failed else self._trial(config, probers))
        return timed

    def _trial(self, config: TrialConfig, probers: Sequence[Any]) -> Timed:
        samples = self._store.thinned(BATCHES * config.optimizer.batch_size, MAX_VALIDATED, config.cohort.fold)
        widths = {name: self._widths[config.teachers[name].model_dump_json()] for name in config.active_teachers()}
        try:
            _got([one.prepare.remote(self._store.facts, samples, config, widths) for one in probers])
            costs: list[Cost] = _got([one.cost.remote(self._seconds) for one in probers])
        except UserError as error:
            return Timed(config, None, len(probers), str(error))
        return Timed(config, _mean(costs), len(probers))

    def packing(self, config: TrialConfig, threads: int) -> int:
        """How many trials to a device: twice as many while that trains at least a tenth more, and fits."""
        found: list[Timed] = []
        per_device = 1
        while (share := share_of_device(per_device, threads)) is not None:
            found += self.trials([config], share, per_device)
            if len(found) > 1 and not _worth(found[-2], found[-1]):
                break
            per_device *= 2
        return max(per_device // 2, 1)


def share_of_device(per_device: int, threads: int) -> Share | None:
    """None: so many have not a core for each of their threads."""
    if per_device > 1 and per_device * threads > cores_of_a_machine():
        return None
    return share_of(SearchConfig(), threads, per_device)


def on_a_machine(share: Share) -> int:
    """Trials that run at a time on one machine."""
    everywhere = slots(share)
    fitting = [int(cores_of_a_machine() / share.cpus + 1e-9)] if share.cpus else []
    if share.gpus:
        most = max((float(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]), default=1.0)
        fitting.append(int(most / share.gpus + 1e-9))
    return max(min([everywhere, *fitting]), 1)


def throughput(timed: Timed) -> float:
    """Steps a second of all that run at a time; 0 where it could not be timed, or does not fit."""
    cost = timed.cost
    if cost is None or cost.memory_bytes * timed.slots > SPARE * cost.device_bytes:
        return 0.0
    return timed.slots / cost.step_seconds


def _worth(fewer: Timed, more: Timed) -> bool:
    return throughput(more) >= GAIN * throughput(fewer) > 0


@contextmanager
def _probers(count: int, share: Share) -> Iterator[list[Any]]:
    kind = ray.remote(Prober).options(num_cpus=share.cpus, num_gpus=share.gpus)
    actors = [kind.remote() for _ in range(count)]
    try:
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)  # type: ignore[arg-type]


def _got(references: Any) -> Any:
    """Raises UserError, with what the worker said, instead of Ray's own errors."""
    try:
        return ray.get(references)
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, UserError):
            raise cause from error
        # Its text may quote a table, and what is said here reaches plan.json and MLflow.
        raise UserError(f"could not be timed: {type(cause).__name__}") from error


def _mean(costs: Sequence[Cost]) -> Cost:
    """The mean of the seconds, the most of the memory."""
    return replace(
        costs[0],
        step_seconds=statistics.fmean(cost.step_seconds for cost in costs),
        validation_seconds=statistics.fmean(cost.validation_seconds for cost in costs),
        setup_seconds=statistics.fmean(cost.setup_seconds for cost in costs),
        save_seconds=statistics.fmean(cost.save_seconds for cost in costs),
        memory_bytes=max(cost.memory_bytes for cost in costs),
        num_steps=sum(cost.num_steps for cost in costs),
    )
