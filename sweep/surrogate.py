"""A Gaussian process that estimates the mean score of configurations from noisy scores of trials.

Shapes: N trials or configurations, D coordinates of a configuration (`space.encoding` makes them), M further
configurations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

Floats: TypeAlias = NDArray[np.float64]

# Bounds of the logarithms of amplitude, length scales and noise, all in units of the normalised scores.
AMPLITUDE_BOUNDS: Final = (-7.0, 3.0)
LENGTH_BOUNDS: Final = (-3.0, 5.0)
NOISE_BOUNDS: Final = (-9.0, 1.0)
MAX_ROWS: Final = 200  # of more trials, every second, third, ... decides the parameters, to bound the time
JITTER: Final = 1e-8  # keeps the covariance of equal configurations positive definite
SAMPLE_JITTER: Final = 1e-5  # the same for a posterior covariance, in which rounding errors are larger


@dataclass(frozen=True)
class Surrogate:
    """A fitted Gaussian process with a Matérn kernel (smoothness 5/2), one length scale for each coordinate, and noise.

    Attributes:
        log_parameters: logarithms of the amplitude (a variance), of the D length scales, and of the noise (a variance),
            shape (D + 2,). The variances are those of the normalised scores.
    """

    log_parameters: Floats
    _x_ND: Floats
    _scores_N: Floats  # normalised
    _mean: float
    _scale: float
    _cholesky_NN: Floats

    @property
    def noise_sd(self) -> float:
        """The standard deviation of the noise, in units of the scores."""
        return self._scale * float(np.exp(self.log_parameters[-1] / 2))

    def predict(self, x_MD: Floats) -> tuple[Floats, Floats]:
        """Returns the estimated mean score of each configuration and its standard deviation, each of shape (M,).

        The standard deviation is that of the mean, so it does not include the noise of a single trial (Rasmussen and
        Williams 2006, equations 2.25 and 2.26).
        """
        mean_M, whitened_NM = self._given_scores(x_MD)
        variance_M = np.exp(self.log_parameters[0]) - (whitened_NM**2).sum(axis=0)
        return self._mean + self._scale * mean_M, self._scale * np.sqrt(np.maximum(variance_M, 0.0))

    def smooth(self, y_RN: Floats) -> Floats:
        """Returns the estimated mean scores of the N trials if they had other scores, for R sets of scores, shape (R,
        N). The parameters stay the same.
        """
        covariance_NN, _ = _kernel(self.log_parameters, self._x_ND, self._x_ND)
        centre_R1 = y_RN.mean(axis=1, keepdims=True)
        smoothed_RN: Floats = centre_R1 + (y_RN - centre_R1) @ cho_solve((self._cholesky_NN, True), covariance_NN)
        return smoothed_RN

    def sample(self, x_MD: Floats, normal_SM: Floats) -> Floats:
        """Returns S joint draws of the mean scores of M configurations from the posterior distribution, shape (S, M).

        Args:
            normal_SM: independent standard normal numbers, which make the draws.
        """
        mean_M, whitened_NM = self._given_scores(x_MD)
        covariance_MM = _kernel(self.log_parameters, x_MD, x_MD)[0] - whitened_NM.T @ whitened_NM
        lower_MM = cholesky(covariance_MM + SAMPLE_JITTER * np.eye(len(x_MD)), lower=True)
        drawn_SM: Floats = self._mean + self._scale * (mean_M + normal_SM @ lower_MM.T)
        return drawn_SM

    def _given_scores(self, x_MD: Floats) -> tuple[Floats, Floats]:
        """Returns the normalised posterior mean of M configurations, and the matrix (N, M) whose products with itself
        are subtracted from their covariance (Rasmussen and Williams 2006, equations 2.25 and 2.26).
        """
        covariance_MN, _ = _kernel(self.log_parameters, x_MD, self._x_ND)
        mean_M = covariance_MN @ cho_solve((self._cholesky_NN, True), self._scores_N)
        return mean_M, solve_triangular(self._cholesky_NN, covariance_MN.T, lower=True)

    def leave_one_out(self) -> tuple[Floats, Floats]:
        """Returns what the process predicts for each trial from all other trials, and the standard deviation of this
        prediction, each of shape (N,). The standard deviation includes the noise of the trial.

        The predictions follow in closed form from one inversion (Rasmussen and Williams 2006, equation 5.12). The
        parameters and the normalisation are those of all N trials.
        """
        precision_NN = cho_solve((self._cholesky_NN, True), np.eye(len(self._scores_N)))
        variance_N = 1 / np.diag(precision_NN)
        mean_N = self._scores_N - variance_N * (precision_NN @ self._scores_N)
        return self._mean + self._scale * mean_N, self._scale * np.sqrt(variance_N)

    def explained(self) -> float:
        """Returns the share of the variance of the scores that the leave-one-out predictions explain, also called the
        leave-one-out R². It is 0 if they are no better than the mean score, and may be negative. It is 0 if all scores
        are equal.
        """
        total = float((self._scores_N**2).sum())
        predicted_N = (self.leave_one_out()[0] - self._mean) / self._scale
        return 1 - float(((self._scores_N - predicted_N) ** 2).sum()) / total if total else 0.0


@dataclass(frozen=True)
class Prior:
    """Log-normal priors of the parameters of a Gaussian process: the median, and the standard deviation of the
    logarithm. Variances are those of normalised scores.

    Attributes:
        amplitude: variance of the means of configurations.
        length: length scale, divided by the square root of D, because distances between points grow as this root
            (Hvarfner et al. 2024, "Vanilla Bayesian optimization performs great in high dimensions").
        noise: variance of a score around its mean.
    """

    amplitude: tuple[float, float]
    length: tuple[float, float]
    noise: tuple[float, float]


# Expects a smooth function and much noise. Without priors, pure noise is often fitted as if it were a function.
CAUTIOUS: Final = Prior(amplitude=(1.0, 1.0), length=(1.0, 1.0), noise=(0.5, 1.0))
# Expects that a step of a fifth of the space may change everything, for example beyond a learning rate at which
# trainings diverge. A search that expects a smooth function looks for the best beyond such a cliff again and again.
ALERT: Final = Prior(amplitude=(1.0, 0.7), length=(0.2, 0.7), noise=(0.1, 1.0))


def fit(x_ND: Floats, y_N: Floats, prior: Prior = CAUTIOUS) -> Surrogate:
    """Fits a Gaussian process to the scores of N trials, which are normalised to mean 0 and variance 1.

    The parameters maximise the marginal likelihood times their prior (Rasmussen and Williams 2006, equations 5.8 and
    5.9).

    Args:
        x_ND: the configurations, with coordinates of about 0 to 1.
        y_N: one score for each configuration.
    """
    num_columns = x_ND.shape[1]
    part = slice(None, None, -(-len(y_N) // MAX_ROWS))
    scores_N = _normalised(y_N)[0][part]
    length = prior.length[0] * max(num_columns, 1) ** 0.5, prior.length[1]
    table = np.array([prior.amplitude, *[length] * num_columns, prior.noise])
    medians, spreads = np.log(table[:, 0]), table[:, 1]

    def loss(log_parameters: Floats) -> tuple[float, Floats]:
        value, gradient = negative_log_likelihood(log_parameters, x_ND[part], scores_N)
        away = (log_parameters - medians) / spreads
        return value + 0.5 * (away**2).sum(), gradient + away / spreads

    bounds = [AMPLITUDE_BOUNDS, *[LENGTH_BOUNDS] * num_columns, NOISE_BOUNDS]
    log_parameters: Floats = minimize(loss, medians, jac=True, method="L-BFGS-B", bounds=bounds).x
    return condition(log_parameters, x_ND, y_N)


def condition(log_parameters: Floats, x_ND: Floats, y_N: Floats) -> Surrogate:
    """Returns a Gaussian process with given parameters, conditioned on the scores of N trials."""
    scores_N, mean, scale = _normalised(y_N)
    covariance_NN, _ = _kernel(log_parameters, x_ND, x_ND)
    lower_NN = cholesky(_with_noise(covariance_NN, log_parameters), lower=True)
    return Surrogate(log_parameters, x_ND, scores_N, mean, scale, lower_NN)


def _normalised(y_N: Floats) -> tuple[Floats, float, float]:
    """Returns scores with mean 0 and variance 1, and the mean and the standard deviation of the given scores. Scores
    that are equal up to rounding become 0, and their standard deviation counts as 1.
    """
    mean, scale = float(y_N.mean()), float(y_N.std())
    return ((y_N - mean) / scale, mean, scale) if scale > 1e-12 else (np.zeros_like(y_N), mean, 1.0)


def negative_log_likelihood(log_parameters: Floats, x_ND: Floats, scores_N: Floats) -> tuple[float, Floats]:
    """Returns the negative logarithm of the marginal likelihood, and its gradient by the logarithms of the parameters,
    shape (D + 2,).
    """
    covariance_NN, slope_NN = _kernel(log_parameters, x_ND, x_ND)
    lower_NN = cholesky(_with_noise(covariance_NN, log_parameters), lower=True)
    precision_NN = cho_solve((lower_NN, True), np.eye(len(scores_N)))
    weights_N = precision_NN @ scores_N
    value = 0.5 * scores_N @ weights_N + np.log(np.diag(lower_NN)).sum() + 0.5 * len(scores_N) * np.log(2 * np.pi)
    # Equation 5.9: the gradient is -1/2 tr((w w' - K^-1) dK).
    inner_NN = np.outer(weights_N, weights_N) - precision_NN
    by_amplitude = (inner_NN * covariance_NN).sum()
    squares_NND = ((x_ND[:, None, :] - x_ND[None, :, :]) / np.exp(log_parameters[1:-1])) ** 2
    by_length_D = np.einsum("ij,ijd->d", inner_NN * slope_NN, squares_NND)
    by_noise = np.exp(log_parameters[-1]) * np.trace(inner_NN)
    return float(value), -0.5 * np.array([by_amplitude, *by_length_D, by_noise])


def _kernel(log_parameters: Floats, x_MD: Floats, x_ND: Floats) -> tuple[Floats, Floats]:
    """Returns the covariance of the means of two sets of configurations, and the factor by which a squared difference
    of one coordinate, in length scales, is multiplied in the derivative by the logarithm of this length scale. Both
    have shape (M, N).
    """
    amplitude, lengths_D = np.exp(log_parameters[0]), np.exp(log_parameters[1:-1])
    distance_MN = 5**0.5 * cdist(x_MD / lengths_D, x_ND / lengths_D)
    decay_MN = amplitude * np.exp(-distance_MN)
    return decay_MN * (1 + distance_MN + distance_MN**2 / 3), 5 / 3 * decay_MN * (1 + distance_MN)


def _with_noise(covariance_NN: Floats, log_parameters: Floats) -> Floats:
    noisy_NN: Floats = covariance_NN + (np.exp(log_parameters[-1]) + JITTER) * np.eye(len(covariance_NN))
    return noisy_NN
