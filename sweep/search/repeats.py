"""Further seeds of promising configurations, which must have run before a configuration may be the best."""

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
    """A further seed of a configuration that is still to run."""

    configuration: int  # number of its first trial
    turn: int  # counted from 1


class Repeats:
    """Decides which complete trials run on further seeds, and settles configurations with the results.

    A complete trial whose values would be on its arm's front is promising. Its configuration needs `repeats - 1` more
    runs, and enters the front with the means over all runs if all of them complete. Other configurations are settled by
    their single run: they are behind the front anyway, and fronts only move forward.

    Attributes:
        pending: the further seeds that are still to run.

    Args:
        repeats: how many runs a configuration on the front must have had, each with its own seed.
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
        """The configurations that still have unfinished runs on further seeds."""
        return set(self._runs)

    def add(self, record: Record) -> tuple[int, Values | None] | None:
        """Adds a finished trial: a complete first trial, or a further seed in any state.

        Returns:
            The configuration that the trial settles, and its means over the seeds; the means are None if one of the
            seeds failed. The whole result is None while other seeds of the configuration are still to end.
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
    """Returns a configuration on a further seed and, where patients were divided into folds, on a further fold."""
    cohort = config.cohort.model_copy(update={"fold": (config.cohort.fold + turn) % num_folds})
    changes: Mapping[str, Any] = {"seed": config.seed + turn, "cohort": cohort}
    return config.model_copy(update=changes)
