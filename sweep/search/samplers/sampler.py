"""The base class of all samplers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final

from sweep.surrogate import Floats

if TYPE_CHECKING:  # space files are read without Optuna, so each sampler imports Optuna only in `make`
    from optuna.samplers import BaseSampler

NUM_STARTUP: Final = (
    10  # number of an arm's first trials that come from the design, unless `takes_design` is overridden
)


class Sampler(ABC):
    """Proposes the configurations of an arm.

    A proposal comes from one of three sources: the space-filling design (`space/design.py`) on the turns that
    `takes_design` names; else, if `num_candidates` > 0, the candidate that `choose` returns; else the Optuna sampler
    that `make` returns, which also fills in the values that a point of the space leaves out. No source keeps a state
    between proposals. All use only the arm's trials and a seed that depends on the trial's number, so that a restarted
    driver proposes the same.

    Attributes:
        design_every: if n > 0, every n-th proposal of an arm, and each of its first `NUM_STARTUP` proposals, comes from
            the design. If 0, no proposal does. Without these points a lucky trial could capture the search for good
            (for the same reason BOHB, Falkner et al. 2018, draws a third of its proposals at random).
        num_candidates: number of random configurations from which `choose` selects a proposal.
    """

    design_every: ClassVar[int] = 0
    num_candidates: ClassVar[int] = 0

    @classmethod
    def takes_design(cls, turn: int, num_results: int) -> bool:
        """Returns whether a proposal comes from the space-filling design.

        Args:
            turn: number of the arm's earlier proposals.
            num_results: number of the arm's trials whose results are known.
        """
        every = cls.design_every
        return every > 0 and (turn < NUM_STARTUP or turn % every == 0)

    @staticmethod
    def choose(result_ND: Floats, score_NG: Floats, running_RD: Floats, candidate_MD: Floats, seed: int) -> int:
        """Returns the index of the best of M candidates, given the scores of N trials on G goals, higher is better.

        All configurations are encoded with D coordinates (`space/encoding.py`).

        Args:
            running_RD: the configurations of R trials that are still running.
        """
        raise NotImplementedError

    @staticmethod
    @abstractmethod
    def make(seed: int) -> BaseSampler:
        """Returns a new Optuna sampler. A new sampler is made for each proposal."""
