"""How often does a verdict claim a difference where there is none, and how often does it find one that is there?

    python benchmarks/null_verdicts.py [worlds=level,demo_none,demo,all_objectives,closed_form] [patients=60,300,1500]
        [verdicts=1000] [trials=16] [finalists=3] [seeds=5] [difference=0.08] [first_seed=0] [out=FILE]

Each verdict begins with two sweeps. Both arms draw their trials from the same space of a world (see `worlds.py`), so
that nothing differs. The world knows the true scores of every configuration, and the luck that seeds add to them. A
student is then tested on simulated patients: its outputs for the patients of two classes are normal, so far apart that
the student has its true AUROC, and its pointing scores are normal about its true score. Outputs of students for the
same patient are correlated, more so for students of the same configuration (`SHARED`, `OF_CONFIGURATION`). Scores,
resamplings of patients, finalists, contrasts and claims come from the functions that a confirmation uses:

1. Every trial is scored on validation patients, and those with the best AUROC are the finalists of their arm.
2. The finalists run on five fresh seeds; the one with the best mean AUROC on validation is chosen.
3. The chosen ones run on further seeds (`seeds`, and 10 with more than 300 patients) and are tested on patients of
   whom no choice has seen anything. AUROC and pointing are the two primary contrasts.

There are as many test patients as validation patients, and 40 % of them are positive. A planted difference is
subtracted from the true AUROC of every student of the reference arm.

Columns: `claims` is the share of verdicts with any false claim, after Holm, with its 95 % interval (Clopper and
Pearson); `seeds only` is the same if the luck of the search is left out; `1 SE` and `1.96 x sqrt 2 SE` are the shares
in which the best trial of an arm is beyond that many standard errors of the best of the other, on either goal, as a
reader of two rows of a sweep's table may judge. `found` is the share of planted differences of the AUROC that are
claimed. `power` is what the confirmation computes for this difference after the choice, before it trains what is
tested, and `plan` what plan=true computes before anything has run, where the user states the true luck of seeds of the
world's good configurations; both are means over the same verdicts as `found`. `error` is the root mean squared
standard error over the true one.

`out` is written after each number of patients of a world, and the same command continues after the last. The default
takes about half an hour on one idle core.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.special import ndtri
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks.recorded import read_recorded, recorded_path
from benchmarks.search_efficiency import space_of
from benchmarks.worlds import NOISE, ClosedFormWorld, RecordedWorld, World, random_rows
from mmpkd.command import command_line, own_words
from mmpkd.scoring.stats import auroc_influence, delong_error, patient_weights, weighted_auroc, weighted_mean
from mmpkd.types import ConfigError, Mistake
from sweep.verdict.answer import decide
from sweep.verdict.inference import FIXED, Contrast, SearchLuck, SeedScores, contrast, search_luck
from sweep.verdict.power import MIN_RARER, Design, first_step, power

Floats: TypeAlias = NDArray[np.float64]
# Each world with its space and arm; the level world has neither.
WORLDS: Final = {
    "level": ("", ""),
    "demo_none": ("demo", "none"),
    "demo": ("demo", "tabular"),
    "all_objectives": ("all_objectives", "superior"),
    "closed_form": ("closed_form", "tabular"),
}
OWN: Final = {
    "worlds": ",".join(WORLDS),
    "patients": "60,300,1500",
    "verdicts": "1000",
    "trials": "16",
    "finalists": "3",
    "seeds": "5",
    "difference": "0.08",
    "first_seed": "0",
    "out": "",
}
LEVEL_SCORES: Final = (0.75, 0.3)  # of every configuration of the level world, with the seeds' luck of NOISE
CONFIGURATIONS: Final = 400
REPEATS: Final = 24  # recorded deviations of a configuration from which the luck of a seed is drawn
CHOOSE_SEEDS: Final = 5
MANY_PATIENTS: Final = 300  # with more, ten seeds are trained
REPLICATES: Final = 200
POSITIVE: Final = 0.4
# Shares of the variance over patients that all students, and those of a configuration, have in common.
SHARED, OF_CONFIGURATION = 0.6, 0.2
POINTING_SD: Final = 0.15  # of a student's pointing over patients, as in the demo
CLOSED_FORMS: Final = 8  # worlds of formulas, whose constants differ
LEAST: Final = {"patients": 20, "verdicts": 2, "trials": 2, "finalists": 1, "seeds": 2, "first_seed": 0}
HIGHEST: Final = 0.98  # true AUROC of a student; beyond, few patients show no error
GOALS: Final = ("auroc", "pointing")


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


def luck_of_seeds(tables: Sequence[Scores], share: float) -> float:
    """Returns the standard deviation of the true AUROC over seeds, of that share of configurations that are best."""
    variances = []
    for table in tables:
        best_C = np.argsort(-table.mean_CG[:, 0])[: max(1, round(share * len(table.mean_CG)))]
        true_CM = table.mean_CG[best_C, :1] + table.deviation_CMG[best_C, :, 0]
        variances.append(np.clip(true_CM, 1 - HIGHEST, HIGHEST).var(axis=1).mean())
    return float(np.mean(variances) ** 0.5)


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


@dataclass(frozen=True)
class Setting:
    """What is simulated.

    Attributes:
        patients: number of validation patients and of test patients.
        difference: of the true AUROC, subtracted from that of every student of the reference arm.
        spread: standard deviation of the true AUROC over seeds, which is stated for `plan` (see `luck_of_seeds`).
    """

    patients: int
    trials: int
    finalists: int
    seeds: int
    difference: float = 0.0
    spread: float = 0.0

    @property
    def rarer(self) -> int:
        return round(POSITIVE * self.patients)


@dataclass(frozen=True)
class Arm:
    """What a sweep and its confirmation have measured of an arm. Everything is by goal.

    Attributes:
        best: the best score of a trial, and its standard error.
        trials: scores of all trials, in the order of their AUROC, best first.
        errors: standard error of the AUROC of each finalist in the sweep; NaN where the AUROC is 1.
        luck: what the search adds.
        before: AUROC of each finalist on validation patients, with the seeds of the choice.
        tested: scores of the chosen configuration on test patients.
    """

    best: Sequence[tuple[float, float]]
    trials: Sequence[Floats]
    errors: Floats
    luck: Sequence[SearchLuck]
    before: Sequence[SeedScores]
    tested: Sequence[SeedScores]


@dataclass(frozen=True)
class Verdict:
    """A simulated verdict.

    Attributes:
        contrasts: the primary contrasts, by goal.
        seeds_only: the same without the luck of the search.
        design: what is expected of the contrast of AUROCs after the choice.
        plan: what is expected of it before anything has run.
        gap: by how many standard errors the best trial of an arm lies beyond the best of the other, on the goal where
            this is most.
    """

    contrasts: Mapping[str, Contrast]
    seeds_only: Mapping[str, Contrast]
    design: Design
    plan: Design
    gap: float


def simulate(scores: Scores, setting: Setting, random: np.random.Generator) -> Verdict:
    """Simulates two sweeps and their confirmation."""
    validation, test = (Part(setting.patients, REPLICATES, random) for _ in range(2))
    treated = confirmed(scores, setting, 0.0, validation, test, random)
    reference = confirmed(scores, setting, -setting.difference, validation, test, random)
    counted, lucks = (setting.rarer, setting.patients), list(zip(treated.luck, reference.luck, strict=True))
    contrasts, seeds_only = (
        {
            goal: contrast(treated.tested[place], reference.tested[place], counted[place], searches[place])
            for place, goal in enumerate(GOALS)
        }
        for searches in (lucks, [(FIXED, FIXED)] * len(GOALS))
    )
    level = first_step(len(GOALS))
    design = Design.of_finalists(
        treated.before, reference.before, lucks[0], setting.patients, setting.rarer, setting.seeds, level
    )
    errors = [root_mean_square(arm.errors) for arm in (treated, reference)]
    plan = Design.expected(
        setting.patients,
        setting.rarer,
        (errors[0], errors[1]),
        1.0,
        setting.seeds,
        setting.spread,
        (treated.trials[0], reference.trials[0]),
        is_ranked=True,
        level=level,
    )
    gaps = []
    for pair in zip(treated.best, reference.best, strict=True):
        (low, error), (high, _) = sorted(pair)
        gaps.append((high - low) / error)
    return Verdict(contrasts, seeds_only, design, plan, float(np.nanmax([0.0, *gaps])))


def root_mean_square(error_F: Floats) -> float:
    """Returns the root of the mean square of the errors that are known; NaN if none is."""
    known = error_F[np.isfinite(error_F)]
    return float(np.square(known).mean() ** 0.5) if known.size else float("nan")


def confirmed(
    scores: Scores, setting: Setting, shift: float, validation: Part, test: Part, random: np.random.Generator
) -> Arm:
    """Simulates the sweep of an arm and its confirmation. `shift` is added to every true AUROC."""
    planted_G = np.array([shift, 0.0])
    trial_T = random.integers(0, len(scores.mean_CG), setting.trials)
    effect_GNT1 = validation.effects(setting.trials)
    output_NT, pointing_NT = validation.outputs(scores.students(trial_T, 1, random) + planted_G, effect_GNT1)
    positive_NT = np.broadcast_to(validation.positive_N1, output_NT.shape)
    known_NT = np.ones_like(output_NT)
    auroc_T = weighted_auroc(output_NT, positive_NT, known_NT, np.ones((1, setting.patients)))[0]
    order_T = np.argsort(-auroc_T, kind="stable")
    finalist_F = order_T[: setting.finalists]
    influence_NT = auroc_influence(output_NT, positive_NT, known_NT)
    errors_F = np.array([delong_error(influence_NT[:, place]) for place in finalist_F])
    pointed = pointing_NT[:, pointing_NT.mean(axis=0).argmax()]
    best = [
        (float(auroc_T.max()), float(errors_F[0])),
        (float(pointed.mean()), float(pointed.std() / setting.patients**0.5)),
    ]
    trials = [auroc_T[order_T], pointing_NT.mean(axis=0)[order_T]]
    again_FKG = scores.students(trial_T[finalist_F], CHOOSE_SEEDS, random) + planted_G
    by_goal = validation.scored(again_FKG, effect_GNT1[:, :, finalist_F])
    mean_F = np.array([each.mean for each in by_goal[0]])
    luck = [
        search_luck(of_goal, of_trials[setting.finalists :], chosen_by)
        for of_goal, of_trials, chosen_by in zip(by_goal, trials, (None, mean_F), strict=True)
    ]
    chosen = int(mean_F.argmax())
    true_1KG = scores.students(trial_T[finalist_F[[chosen]]], setting.seeds, random) + planted_G
    tested = [of_goal[0] for of_goal in test.scored(true_1KG, test.effects(1))]
    return Arm(best, trials, errors_F, luck, by_goal[0], tested)


def claims(contrasts: Mapping[str, Contrast], rarer: int) -> list[str]:
    """Returns the goals on which a difference is claimed."""
    return [goal for goal, decision in decide(contrasts).items() if decision.claimed and rarer >= MIN_RARER]


def mean_power(difference: float, designs: Sequence[Design]) -> float:
    """Returns the mean power of those designs in which both arms have an error over patients."""
    known = [design for design in designs if np.isfinite(design.patient_variance)]
    return float(np.mean([power(difference, design) for design in known]))


def share(events: Sequence[bool]) -> list[float]:
    """Returns the share of events and the ends of its 95 % interval."""
    interval = binomtest(sum(events), len(events)).proportion_ci()
    return [sum(events) / len(events), float(interval.low), float(interval.high)]


def measure(name: str, setting: Setting, verdicts: int, first_seed: int) -> dict[str, Any]:
    """Returns the figures of one world and one number of patients."""
    tables = [scores_of(name, first_seed + turn) for turn in range(CLOSED_FORMS if name == "closed_form" else 1)]
    random = np.random.default_rng([first_seed, setting.patients])
    spread = luck_of_seeds(tables, setting.finalists / setting.trials)
    nothing, planted = (
        [simulate(tables[turn % len(tables)], each, random) for turn in range(verdicts)]
        for each in (replace(setting, difference=0.0, spread=spread), replace(setting, spread=spread))
    )
    primary = [verdict.contrasts["auroc"] for verdict in nothing]
    errors = [each.standard_error for each in primary]
    return {
        "world": name,
        "patients": setting.patients,
        "seeds": setting.seeds,
        "claims": share([bool(claims(verdict.contrasts, setting.rarer)) for verdict in nothing]),
        "claims_on_auroc": share([each.p < 0.05 for each in primary]),
        "seeds_only": share([bool(claims(verdict.seeds_only, setting.rarer)) for verdict in nothing]),
        "one_error": share([verdict.gap > 1 for verdict in nothing]),
        "two_errors": share([verdict.gap > 1.96 * 2**0.5 for verdict in nothing]),
        "found": share(["auroc" in claims(verdict.contrasts, setting.rarer) for verdict in planted]),
        "power": mean_power(setting.difference, [verdict.design for verdict in planted]),
        "plan": mean_power(setting.difference, [verdict.plan for verdict in planted]),
        "error_over_true": float(np.mean(np.square(errors)) ** 0.5 / np.std([each.difference for each in primary])),
        "parts": {
            "patients": float(np.mean([each.patient_variance for each in primary]) ** 0.5),
            "seeds": float(np.mean([sum(each.seed_variance) for each in primary]) ** 0.5),
            "search": float(np.mean([sum(each.search_variance) for each in primary]) ** 0.5),
        },
    }


def table(figures: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("claims", "seeds only", "1 SE", "1.96 x sqrt 2 SE", "found", "power", "plan", "error")
    result = Table("world", "patients", "seeds", *columns)
    for row in figures:
        cells = [f"{row[key][0]:.3f} [{row[key][1]:.3f}, {row[key][2]:.3f}]" for key in ("claims", "seeds_only")]
        cells += [f"{row[key][0]:.2f}" for key in ("one_error", "two_errors")]
        cells += ["{:.2f} [{:.2f}, {:.2f}]".format(*row["found"]), f"{row['power']:.2f}"]
        cells += [f"{row['plan']:.2f}", f"{row['error_over_true']:.2f}"]
        result.add_row(row["world"], str(row["patients"]), str(row["seeds"]), *cells)
    return result


def acceptance(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a line for each of the criteria: held or not held, and where."""
    of_row = {f"{row['world']} with {row['patients']}": row for row in figures}
    criteria = {
        "false claims are 5 % or fewer": lambda row: row["claims"][0] <= 0.05,
        "the interval of false claims ends below 7 %": lambda row: row["claims"][2] < 0.07,
        "planted differences are found at the power computed beforehand, within 5 points": lambda row: (
            abs(row["found"][0] - row["power"]) <= 0.05
        ),
    }
    lines = []
    for words, holds in criteria.items():
        failed = [place for place, row in of_row.items() if not holds(row)]
        lines.append(f"NOT HELD: {words} ({', '.join(failed)})" if failed else f"held: {words}")
    return lines


def run(own: Mapping[str, str], console: Console) -> list[dict[str, Any]]:
    """Measures and prints all worlds, and then the criteria. Returns the figures.

    Raises:
        ConfigError: the words of the command line are not what is wanted.
    """
    worlds = own["worlds"].split(",")
    mistakes = [
        Mistake("worlds", f"{name!r} does not exist; choose from {', '.join(WORLDS)}")
        for name in worlds
        if name not in WORLDS
    ]
    numbers: dict[str, list[int]] = {}
    for key, least in LEAST.items():
        words = own[key].split(",") if key == "patients" else [own[key]]
        if all(word.isdecimal() and int(word) >= least for word in words):
            numbers[key] = [int(word) for word in words]
        else:
            mistakes.append(Mistake(key, f"{own[key]!r} is not a whole number of at least {least}"))
    try:
        difference = float(own["difference"])
    except ValueError:
        mistakes.append(Mistake("difference", f"{own['difference']!r} is not a number"))
    if mistakes:
        raise ConfigError(mistakes)
    file, begun = Path(own["out"]) if own["out"] else None, time.monotonic()
    words = {key: own[key] for key in ("verdicts", "trials", "finalists", "seeds", "difference", "first_seed")}
    content = json.loads(file.read_text()) if file and file.exists() else {"words": words, "figures": []}
    if content["words"] != words:
        raise ConfigError.at("out", f"{file} holds figures of {content['words']}; name another file")
    figures: list[dict[str, Any]] = content["figures"]
    for name in worlds:
        for patients in numbers["patients"]:
            if any((row["world"], row["patients"]) == (name, patients) for row in figures):
                continue
            seeds = numbers["seeds"][0] if patients <= MANY_PATIENTS else max(10, numbers["seeds"][0])
            setting = Setting(patients, numbers["trials"][0], numbers["finalists"][0], seeds, difference)
            figures.append(measure(name, setting, numbers["verdicts"][0], numbers["first_seed"][0]))
            if file:
                file.write_text(json.dumps(content, indent=1) + "\n")
            print(f"{name} with {patients} patients, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    console.print(table(figures))
    for line in acceptance(figures):
        console.print(line, highlight=False)
    return figures


def main(words: Sequence[str]) -> None:
    if {"--help", "-h"} & set(words):
        print(__doc__)
        return
    own, others = own_words(words, OWN)
    if others:
        raise ConfigError([Mistake(word, f"unknown word; there are {', '.join(OWN)}") for word in others])
    run(own, Console(width=160))


if __name__ == "__main__":
    with command_line() as words:
        main(words)
