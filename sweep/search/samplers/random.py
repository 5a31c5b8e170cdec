"""The sampler `random`: independent random draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sweep.search.samplers.sampler import Sampler

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class Random(Sampler):
    """Draws every value at random, independently of all results."""

    @staticmethod
    def make(seed: int) -> BaseSampler:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)
