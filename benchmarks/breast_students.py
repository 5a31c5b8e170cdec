"""Do the radiologist's descriptors make an image-only student of breast ultrasound better, on real data?

    python benchmarks/breast_students.py --root DIR [--json FILE] [--workers 2] [--seeds 0 1 2] [--quick]

Four arms on BrEaST, each teacher by `logits` at fixed knobs: none, tabular (descriptors and clinical columns),
text (a sentence of the descriptors), and the ensemble of both. Cross-validated over the four folds that may
validate (fold 4 stays sealed) and two seeds, at the same folds and seeds in every arm; the scores are those of the
last epoch, AUROC and the map's mass in the lesion, in the frame of the original images. Cohort and student are those of
search_spaces/breast.yaml. No knob was tuned here: the optimiser's and the objective's are those of known_answer.py, the
batch is the space's, and teachers have their defaults.

A score is the mean over seeds of the mean over folds of a fold's own (logits of students that were trained apart
have no common scale, so they are not pooled). Intervals: 95 %, percentile bootstrap over patients, the same
replicates in all arms, so that differences are paired by patient. They hold the trained students fixed; how far
training itself scatters is the standard deviation over seeds beside them. They are not corrected for their number.

A teacher has two AUROCs: out of fold, of the answers that students learn from, about the training patients of each
fold; and on the validation patients of each fold, where its student is scored. With --json, finished runs are kept in
FILE.runs and not run again by the same code.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks import campaign
from benchmarks.campaign import in_words, source_hash, versions, write
from benchmarks.repertoire import LOGITS
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import TeacherConfig, TrialConfig
from mmpkd.export import student_file
from mmpkd.machine.files import read_yaml
from mmpkd.scoring.stats import Floats, Interval, macro, patient_weights, weighted_auroc, weighted_mean
from mmpkd.scoring.subgroups import REPLICATES, interval
from mmpkd.scoring.validation import Evaluator
from mmpkd.teachers import resolve
from mmpkd.teachers.cache import cached_outputs
from mmpkd.train import train

SPACE = Path(__file__).parents[1] / "search_spaces" / "breast.yaml"
OPTIMIZER = {"lr": 1e-3, "weight_decay": 0.05, "batch_size": 16}
OBJECTIVES = {"logits": LOGITS}
SINGLE = {"tabular": {"kind": "tabular"}, "text": {"kind": "text"}}
TEACHERS: dict[str, Any] = {**SINGLE, "ensemble": {"kind": "ensemble", "params": {"members": SINGLE}}}
NONE = "none"
ARMS = (NONE, *TEACHERS)
UNSEEING = ("chance", "centre", "prior")  # maps that have not looked

Seen = dict[str, list[float]]  # of one run, by sample of its validation fold: logit, mass, mass_chance ...


@dataclass(frozen=True)
class Design:
    """What is run; `QUICK` shows that it runs."""

    folds: tuple[int, ...] = (0, 1, 2, 3)
    seeds: tuple[int, ...] = (0, 1)
    epochs: int = 20

    def configs(self, root: Path) -> dict[tuple[str, int, int], TrialConfig]:
        """A run by arm, fold and seed, all arms of a fold and seed together."""
        shared = {key: value for key, value in read_yaml(SPACE).items() if key in ("cohort", "student")}
        shared |= {"optimizer": OPTIMIZER, "epochs": self.epochs, "threads": 1}
        found = {}
        for arm, fold, seed in ((arm, fold, seed) for seed in self.seeds for fold in self.folds for arm in ARMS):
            taught = {} if arm == NONE else {"teachers": {arm: TEACHERS[arm]}, "objectives": OBJECTIVES}
            cohort = shared["cohort"] | {"root": root, "fold": fold}
            found[arm, fold, seed] = TrialConfig.model_validate({**shared, **taught, "cohort": cohort, "seed": seed})
        return found


QUICK = Design(folds=(0, 1), seeds=(100, 101), epochs=1)


def train_one(config: TrialConfig, cache: Path) -> Seen:
    """One run in a worker: what the exported student of the last epoch makes of each validation sample."""
    with tempfile.TemporaryDirectory() as folder:
        reports = train(config, cache, Path(folder))
        student = student_file.read(Path(folder)).student
    store, fold = prepare(config.cohort, cache), config.cohort.fold
    rows, cpu = store.rows("val", fold), torch.device("cpu")
    evaluate = Evaluator(store, rows, config.evaluation, student.grid, cpu, store.rows("train", fold))
    logits_NK, map_NRhw = evaluate.predict(student)
    scores = evaluate.table(map_NRhw, original=True).set_index("sample").loc[store.sample_ids[rows]]
    masses = {name: scores[name].tolist() for name in ("mass", *(f"mass_{name}" for name in UNSEEING))}
    return {"logit": logits_NK[:, 0].tolist(), **masses, "seconds": [report.seconds for report in reports]}


def auroc_over_folds(logit_NF: Floats, positive_N: NDArray[Any], weight_RN: Floats) -> Floats:
    """Mean over folds of the AUROC of those samples that have a logit in it, under each replicate's weights (R)."""
    positive_NF = np.broadcast_to(positive_N[:, None], logit_NF.shape)
    return macro(weighted_auroc(logit_NF, positive_NF, np.isfinite(logit_NF), weight_RN))


def mass_over_folds(mass_NF: Floats, weight_RN: Floats) -> Floats:
    """Mean over folds of the mean mass of those samples that have one in it, under each replicate's weights (R)."""
    return macro(weighted_mean(mass_NF, weight_RN))


def estimate(value_R: Floats) -> Interval:
    """What the first replicate says, in which each patient counts once, and the middle 95 % of the others."""
    return Interval(float(value_R[0]), *interval(value_R[1:]))


class Scores:
    """Every score, by bootstrap replicate; the first is the patients as they are.

    Args:
        answers: logits of each teacher about every sample of the store, by name and fold.
    """

    def __init__(
        self,
        design: Design,
        store: Store,
        seen: Mapping[tuple[str, int, int], Seen],
        answers: Mapping[tuple[str, int], Floats],
    ) -> None:
        self.design, self.seen = design, seen
        rows = {part: {fold: store.rows(part, fold) for fold in design.folds} for part in ("train", "val")}
        self.val = rows["val"]
        self.size = len(store.sample_ids)
        everyone = np.unique(np.concatenate([*rows["train"].values(), *rows["val"].values()]))  # none that is sealed
        weight_RN = np.zeros((REPLICATES + 1, self.size))
        weight_RN[0, everyone] = 1
        weight_RN[1:, everyone] = patient_weights(store.patient_N[everyone], REPLICATES)
        self.num_patients = len(set(store.patient_N[everyone]))
        positive_N = store.target_NK[:, 0]
        self.teachers: dict[tuple[str, str], Floats] = {}  # by name and part
        for name in TEACHERS:
            for part, of_fold in rows.items():
                said_NF = np.full((self.size, len(design.folds)), np.nan)
                for column, fold in enumerate(design.folds):
                    said_NF[of_fold[fold], column] = answers[name, fold][of_fold[fold]]
                self.teachers[name, part] = auroc_over_folds(said_NF, positive_N, weight_RN)
        self.students: dict[tuple[str, str], Floats] = {}  # by arm and score: seeds, replicates
        for arm in ARMS:
            auroc = [
                auroc_over_folds(self._by_fold("logit", arm, seed), positive_N, weight_RN) for seed in design.seeds
            ]
            mass = [mass_over_folds(self._by_fold("mass", arm, seed), weight_RN) for seed in design.seeds]
            self.students |= {(arm, "auroc"): np.stack(auroc), (arm, "mass"): np.stack(mass)}
        seed = design.seeds[0]  # whatever the seed, and the arm
        self.unseeing = {
            name: mass_over_folds(self._by_fold(f"mass_{name}", NONE, seed), weight_RN) for name in UNSEEING
        }

    def _by_fold(self, name: str, arm: str, seed: int) -> Floats:
        value_NF = np.full((self.size, len(self.design.folds)), np.nan)
        for column, fold in enumerate(self.design.folds):
            value_NF[self.val[fold], column] = self.seen[arm, fold, seed][name]
        return value_NF

    def gain(self, arm: str, score: str) -> tuple[Interval, float]:
        """An arm minus `none`, paired by patient, and its standard deviation over seeds."""
        gain_SR = self.students[arm, score] - self.students[NONE, score]
        return estimate(gain_SR.mean(axis=0)), float(gain_SR[:, 0].std(ddof=1))


def tables(scores: Scores) -> Iterable[Table]:
    drawn = Table("teacher", "AUROC out of fold", "AUROC on validation", title="teachers, on what no student may see")
    for name in TEACHERS:
        drawn.add_row(name, *(in_words(estimate(scores.teachers[name, part]), ".3f") for part in ("train", "val")))
    yield drawn
    drawn = Table(
        "student",
        *(head for score in ("AUROC", "mass") for head in (score, "sd", "minus none", "sd")),
        title=f"students: {scores.num_patients} patients, {len(scores.design.folds)} folds, "
        f"{len(scores.design.seeds)} seeds; 95 % intervals over patients, sd over seeds",
    )
    for arm in ARMS:
        cells = []
        for score in ("auroc", "mass"):
            value_SR = scores.students[arm, score]
            cells += [in_words(estimate(value_SR.mean(axis=0)), ".3f"), f"{value_SR[:, 0].std(ddof=1):.3f}"]
            gain, spread = scores.gain(arm, score)
            cells += ["", ""] if arm == NONE else [in_words(gain), f"{spread:.3f}"]
        drawn.add_row(arm, *cells)
    for name, value_R in scores.unseeing.items():
        drawn.add_row(name, *([""] * 4), in_words(estimate(value_R), ".3f"))
    yield drawn


def main() -> None:
    parser = campaign.arguments(__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the published BrEaST folder")
    parser.add_argument("--quick", action="store_true", help="shows that it runs: one epoch of two folds and seeds")
    options = parser.parse_args()
    design = QUICK if options.quick else Design()
    seeds = campaign.seeds_of(parser, options.seeds, design.seeds, "a standard deviation")
    design = replace(design, seeds=seeds)
    configs = design.configs(options.root)
    store = prepare(next(iter(configs.values())).cohort, options.cache)
    answers = {
        (name, fold): cached_outputs(resolve(TeacherConfig.model_validate(one)), store, fold, options.cache, name)
        .arrays["logits"][:, 0]
        .numpy()
        for name, one in TEACHERS.items()
        for fold in design.folds
    }
    kept = options.json and options.json.with_name(f"{options.json.name}.runs")
    seen = campaign.run(configs, train_one, options.workers, options.cache, kept)
    scores = Scores(design, store, seen, answers)
    console = Console(width=150)
    for table in tables(scores):
        console.print(table)
    gains = {f"{arm} {score}": scores.gain(arm, score)[0] for arm in TEACHERS for score in ("auroc", "mass")}
    if options.json:
        figures = {
            "gains": gains,
            "teachers": {" ".join(key): estimate(value_R) for key, value_R in scores.teachers.items()},
            "students": {" ".join(key): estimate(value_SR.mean(axis=0)) for key, value_SR in scores.students.items()},
            "unseeing": {name: estimate(value_R) for name, value_R in scores.unseeing.items()},
        }
        listed = [config.model_dump(mode="json", exclude={"cohort": {"root"}}) for config in configs.values()]
        content = {"command": sys.argv, "versions": versions(), "source": source_hash(), "configs": listed}
        write(options.json, content | figures)
    seconds = [sum(values["seconds"]) for values in seen.values()]
    print(f"{len(seen)} runs of {np.mean(seconds):.0f} s; minus none, above zero: ", end="")
    print(", ".join(name for name, found in gains.items() if found.low > 0) or "nothing", end="; below zero: ")
    print(", ".join(name for name, found in gains.items() if found.high < 0) or "nothing")


if __name__ == "__main__":
    main()
