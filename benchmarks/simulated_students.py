"""Simulated students: every configuration of a world has true scores, and students are outputs of random numbers.

The world knows the true scores of every configuration, and the luck that seeds add to them (see `worlds.py`). A
student is tested on simulated patients: its outputs for the patients of two classes are normal, so far apart that the
student has its true AUROC, and its pointing scores are normal about its true score. Outputs of students for the same
patient are correlated, more so for students of the same configuration (`SHARED`, `OF_CONFIGURATION`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from benchmarks.dealt import CHOOSE_SEEDS, Dealt, Floats, Ints, Setting, seed_luck
from benchmarks.recorded import read_recorded, recorded_path
from benchmarks.search_efficiency import space_of
from benchmarks.worlds import NOISE, ClosedFormWorld, RecordedWorld, World, random_rows
from mmpkd.scoring.stats import auroc_influence, delong_error, patient_weights, weighted_auroc, weighted_mean
from sweep.verdict.inference import SeedScores

# Each world with its space and arm; the level world has neither.
WORLDS: Final = {
    "level": ("", ""),
    "demo_none": ("demo", "none"),
    "demo": ("demo", "tabular"),
    "all_objectives": ("all_objectives", "superior"),
    "closed_form": ("closed_form", "tabular"),
}
LEVEL_SCORES: Final = (0.75, 0.3)  # of every configuration of the level world, with the seeds' luck of NOISE
CONFIGURATIONS: Final = 400
REPEATS: Final = 24  # recorded deviations of a configuration from which the luck of a seed is drawn
POSITIVE: Final = 0.4
# Shares of the variance over patients that all students, and those of a configuration, have in common.
SHARED, OF_CONFIGURATION = 0.6, 0.2
POINTING_SD: Final = 0.15  # of a student's pointing over patients, as in the demo
CLOSED_FORMS: Final = 8  # worlds of formulas, whose constants differ
HIGHEST: Final = 0.98  # true AUROC of a student; beyond, few patients show no error


@dataclass(frozen=True)
class Scores:
    """True scores of C configurations, shape (C, goals), and deviations of seeds from them, shape (C, M, goals)."""

    mean_CG: Floats
    deviation_CMG: Floats

    def students(self, configuration_T: NDArray[np.int64], seeds: int, random: np.random.Generator) -> Floats:
        """Returns true scores of new students of T configurations, shape (T, seeds, goals)."""
        drawn_TK = random.integers(0, self.deviation_CMG.shape[1], (len(configuration_T), seeds))
        true_TKG = self.mean_CG[configuration_T][:, None] + self.deviation_CMG[configuration_T[:, None], drawn_TK]
        return np.clip(true_TKG, [1 - HIGHEST, -np.inf], [HIGHEST, np.inf])


def scores_of(name: str, seed: int) -> Scores:
    """Returns true scores of random configurations of a world."""
    random = np.random.default_rng(seed)
    if name == "level":
        mean_CG = np.tile(LEVEL_SCORES, (CONFIGURATIONS, 1))
        return Scores(mean_CG, random.normal(0, NOISE, (CONFIGURATIONS, 50 * REPEATS, 2)))
    space_name, arm = WORLDS[name]
    node = space_of(space_name, seed).arms[arm]
    world: World
    if name == "closed_form":
        world = ClosedFormWorld(node, arm, seed)
    else:
        world = RecordedWorld(node, arm, read_recorded(recorded_path(space_name), arm))
    rows = random_rows(node, arm, seed, CONFIGURATIONS)
    deviations = [[world.noise(row, random)[-1] for _ in range(REPEATS)] for row in rows]
    return Scores(world.means(rows)[:, -1], np.array(deviations))


@cache
def weights_of(patients: int, replicates: int) -> Floats:
    """Returns the weights of the whole part, and of its resamplings. Like in a confirmation, their seed is fixed."""
    ones_1N = np.ones((1, patients))
    return np.concatenate([ones_1N, patient_weights(np.arange(patients), replicates)]) if replicates else ones_1N


class Part:
    """A part of a cohort, on which students are scored. A configuration has its own correlated outputs there.

    Args:
        replicates: number of bootstrap replicates of the patients.
    """

    def __init__(self, patients: int, replicates: int, random: np.random.Generator):
        self._random = random
        self.positive_N1 = (np.arange(patients) < round(POSITIVE * patients))[:, None]
        self._shared_GN11 = random.standard_normal((2, patients, 1, 1))
        self._weight_RN = weights_of(patients, replicates)

    def effects(self, configurations: int) -> Floats:
        """Draws what is common to the students of each configuration, shape (goals, N, configurations, 1)."""
        return self._random.standard_normal((2, len(self.positive_N1), configurations, 1))

    def outputs(self, true_TKG: Floats, effect_GNT1: Floats) -> tuple[Floats, Floats]:
        """Returns outputs and pointing scores of T x K students, each of shape (N, T * K)."""
        own_GNTK = self._random.standard_normal((2, len(self.positive_N1), *true_TKG.shape[:2]))
        spread_GNTK = (
            SHARED**0.5 * self._shared_GN11
            + OF_CONFIGURATION**0.5 * effect_GNT1
            + (1 - SHARED - OF_CONFIGURATION) ** 0.5 * own_GNTK
        )
        apart_TK = 2**0.5 * ndtri(true_TKG[..., 0])
        output_NTK = self.positive_N1[..., None] * apart_TK + spread_GNTK[0]
        pointing_NTK = true_TKG[..., 1] + POINTING_SD * spread_GNTK[1]
        return output_NTK.reshape(len(self.positive_N1), -1), pointing_NTK.reshape(len(self.positive_N1), -1)

    def scored(self, true_TKG: Floats, effect_GNT1: Floats) -> list[list[SeedScores]]:
        """Returns the scores of T configurations with K seeds, by goal and configuration."""
        output, pointing = self.outputs(true_TKG, effect_GNT1)
        positive = np.broadcast_to(self.positive_N1, output.shape)
        tables = [
            weighted_auroc(output, positive, np.ones_like(output), self._weight_RN),
            weighted_mean(pointing, self._weight_RN),
        ]
        shape = (-1, *true_TKG.shape[:2])
        return [
            [SeedScores(by_TK[0], by_TK[1:]) for by_TK in np.moveaxis(table.reshape(shape), 1, 0)] for table in tables
        ]


class SimulatedArm:
    """The students of one arm in one verdict. See `dealt.Students`.

    Args:
        shift: is added to every true AUROC.
    """

    def __init__(
        self, scores: Scores, setting: Setting, shift: float, parts: tuple[Part, Part], random: np.random.Generator
    ):
        self._scores, self._setting, self._random = scores, setting, random
        self._validation, self._test = parts
        self._planted_G = np.array([shift, 0.0])

    def trials(self) -> Floats:
        self._trial_T = self._random.integers(0, len(self._scores.mean_CG), self._setting.trials)
        self._effect_GNT1 = self._validation.effects(self._setting.trials)
        true_TKG = self._students(self._trial_T, 1)
        self._output_NT, self._pointing_NT = self._validation.outputs(true_TKG, self._effect_GNT1)
        weight_1N = np.ones((1, len(self._output_NT)))
        auroc_T = weighted_auroc(self._output_NT, *self._labels(self._output_NT), weight_1N)[0]
        return np.stack([auroc_T, self._pointing_NT.mean(axis=0)], axis=1)

    def error(self, goal: int, trial: int) -> float:
        if goal:
            return float(self._pointing_NT[:, trial].std() / len(self._pointing_NT) ** 0.5)
        output_N1 = self._output_NT[:, [trial]]
        return float(delong_error(auroc_influence(output_N1, *self._labels(output_N1))[:, 0]))

    def of_choice(self, trial_F: Ints) -> list[list[SeedScores]]:
        again_FKG = self._students(self._trial_T[trial_F], CHOOSE_SEEDS)
        return self._validation.scored(again_FKG, self._effect_GNT1[:, :, trial_F])

    def tested(self, trial: int) -> list[SeedScores]:
        true_1KG = self._students(self._trial_T[[trial]], self._setting.seeds)
        return [of_goal[0] for of_goal in self._test.scored(true_1KG, self._test.effects(1))]

    def _students(self, configuration_T: Ints, seeds: int) -> Floats:
        return self._scores.students(configuration_T, seeds, self._random) + self._planted_G

    def _labels(self, output_NT: Floats) -> tuple[NDArray[np.bool_], Floats]:
        return np.broadcast_to(self._validation.positive_N1, output_NT.shape), np.ones_like(output_NT)


class SimulatedWorld:
    """A world of `worlds.py`. See `dealt.World`."""

    is_shared = False

    def __init__(self, name: str, first_seed: int):
        self._tables = [
            scores_of(name, first_seed + turn) for turn in range(CLOSED_FORMS if name == "closed_form" else 1)
        ]

    def spread(self, share: float) -> float:
        tables = []
        for table in self._tables:
            true_CM = table.mean_CG[:, :1] + table.deviation_CMG[:, :, 0]
            tables.append((table.mean_CG[:, 0], np.clip(true_CM, 1 - HIGHEST, HIGHEST)))
        return seed_luck(tables, share)

    def deal(self, turn: int, setting: Setting, random: np.random.Generator) -> Dealt:
        group = turn % len(self._tables)
        return dealt(self._tables[group], setting, random, group)


def dealt(scores: Scores, setting: Setting, random: np.random.Generator, group: int = 0) -> Dealt:
    """Deals two arms of a world."""
    parts = Part(setting.patients, setting.replicates, random), Part(setting.patients, setting.replicates, random)
    treated, reference = (SimulatedArm(scores, setting, shift, parts, random) for shift in (0.0, -setting.difference))
    return Dealt(treated, reference, round(POSITIVE * setting.patients), group)
