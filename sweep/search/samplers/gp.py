"""The sampler `gp`: Bayesian optimisation with a Gaussian process."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sweep.search.samplers.sampler import NUM_STARTUP, Sampler

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class GaussianProcess(Sampler):
    """Bayesian optimisation with a Gaussian process over noisy goals. With two goals, each proposal takes seconds."""

    design_every: ClassVar[int] = 2

    @staticmethod
    def make(seed: int) -> BaseSampler:
        from optuna.samplers import GPSampler

        return GPSampler(
            n_startup_trials=NUM_STARTUP, deterministic_objective=False, warn_independent_sampling=False, seed=seed
        )
