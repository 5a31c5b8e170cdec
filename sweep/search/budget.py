"""Keeps the budget of a sweep: what each arm has spent, which arm gets the next trial, and when the sweep may end."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sweep.pareto import admit, hypervolume
from sweep.space.search_config import Equal, SearchConfig
from sweep.space.space import furthest_behind
from sweep.types import Record, Values

MIN_GROWTH: Final = 1.01  # factor by which an arm's hypervolume must grow; less counts as a plateau


@dataclass
class Costs:
    """Counts and device-seconds of an arm's finished trials, separately for failed trials and for all other trials."""

    trials: int = 0
    seconds: float = 0.0
    failed: int = 0
    failed_seconds: float = 0.0


class Ledger:
    """Counts started configurations and device-seconds by arm. Device-seconds are the seconds of epochs times the
    trial's share of a GPU, or times its number of cores if it has no GPU.

    Attributes:
        started: number of started configurations by arm. A failed configuration counts, because otherwise an arm whose
            trials fail would receive all remaining trials. A configuration counts once, also if its trial is
            interrupted and continues, and also if it runs on further seeds.
        left_behind: device-seconds of trials outside the sweep's extended space. They are charged to no arm.

    Args:
        shares: the share of each arm.
        equal: whether the arms share the number of started configurations or the device-seconds.
    """

    def __init__(self, shares: Mapping[str, float], equal: Equal):
        self.shares, self.equal = dict(shares), equal
        self.started = dict.fromkeys(shares, 0)
        self.spent = dict.fromkeys(shares, 0.0)
        self.left_behind = 0.0
        self._costs = {arm: Costs() for arm in shares}

    @property
    def total(self) -> float:
        """Device-seconds spent by all trials."""
        return self.left_behind + sum(self.spent.values())

    def start(self, arm: str) -> None:
        """Counts a new configuration of an arm."""
        self.started[arm] += 1

    def spend(self, arm: str, device_seconds: float) -> None:
        self.spent[arm] += device_seconds

    def add_finished(self, record: Record) -> None:
        """Adds a finished trial to the costs from which typical costs are estimated. `spend` has already charged the
        trial.
        """
        costs = self._costs[record.arm]
        if record.state == "failed":
            costs.failed += 1
            costs.failed_seconds += record.device_seconds
        else:
            costs.trials += 1
            costs.seconds += record.device_seconds

    def typical_cost(self, arm: str) -> float:
        """Returns the mean device-seconds of the arm's finished trials. If the arm has none yet, returns the mean over
        all arms.
        """
        own = self._costs[arm]
        known = [own] if own.trials else list(self._costs.values())
        trials = sum(costs.trials for costs in known)
        return sum(costs.seconds for costs in known) / trials if trials else 1.0

    def neediest(self, arms: Sequence[str], running: Iterable[tuple[str, float]]) -> str:
        """Returns the arm that gets the next configuration: the one that has used the smallest part of its share. If
        several arms are equal, returns the first of them.

        If the arms share device-seconds, a running trial is charged at its probable cost. A failed trial is charged in
        the same way: otherwise an arm whose trials fail at once would receive all remaining trials.

        Args:
            running: arm and device-seconds so far of each running trial.
        """
        if self.equal == "trials":
            return furthest_behind(self.started, self.shares, arms)
        charged = dict(self.spent)
        for arm, costs in self._costs.items():
            charged[arm] += max(costs.failed * self.typical_cost(arm) - costs.failed_seconds, 0.0)
        for arm, seconds in running:
            charged[arm] += max(self.typical_cost(arm) - seconds, 0.0)
        return furthest_behind(charged, self.shares, arms)


class Plateau:
    """Watches whether the Pareto fronts of the arms still grow.

    An arm is at its plateau when `patience` of its configurations in a row have not added 1 % to its hypervolume. The
    sweep is at its plateau when all arms are at theirs. No arm stops alone, because it would be tuned less than the
    others.
    """

    def __init__(self, arms: Sequence[str], goals: Sequence[str], patience: int | None):
        # Guessing reaches an AUROC of 0.5, so the hypervolume counts AUROC above 0.5 only.
        self._floor = tuple(0.5 if goal.startswith("val/auroc") else 0.0 for goal in goals)
        self._patience = patience
        self._fronts: dict[str, dict[int, Values]] = {arm: {} for arm in arms}
        self._best = dict.fromkeys(arms, 0.0)
        self._without_growth = dict.fromkeys(arms, 0)  # configurations in a row

    def add(self, arm: str, number: int, values: Values | None) -> None:
        """Adds a configuration that has run on all its seeds.

        Args:
            values: means of the goals over the seeds, or None if the trial of one of the seeds failed.
        """
        self._without_growth[arm] += 1
        if values is not None and number not in admit(self._fronts[arm], number, values):
            volume = hypervolume(list(self._fronts[arm].values()), self._floor)
            if volume > MIN_GROWTH * self._best[arm]:
                self._best[arm], self._without_growth[arm] = volume, 0

    def reached(self, exhausted: Collection[str] = ()) -> bool:
        """Returns whether every arm is at its plateau. Exhausted arms, which have no configuration left to try, are
        ignored.
        """
        counts = [count for arm, count in self._without_growth.items() if arm not in exhausted]
        return self._patience is not None and bool(counts) and min(counts) >= self._patience


def reached_limit(search: SearchConfig, ledger: Ledger) -> str:
    """Returns a line for the user that names the reached limit and how to raise it. The line is empty if no limit is
    reached.
    """
    hours, deadline = search.budget_device_hours, search.deadline
    if hours is not None and ledger.total >= hours * 3600:
        return f"the budget of {hours:g} device-hours is spent; to continue, raise budget_device_hours=..."
    if deadline is not None and time.time() >= deadline.timestamp():
        return f"the deadline ({deadline:%Y-%m-%d %H:%M}) has passed; to continue, give a later deadline=..."
    return ""
