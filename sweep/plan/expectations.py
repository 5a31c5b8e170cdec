"""Computes expectations for the plan: epochs of a trial under halving, trials on the Pareto front, the best of several
trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr


def expected_epochs(trials: float, epochs: int, rungs: Sequence[int], reduction: int) -> float:
    """Returns the mean number of epochs of a trial under asynchronous halving, if trials arrive in random order of
    quality.

    The i-th trial that arrives at a rung continues with probability 1 - (h + 1)/i, where h = (i - 2)(1 - 1/reduction).
    The reason: the trial has to beat an interpolated percentile of the i - 1 earlier trials, and (h + 1)/i is the
    expectation of this percentile for uniform values. The first trial always continues. A rung with few trials
    therefore stops fewer of them than 1/reduction suggests.
    """
    arriving, total, last_rung = trials, 0.0, 0
    for rung in rungs:
        total += arriving * (rung - last_rung)
        arriving, last_rung = _expected_survivors(arriving, reduction), rung
    return (total + arriving * (epochs - last_rung)) / trials if trials else float(epochs)


def _expected_survivors(arriving: float, reduction: int) -> float:
    full = math.floor(arriving)
    chances = [1.0] + [1 - ((i - 2) * (1 - 1 / reduction) + 1) / i for i in range(2, full + 2)]
    return float(sum(chances[:full]) + (arriving - full) * chances[full])


def expected_front(trials: float, goals: int) -> float:
    """Returns the expected number of trials that are on the Pareto front when they end, if the goals are independent.

    The i-th trial to end is on the front of the first i trials with probability M_d(i)/i, where d is the number of
    goals, M_1 = 1, and M_d(i) is the sum over j <= i of M_{d-1}(j)/j (Bentley et al. 1978). The result is the sum of
    these probabilities.
    """
    count = max(round(trials), 1)
    maxima = np.ones(count)
    for _ in range(goals - 1):
        maxima = np.cumsum(maxima / np.arange(1, count + 1))
    return float(np.sum(maxima / np.arange(1, count + 1)))


def expected_maximum(draws: int) -> float:
    """Returns the expected maximum of independent draws from the standard normal distribution.

    With the distribution function F of one draw, the maximum of n draws has the distribution function F^n, so its mean
    is the integral of 1 - F(x)^n - F(-x)^n over all positive x.
    """
    grid = np.linspace(0.0, 10.0, 10_001)
    return float(np.trapezoid(1 - ndtr(grid) ** draws - ndtr(-grid) ** draws, grid))
