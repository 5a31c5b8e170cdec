"""What is dealt for one verdict of `null_verdicts.py`: the students of two arms that are the same, on patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sweep.verdict.inference import SeedScores

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
GOALS: Final = ("auroc", "pointing")
CHOOSE_SEEDS: Final = 5  # of each finalist


@dataclass(frozen=True)
class Setting:
    """What is simulated.

    Attributes:
        patients: number of validation patients and of test patients.
        trials: of each arm.
        seeds: of the students that are tested.
        difference: of the true AUROC, subtracted from that of every student of the reference arm.
        spread: standard deviation of the true AUROC over seeds, which is stated for `plan`.
        replicates: number of bootstrap replicates of the patients.
    """

    patients: int
    trials: int
    finalists: int
    seeds: int
    difference: float = 0.0
    spread: float = 0.0
    replicates: int = 200


class Students(Protocol):
    """Interface of the students of one arm in one verdict. Methods are called once, in the order of their
    definition."""

    def trials(self) -> Floats:
        """Returns the scores of T trials on validation patients, shape (T, goals)."""

    def error(self, goal: int, trial: int) -> float:
        """Returns the standard error over patients of a trial's score."""

    def of_choice(self, trial_F: Ints) -> Sequence[Sequence[SeedScores]]:
        """Returns the scores of finalists with fresh seeds on validation patients, by goal and finalist."""

    def tested(self, trial: int) -> Sequence[SeedScores]:
        """Returns the scores of the chosen configuration with further seeds on test patients, by goal."""


@dataclass(frozen=True)
class Dealt:
    """Two arms for one verdict.

    Attributes:
        rarer: number of test patients of the rarer class.
        group: verdicts with the same number have students in common.
    """

    treated: Students
    reference: Students
    rarer: int
    group: int


class World(Protocol):
    """Interface of what students are dealt from.

    Attributes:
        is_shared: whether verdicts of the same group have students in common, so that they are not independent.
    """

    is_shared: bool

    def spread(self, share: float) -> float:
        """Returns the standard deviation of the true AUROC over seeds, of that share of configurations that are
        best."""

    def deal(self, turn: int, setting: Setting, random: np.random.Generator) -> Dealt:
        """Deals the arms of a verdict.

        Args:
            turn: number of the verdict; one group follows the other.
        """


def seed_luck(tables: Sequence[tuple[Floats, Floats]], share: float) -> float:
    """Returns the standard deviation over seeds of that share of configurations that are best.

    Args:
        tables: the mean of each of C configurations, shape (C,), and true scores of M students of each, shape (C, M).
    """
    variances = []
    for mean_C, true_CM in tables:
        best_C = np.argsort(-mean_C)[: max(1, round(share * len(mean_C)))]
        variances.append(true_CM[best_C].var(axis=1).mean())
    return float(np.mean(variances) ** 0.5)
