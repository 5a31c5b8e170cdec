"""What a sweep has spent, on whom, and when it is enough."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sweep.pareto import admit, hypervolume
from sweep.space.space import SearchConfig
from sweep.types import Record, Values

GROWTH: Final = 1.01  # of an arm's hypervolume; less is a plateau


@dataclass
class Costs:
    """Of an arm's finished trials, in device-seconds."""

    trials: int = 0
    seconds: float = 0.0
    failed: int = 0
    failed_seconds: float = 0.0


class Ledger:
    """Device-seconds by arm: wall time of epochs x share of a GPU, or cores where there is none.

    Args:
        shares: of the device-seconds, by arm.

    Attributes:
        before: what the sweep spent on trials that its space no longer holds; no arm is charged with it.
    """

    def __init__(self, shares: Mapping[str, float]):
        self.shares = dict(shares)
        self.spent = dict.fromkeys(shares, 0.0)
        self.before = 0.0
        self._costs = {arm: Costs() for arm in shares}

    @property
    def total(self) -> float:
        return self.before + sum(self.spent.values())

    def spend(self, arm: str, device_seconds: float) -> None:
        self.spent[arm] += device_seconds

    def finish(self, record: Record) -> None:
        costs = self._costs[record.arm]
        if record.state == "failed":
            costs.failed += 1
            costs.failed_seconds += record.device_seconds
        else:
            costs.trials += 1
            costs.seconds += record.device_seconds

    def typical(self, arm: str) -> float:
        """Device-seconds of a trial of the arm; of any arm's before it has one."""
        own = self._costs[arm]
        known = [own] if own.trials else list(self._costs.values())
        trials = sum(costs.trials for costs in known)
        return sum(costs.seconds for costs in known) / trials if trials else 1.0

    def neediest(self, arms: Sequence[str], live: Iterable[tuple[str, float]]) -> str:
        """The arm furthest behind its share; of equal ones the first.

        A trial in flight counts as what it will probably cost, and so does a failed one, lest an
        arm whose trials fail at once be handed all the rest.

        Args:
            live: arm and device-seconds so far of each trial in flight.
        """
        charged = dict(self.spent)
        for arm, costs in self._costs.items():
            charged[arm] += max(costs.failed * self.typical(arm) - costs.failed_seconds, 0.0)
        for arm, seconds in live:
            charged[arm] += max(self.typical(arm) - seconds, 0.0)
        return min(arms, key=lambda arm: charged[arm] / self.shares[arm])


class Plateau:
    """Whether the fronts still grow: an arm is at its plateau when so many of its configurations in a
    row have not added 1 % to its hypervolume. The sweep is when all arms are, since an arm that stops
    alone would be tuned less than the others."""

    def __init__(self, arms: Sequence[str], goals: Sequence[str], patience: int | None):
        # What guessing scores is no achievement: AUROC counts from a half.
        self._floor = tuple(0.5 if goal.startswith("val/auroc") else 0.0 for goal in goals)
        self._patience = patience
        self._fronts: dict[str, dict[int, Values]] = {arm: {} for arm in arms}
        self._best = dict.fromkeys(arms, 0.0)
        self._since = dict.fromkeys(arms, 0)

    def add(self, arm: str, number: int, values: Values | None) -> None:
        """A configuration has been run to its end; None: it has not, on one of its seeds."""
        self._since[arm] += 1
        if values is not None and number not in admit(self._fronts[arm], number, values):
            volume = hypervolume(list(self._fronts[arm].values()), self._floor)
            if volume > GROWTH * self._best[arm]:
                self._best[arm], self._since[arm] = volume, 0

    def reached(self, exhausted: Collection[str] = ()) -> bool:
        """Args: exhausted: arms that have nothing left to try, and so come to no plateau."""
        going = [since for arm, since in self._since.items() if arm not in exhausted]
        return self._patience is not None and bool(going) and min(going) >= self._patience


def limit(search: SearchConfig, ledger: Ledger) -> str:
    """Why nothing more may be run, and what allows more; empty if it may."""
    hours, deadline = search.budget_device_hours, search.deadline
    if hours is not None and ledger.total >= hours * 3600:
        return f"the budget of {hours:g} device-hours is spent; budget_device_hours=... with more continues"
    if deadline is not None and time.time() >= deadline.timestamp():
        return f"the deadline ({deadline:%Y-%m-%d %H:%M}) has come; deadline=... with a later one continues"
    return ""
