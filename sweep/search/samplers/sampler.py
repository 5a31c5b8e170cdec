"""The base class of all samplers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:  # space files are read without Optuna, so each sampler imports Optuna only in `make`
    from optuna.samplers import BaseSampler

NUM_STARTUP: Final = 10  # number of trials in an arm before a sampler models their results


class Sampler(ABC):
    """Makes the Optuna sampler that proposes the configurations of an arm.

    Attributes:
        design_every: if n > 0, every n-th proposal of an arm, and each of its first `NUM_STARTUP` proposals, is a point
            of the space-filling design (`space/design.py`) in place of the sampler's own proposal. If 0, no proposal is
            such a point. Without these points a lucky trial could capture the search for good (for the same reason
            BOHB, Falkner et al. 2018, draws a third of its proposals at random).
    """

    design_every: ClassVar[int] = 0

    @staticmethod
    @abstractmethod
    def make(seed: int) -> BaseSampler:
        """Returns a new Optuna sampler.

        A new sampler is made for each proposal, with a seed that depends on the trial's number. The sampler therefore
        keeps no state between proposals: it uses only the study, and a restarted driver proposes the same.
        """
