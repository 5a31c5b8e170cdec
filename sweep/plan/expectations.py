"""What is expected of trials whose results are in random order: their epochs under halving, and the size of a front."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def expected_epochs(trials: float, epochs: int, rungs: Sequence[int], reduction: int) -> float:
    """Returns the mean epochs of a trial under asynchronous halving, if trials come in no particular order.

    The i-th trial that comes to a rung goes on with probability 1 - (h + 1)/i, where h = (i - 2)(1 - 1/reduction): it
    has to beat an interpolated percentile of the i - 1 trials before it, and (h + 1)/i is the expectation of this
    percentile for uniform values. The first trial always goes on. So a rung with few trials stops fewer of them than
    1/reduction suggests.
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
    """Returns how many of these trials are expected on the front at the end, if the goals are independent.

    The i-th is on it with probability M_d(i)/i, where M_1 = 1 and M_d(i) = sum over j <= i of M_{d-1}(j)/j
    (Bentley et al. 1978).
    """
    count = max(round(trials), 1)
    maxima = np.ones(count)
    for _ in range(goals - 1):
        maxima = np.cumsum(maxima / np.arange(1, count + 1))
    return float(np.sum(maxima / np.arange(1, count + 1)))
