"""The Gaussian process, compared with scikit-learn's, with refits without each trial, and with a known function."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from sweep.surrogate import ALERT, Surrogate, condition, fit, negative_log_likelihood

LOG_PARAMETERS = np.log([0.8, 0.5, 2.0, 0.3])  # amplitude, two length scales, noise


def trials(count: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that depend on the first of two coordinates, with noise of standard deviation 0.1."""
    generator = np.random.default_rng(seed)
    x_ND = generator.random((count, 2))
    return x_ND, 0.7 + mean_of(x_ND) + 0.1 * generator.standard_normal(count)


def mean_of(x_ND: np.ndarray) -> np.ndarray:
    return np.asarray(np.sin(4 * x_ND[:, 0]))


def test_predictions_and_likelihood_equal_those_of_scikit_learn() -> None:
    x_ND, y_N = trials()
    kernel = ConstantKernel(0.8) * Matern([0.5, 2.0], nu=2.5) + WhiteKernel(0.3)
    other = GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True).fit(x_ND, y_N)
    mean_M, sd_M = condition(LOG_PARAMETERS, x_ND, y_N).predict(x_ND[:3] + 0.2)
    expected_M, noisy_M = other.predict(x_ND[:3] + 0.2, return_std=True)
    assert mean_M == pytest.approx(expected_M, rel=1e-6)
    assert sd_M**2 + 0.3 * y_N.var() == pytest.approx(noisy_M**2, rel=1e-6), "the other one adds the noise of a trial"
    value, _ = negative_log_likelihood(LOG_PARAMETERS, x_ND, (y_N - y_N.mean()) / y_N.std())
    assert value == pytest.approx(-other.log_marginal_likelihood_value_, rel=1e-6)


def test_the_gradient_of_the_likelihood() -> None:
    x_ND, y_N = trials()

    def part(index: int, parameters: np.ndarray) -> object:
        return negative_log_likelihood(parameters, x_ND, y_N)[index]

    error = check_grad(lambda p: part(0, p), lambda p: part(1, p), LOG_PARAMETERS)
    assert error < 1e-4


def test_leave_one_out_equals_refits_without_the_trial() -> None:
    """The scores have mean 0 and variance 1, and the refits normalise nothing."""
    x_ND, y_N = trials()
    y_N = (y_N - y_N.mean()) / y_N.std()
    mean_N, sd_N = condition(LOG_PARAMETERS, x_ND, y_N).leave_one_out()
    kernel = ConstantKernel(0.8) * Matern([0.5, 2.0], nu=2.5) + WhiteKernel(0.3)
    for left_out in range(12):
        kept = np.arange(12) != left_out
        other = GaussianProcessRegressor(kernel, optimizer=None).fit(x_ND[kept], y_N[kept])
        (mean,), (sd,) = other.predict(x_ND[[left_out]], return_std=True)
        assert (mean_N[left_out], sd_N[left_out]) == pytest.approx((mean, sd), rel=1e-6)
    explained = 1 - ((y_N - mean_N) ** 2).sum() / 12
    assert condition(LOG_PARAMETERS, x_ND, 0.01 * y_N + 5).explained() == pytest.approx(explained)


def test_a_smooth_function_is_recovered_from_noisy_scores() -> None:
    x_ND, y_N = trials(40)
    model = fit(x_ND, y_N)
    x_MD = np.random.default_rng(9).random((200, 2))
    mean_M, sd_M = model.predict(x_MD)
    error_M = mean_M - 0.7 - mean_of(x_MD)
    assert np.sqrt(np.mean(error_M**2)) < 0.06, "less than the noise of a trial"
    assert 0.8 < np.mean(np.abs(error_M) < 2 * sd_M) <= 1
    assert 0.07 < model.noise_sd < 0.14 and model.explained() > 0.9
    assert model.log_parameters[2] > model.log_parameters[1], "the second coordinate does not matter"
    smoothed_N, _ = model.predict(x_ND)
    shifted_N, _ = condition(model.log_parameters, x_ND, 2 * y_N + x_ND[:, 1]).predict(x_ND)
    assert model.smooth(np.array([y_N, 2 * y_N + x_ND[:, 1]])) == pytest.approx(np.array([smoothed_N, shifted_N]))
    truth_N = 0.7 + mean_of(x_ND)
    assert np.mean((smoothed_N - truth_N) ** 2) < 0.5 * np.mean((y_N - truth_N) ** 2)


def test_noise_alone_is_not_explained() -> None:
    """Of 40 sets of 16 scores without any signal, at most a tenth seem half explained."""
    generator = np.random.default_rng(0)
    explained = [fit(generator.random((16, 6)), generator.standard_normal(16)).explained() for _ in range(40)]
    assert np.mean([share >= 0.5 for share in explained]) <= 0.1
    assert np.median(explained) < 0.1


def test_a_fit_is_repeatable_and_depends_on_its_prior() -> None:
    x_ND, y_N = trials(20)
    model, again, alert = fit(x_ND, y_N), fit(x_ND, y_N), fit(x_ND, y_N, ALERT)
    assert model.log_parameters.tolist() == again.log_parameters.tolist()
    assert alert.noise_sd < model.noise_sd and (alert.log_parameters[1:3] < model.log_parameters[1:3]).all()


def test_joint_draws_have_the_predicted_mean_and_spread_and_are_correlated_between_neighbours() -> None:
    x_ND, y_N = trials(20)
    model = fit(x_ND, y_N)
    x_MD = np.array([[0.1, 0.1], [0.1, 0.11], [0.9, 1.5]])
    drawn_SM = model.sample(x_MD, np.random.default_rng(0).standard_normal((20_000, 3)))
    mean_M, sd_M = model.predict(x_MD)
    assert drawn_SM.mean(axis=0) == pytest.approx(mean_M, abs=0.02) and drawn_SM.std(axis=0) == pytest.approx(
        sd_M, rel=0.03
    )
    correlation_MM = np.corrcoef(drawn_SM.T)
    assert correlation_MM[0, 1] > 0.9 and abs(correlation_MM[0, 2]) < 0.5


@pytest.mark.parametrize("num_columns", [0, 2])
def test_equal_scores_are_estimated_as_they_are(num_columns: int) -> None:
    model = fit(np.full((5, num_columns), 0.5), np.full(5, 0.9))
    mean_M, _ = model.predict(np.full((2, num_columns), 0.1))
    assert mean_M == pytest.approx([0.9, 0.9]) and model.explained() == 0


def test_many_trials_are_fitted_on_a_part_of_them() -> None:
    x_ND, y_N = trials(450)
    model: Surrogate = fit(x_ND, y_N)
    assert model.log_parameters.tolist() != fit(x_ND[:150], y_N[:150]).log_parameters.tolist()
    assert model.predict(x_ND)[0].shape == (450,) and model.explained() > 0.9
