"""Fits teachers of a sweep on all nodes of a cluster, before the first trials need them.

On one machine, the first trial that needs a teacher fits it: a worker for the fit alone would take seconds to start.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, cast

import ray
from ray.exceptions import RayError
from rich.console import Console

from mmpkd.teachers import resolve, sized
from mmpkd.teachers.teacher import ResolvedTeacher
from sweep.cluster import Reservation, cluster_address
from sweep.plan.plan import Plan
from sweep.types import Job, Places
from sweep.workers.node_disk import NodeDisk
from sweep.workers.nodes import enter_reserved_device

TRIES: Final = 3  # further tries of a fit whose node was lost

Fit = Callable[[Places, str, ResolvedTeacher, int, int], list[str]]


def fit_teacher(places: Places, name: str, teacher: ResolvedTeacher, fold: int, threads: int) -> list[str]:
    """Fits a teacher, unless it is in the cache, and publishes it. Returns lines for the user.

    Args:
        fold: the validation fold of the cohort.
    """
    import torch

    from mmpkd.cohort.store import Store
    from mmpkd.teachers import fitted

    torch.set_num_threads(threads)
    disk = NodeDisk(places)
    placed = disk.placed(cast(Job, places))
    store = Store.open(Path(placed["store"]))
    fitted.fit_teacher(teacher, store, fold, Path(placed["cache"]), name, placed["shared"])
    if disk.cache is not None:
        disk.cache.release()
    return disk.take_notes()


def fixed_teachers(planned: Plan) -> dict[str, ResolvedTeacher]:
    """Returns the teachers that are the same in all trials of their branch, by a name for the user, each once. The
    members of a composite teacher come before it.
    """
    assert planned.facts is not None
    distinct: dict[tuple[str, str], tuple[str, ResolvedTeacher]] = {}
    for arm, configs in planned.configs.items():
        remaining = iter(configs)
        for branch in planned.branches:
            if branch.arm != arm:
                continue
            settings: dict[str, dict[tuple[str, str], ResolvedTeacher]] = defaultdict(dict)
            for config in islice(remaining, branch.checked):  # one at each bound of what is sampled in the branch
                config_with_sizes = sized(config, planned.facts)
                for name in config_with_sizes.active_teachers():
                    teacher = resolve(config_with_sizes.teachers[name])
                    settings[name][_identity(teacher)] = teacher
            for name, teachers in settings.items():
                if len(teachers) == 1:
                    _add(distinct, f"{arm}/{name}", *teachers.values())
    return dict(distinct.values())


def _add(distinct: dict[tuple[str, str], tuple[str, ResolvedTeacher]], name: str, teacher: ResolvedTeacher) -> None:
    for member, part in teacher.members.items():
        _add(distinct, f"{name}/{member}", part)
    distinct.setdefault(_identity(teacher), (name, teacher))


def _identity(teacher: ResolvedTeacher) -> tuple[str, str]:
    return teacher.kind, teacher.params.model_dump_json()


def fit_teachers_first(
    planned: Plan, places: Places, reservation: Reservation, console: Console, fit: Fit = fit_teacher
) -> None:
    """Fits the fixed teachers of a plan as tasks that Ray spreads over the nodes of a cluster. Each task has the cores
    and the share of a GPU of a trial.

    A teacher that cannot be fitted is left to the first trial that needs it, whose failure says why.
    """
    teachers, example = fixed_teachers(planned) if cluster_address() else {}, planned.example
    if not teachers or example is None:
        return
    fold, threads = example.cohort.fold, example.threads
    task = ray.remote(_fit_on_device).options(
        num_cpus=reservation.cpus, num_gpus=reservation.gpus, scheduling_strategy="SPREAD", max_retries=TRIES
    )
    single = [name for name, teacher in teachers.items() if not teacher.members]
    composite = [name for name, teacher in teachers.items() if teacher.members]
    done, failed, notes = 0, 0, list[str]()
    with console.status("") as status:
        show = status.update if console.is_terminal else lambda line: console.print(line, highlight=False)
        for names in (single, composite):  # a composite teacher needs the outputs of its members
            fits = [task.remote(fit, places, name, teachers[name], fold, threads, reservation.gpus) for name in names]
            try:
                while fits:
                    show(f"Fitting teachers: {done} of {len(teachers)}")
                    ready, fits = ray.wait(fits)
                    done += len(ready)
                    try:
                        notes += ray.get(ready[0])
                    except RayError:
                        failed += 1
            finally:
                for unfinished in fits:
                    ray.cancel(unfinished, force=True)
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)
    if failed:
        consequence = "the first trial that needs such a teacher tries again and says why"
        console.print(f"{failed} of {len(teachers)} teachers could not be fitted; {consequence}", highlight=False)


def _fit_on_device(
    fit: Fit, places: Places, name: str, teacher: ResolvedTeacher, fold: int, threads: int, gpus: float
) -> Sequence[str]:
    enter_reserved_device(gpus)
    return fit(places, name, teacher, fold, threads)
