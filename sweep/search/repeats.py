"""Further seeds of promising configurations, before they may call themselves best."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmpkd.config import TrialConfig
from sweep.pareto import admit, dominates
from sweep.types import Record, Values


@dataclass(frozen=True)
class Due:
    """A further seed of a configuration that is still to be run."""

    number: int  # of the configuration's first trial
    turn: int  # from 1


class Seeds:
    """Which complete trials are run on further seeds, and what came of it.

    A complete trial whose values would put it on its arm's front is promising. It waits for
    `repeats - 1` more runs, and enters the front with the means, if all of them came through. Others
    are judged by their one run: they are behind the front anyway, and fronts only move forward.

    Args:
        repeats: runs that a configuration on the front has had.
    """

    def __init__(self, arms: Sequence[str], goals: Sequence[str], repeats: int):
        self._goals, self._repeats = tuple(goals), repeats
        self._fronts: dict[str, dict[int, Values]] = {arm: {} for arm in arms}
        self._runs: dict[int, list[Record]] = {}
        self.due: deque[Due] = deque()

    def started(self, due: Due) -> None:
        if due in self.due:
            self.due.remove(due)

    @property
    def waited_for(self) -> set[int]:
        """Configurations whose further seeds are not all in."""
        return set(self._runs)

    def finish(self, record: Record) -> tuple[int, Values | None] | None:
        """Takes in a finished trial, complete or, if it is a further seed, in whatever state.

        Returns:
            A configuration that is settled, and its means; None for values: a seed of it failed.
        """
        first = record.number if record.repeat_of is None else record.repeat_of
        if record.repeat_of is None:
            values = record.values(self._goals)
            promising = not any(dominates(other, values) for other in self._fronts[record.arm].values())
            if self._repeats == 1 or not promising:
                return self._settle(record.arm, first, [record])
            self._runs[first] = []
            self.due.extend(Due(first, turn) for turn in range(1, self._repeats))
        self._runs[first].append(record)
        if len(self._runs[first]) < self._repeats:
            return None
        return self._settle(record.arm, first, self._runs.pop(first))

    def _settle(self, arm: str, first: int, runs: Sequence[Record]) -> tuple[int, Values | None]:
        if any(run.state != "complete" for run in runs):
            return first, None
        columns = zip(*(run.values(self._goals) for run in runs), strict=True)
        means = tuple(statistics.fmean(column) for column in columns)
        admit(self._fronts[arm], first, means)
        return first, means


def repeated(config: TrialConfig, turn: int, num_folds: int) -> TrialConfig:
    """A configuration on its next seed and, where patients were dealt into folds, its next fold."""
    cohort = config.cohort.model_copy(update={"fold": (config.cohort.fold + turn) % num_folds})
    changed: Mapping[str, Any] = {"seed": config.seed + turn, "cohort": cohort}
    return config.model_copy(update=changed)
