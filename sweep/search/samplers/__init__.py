"""Lists the samplers by their names in `search.sampler`. To add a sampler, add a file here, a line below and a test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sweep.search.samplers.gp import GaussianProcess
from sweep.search.samplers.nsga2 import NSGA2
from sweep.search.samplers.qmc import QuasiMonteCarlo
from sweep.search.samplers.random import Random
from sweep.search.samplers.sampler import Sampler
from sweep.search.samplers.tpe import TPE

SAMPLERS: Final[Mapping[str, type[Sampler]]] = {
    "gp": GaussianProcess,
    "tpe": TPE,
    "nsga2": NSGA2,
    "qmc": QuasiMonteCarlo,
    "random": Random,
}

__all__ = ["SAMPLERS", "Sampler"]
