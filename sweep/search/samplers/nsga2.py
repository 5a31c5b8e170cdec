"""The sampler `nsga2`: the genetic algorithm NSGA-II."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sweep.search.samplers.sampler import Sampler

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class NSGA2(Sampler):
    """Non-dominated sorting genetic algorithm (Deb et al. 2002), in generations of 20 trials of an arm."""

    @staticmethod
    def make(seed: int) -> BaseSampler:
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(population_size=20, mutation_prob=None, crossover_prob=0.9, swapping_prob=0.5, seed=seed)
