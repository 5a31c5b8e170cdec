"""Trains pools of real students, from which `null_verdicts.py worlds=real` draws sweeps and confirmations.

    python benchmarks/real_students.py folder=DIR [pools=6] [first_seed=0] [cache=cache]

A pool is a cohort of `synthetic` of its own (seed `first_seed` and on), 8 configurations that are drawn at random from
`smallest.yaml`, and 11 students of each, which differ by their seed. They are scored on the 1,300 test images of the
cohort (about 650 patients), and their outputs are kept in DIR, a file for each student. The same command continues
after the last student. A student takes a second of one idle core.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Final

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks.dealt import CHOOSE_SEEDS, Dealt, Floats, Ints, Setting, seed_luck
from benchmarks.record_curves import Draws
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.readers.synthetic import TASKS
from mmpkd.command import command_line, own_words
from mmpkd.config import TrialConfig, validate
from mmpkd.export.student_file import read
from mmpkd.machine.files import write_atomically
from mmpkd.scoring import localize
from mmpkd.scoring.patients import rarer_class
from mmpkd.scoring.replicates import Predicted, Scored, score_predictions
from mmpkd.scoring.stats import patient_weights, standard_error
from mmpkd.scoring.validation import Evaluator, Labels
from mmpkd.train import train
from mmpkd.types import ConfigError
from sweep.space.draw import draw
from sweep.space.space import load_space
from sweep.verdict.inference import SeedScores

OWN: Final = {"folder": "", "pools": "6", "first_seed": "0", "cache": "cache"}
GOALS: Final = ("val/auroc", "val/pointing")
CONFIGURATIONS, RUNS = 8, 11
SPACE: Final = Path(__file__).with_name("smallest.yaml")
PATIENTS: Final = "patients.npz"


def configurations(seed: int) -> list[TrialConfig]:
    """Returns the configurations of a pool."""
    space, mistakes = load_space(str(SPACE), [f"cohort.params.seed={seed}"])
    if space is None or mistakes:
        raise ConfigError(mistakes)
    drawn = [draw(space.arms["none"], Draws([seed, number]), "none") for number in range(CONFIGURATIONS)]
    return [validate(TrialConfig, each.config) for each in drawn]


def train_pool(seed: int, configs: Sequence[TrialConfig], runs: int, cache: Path, folder: Path) -> None:
    """Trains the students of a pool that are not in its folder yet, and keeps their outputs for the test part."""
    wanted = [(number, run) for run in range(runs) for number in range(len(configs))]
    missing = [place for place in wanted if not _file(folder, *place).exists()]
    if not missing:
        return
    store = prepare(configs[0].cohort, cache)
    rows = store.rows("test")
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / PATIENTS, patient_N=store.patient_N[rows], target_NK=store.target_NK[rows])
    evaluator: Evaluator | None = None
    for number, run in missing:
        begun = time.process_time()
        own_seed = int(np.random.default_rng([seed, number, run]).integers(2**31))
        config = configs[number].model_copy(update={"seed": own_seed})
        with tempfile.TemporaryDirectory() as scratch:
            train(config, cache, Path(scratch), store=store)
            student = read(Path(scratch)).student
        if evaluator is None:
            evaluator = Evaluator(store, rows, config.evaluation, student.grid, torch.device("cpu"), goals=GOALS)
        assert evaluator.regions is not None, "every image of the cohort has a lesion"
        logits_NK, map_NRhw = evaluator.predict(student)
        pointing_N = localize.score(map_NRhw, evaluator.regions)["pointing"][:, 0]
        _write(_file(folder, number, run), logits_NK=logits_NK, pointing_N=pointing_N)
        print(f"{folder.name}: {number}, run {run}, {time.process_time() - begun:.1f} s", file=sys.stderr, flush=True)


def _file(folder: Path, number: int, run: int) -> Path:
    return folder / f"{number}-{run}.npz"


def _write(file: Path, **arrays: NDArray[np.generic]) -> None:
    content = BytesIO()
    np.savez_compressed(content, **{name: _small(array) for name, array in arrays.items()})
    write_atomically(file, content.getvalue())


def _small(array: NDArray[np.generic]) -> NDArray[np.generic]:
    return array.astype(np.float32) if array.dtype == np.float64 else array


@dataclass(frozen=True)
class Pool:
    """The students of a pool on N images of patients of whom their training has seen nothing.

    Attributes:
        patient_N: the patient of each image, from 0 on.
        logits_CMNK: outputs of M students of each of C configurations.
        pointing_CMN: their pointing scores.
    """

    patient_N: Ints
    target_NK: NDArray[np.float32]
    logits_CMNK: NDArray[np.float32]
    pointing_CMN: NDArray[np.float32]

    @classmethod
    def read(cls, folder: Path) -> Pool:
        """Reads a pool.

        Raises:
            ConfigError: it is not complete.
        """
        files = [[_file(folder, number, run) for run in range(RUNS)] for number in range(CONFIGURATIONS)]
        if lacking := sum(not file.exists() for of_configuration in files for file in of_configuration):
            problem = f"{folder} lacks {lacking} of {CONFIGURATIONS * RUNS} students"
            raise ConfigError.at("students", f"{problem}; train them with `python benchmarks/real_students.py`")
        students = [[np.load(file) for file in of_configuration] for of_configuration in files]
        logits, pointing = (
            np.array([[student[key] for student in each] for each in students]) for key in ("logits_NK", "pointing_N")
        )
        patients = np.load(folder / PATIENTS)
        _, patient_N = np.unique(patients["patient_N"], return_inverse=True)
        return cls(patient_N.astype(np.int64), patients["target_NK"], logits, pointing)

    @cached_property
    def whole(self) -> ImagesOfPatients:
        """All images."""
        return ImagesOfPatients(self, np.arange(len(self.patient_N)), 0)

    @cached_property
    def true_CMG(self) -> Floats:
        """The scores of all students on all images."""
        return self._of_each(lambda *place: [scored.value for scored in self.whole.scores(*place)])

    def _of_each(self, function: Callable[[int, int], Any]) -> Floats:
        """Returns what a function returns for each student, as an array that begins with C and M."""
        runs = range(self.runs)
        return np.array([[function(number, run) for run in runs] for number in range(self.configurations)])

    def images_of(self, patients: Ints, replicates: int) -> ImagesOfPatients:
        """Returns the images of some patients."""
        return ImagesOfPatients(self, np.flatnonzero(np.isin(self.patient_N, patients)), replicates)

    @property
    def configurations(self) -> int:
        return int(self.logits_CMNK.shape[0])

    @property
    def runs(self) -> int:
        return int(self.logits_CMNK.shape[1])

    def lowered(self, difference: float) -> Floats:
        """Returns by how much the logit of the true class of every image has to be lowered, so that the AUROC of a
        student on all images falls by a difference. Shape (C, M).
        """

        if not difference:
            return np.zeros((self.configurations, self.runs))

        def lacking(shift: float, number: int, run: int) -> float:
            lower = self.whole.scores(number, run, shift)[0].value
            return float(lower - self.true_CMG[number, run, 0] + difference)

        return self._of_each(lambda *place: brentq(lacking, 0, 50, place, xtol=1e-3))


class ImagesOfPatients:
    """Some of the images of a pool. Students are scored on them as a confirmation scores them.

    Args:
        replicates: number of bootstrap replicates of the patients.
    """

    def __init__(self, pool: Pool, rows: Ints, replicates: int):
        self._pool, self._rows = pool, rows
        target_NK = pool.target_NK[rows]
        self._labels = Labels(TASKS, target_NK, np.ones(target_NK.shape, bool))
        self._patient_N = pool.patient_N[rows]
        ones_1N = np.ones((1, len(rows)))
        self._weight_RN = patient_weights(self._patient_N, replicates) if replicates else ones_1N

    @property
    def rarer(self) -> int:
        """Number of patients of the rarer class of the label that has fewest."""
        return int(rarer_class(*self._labels[1:], self._patient_N).min())

    def scores(self, number: int, run: int, shift: float = 0.0) -> list[Scored]:
        """Returns the scores of a student, by goal.

        Args:
            shift: how much the logit of the true class is lowered.
        """
        logits_NK = self._pool.logits_CMNK[number, run][self._rows] - shift * self._labels.target_NK
        pointing_N1 = self._pool.pointing_CMN[number, run][self._rows, None].astype(np.float64)
        predicted, one_N = Predicted(logits_NK, {"pointing": pointing_N1}), np.zeros(len(self._rows), np.int64)
        scored = score_predictions(predicted, self._labels, self._patient_N, self._weight_RN, one_N, GOALS)
        return [scored[goal] for goal in GOALS]


class RealArm:
    """The students of one arm in one verdict. See `dealt.Students`.

    Args:
        numbers: the configurations of its trials.
        run_TM: the students of each trial: that of the sweep, those of the choice, those that are tested.
        shift_CM: see `Pool.lowered`.
        parts: validation patients and test patients.
    """

    def __init__(self, numbers: Ints, run_TM: Ints, shift_CM: Floats, parts: Sequence[ImagesOfPatients]):
        self._numbers, self._run_TM, self._shift_CM = numbers, run_TM, shift_CM
        self._validation, self._test = parts

    def trials(self) -> Floats:
        trials = range(len(self._numbers))
        self._of_sweep = [self._scored(trial, self._run_TM[trial, :1], self._validation) for trial in trials]
        return np.array([[of_goal.mean for of_goal in by_goal] for by_goal in self._of_sweep])

    def error(self, goal: int, trial: int) -> float:
        return standard_error(self._of_sweep[trial][goal].replicate_RK[:, 0])

    def of_choice(self, trial_F: Ints) -> list[Sequence[SeedScores]]:
        fresh_TM = self._run_TM[:, 1 : 1 + CHOOSE_SEEDS]
        return list(
            zip(*[self._scored(int(trial), fresh_TM[trial], self._validation) for trial in trial_F], strict=True)
        )

    def tested(self, trial: int) -> list[SeedScores]:
        return self._scored(trial, self._run_TM[trial, 1 + CHOOSE_SEEDS :], self._test)

    def _scored(self, trial: int, run_K: Ints, part: ImagesOfPatients) -> list[SeedScores]:
        number = int(self._numbers[trial])
        scores = [part.scores(number, int(run), self._shift_CM[number, run]) for run in run_K]
        return [
            SeedScores(
                np.array([each.value for each in of_goal]), np.stack([each.replicate_R for each in of_goal], axis=1)
            )
            for of_goal in zip(*scores, strict=True)
        ]


class RealWorld:
    """Pools of real students. See `dealt.World`.

    Args:
        folder: holds the pools.

    Raises:
        ConfigError: a pool is not complete, or there are fewer than two.
    """

    is_shared = True

    def __init__(self, folder: Path):
        folders = sorted(folder.glob("pool-*"))
        if len(folders) < 2:
            raise ConfigError.at("students", f"{folder} holds {len(folders)} pools; an interval needs at least two")
        self._pools = [Pool.read(each) for each in folders]
        self._shifts: dict[float, list[Floats]] = {}

    def spread(self, share: float) -> float:
        true = [pool.true_CMG[..., 0] for pool in self._pools]
        return seed_luck([(true_CM.mean(axis=1), true_CM) for true_CM in true], share)

    def deal(self, turn: int, setting: Setting, random: np.random.Generator) -> Dealt:
        group = turn % len(self._pools)
        pool = self._pools[group]
        self._require_enough(pool, setting)
        if setting.difference not in self._shifts:
            self._shifts[setting.difference] = [each.lowered(setting.difference) for each in self._pools]
        shift_CM = self._shifts[setting.difference][group]
        number_T = random.permutation(pool.configurations)[: 2 * setting.trials]
        run_TM = random.permuted(np.tile(np.arange(pool.runs), (len(number_T), 1)), axis=1)
        run_TM = run_TM[:, : 1 + CHOOSE_SEEDS + setting.seeds]
        patients = random.permutation(pool.patient_N.max() + 1)
        validation, test = patients[: setting.patients], patients[setting.patients : 2 * setting.patients]
        parts = [pool.images_of(each, setting.replicates) for each in (validation, test)]
        treated, reference = slice(setting.trials), slice(setting.trials, None)
        return Dealt(
            RealArm(number_T[treated], run_TM[treated], 0 * shift_CM, parts),
            RealArm(number_T[reference], run_TM[reference], shift_CM, parts),
            parts[1].rarer,
            group,
        )

    def _require_enough(self, pool: Pool, setting: Setting) -> None:
        patients = int(pool.patient_N.max()) + 1
        for key, wanted, most in (
            ("trials", setting.trials, pool.configurations // 2),
            ("seeds", setting.seeds, pool.runs - 1 - CHOOSE_SEEDS),
            ("patients", setting.patients, patients // 2),
        ):
            if wanted > most:
                raise ConfigError.at(key, f"the pools of real students suffice for {most}, and {wanted} are wanted")


def main(words: Sequence[str]) -> None:
    if {"--help", "-h"} & set(words):
        print(__doc__)
        return
    own, others = own_words(words, OWN)
    if others or not own["folder"]:
        raise ConfigError.at(
            (others or ["folder"])[0], f"is wrong; the words are {', '.join(OWN)}, and folder is needed"
        )
    first = int(own["first_seed"])
    for seed in range(first, first + int(own["pools"])):
        train_pool(seed, configurations(seed), RUNS, Path(own["cache"]), Path(own["folder"]) / f"pool-{seed}")


if __name__ == "__main__":
    with command_line() as words:
        main(words)
