"""Who answers the questions of the grammar: a point of an even cover, an Optuna trial, an earlier trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial
from scipy.stats import qmc

from mmpkd.machine.checksums import fingerprint
from sweep.space.draw import branches, draw
from sweep.space.grammar import Node

MOST_BRANCHES: Final = 512  # of an arm, to find the names of its leaves; a cover of them beyond


class Even:
    """Points that cover an arm evenly, branches included: scrambled Sobol (Owen 1998), a dimension a leaf.

    A point depends on its index only, so a restarted driver goes on where the last one stopped.
    """

    def __init__(self, node: Node, arm: str, seed: int):
        found = list(branches(node, arm, MOST_BRANCHES))
        self._names = sorted({name for branch in found for name in (*branch.labels, *branch.free)})
        self._node, self._arm, self._seed = node, arm, seed

    def point(self, index: int) -> dict[str, Any]:
        """What an Optuna trial is enqueued with; only leaves of the branch that it falls into."""
        if not self._names:
            return {}
        sobol = qmc.Sobol(len(self._names), scramble=True, rng=int(fingerprint([self._seed, self._arm])[:8], 16))
        if index:  # SciPy cannot move forward by 0
            sobol.fast_forward(index)
        placed = At(dict(zip(self._names, sobol.random(1)[0].tolist(), strict=True)))
        draw(self._node, placed, self._arm)
        return placed.chosen


class At:
    """The grammar's questions answered by a point of the unit cube."""

    def __init__(self, place: Mapping[str, float]):
        self._place = place
        self.chosen: dict[str, Any] = {}

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        share = self._place.get(name, 0.5)
        value = low * (high / low) ** share if log else low + share * (high - low)
        self.chosen[name] = min(max(value, low), high)
        return float(self.chosen[name])

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        # Each integer has as much of the cube as it has of the range that it is rounded from.
        below, above = (low - 0.5, high + 0.5) if not log else (max(low - 0.5, 0.5), high + 0.5)
        share = self._place.get(name, 0.5)
        value = below * (above / below) ** share if log else below + share * (above - below)
        self.chosen[name] = min(max(round(value), low), high)
        return int(self.chosen[name])

    def category(self, name: str, labels: Sequence[str]) -> str:
        self.chosen[name] = labels[min(int(self._place.get(name, 0.0) * len(labels)), len(labels) - 1)]
        return str(self.chosen[name])


class Asked:
    """The grammar's questions put to an Optuna trial."""

    def __init__(self, trial: Trial):
        self._trial = trial

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        return self._trial.suggest_float(name, low, high, log=log)

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        return self._trial.suggest_int(name, low, high, log=log)

    def category(self, name: str, labels: Sequence[str]) -> str:
        chosen = self._trial.suggest_categorical(name, labels)
        assert isinstance(chosen, str)
        return chosen


class Unfit(Exception):
    """A space asks for what a trial was not given, or does not allow what it was given."""


class Replay:
    """The grammar's questions answered with what a trial was given.

    Attributes:
        distributions: what was asked, as Optuna knows it.

    Raises (when asked):
        Unfit: this space does not hold the trial.
    """

    def __init__(self, params: Mapping[str, Any]):
        self._params = params
        self.distributions: dict[str, BaseDistribution] = {}

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        return float(self._answer(name, FloatDistribution(low, high, log=log)))

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        return int(self._answer(name, IntDistribution(low, high, log=log)))

    def category(self, name: str, labels: Sequence[str]) -> str:
        return str(self._answer(name, CategoricalDistribution(labels)))

    def _answer(self, name: str, distribution: BaseDistribution) -> Any:
        value = self._params.get(name)
        if value is None or isinstance(value, str) != isinstance(distribution, CategoricalDistribution):
            raise Unfit(name)
        if isinstance(distribution, CategoricalDistribution):
            fits = value in distribution.choices
        else:
            assert isinstance(distribution, FloatDistribution | IntDistribution)
            fits = distribution.low <= value <= distribution.high
        if not fits:
            raise Unfit(name)
        self.distributions[name] = distribution
        return value
