"""The sampler `qmc`: the space-filling design alone, without a model of the results."""

from __future__ import annotations

from typing import ClassVar

from sweep.search.samplers.random import Random


class QuasiMonteCarlo(Random):
    """Points of the space-filling design (`space/design.py`). If a point's configuration has been run before, a random
    draw replaces it.
    """

    design_every: ClassVar[int] = 1
