"""The sampler `gp`: which of several candidates it chooses."""

from __future__ import annotations

import numpy as np
import pytest

from sweep.pareto import hypervolume
from sweep.search.samplers.gp import MARGIN, GaussianProcess
from sweep.surrogate import ALERT, Floats, fit

NOBODY = np.empty((0, 1))


def grid(count: int) -> Floats:
    return np.linspace(0, 1, count)[:, None]


def test_with_one_goal_it_proposes_the_peak_between_the_trials() -> None:
    x_ND = np.array([[0.0], [0.25], [0.6], [0.8], [1.0]])
    score_NG = -((x_ND - 0.45) ** 2)  # 0.25 and 0.6 are about equally good, and the best lies between them
    candidate_MD = grid(21)
    chosen = [GaussianProcess.choose(x_ND, score_NG, NOBODY, candidate_MD, seed) for seed in range(10)]
    assert candidate_MD[chosen, 0] == pytest.approx([0.45] * 10, abs=0.16)


def test_it_chooses_what_adds_most_to_the_hypervolume() -> None:
    """Twenty trials on a curve leave no doubt of the means, so the gain of each candidate is that of its mean."""
    x_ND = np.r_[grid(16)[:9], grid(16)[12:]]  # a gap, where the front lacks points
    score_NG = np.concatenate([x_ND, 1 - x_ND**2], axis=1)
    candidate_MD = np.array([[0.1], [0.3], [0.66], [0.72], [0.95]])
    floor = score_NG.min(axis=0) - MARGIN * np.ptp(score_NG, axis=0)
    mean_MG = np.stack([fit(x_ND, score_N, ALERT).predict(candidate_MD)[0] for score_N in score_NG.T], axis=1)
    assert mean_MG == pytest.approx(np.concatenate([candidate_MD, 1 - candidate_MD**2], axis=1), abs=0.02)
    known = [tuple(scores) for scores in score_NG]
    gains = [hypervolume([*known, tuple(mean_G)], tuple(floor)) for mean_G in mean_MG]
    best = int(np.argmax(gains))
    chosen = [GaussianProcess.choose(x_ND, score_NG, NOBODY, candidate_MD, seed) for seed in range(20)]
    assert best in (2, 3) and np.mean([index in (2, 3) for index in chosen]) >= 0.8


def test_it_does_not_propose_beside_a_running_trial() -> None:
    x_ND = np.array([[0.0], [0.15], [0.5], [0.85], [1.0]])
    score_NG = np.array([[0.1], [0.5], [0.0], [0.5], [0.1]])  # two equal peaks
    candidate_MD = np.array([[0.2], [0.8]])
    for running, free in ((0.2, 1), (0.8, 0)):
        chosen = [
            GaussianProcess.choose(x_ND, score_NG, np.array([[running]]), candidate_MD, seed) for seed in range(20)
        ]
        assert chosen.count(free) >= 18


def test_equal_scores_are_no_reason_to_fail() -> None:
    score_NG = np.full((5, 2), 0.7)
    assert 0 <= GaussianProcess.choose(grid(5), score_NG, NOBODY, grid(7), seed=0) < 7


@pytest.mark.parametrize(("turn", "num_results", "expected"), [(4, 9, True), (5, 3, True), (5, 4, False)])
def test_the_design_goes_on_until_there_are_results(turn: int, num_results: int, expected: bool) -> None:
    assert GaussianProcess.takes_design(turn, num_results) is expected
