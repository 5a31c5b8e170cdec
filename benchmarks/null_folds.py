"""How often does a verdict by cross-validation claim a difference between two arms that are equally good?

    python benchmarks/null_folds.py [patients=60,150,300] [folds=5,10] [verdicts=500] [first_seed=0] [trials=0]

A student is a ridge regression on features of the patients (`FEATURES` for each arm, all equally informative); a seed
leaves half of its training patients out at random, which stands for the luck of a training. One of the folds is
sealed, the next one validates, and the others train, as in `sweep.confirm folds=n cohort=FILE`. Two worlds:

- `same`: both arms read the same features, so that they differ by the seeds alone.
- `other`: each arm reads features of its own. Both are equally good on average over training sets, but not with the
  training set at hand.

The score is the AUROC over pairs of patients of one fold (`stats.auroc_within`). `claims` is the share of verdicts that
claim a difference at 5 %, with its 95 % interval (Clopper and Pearson); `not widened` is the same if the patients' part
of the variance counts each fold as a test of its own; `error` is the mean standard error over the standard deviation
of the difference over all verdicts.

With `trials` above 0, each arm is searched anew in each fold, as in `sweep.confirm folds=n` without a second cohort: so
many trials with a penalty and a share of the features of their own, the best three by the AUROC of one seed on the fold
that validates, the best mean of these over five fresh seeds, and five further seeds, which are tested. Two further
columns have the share of claims if the variance has no part of the search (`no luck`), or the mean of the parts of all
folds instead of the part of a mean over the folds (`luck of one`).

The default takes about 20 minutes on one idle core, and `trials=16 folds=5` about as long.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from mmpkd.command import command_line, own_words
from mmpkd.scoring.stats import auroc_within, patient_weights
from sweep.verdict.finalists import averaged
from sweep.verdict.inference import FIXED, Contrast, SearchLuck, SeedScores, contrast, search_luck, widened
from sweep.verdict.power import MIN_RARER

Floats: TypeAlias = NDArray[np.float64]
OWN: Final = {"patients": "60,150,300", "folds": "5,10", "verdicts": "500", "first_seed": "0", "trials": "0"}
WORLDS: Final = ("same", "other")
FEATURES, SIGNAL, RIDGE, SEEDS, REPLICATES, FINALISTS = 10, 0.35, 5.0, 5, 200, 3
PENALTIES: Final = (0.5, 500.0)  # between which a trial draws, evenly on a logarithmic scale
POSITIVES: Final = 0.4  # share of the patients


class Config(NamedTuple):
    """A configuration: the ridge penalty, and the features that are read."""

    penalty: float
    read_F: NDArray[np.bool_]


FIXED_CONFIG: Final = Config(RIDGE, np.ones(FEATURES, bool))


class World(NamedTuple):
    """The patients of one verdict, and in which fold each is."""

    positive_N: NDArray[np.bool_]
    fold_N: NDArray[np.int64]
    folds: int
    generator: np.random.Generator

    def output(self, feature_NF: Floats, config: Config, sealed: int) -> Floats:
        """Returns the output for all patients of a student that half of the training patients of a fold train."""
        train = np.flatnonzero((self.fold_N != sealed) & (self.fold_N != self.validation(sealed)))
        train = self.generator.choice(train, len(train) // 2, replace=False)
        read_NF = feature_NF[:, config.read_F]
        centre_F = read_NF[train].mean(axis=0)
        x_nF, y_n = read_NF[train] - centre_F, self.positive_N[train] - self.positive_N[train].mean()
        weight_F = np.linalg.solve(x_nF.T @ x_nF + config.penalty * np.eye(x_nF.shape[1]), x_nF.T @ y_n)
        output_N: Floats = (read_NF - centre_F) @ weight_F
        return output_N

    def validation(self, sealed: int) -> int:
        return (sealed + 1) % self.folds

    def auroc(self, output_N: Floats, weight_RN: Floats, rows: NDArray[np.int64]) -> Floats:
        """Returns the AUROC over pairs of patients of one fold, for each row of weights of the patients."""
        known_N1 = np.ones((len(rows), 1), bool)
        scored = output_N[rows][:, None], self.positive_N[rows][:, None], known_N1
        auroc_R: Floats = auroc_within(*scored, weight_RN[:, rows], self.fold_N[rows])[:, 0]
        return auroc_R

    def seed_scores(self, outputs: list[Floats], weight_RN: Floats, rows: NDArray[np.int64]) -> SeedScores:
        ones_1N = np.ones((1, len(self.fold_N)))
        value_K = np.array([self.auroc(output_N, ones_1N, rows)[0] for output_N in outputs])
        return SeedScores(value_K, np.stack([self.auroc(output_N, weight_RN, rows) for output_N in outputs], axis=1))

    def search(self, feature_NF: Floats, trials: int, sealed: int, weight_RN: Floats) -> tuple[Config, SearchLuck]:
        """Searches in a fold. Returns what is chosen, and the luck of the search."""
        rows, ones_1N = np.flatnonzero(self.fold_N == self.validation(sealed)), np.ones((1, len(self.fold_N)))
        low, high = np.log(PENALTIES)
        configs = []
        for penalty in np.exp(self.generator.uniform(low, high, trials)):
            count = self.generator.integers(3, FEATURES + 1)
            configs.append(Config(float(penalty), self.generator.permutation(FEATURES) < count))
        value_T = np.array([self.auroc(self.output(feature_NF, each, sealed), ones_1N, rows)[0] for each in configs])
        order_T = np.argsort(-value_T, kind="stable")
        finalists = []
        for index in order_T[:FINALISTS]:
            outputs = [self.output(feature_NF, configs[index], sealed) for _ in range(SEEDS)]
            finalists.append(self.seed_scores(outputs, weight_RN, rows))
        best = order_T[int(np.argmax([each.mean for each in finalists]))]
        return configs[best], search_luck(finalists, value_T[order_T[FINALISTS:]])


def verdict(world: str, patients: int, folds: int, seed: int, trials: int = 0) -> list[Contrast]:
    """Returns the difference of two equally good arms, with the patients' part widened and not widened; with a search
    also without its luck, and with the luck of one of the searches.
    """
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
    of_world = World(positive_N, fold_N, folds, generator)
    arms, lucks = [], []
    for of_arm in read:
        chosen = [(FIXED_CONFIG, FIXED)] * folds
        if trials:
            chosen = [of_world.search(of_arm, trials, sealed, weight_RN) for sealed in range(folds)]
        outputs = []
        for _ in range(SEEDS):
            output_N = np.empty(patients)
            for sealed, (config, _) in enumerate(chosen):
                is_tested_N = fold_N == sealed
                output_N[is_tested_N] = of_world.output(of_arm, config, sealed)[is_tested_N]
            outputs.append(output_N)
        arms.append(of_world.seed_scores(outputs, weight_RN, np.arange(patients)))
        lucks.append([luck for _, luck in chosen])
    rarer = int(min(positive_N.sum(), (~positive_N).sum()))
    wide = [widened(scores, folds) for scores in arms]
    luck = averaged(lucks[0]), averaged(lucks[1])
    contrasts = [contrast(wide[0], wide[1], rarer, luck), contrast(arms[0], arms[1], rarer, luck)]
    if trials:
        of_one = [SearchLuck(each.variance * folds, each.degrees) for each in luck]
        contrasts.append(contrast(wide[0], wide[1], rarer))
        contrasts.append(contrast(wide[0], wide[1], rarer, (of_one[0], of_one[1])))
    return contrasts


def main(words: list[str]) -> None:
    """Runs the command line; see the top of this file."""
    options, _ = own_words(words, OWN)
    count, trials = int(options["verdicts"]), int(options["trials"])
    further = ["no luck", "luck of one"] if trials else []
    columns = ["world", "patients", "folds", "claims", "not widened", *further, "error"]
    table = Table(*columns, title="equally good arms")
    for world in WORLDS:
        for patients in map(int, options["patients"].split(",")):
            for folds in map(int, options["folds"].split(",")):
                first = int(options["first_seed"])
                verdicts = [verdict(world, patients, folds, seed, trials) for seed in range(first, first + count)]
                cells = []
                for each in zip(*verdicts, strict=True):
                    claims = sum(one_test.p < 0.05 for one_test in each)
                    low, high = binomtest(claims, count).proportion_ci()
                    cells.append(f"{claims / count:.3f} [{low:.3f}, {high:.3f}]")
                spread = np.std([wide.difference for wide, *_ in verdicts])
                error = np.mean([wide.standard_error for wide, *_ in verdicts]) / spread
                table.add_row(world, str(patients), str(folds), *cells, f"{error:.2f}")
    Console().print(table)
    print(f"claims are counted whatever the number of patients; a verdict needs {MIN_RARER} of the rarer class")


if __name__ == "__main__":
    with command_line() as words:
        main(list(words))
