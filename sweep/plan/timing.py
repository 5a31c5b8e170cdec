"""Selects the configurations of a sweep to be timed, and interprets their timings. `sweep.workers.pricing` measures
them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from mmpkd.cohort.facts import Facts
from mmpkd.config import TrialConfig
from mmpkd.student import build_student
from mmpkd.teachers import sees_view
from mmpkd.training.probe import Cost
from mmpkd.vlm.config import VlmConfig
from mmpkd.vlm.model import size_of
from sweep.plan.price import TimedConfig

MEMORY_SHARE: Final = 0.9  # share of a device's memory that trials may fill


def extremes(configs: Sequence[TrialConfig], facts: Facts) -> list[TrialConfig]:
    """Returns the cheapest and the most expensive configuration, as far as is known without timing. Returns a single
    configuration if all are alike. Of several that are alike, it returns the first, so that arms with the same ranges
    return configurations that are timed once (see `cost_identity`).
    """

    def burden_and_kinds(config: TrialConfig) -> tuple[tuple[float, int, int], list[str]]:
        return burden(config, facts), sorted(str(objective.kind) for objective in config.active_objectives().values())

    keys = [burden_and_kinds(config) for config in configs]
    return [configs[index] for index in dict.fromkeys((keys.index(min(keys)), keys.index(max(keys))))]


def burden(config: TrialConfig, facts: Facts) -> tuple[float, int, int]:
    """Returns a key that orders configurations by their likely cost: multiplications of a forward pass (and of those of
    a pre-training), then number of objectives, then small batches (which use a device less well)."""
    if isinstance(config.student, VlmConfig):
        distillation = config.distillation
        has_teacher = distillation.needs_teacher + (distillation.kl.weight > 0)
        return size_of(config.student), has_teacher, -config.optimizer.batch_size
    num_logits = facts.tasks[-1].columns.stop
    channels = facts.channels * len(config.student.reads)
    student = build_student(config.vit, facts.image_size, channels, num_logits, empty=True)
    tokens = student.grid[0] * student.grid[1] + 1
    size = sum(parameter.numel() for parameter in student.parameters())
    passes = 1 + (config.pretrain.epochs / config.epochs if config.pretrain else 0)
    return float(size * tokens * passes), len(config.active_objectives()), -config.optimizer.batch_size


def cost_identity(config: TrialConfig) -> str:
    """Returns a text that is the same for configurations that differ only in teachers whose outputs are cached.

    Their steps cost the same, except that the width of a teacher's embedding is the width of a projection.
    """
    objectives, live = {}, set()
    for label, objective in config.active_objectives().items():
        assert objective.teacher is not None
        if sees_view(config.teachers[objective.teacher]):
            live.add(objective.teacher)
        else:
            objective = objective.model_copy(update={"teacher": None})
        objectives[label] = objective
    teachers = {name: config.teachers[name] for name in sorted(live)}
    return config.model_copy(update={"objectives": objectives, "teachers": teachers}).model_dump_json()


def throughput(timed: TimedConfig) -> float:
    """Returns the training steps per second, summed over all trials that run at the same time. Returns 0 if the trials
    could not be timed or do not fit into memory.
    """
    cost = timed.cost
    if cost is None or cost.memory_bytes * timed.slots > MEMORY_SHARE * cost.device_bytes:
        return 0.0
    return timed.slots / cost.step_seconds


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """Returns one cost from the costs of trials that ran at the same time: the mean of their seconds, and the maximum
    of their memory.

    The mean of the seconds per step is the harmonic mean. With it, the number of trials divided by the seconds is the
    sum of all steps per second, also where a device serves its trials unevenly.
    """
    return replace(
        costs[0],
        step_seconds=statistics.harmonic_mean(cost.step_seconds for cost in costs),
        validation_seconds=statistics.fmean(cost.validation_seconds for cost in costs),
        pretrain_seconds=statistics.fmean(cost.pretrain_seconds for cost in costs),
        warm_up_seconds=statistics.fmean(cost.warm_up_seconds for cost in costs),
        memory_bytes=max(cost.memory_bytes for cost in costs),
        num_steps=sum(cost.num_steps for cost in costs),
    )
