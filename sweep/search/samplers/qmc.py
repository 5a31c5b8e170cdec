"""The sampler `qmc`: the even cover alone, without a model of the results."""

from __future__ import annotations

from typing import ClassVar

from sweep.search.samplers.random import Random


class QuasiMonteCarlo(Random):
    """Points of a scrambled Sobol sequence. If a point's configuration has been run before, a random draw
    replaces it.
    """

    cover_every: ClassVar[int] = 1
