"""Decides which configurations run on further seeds. A configuration can be the best one only after these runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmpkd.config import TrialConfig
from sweep.pareto import admit, dominates
from sweep.storage.records import mean_values
from sweep.types import Record, Values


@dataclass(frozen=True)
class PendingRepeat:
    """A run of a configuration on a further seed that has not started yet."""

    configuration: int  # number of the configuration's first trial
    turn: int  # which of the further seeds, counted from 1


class Repeats:
    """Decides which configurations run on further seeds, and when a configuration is settled, which means that its
    result is final.

    A complete trial is promising if its values would be on its arm's Pareto front. Its configuration needs `repeats -
    1` more runs. If all runs complete, the configuration enters the front with its means over all runs. Any other
    configuration is settled by its single run. Such a configuration is already behind the front, and the front never
    gets worse, so further runs are not needed.

    Attributes:
        pending: the runs on further seeds that have not started yet.

    Args:
        repeats: number of runs that a configuration needs to be on the front, each with its own seed.
    """

    def __init__(self, arms: Sequence[str], goals: Sequence[str], repeats: int):
        self._goals, self._repeats = tuple(goals), repeats
        self._fronts: dict[str, dict[int, Values]] = {arm: {} for arm in arms}
        self._runs: dict[int, list[Record]] = {}
        self.pending: deque[PendingRepeat] = deque()

    def mark_started(self, repeat: PendingRepeat) -> None:
        if repeat in self.pending:
            self.pending.remove(repeat)

    @property
    def unsettled(self) -> set[int]:
        """The numbers of the configurations that still have unfinished runs on further seeds."""
        return set(self._runs)

    def add(self, record: Record) -> tuple[int, Values | None] | None:
        """Adds a finished trial: a complete first trial, or a run on a further seed in any state.

        Returns:
            The number of the configuration that the trial settles, and the configuration's means over the seeds. The
            means are None if the run on one of the seeds failed. The whole result is None while runs of the
            configuration on other seeds have not ended.
        """
        configuration = record.configuration
        if record.repeat_of is None:
            values = record.values(self._goals)
            promising = not any(dominates(other, values) for other in self._fronts[record.arm].values())
            if self._repeats == 1 or not promising:
                return self._settle(record.arm, configuration, [record])
            self._runs[configuration] = []
            self.pending.extend(PendingRepeat(configuration, turn) for turn in range(1, self._repeats))
        self._runs[configuration].append(record)
        if len(self._runs[configuration]) < self._repeats:
            return None
        return self._settle(record.arm, configuration, self._runs.pop(configuration))

    def _settle(self, arm: str, configuration: int, runs: Sequence[Record]) -> tuple[int, Values | None]:
        if any(run.state != "complete" for run in runs):
            return configuration, None
        means = mean_values(runs, self._goals)
        admit(self._fronts[arm], configuration, means)
        return configuration, means


def repeat_config(config: TrialConfig, turn: int, num_folds: int) -> TrialConfig:
    """Returns a copy of a configuration with a further seed and, if patients are divided into folds, a further fold."""
    cohort = config.cohort.model_copy(update={"fold": (config.cohort.fold + turn) % num_folds})
    changes: Mapping[str, Any] = {"seed": config.seed + turn, "cohort": cohort}
    return config.model_copy(update=changes)
