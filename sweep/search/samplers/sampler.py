"""What each sampler offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:  # a space file names a sampler, and is read without Optuna: each sampler imports it in `make`
    from optuna.samplers import BaseSampler

NUM_STARTUP: Final = 10  # trials of an arm before a sampler models them


class Sampler(ABC):
    """Makes the Optuna sampler that proposes the configurations of an arm.

    Attributes:
        cover_every: with n, every n-th proposal of an arm is a point of the even cover (`choosers.EvenCover`) and not
            the sampler's own, and so are the first `NUM_STARTUP`; with 0 none is. Without such points a lucky trial
            could capture the search for good (Falkner et al. 2018, BOHB, draw a third of the proposals at random).
    """

    cover_every: ClassVar[int] = 0

    @staticmethod
    @abstractmethod
    def make(seed: int) -> BaseSampler:
        """Returns a new Optuna sampler.

        One is made for each proposal, with a seed that depends on the trial's number. So it keeps no state of its own:
        everything it uses is in the study, and a restarted driver proposes the same.
        """
