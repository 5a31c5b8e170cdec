"""The even cover alone."""

from __future__ import annotations

from typing import ClassVar

from sweep.search.samplers.random import Random


class QuasiMonteCarlo(Random):
    """Points of a scrambled Sobol sequence; random draws where a point's configuration has been run before."""

    cover_every: ClassVar[int] = 1
