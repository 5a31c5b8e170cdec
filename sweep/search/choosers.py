"""Choosers (subclasses of `space.draw.Chooser`) decide which values are drawn from a search space.

The values come from the suggestions of an Optuna trial, or from a past trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial


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
