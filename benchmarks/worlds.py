"""Simulated worlds in which searches are compared. The true mean learning curve of every configuration is known.

`RecordedWorld` smooths recorded learning curves with Gaussian processes, and uses the residual curves as noise.
`ClosedFormWorld` needs no recording: its curves are formulas with random constants, which differ between seeds.

Shapes: N configurations, C recorded configurations, D coordinates of a configuration (`sweep.space.encoding` makes
them), E epochs, G goals, M epochs at which processes are fitted.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from benchmarks.record_curves import EPOCHS, Draws
from benchmarks.recorded import Configuration
from sweep.pareto import admit, hypervolume
from sweep.space.draw import draw, leaf_name
from sweep.space.encoding import encode
from sweep.space.grammar import Choice, Maybe, Node, OneOf, Range, spots
from sweep.types import Values

Floats: TypeAlias = NDArray[np.float64]
Drawn: TypeAlias = Mapping[str, Any]  # the drawn values of a configuration by leaf name
FLOOR: Final = (0.5, 0.0)  # hypervolumes count from the AUROC of chance and from a pointing score of 0
FITTED_EPOCHS: Final = (1, 2, 3, 4, 6, 9, 12, 16, 20, EPOCHS)  # in between, means are interpolated
NUM_NEIGHBOURS: Final = 12  # noise comes from one of this many nearest recorded configurations
NUM_DENSE: Final = 2000  # random configurations that stand for the whole space


class World(Protocol):
    """Interface of a world. It has a single arm.

    Attributes:
        node: the search space of the arm.
        front: the drawn values of the configurations on the true Pareto front.
        best: the hypervolume of the true Pareto front above `FLOOR`.
    """

    arm: str
    node: Node
    front: list[Drawn]
    best: float

    def means(self, rows: Sequence[Drawn]) -> Floats:
        """Returns the true mean curves of N configurations, shape (N, E, G)."""

    def noise(self, values: Drawn, random: np.random.Generator) -> Floats:
        """Returns a random deviation from the mean curve of a configuration, as a seed causes it, shape (E, G)."""


def random_rows(node: Node, arm: str, seed: int, count: int) -> list[Drawn]:
    """Returns the drawn values of random configurations."""
    return [draw(node, Draws([seed, number]), arm).values for number in range(count)]


def true_front(rows: Sequence[Drawn], ends_NG: Floats) -> tuple[list[Drawn], float]:
    """Returns the configurations on the Pareto front of N configurations, and the hypervolume of the front."""
    front: dict[int, Values] = {}
    for number, values in enumerate(ends_NG.tolist()):
        admit(front, number, values)
    return [rows[number] for number in front], hypervolume(list(front.values()), FLOOR)


def leaves(node: Node, arm: str) -> dict[str, Node]:
    """Returns the leaves and decisions of an arm that are drawn, by the names of their drawn values."""
    named = [(leaf_name(arm, spot.path), spot.node) for spot in spots(node)]
    return {
        f"{name}.maybe" if isinstance(leaf, Maybe) else name: leaf
        for name, leaf in named
        if isinstance(leaf, Range | Choice | OneOf | Maybe)
    }


@dataclass(frozen=True)
class Character:
    """Properties of a world by which worlds can be compared, each by goal, shape (G,).

    Attributes:
        spread: standard deviation over configurations of the true mean at the end.
        noise: standard deviation of the noise at the end.
        rank_3: Spearman's rank correlation over configurations of the true mean after epoch 3 with that at the end.
        rank_9: the same after epoch 9.
    """

    spread: Floats
    noise: Floats
    rank_3: Floats
    rank_9: Floats


def character(world: World, seed: int, count: int = 300) -> Character:
    """Measures the properties of a world on random configurations."""
    rows = random_rows(world.node, world.arm, seed + 1_000_000, count)
    random = np.random.default_rng(seed)
    means_NEG = world.means(rows)
    noise_NG = np.array([world.noise(row, random)[-1] for row in rows])

    def rank_correlation(epoch: int) -> Floats:
        goals = range(means_NEG.shape[2])
        return np.array([spearmanr(means_NEG[:, epoch - 1, goal], means_NEG[:, -1, goal])[0] for goal in goals])

    return Character(means_NEG[:, -1].std(axis=0), noise_NG.std(axis=0), rank_correlation(3), rank_correlation(9))


@dataclass(frozen=True)
class Process:
    """A Gaussian process that is fitted to one goal at one epoch.

    Attributes:
        lengths_D: length scales of a Matérn kernel of smoothness 5/2.
        weights_C: weights of the recorded configurations in the mean, in units of the goal.
        centre: the prior mean.
        noise_sd: standard deviation of the fitted noise, in units of the goal.
        explained: leave-one-out R².
    """

    lengths_D: Floats
    weights_C: Floats
    centre: float
    noise_sd: float
    explained: float


def fit_process(x_CD: Floats, y_C: Floats) -> Process:
    """Fits a Gaussian process by maximum likelihood with scikit-learn, which shares no code with `sweep.surrogate`.

    The leave-one-out residuals are those of Rasmussen and Williams 2006, equation 5.12, with the parameters that were
    fitted to all configurations.
    """
    centre, spread = float(y_C.mean()), float(y_C.std()) or 1.0
    scores_C = (y_C - centre) / spread
    kernel = ConstantKernel(1.0, (0.01, 100)) * Matern(np.ones(x_CD.shape[1]), (0.1, 30), nu=2.5)
    kernel += WhiteKernel(0.1, (1e-3, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = GaussianProcessRegressor(kernel, n_restarts_optimizer=1, random_state=0).fit(x_CD, scores_C).kernel_
    precision_CC = np.linalg.inv(fitted(x_CD))
    weights_C = precision_CC @ scores_C
    left_out_C = weights_C / np.diag(precision_CC)
    signal, noise = fitted.k1, fitted.k2
    return Process(
        signal.k2.length_scale,
        weights_C * signal.k1.constant_value * spread,
        centre,
        spread * float(noise.noise_level) ** 0.5,
        1 - float((left_out_C**2).mean() / scores_C.var()),
    )


class RecordedWorld:
    """A world that is fitted to recorded curves.

    The mean of a configuration is interpolated between the epochs of `FITTED_EPOCHS`, at each of which a process was
    fitted to the means over repeats. The noise is the residual curve of a single repeat of one of the `NUM_NEIGHBOURS`
    nearest recorded configurations, so that the noise of different epochs and goals is as dependent as in reality.
    Where configurations have a single repeat, residuals are too small, because the processes were fitted to them. The
    residuals of a goal are therefore scaled up until their root mean square at the end is the fitted noise.

    Attributes:
        explained: leave-one-out R² of each goal at the last epoch.

    Args:
        noise: factor on the noise.
    """

    def __init__(self, node: Node, arm: str, recorded: Sequence[Configuration], noise: float = 1.0):
        self.node, self.arm = node, arm
        self._x_CD = encode(node, arm, [configuration.values for configuration in recorded])
        curves_CEG = np.array([configuration.curves_REG.mean(axis=0) for configuration in recorded])
        goals = range(curves_CEG.shape[2])
        fits = [[fit_process(self._x_CD, curves_CEG[:, epoch - 1, goal]) for goal in goals] for epoch in FITTED_EPOCHS]
        self._lengths_MGD = np.array([[process.lengths_D for process in at_epoch] for at_epoch in fits])
        self._weights_MGC = np.array([[process.weights_C for process in at_epoch] for at_epoch in fits])
        self._centre_MG = np.array([[process.centre for process in at_epoch] for at_epoch in fits])
        self.explained = [process.explained for process in fits[-1]]

        means_CEG = self._means(self._x_CD)
        residuals = [each.curves_REG - mean for each, mean in zip(recorded, means_CEG, strict=True)]
        rms_G = np.sqrt((np.concatenate(residuals)[:, -1] ** 2).mean(axis=0))
        scale_G = noise * np.maximum([process.noise_sd for process in fits[-1]] / rms_G, 1.0)
        self._residuals = [residuals_REG * scale_G for residuals_REG in residuals]
        rows = random_rows(node, arm, 0, NUM_DENSE)
        self.front, self.best = true_front(rows, self.means(rows)[:, -1])

    def means(self, rows: Sequence[Drawn]) -> Floats:
        return self._means(encode(self.node, self.arm, rows))

    def _means(self, x_ND: Floats) -> Floats:
        """Returns the mean curves of encoded configurations."""
        recorded_MGCD = self._x_CD / self._lengths_MGD[:, :, None]
        points_MGND = x_ND / self._lengths_MGD[:, :, None]
        squares_MGNC = (
            (points_MGND**2).sum(axis=-1)[..., :, None]
            + (recorded_MGCD**2).sum(axis=-1)[..., None, :]
            - 2 * points_MGND @ recorded_MGCD.swapaxes(-1, -2)
        )
        distance_MGNC = np.sqrt(5 * np.maximum(squares_MGNC, 0.0))
        matern_MGNC = (1 + distance_MGNC + distance_MGNC**2 / 3) * np.exp(-distance_MGNC)
        mean_MGN = self._centre_MG[:, :, None] + np.einsum("mgnc,mgc->mgn", matern_MGNC, self._weights_MGC)
        # Every epoch lies between two of the fitted epochs, or is one of them.
        place_E = np.interp(np.arange(1, EPOCHS + 1), FITTED_EPOCHS, np.arange(len(FITTED_EPOCHS)))
        below_E = np.minimum(place_E.astype(int), len(FITTED_EPOCHS) - 2)
        share_E = (place_E - below_E)[:, None, None]
        mean_EGN = (1 - share_E) * mean_MGN[below_E] + share_E * mean_MGN[below_E + 1]
        mean_NEG: Floats = np.clip(np.moveaxis(mean_EGN, 2, 0), 0.0, 1.0)
        return mean_NEG

    def noise(self, values: Drawn, random: np.random.Generator) -> Floats:
        distance_C = ((self._x_CD - encode(self.node, self.arm, [values])) ** 2).sum(axis=1)
        neighbour, repeat = random.random(2)
        residuals_REG = self._residuals[np.argsort(distance_C)[int(neighbour * NUM_NEIGHBOURS)]]
        deviation_EG: Floats = residuals_REG[int(repeat * len(residuals_REG))]
        return deviation_EG


NOISE: Final = (0.03, 0.06)  # standard deviation of a seed at the end
WORST: Final = (0.5, 0.02)  # the mean of a configuration that learns nothing
REACH: Final = (0.5, 0.6)  # the most that a configuration can add to this


class ClosedFormWorld:
    """A world of formulas whose constants are drawn anew for each seed.

    The end of each goal is a bump over the numbers, lowered for the worse branches and labels, and the worst value
    beyond a cliff in the learning rate. Few numbers matter much and others hardly (Bergstra and Bengio 2012). The
    optima of the two goals lie apart, so that there is a front. A curve rises as a logistic function, later for a low
    learning rate and for a heavy objective, so that early ranks mislead.

    The constants are frozen. They were set before any result of our sampler in this world was seen, so that the spread
    of configurations, the noise of a seed, the rank correlations of epochs 3 and 9 with the end and the regret of
    random search are near those of the recorded spaces. The regret of random search after 8 trainings is 0.10 of the
    best hypervolume in the demo, 0.30 in the arm `superior` of `all_objectives`, and about 0.26 in this world.

    Args:
        noise: factor on the noise.
    """

    def __init__(self, node: Node, arm: str, seed: int, noise: float = 1.0):
        self.node, self.arm, self._noise = node, arm, noise
        columns = [
            (name, not isinstance(leaf, Range)) for name, leaf in leaves(node, arm).items() for _ in range(_width(leaf))
        ]
        self._names_D = [name for name, _ in columns]
        self._is_label_D = np.array([is_label for _, is_label in columns])
        self._is_weight_D = np.array([name.endswith(".weight") for name in self._names_D])
        self._lr = next(index for index, name in enumerate(self._names_D) if name.endswith("optimizer.lr"))
        random = np.random.default_rng([17, seed])
        shape_GD = (len(NOISE), len(columns))
        shared_D = random.uniform(0.2, 0.8, len(columns))
        self._optimum_GD = np.clip(shared_D + random.normal(0, 0.1, shape_GD), 0, 1)
        self._narrowness_GD = 2 * random.uniform(0, 1, shape_GD) ** 4
        self._narrowness_GD[:, self._lr] += 0.5
        self._loss_GD = random.exponential(0.8, shape_GD) * self._is_label_D
        self._cliff = random.uniform(0.8, 1.15)
        rows = random_rows(node, arm, seed, NUM_DENSE)
        self.front, self.best = true_front(rows, self.means(rows)[:, -1])

    def means(self, rows: Sequence[Drawn]) -> Floats:
        x_ND = encode(self.node, self.arm, rows)
        drawn_ND = np.array([[name in row for name in self._names_D] for row in rows]) & ~self._is_label_D
        squares_NGD = (x_ND[:, None, :] - self._optimum_GD) ** 2 * drawn_ND[:, None, :]
        away_NG = (self._narrowness_GD * squares_NGD).sum(axis=2) + x_ND @ self._loss_GD.T
        survives_N = 1 / (1 + np.exp((x_ND[:, self._lr] - self._cliff) / 0.03))
        gain_NG = np.array(REACH) * np.exp(-away_NG) * survives_N[:, None]
        middle_N = 8 - 7 * x_ND[:, self._lr] + 3 * (x_ND * drawn_ND * self._is_weight_D).sum(axis=1)
        progress_NE = 1 / (1 + np.exp((middle_N[:, None] - np.arange(1, EPOCHS + 1)) / 2))
        mean_NEG: Floats = np.array(WORST) + gain_NG[:, None, :] * progress_NE[:, :, None]
        return mean_NEG

    def noise(self, values: Drawn, random: np.random.Generator) -> Floats:
        lasting_G = random.normal(0, 0.8, len(NOISE))  # most of a seed's luck lasts; the remainder changes each epoch
        passing_EG = random.normal(0, 0.6, (EPOCHS, len(NOISE)))
        return self._noise * np.array(NOISE) * (lasting_G + passing_EG)


def _width(leaf: Node) -> int:
    """Returns the number of coordinates that a leaf with several possible values has in its encoding."""
    match leaf:
        case Choice(values=labels) | OneOf(branches=labels):
            return len(labels)
    return 1
