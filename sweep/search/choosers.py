"""Choosers (subclasses of `space.draw.Chooser`) decide which values are drawn from a search space.

The values come from a point of an even cover of the space, from the suggestions of an Optuna trial, or from a past
trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial
from scipy.stats import qmc

from mmpkd.machine.checksums import fingerprint
from sweep.space.draw import branches, draw
from sweep.space.grammar import Node

MAX_BRANCHES: Final = 512  # with more branches, leaves are collected from a selection that has each label


class EvenCover:
    """A sequence of points that cover the space of an arm evenly, its branches included.

    The points form a scrambled Sobol sequence (Owen 1998) with one dimension for each leaf. A point depends on its
    index only, so a restarted driver continues where the last one stopped.
    """

    def __init__(self, node: Node, arm: str, seed: int):
        walked = list(branches(node, arm, MAX_BRANCHES))
        self._names = sorted({name for branch in walked for name in (*branch.labels, *branch.free)})
        self._node, self._arm, self._seed = node, arm, seed

    def point(self, index: int) -> dict[str, Any]:
        """Returns the values of the leaves in the point's branch, in the form in which an Optuna trial is enqueued."""
        if not self._names:
            return {}
        sobol = qmc.Sobol(len(self._names), scramble=True, rng=int(fingerprint([self._seed, self._arm])[:8], 16))
        if index:  # SciPy cannot skip 0 points
            sobol.fast_forward(index)
        chooser = CubeChooser(dict(zip(self._names, sobol.random(1)[0].tolist(), strict=True)))
        draw(self._node, chooser, self._arm)
        return chooser.chosen


class CubeChooser:
    """Chooses the values that correspond to a point of the unit cube, which has one coordinate for each leaf of the
    arm.

    Attributes:
        chosen: the chosen values, by the name of the leaf.

    Args:
        coordinates: the coordinates of the point, in [0, 1), by the name of the leaf.
    """

    def __init__(self, coordinates: Mapping[str, float]):
        self._coordinates = coordinates
        self.chosen: dict[str, Any] = {}

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        share = self._coordinates.get(name, 0.5)
        value = low * (high / low) ** share if log else low + share * (high - low)
        self.chosen[name] = min(max(value, low), high)
        return float(self.chosen[name])

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        # The range is widened by half a step on both sides, so that each integer has its fair share of the cube.
        below, above = (low - 0.5, high + 0.5) if not log else (max(low - 0.5, 0.5), high + 0.5)
        share = self._coordinates.get(name, 0.5)
        value = below * (above / below) ** share if log else below + share * (above - below)
        self.chosen[name] = min(max(round(value), low), high)
        return int(self.chosen[name])

    def category(self, name: str, labels: Sequence[str]) -> str:
        share = self._coordinates.get(name, 0.0)
        self.chosen[name] = labels[min(int(share * len(labels)), len(labels) - 1)]
        return str(self.chosen[name])


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
