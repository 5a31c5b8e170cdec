"""How often does a verdict claim a difference where there is none, and how often does it find one that is there?

    python benchmarks/null_verdicts.py [worlds=level,demo_none,demo,all_objectives,closed_form] [patients=60,300,1500]
        [verdicts=1000] [trials=16] [finalists=3] [seeds=5] [difference=0.08] [first_seed=0] [out=FILE]
    python benchmarks/null_verdicts.py worlds=real students=DIR patients=60,150,300 trials=4 [...]

Each verdict begins with two sweeps. Both arms draw their trials from the same space, so that nothing differs. Students
are simulated (see `simulated_students.py`) or, in the world `real`, trained (see `real_students.py`). Scores,
resamplings of patients, finalists, contrasts and claims come from the functions that a confirmation uses:

1. Every trial is scored on validation patients, and those with the best AUROC are the finalists of their arm.
2. The finalists run on five fresh seeds; the one with the best mean AUROC on validation is chosen.
3. The chosen ones run on further seeds (`seeds`, and 10 with more than 300 patients) and are tested on patients of
   whom no choice has seen anything. AUROC and pointing are the two primary contrasts.

There are as many test patients as validation patients, and 40 % of the simulated ones are positive. A planted
difference is subtracted from the true AUROC of every student of the reference arm.

In the world `real`, verdicts take turns with the pools. The configurations of a pool are dealt at random into two arms,
and so are its students of each configuration (one for the sweep, five for the choice, the others are tested) and its
patients (validation, test, neither). Verdicts of one pool share students and patients, so they are not independent:
the interval of a share is that of a mean over pools (Student's t), where this is wider than that of independent
verdicts. For a planted difference the logits of the true class are lowered until the AUROC over all patients of the
pool has fallen so far.

Columns: `claims` is the share of verdicts with any false claim, after Holm, with its 95 % interval (Clopper and
Pearson); `seeds only` is the same if the luck of the search is left out; `1 SE` and `1.96 x sqrt 2 SE` are the shares
in which the best trial of an arm is beyond that many standard errors of the best of the other, on either goal, as a
reader of two rows of a sweep's table may judge. `found` is the share of planted differences of the AUROC that are
claimed. `power` is what the confirmation computes for this difference after the choice, before it trains what is
tested, and `plan` what plan=true computes before anything has run, where the user states the true luck of seeds of the
world's good configurations; both are means over the same verdicts as `found`. `error` is the root mean squared
standard error of the AUROC over the true one, and `pointing` that of pointing over that of the AUROC.

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
from pathlib import Path
from typing import Any, Final

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks.dealt import GOALS, Dealt, Floats, Setting, Students, World
from benchmarks.real_students import RealWorld
from benchmarks.simulated_students import WORLDS, SimulatedWorld
from mmpkd.command import command_line, own_words
from mmpkd.scoring.stats import paired_interval
from mmpkd.types import ConfigError, Mistake
from sweep.verdict.answer import decide
from sweep.verdict.inference import FIXED, Contrast, SearchLuck, SeedScores, contrast, search_luck
from sweep.verdict.power import MIN_RARER, Design, first_step, power

OWN: Final = {
    "worlds": ",".join(WORLDS),
    "patients": "60,300,1500",
    "verdicts": "1000",
    "trials": "16",
    "finalists": "3",
    "seeds": "5",
    "difference": "0.08",
    "first_seed": "0",
    "students": "",
    "out": "",
}
REAL: Final = "real"
MANY_PATIENTS: Final = 300  # with more, ten seeds are trained
REPLICATES: Final = 200
LEAST: Final = {"patients": 20, "verdicts": 2, "trials": 2, "finalists": 1, "seeds": 2, "first_seed": 0}


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
        rarer: number of test patients of the rarer class.
        group: verdicts with the same number have students in common.
    """

    contrasts: Mapping[str, Contrast]
    seeds_only: Mapping[str, Contrast]
    design: Design
    plan: Design
    gap: float
    rarer: int
    group: int

    def claims(self) -> list[str]:
        """Returns the goals on which a difference is claimed."""
        return claims(self.contrasts, self.rarer)


def simulate(dealt: Dealt, setting: Setting) -> Verdict:
    """Simulates two sweeps and their confirmation."""
    treated, reference = (confirmed(students, setting) for students in (dealt.treated, dealt.reference))
    counted, lucks = (dealt.rarer, setting.patients), list(zip(treated.luck, reference.luck, strict=True))
    contrasts, seeds_only = (
        {
            goal: contrast(treated.tested[place], reference.tested[place], counted[place], searches[place])
            for place, goal in enumerate(GOALS)
        }
        for searches in (lucks, [(FIXED, FIXED)] * len(GOALS))
    )
    level = first_step(len(GOALS))
    design = Design.measured(
        treated.before, reference.before, lucks[0], setting.patients, dealt.rarer, setting.seeds, level
    )
    errors = [root_mean_square(arm.errors) for arm in (treated, reference)]
    plan = Design.expected(
        setting.patients,
        dealt.rarer,
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
    gap = float(np.nanmax([0.0, *gaps]))
    return Verdict(contrasts, seeds_only, design, plan, gap, dealt.rarer, dealt.group)


def root_mean_square(error_F: Floats) -> float:
    """Returns the root of the mean square of the errors that are known; NaN if none is."""
    known = error_F[np.isfinite(error_F)]
    return float(np.square(known).mean() ** 0.5) if known.size else float("nan")


def confirmed(students: Students, setting: Setting) -> Arm:
    """Simulates the sweep of an arm and its confirmation."""
    value_TG = students.trials()
    order_T = np.argsort(-value_TG[:, 0], kind="stable")
    finalist_F = order_T[: setting.finalists]
    errors_F = np.array([students.error(0, int(trial)) for trial in finalist_F])
    pointed = int(value_TG[:, 1].argmax())
    best = [
        (float(value_TG[order_T[0], 0]), float(errors_F[0])),
        (float(value_TG[pointed, 1]), students.error(1, pointed)),
    ]
    trials = list(value_TG[order_T].T)
    by_goal = students.of_choice(finalist_F)
    mean_F = np.array([each.mean for each in by_goal[0]])
    luck = [
        search_luck(of_goal, of_trials[setting.finalists :], chosen_by)
        for of_goal, of_trials, chosen_by in zip(by_goal, trials, (None, mean_F), strict=True)
    ]
    tested = students.tested(int(finalist_F[mean_F.argmax()]))
    return Arm(best, trials, errors_F, luck, by_goal[0], tested)


def claims(contrasts: Mapping[str, Contrast], rarer: int) -> list[str]:
    """Returns the goals on which a difference is claimed."""
    return [goal for goal, decision in decide(contrasts).items() if decision.claimed and rarer >= MIN_RARER]


def mean_power(difference: float, designs: Sequence[Design]) -> float:
    """Returns the mean power of those designs in which both arms have an error over patients."""
    known = [design for design in designs if np.isfinite(design.patient_variance)]
    return float(np.mean([power(difference, design) for design in known]))


def share(events: Sequence[bool], groups: Sequence[int] | None = None) -> list[float]:
    """Returns the share of events and the ends of its 95 % interval (Clopper and Pearson).

    Args:
        groups: the group of each event, if events of a group are not independent. Then the interval is that of a mean
            over the groups (Student's t) where this is wider.
    """
    interval = binomtest(sum(events), len(events)).proportion_ci()
    low, high = float(interval.low), float(interval.high)
    if groups is not None:
        of_group = [
            np.mean([event for event, of in zip(events, groups, strict=True) if of == group]) for group in set(groups)
        ]
        _, low_of_mean, high_of_mean = paired_interval(of_group)
        low, high = max(0.0, min(low, low_of_mean)), min(1.0, max(high, high_of_mean))
    return [sum(events) / len(events), low, high]


def measure(name: str, world: World, setting: Setting, verdicts: int, first_seed: int) -> dict[str, Any]:
    """Returns the figures of one world and one number of patients."""
    random = np.random.default_rng([first_seed, setting.patients])
    spread = world.spread(setting.finalists / setting.trials)
    nothing, planted = (
        [simulate(world.deal(turn, each, random), each) for turn in range(verdicts)]
        for each in (replace(setting, difference=0.0, spread=spread), replace(setting, spread=spread))
    )
    groups = [verdict.group for verdict in nothing] if world.is_shared else None
    primary = [verdict.contrasts["auroc"] for verdict in nothing]
    errors = [each.standard_error for each in primary]
    return {
        "world": name,
        "patients": setting.patients,
        "seeds": setting.seeds,
        "claims": share([bool(verdict.claims()) for verdict in nothing], groups),
        "claims_on_auroc": share([each.p < 0.05 for each in primary], groups),
        "seeds_only": share([bool(claims(verdict.seeds_only, verdict.rarer)) for verdict in nothing], groups),
        "one_error": share([verdict.gap > 1 for verdict in nothing], groups),
        "two_errors": share([verdict.gap > 1.96 * 2**0.5 for verdict in nothing], groups),
        "found": share(["auroc" in verdict.claims() for verdict in planted], groups),
        "power": mean_power(setting.difference, [verdict.design for verdict in planted]),
        "plan": mean_power(setting.difference, [verdict.plan for verdict in planted]),
        "error_over_true": float(np.mean(np.square(errors)) ** 0.5 / np.std([each.difference for each in primary])),
        "parts": {goal: parts([verdict.contrasts[goal] for verdict in nothing]) for goal in GOALS},
    }


def parts(contrasts: Sequence[Contrast]) -> dict[str, float]:
    """Returns the root mean squared standard error of contrasts, and its parts."""
    variances = {
        "all": [each.standard_error**2 for each in contrasts],
        "patients": [each.patient_variance for each in contrasts],
        "seeds": [sum(each.seed_variance) for each in contrasts],
        "search": [sum(each.search_variance) for each in contrasts],
    }
    return {name: float(np.mean(of_part) ** 0.5) for name, of_part in variances.items()}


def table(figures: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("claims", "seeds only", "1 SE", "1.96 x sqrt 2 SE", "found", "power", "plan", "error", "pointing")
    result = Table("world", "patients", "seeds", *columns)
    for row in figures:
        cells = [f"{row[key][0]:.3f} [{row[key][1]:.3f}, {row[key][2]:.3f}]" for key in ("claims", "seeds_only")]
        cells += [f"{row[key][0]:.2f}" for key in ("one_error", "two_errors")]
        cells += ["{:.2f} [{:.2f}, {:.2f}]".format(*row["found"]), f"{row['power']:.2f}"]
        cells += [f"{row['plan']:.2f}", f"{row['error_over_true']:.2f}"]
        cells.append(f"{row['parts']['pointing']['all'] / row['parts']['auroc']['all']:.2f}")
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
        Mistake("worlds", f"{name!r} does not exist; choose from {', '.join([*WORLDS, REAL])}")
        for name in worlds
        if name not in (*WORLDS, REAL)
    ]
    if REAL in worlds and not own["students"]:
        mistakes.append(
            Mistake("students", "names the folder in which `benchmarks/real_students.py` has left students")
        )
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
        world: World = (
            RealWorld(Path(own["students"])) if name == REAL else SimulatedWorld(name, numbers["first_seed"][0])
        )
        for patients in numbers["patients"]:
            if any((row["world"], row["patients"]) == (name, patients) for row in figures):
                continue
            seeds = numbers["seeds"][0] if patients <= MANY_PATIENTS else max(10, numbers["seeds"][0])
            setting = Setting(patients, numbers["trials"][0], numbers["finalists"][0], seeds, difference)
            setting = replace(setting, replicates=REPLICATES)
            figures.append(measure(name, world, setting, numbers["verdicts"][0], numbers["first_seed"][0]))
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
