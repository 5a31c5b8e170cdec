"""Simulated worlds in which searches are compared: the true mean learning curves of every configuration are known.

`RecordedWorld` smooths recorded learning curves with a Gaussian process, and uses the residual curves as noise.
`ClosedFormWorld` needs no recording: its curves are formulas with random constants, a new world for each seed.

Shape letters: C configurations, D columns of an encoding, E epochs, G goals, M epochs at which a world is fitted.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from benchmarks.record_curves import EPOCHS, Draws
from benchmarks.recorded import FLOOR, Curves
from sweep.pareto import admit, hypervolume
from sweep.space.draw import draw, leaf_name
from sweep.space.grammar import Choice, Maybe, Node, OneOf, Range, spots
from sweep.space.space import Space
from sweep.types import Values

Floats = NDArray[np.float64]
FITTED_EPOCHS: Final = (1, 2, 3, 4, 6, 9, 12, 16, 20, EPOCHS)  # in between, means are interpolated
NUM_NEIGHBOURS: Final = 12  # noise comes from one of this many nearest recorded trainings
NUM_DENSE: Final = 2000  # number of random configurations that stand for the whole space


class World(Protocol):
    """Interface of a world, which has a single arm.

    Attributes:
        node: the search space of the arm.
        best: the hypervolume of the true Pareto front, above `FLOOR`.
    """

    space: Space
    arm: str
    node: Node
    best: float

    def means(self, values: Mapping[str, Any]) -> Floats:
        """Returns the true mean curve (EPOCHS, goals) of a configuration, given its drawn values by leaf name."""

    def noise(self, values: Mapping[str, Any], random: np.random.Generator) -> Floats:
        """Returns a random deviation (EPOCHS, goals) from the mean curve, as a seed makes."""


class Encoding:
    """Encodes a configuration as a vector: a number in [0, 1] for each numeric leaf, one-hot for each label."""

    def __init__(self, node: Node, arm: str):
        self.columns: list[tuple[str, Range | str]] = []
        for spot in spots(node):
            name = leaf_name(arm, spot.path)
            match spot.node:
                case Range():
                    self.columns.append((name, spot.node))
                case Choice(values=values):
                    self.columns += [(name, label) for label in values]
                case OneOf(branches=branches):
                    self.columns += [(name, label) for label in branches]
                case Maybe():
                    self.columns.append((f"{name}.maybe", "present"))

    def __call__(self, values: Mapping[str, Any]) -> Floats:
        vector = np.empty(len(self.columns))
        for column, (name, leaf) in enumerate(self.columns):
            value = values.get(name)
            if value is None:
                vector[column] = 0.0 if isinstance(leaf, str) else 0.5
            elif isinstance(leaf, str):
                vector[column] = float(str(value) == leaf)
            else:
                vector[column] = unit(value, leaf)
        return vector


def unit(value: float, leaf: Range) -> float:
    if leaf.high == leaf.low:
        return 0.5
    if leaf.log:
        return float(np.log(value / leaf.low) / np.log(leaf.high / leaf.low))
    return float((value - leaf.low) / (leaf.high - leaf.low))


def dense_best(world: World, seed: int = 0) -> float:
    """Returns the hypervolume of the best of `NUM_DENSE` random configurations by their true means."""
    front: dict[int, Values] = {}
    for number in range(NUM_DENSE):
        values = draw(world.node, Draws([seed, number]), world.arm).values
        admit(front, number, tuple(world.means(values)[-1]))
    return hypervolume(list(front.values()), FLOOR)


class RecordedWorld:
    """A world that is fitted to recorded curves.

    Attributes:
        fit_quality: leave-one-out R^2 of each goal at the last epoch.
    """

    def __init__(self, space: Space, arm: str, curves: Curves):
        self.space, self.arm, self.node = space, arm, space.arms[arm]
        self._encoding = Encoding(self.node, arm)
        rows = [row for row in curves.rows if row.arm == arm]
        self._x_CD = np.array([self._encoding({**row.labels, **row.numbers}) for row in rows])
        curve_CEG = np.array([row.values_ET for row in rows])
        fits = [[_fit(self._x_CD, curve_CEG[:, epoch - 1, goal]) for goal in range(curve_CEG.shape[2])] for epoch in FITTED_EPOCHS]
        self._scale_MGD = np.array([[fit[0] for fit in at_epoch] for at_epoch in fits])
        self._factor_MG = np.array([[fit[1] for fit in at_epoch] for at_epoch in fits])
        self._weight_MGC = np.array([[fit[2] for fit in at_epoch] for at_epoch in fits])
        self._centre_MG = np.array([[fit[3] for fit in at_epoch] for at_epoch in fits])
        self.fit_quality = [fit[4] for fit in fits[-1]]
        means_CEG = np.array([self._means(x_D) for x_D in self._x_CD])
        singles = [repeats for repeats in curves.recorded.values() if next(iter(repeats.values())).arm == arm]
        self._residuals = [[repeat.values_ET - mean for repeat in repeats.values()] for repeats, mean in zip(singles, means_CEG, strict=True)]
        self.best = dense_best(self)

    def means(self, values: Mapping[str, Any]) -> Floats:
        return self._means(self._encoding(values))

    def _means(self, x_D: Floats) -> Floats:
        difference_CD = (self._x_CD - x_D) ** 2
        root5_MGC = np.sqrt(5 * np.einsum("cd,mgd->mgc", difference_CD, 1 / self._scale_MGD**2))
        matern_MGC = (1 + root5_MGC + root5_MGC**2 / 3) * np.exp(-root5_MGC)
        mean_MG = self._centre_MG + self._factor_MG * np.einsum("mgc,mgc->mg", matern_MGC, self._weight_MGC)
        epochs = np.arange(1, EPOCHS + 1)
        mean_EG = np.stack([np.interp(epochs, FITTED_EPOCHS, mean_MG[:, goal]) for goal in range(mean_MG.shape[1])], 1)
        return np.clip(mean_EG, 0.0, 1.0)

    def noise(self, values: Mapping[str, Any], random: np.random.Generator) -> Floats:
        distance_C = ((self._x_CD - self._encoding(values)) ** 2).sum(axis=1)
        first, second = random.random(2)
        near = np.argsort(distance_C)[int(first * NUM_NEIGHBOURS)]
        residuals = self._residuals[near]
        return residuals[int(second * len(residuals))]


def _fit(x_CD: Floats, y_C: Floats) -> tuple[Floats, float, Floats, float, float]:
    """Returns length scales, signal variance, weights K^-1 (y - mean), the mean, and the leave-one-out R^2."""
    centre, spread = float(y_C.mean()), float(y_C.std()) or 1.0
    kernel = ConstantKernel(1.0, (0.01, 100)) * Matern(np.ones(x_CD.shape[1]), (0.1, 30), nu=2.5) + WhiteKernel(0.1, (1e-3, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = GaussianProcessRegressor(kernel, n_restarts_optimizer=1, random_state=0).fit(x_CD, (y_C - centre) / spread).kernel_
    signal, noise = fitted.k1, fitted.k2
    inverse = np.linalg.inv(signal(x_CD) + noise.noise_level * np.eye(len(x_CD)))
    weight_C = inverse @ ((y_C - centre) / spread)
    left_out_C = weight_C / np.diag(inverse)  # residuals, Rasmussen and Williams 2006, eq. 5.12
    quality = 1 - float((left_out_C**2).mean() * spread**2 / y_C.var())
    return signal.k2.length_scale, float(signal.k1.constant_value), weight_C * spread, centre, quality


CLOSED_FORM: Final = """
cohort: {reader: synthetic}
epochs: 27
optimizer:
  lr: {log_uniform: [1e-4, 3e-3]}
  weight_decay: {log_uniform: [1e-3, 0.3]}
arms:
  none: false
  tabular:
    teachers: {findings: {kind: tabular}}
    objectives:
      one_of:
        logits: {logits: {weight: {log_uniform: [0.05, 20]}, params: {temperature: {log_uniform: [1, 10]}}}}
        features: {features: {weight: {log_uniform: [0.05, 20]}, params: {layer: {int: [1, 3]}, distance: {choice: [cosine, mse]}}}}
        relational: {relational: {weight: {log_uniform: [1, 100]}}}
"""  # the arm `tabular` of the shipped space `breast`, with a third branch
NOISE: Final = (0.03, 0.06)  # standard deviations of a seed at the end, as in the recorded demo
WORST: Final = (0.5, 0.02)
REACH: Final = (0.5, 0.6)  # the most that a configuration can add to the worst value of each goal


class ClosedFormWorld:
    """A world of formulas whose constants are drawn anew for each seed.

    The end of each goal is a bump over the leaves, lowered for the worse branches and labels, and zero beyond a cliff
    in the learning rate. Few leaves matter much, and others hardly (Bergstra and Bengio 2012). The optima of the two
    goals lie apart, so that there is a front. A curve rises in the shape of a logistic function, later for a low
    learning rate and for a heavy objective, so that early ranks mislead. Constants are set so that the spread of
    configurations, the noise of a seed and the rank correlations of epochs 3 and 9 with the end are near those of the
    recorded demo.

    Args:
        noise: factor on the noise of a seed.
    """

    def __init__(self, space: Space, arm: str, seed: int, noise: float = 1.0):
        self.space, self.arm, self.node = space, arm, space.arms[arm]
        self._noise = noise
        self._encoding = Encoding(self.node, arm)
        columns = self._encoding.columns
        random = np.random.default_rng([17, seed])
        self._lr = next(index for index, (name, _) in enumerate(columns) if name.endswith("optimizer.lr"))
        self._is_label = np.array([isinstance(leaf, str) for _, leaf in columns])
        self._is_weight = np.array([name.endswith(".weight") for name, _ in columns])
        shared_D = random.uniform(0.2, 0.8, len(columns))
        self._optimum_GD = np.clip(shared_D + random.normal(0, 0.1, (len(NOISE), len(columns))), 0, 1)
        self._narrowness_GD = 2 * random.uniform(0, 1, (len(NOISE), len(columns))) ** 4
        self._narrowness_GD[:, self._lr] += 0.5
        self._loss_GD = random.exponential(0.8, (len(NOISE), len(columns))) * self._is_label
        self._cliff = random.uniform(0.8, 1.15)
        self.best = dense_best(self, seed)

    def means(self, values: Mapping[str, Any]) -> Floats:
        x_D = self._encoding(values)
        drawn_D = np.array([name in values for name, _ in self._encoding.columns]) & ~self._is_label
        away_G = (self._narrowness_GD * drawn_D * (x_D - self._optimum_GD) ** 2).sum(axis=1)
        survives = 1 / (1 + np.exp((x_D[self._lr] - self._cliff) / 0.03))
        gain_G = np.array(REACH) * np.exp(-away_G - (self._loss_GD * x_D).sum(axis=1)) * survives
        middle = 8 - 7 * x_D[self._lr] + 3 * float((x_D * drawn_D * self._is_weight).sum())
        progress_E = 1 / (1 + np.exp((middle - np.arange(1, EPOCHS + 1)) / 2))
        return np.array(WORST) + gain_G * progress_E[:, None]

    def noise(self, values: Mapping[str, Any], random: np.random.Generator) -> Floats:
        lasting_G = random.normal(0, 0.8, len(NOISE))  # most of a seed's luck lasts; the remainder changes each epoch
        passing_EG = random.normal(0, 0.6, (EPOCHS, len(NOISE)))
        return self._noise * np.array(NOISE) * (lasting_G + passing_EG)
