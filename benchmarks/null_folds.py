"""How often does a verdict by cross-validation claim a difference between two arms that are equally good?

    python benchmarks/null_folds.py [patients=60,150,300] [folds=5,10] [verdicts=500] [first_seed=0]

A student is a ridge regression on features of the patients (`FEATURES` for each arm, all equally informative); a seed
leaves half of its training patients out at random, which stands for the luck of a training. One of the folds is
sealed, the next one validates, and the others train, as in `sweep.confirm folds=n`. Two worlds:

- `same`: both arms read the same features, so that they differ by the seeds alone.
- `other`: each arm reads features of its own. Both are equally good on average over training sets, but not with the
  training set at hand.

The score is the AUROC over pairs of patients of one fold (`stats.auroc_within`). `claims` is the share of verdicts that
claim a difference at 5 %, with its 95 % interval (Clopper and Pearson); `not widened` is the same if the patients' part
of the variance counts each fold as a test of its own; `error` is the mean standard error over the standard deviation
of the difference over all verdicts.

The default takes about 20 minutes on one idle core.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final, TypeAlias

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from mmpkd.command import command_line, own_words
from mmpkd.scoring.stats import auroc_within, patient_weights
from sweep.verdict.inference import Contrast, SeedScores, contrast, widened
from sweep.verdict.power import MIN_RARER

Floats: TypeAlias = NDArray[np.float64]
OWN: Final = {"patients": "60,150,300", "folds": "5,10", "verdicts": "500", "first_seed": "0"}
WORLDS: Final = ("same", "other")
FEATURES, SIGNAL, RIDGE, SEEDS, REPLICATES = 10, 0.35, 5.0, 5, 200
POSITIVES: Final = 0.4  # share of the patients


def verdict(world: str, patients: int, folds: int, seed: int) -> tuple[Contrast, Contrast]:
    """Returns the difference of two equally good arms, with the patients' part widened and not widened."""
    generator = np.random.default_rng([seed, patients, folds, WORLDS.index(world)])
    positive_N = np.arange(patients) < round(POSITIVES * patients)
    feature_NF = generator.standard_normal((patients, 2 * FEATURES)) + SIGNAL * positive_N[:, None]
    fold_N = np.empty(patients, int)
    for side in (True, False):  # stratified, as patients are dealt
        of_side = np.flatnonzero(positive_N == side)
        fold_N[generator.permutation(of_side)] = np.arange(len(of_side)) % folds
    weight_RN = patient_weights(np.arange(patients), REPLICATES, seed)
    halves = feature_NF[:, :FEATURES], feature_NF[:, -FEATURES:]
    read = halves if world == "other" else (halves[0], halves[0])
    arms = [_scores(feature_NF, positive_N, fold_N, folds, weight_RN, generator) for feature_NF in read]
    rarer = int(min(positive_N.sum(), (~positive_N).sum()))
    wide = [widened(scores, folds) for scores in arms]
    return contrast(wide[0], wide[1], rarer), contrast(arms[0], arms[1], rarer)


def _scores(
    feature_NF: Floats,
    positive_N: NDArray[np.bool_],
    fold_N: NDArray[np.int64],
    folds: int,
    weight_RN: Floats,
    generator: np.random.Generator,
) -> SeedScores:
    """Returns the scores of the students of an arm over all patients."""
    value_K, replicate_RK = np.empty(SEEDS), np.empty((len(weight_RN), SEEDS))
    known_N1 = np.ones((len(fold_N), 1), bool)
    for seed in range(SEEDS):
        output_N = np.empty(len(fold_N))
        for sealed in range(folds):
            train = np.flatnonzero((fold_N != sealed) & (fold_N != (sealed + 1) % folds))
            train = generator.choice(train, len(train) // 2, replace=False)
            centre_F = feature_NF[train].mean(axis=0)
            x_nF, y_n = feature_NF[train] - centre_F, positive_N[train] - positive_N[train].mean()
            weight_F = np.linalg.solve(x_nF.T @ x_nF + RIDGE * np.eye(x_nF.shape[1]), x_nF.T @ y_n)
            is_tested_N = fold_N == sealed
            output_N[is_tested_N] = (feature_NF[is_tested_N] - centre_F) @ weight_F
        scored = output_N[:, None], positive_N[:, None], known_N1
        value_K[seed] = auroc_within(*scored, np.ones((1, len(fold_N))), fold_N)[0, 0]
        replicate_RK[:, seed] = auroc_within(*scored, weight_RN, fold_N)[:, 0]
    return SeedScores(value_K, replicate_RK)


def main(words: list[str]) -> None:
    """Runs the command line; see the top of this file."""
    options, _ = own_words(words, OWN)
    table = Table("world", "patients", "folds", "claims", "not widened", "error", title="equally good arms")
    count = int(options["verdicts"])
    for world in WORLDS:
        for patients in map(int, options["patients"].split(",")):
            for folds in map(int, options["folds"].split(",")):
                first = int(options["first_seed"])
                pairs = [verdict(world, patients, folds, seed) for seed in range(first, first + count)]
                cells = []
                for each in zip(*pairs, strict=True):
                    claims = sum(one_test.p < 0.05 for one_test in each)
                    low, high = binomtest(claims, count).proportion_ci()
                    cells.append(f"{claims / count:.3f} [{low:.3f}, {high:.3f}]")
                spread = np.std([wide.difference for wide, _ in pairs])
                error = np.mean([wide.standard_error for wide, _ in pairs]) / spread
                table.add_row(world, str(patients), str(folds), *cells, f"{error:.2f}")
    Console().print(table)
    print(f"claims are counted whatever the number of patients; a verdict needs {MIN_RARER} of the rarer class")


if __name__ == "__main__":
    with command_line() as words:
        main(list(words))
