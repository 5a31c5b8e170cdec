"""Choosers (subclasses of `space.draw.Chooser`) decide which values are drawn from a search space.

The values come from the suggestions of an Optuna trial, from a past trial, or from random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from sweep.space.design import number_at
from sweep.space.draw import draw
from sweep.space.grammar import Node, Range


class OptunaChooser:
    """Chooses the values that an Optuna trial suggests."""

    def __init__(self, trial: Trial):
        self._trial = trial

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        return self._trial.suggest_float(name, low, high, log=log)

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        return self._trial.suggest_int(name, low, high, log=log)

    def category(self, name: str, labels: Sequence[str]) -> str:
        label = self._trial.suggest_categorical(name, labels)
        assert isinstance(label, str)
        return label


class RandomChooser:
    """Chooses every value at random, as Optuna's `RandomSampler` does but without a study, which takes much longer.

    Attributes:
        chosen: the chosen values, by the name of the leaf. A label represents the value of a choice.
    """

    def __init__(self, random: Random):
        self._random = random
        self.chosen: dict[str, Any] = {}

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        return float(self._number(name, Range(name, low, high, log, integer=False)))

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        return int(self._number(name, Range(name, low, high, log, integer=True)))

    def category(self, name: str, labels: Sequence[str]) -> str:
        self.chosen[name] = label = self._random.choice(labels)
        return label

    def _number(self, name: str, interval: Range) -> float:
        self.chosen[name] = number = number_at(self._random.random(), interval)
        return number


class NotInSpace(Exception):
    """Raised if a space needs a parameter that a past trial lacks, or does not allow the past trial's value."""


class ReplayChooser:
    """Chooses the same parameter values as a past trial.

    Attributes:
        distributions: Optuna's distribution of each parameter that was chosen, by the name of the leaf.

    Raises (when it chooses):
        NotInSpace: the trial lies outside the space.
    """

    def __init__(self, params: Mapping[str, Any]):
        self._params = params
        self.distributions: dict[str, BaseDistribution] = {}

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        return float(self._replay(name, FloatDistribution(low, high, log=log)))

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        return int(self._replay(name, IntDistribution(low, high, log=log)))

    def category(self, name: str, labels: Sequence[str]) -> str:
        return str(self._replay(name, CategoricalDistribution(labels)))

    def _replay(self, name: str, distribution: BaseDistribution) -> Any:
        value = self._params.get(name)
        if value is None or isinstance(value, str) != isinstance(distribution, CategoricalDistribution):
            raise NotInSpace(name)
        if isinstance(distribution, CategoricalDistribution):
            fits = value in distribution.choices
        else:
            assert isinstance(distribution, FloatDistribution | IntDistribution)
            fits = distribution.low <= value <= distribution.high
        if not fits:
            raise NotInSpace(name)
        self.distributions[name] = distribution
        return value


def random_points(node: Node, arm: str, seed: int, count: int) -> list[dict[str, Any]]:
    """Returns random points of an arm, each in the form in which an Optuna trial is enqueued."""
    points, random = [], Random(seed)
    for _ in range(count):
        chooser = RandomChooser(random)
        draw(node, chooser, arm)
        points.append(chooser.chosen)
    return points
