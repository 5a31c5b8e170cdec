"""The sampler `gp`: Bayesian optimisation with Gaussian processes, for any number of noisy goals and for branches."""

from __future__ import annotations

from typing import ClassVar, Final

import numpy as np

from sweep.search.samplers.random import Random
from sweep.surrogate import ALERT, Floats, fit

NUM_DESIGN: Final = 5  # so many proposals of an arm come from the space-filling design
MIN_RESULTS: Final = 4  # with fewer results the design goes on
NUM_SAMPLES: Final = 16  # joint draws from the posterior distribution
NUM_DIRECTIONS: Final = 32  # directions over which a hypervolume is averaged
MARGIN: Final = 0.1  # the reference point lies below the worst result by this share of the goal's range


class GaussianProcess(Random):
    """Noisy expected hypervolume improvement (Daulton et al. 2021, "Parallel Bayesian optimization of multiple noisy
    objectives with expected hypervolume improvement"), maximised over random configurations of the arm.

    A Gaussian process for each goal is fitted to the arm's results (`surrogate.fit`). Its encoding covers all branches
    of the arm, while Optuna's own `GPSampler` (5.0) draws the leaves of branches at random. The improvement of a
    candidate is the hypervolume that it adds to the front of the arm's trials, in joint draws from the posterior
    distribution. Running trials belong to these trials, with drawn scores, so that parallel proposals spread.

    The hypervolume of a set is taken, up to a constant factor, as the mean over random directions of the power of the
    farthest distance that the set reaches in this direction (Zhang and Golovin 2020, "Random hypervolume
    scalarizations for provable multi-objective black box optimization", lemma 5). With one goal the improvement is the
    noisy expected improvement.
    """

    num_candidates: ClassVar[int] = 200

    @staticmethod
    def takes_design(turn: int, num_results: int) -> bool:
        return turn < NUM_DESIGN or num_results < MIN_RESULTS

    @staticmethod
    def choose(result_ND: Floats, score_NG: Floats, running_RD: Floats, candidate_MD: Floats, seed: int) -> int:
        random = np.random.default_rng(seed)
        x = np.concatenate([result_ND, running_RD, candidate_MD])
        num_trials = len(result_ND) + len(running_RD)
        normal = random.standard_normal((score_NG.shape[1], NUM_SAMPLES, len(x)))
        models = [fit(result_ND, score_N, ALERT) for score_N in score_NG.T]
        drawn_SXG = np.stack([model.sample(x, normal_SX) for model, normal_SX in zip(models, normal, strict=True)], -1)
        lowest_G, span_G = score_NG.min(axis=0), np.ptp(score_NG, axis=0)
        span_G[span_G == 0] = 1.0  # all results are equal in this goal
        above_SXG = np.maximum((drawn_SXG - lowest_G) / span_G + MARGIN, 0.0)
        direction_KG = np.abs(random.standard_normal((NUM_DIRECTIONS, score_NG.shape[1])))
        direction_KG /= np.linalg.norm(direction_KG, axis=1, keepdims=True)
        reach_SXK = (above_SXG[:, :, None] / direction_KG).min(axis=-1) ** score_NG.shape[1]
        reached_S1K = reach_SXK[:, :num_trials].max(axis=1, keepdims=True)
        improvement_M = np.maximum(reach_SXK[:, num_trials:] - reached_S1K, 0.0).mean(axis=(0, 2))
        return int(improvement_M.argmax())
