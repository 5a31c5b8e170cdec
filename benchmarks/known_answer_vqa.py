"""Does a teacher that answers make a student that answers better where we know that it should?

    python benchmarks/known_answer_vqa.py [--json FILE] [--workers 2] [--seeds 100 101] [--quick]

On the cohort `synthetic_vqa` (see its docstring) a quarter of the training images have answers. The teacher learns
these, on the view `superior`, in which the grey value of a lesion tells its class too, so that few images suffice. It
has never seen the true answers of the others. One seed sets the cohort and the training, so that differences between
arms are paired by seed:
    labels       the answered quarter alone
    pseudo       and the teacher's generated answers for the other images
    kl           as pseudo, with the loss (KL + CE) / 2; the KL is that of the answer tokens of all targets, thus of the
                 teacher's own answers where there is no true one
    shuffled     as pseudo, each image with the answers that the teacher gives for an image of another patient
    all labels   the true answers of all images
    gap          as pseudo, with `border_gap: 2`
    corrected    as pseudo, with one round of correction in the middle
All arms take the same number of steps of the same size: an arm with a quarter of the items has four times as many
epochs. The arms share one teacher for each seed, but for `corrected`: its teacher sees the true answer in a quarter of
its training items, because corrections need that. Scores are those of the last epoch on the validation images; no epoch
is chosen. Sizes were chosen on seeds 100 and 101, which no declared run uses.

This is the third declared run, and shows the effect (docs/results.md). The first two did not: without the grey value,
the teacher answered no better than labels alone from the same quarter of the images.

The primary goal is `val/answer`. Claims: pseudo minus labels is above zero in it (95 % t interval over seeds), and
shuffled minus labels is not; and the run reaches past the jump in localisation, so that the mean `val/recall50` of all
labels is above one half. Exit status 1 if one fails. The other differences are reported, whatever they are.

With --json, finished runs are kept in FILE.runs and not run again by the same code.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks import campaign
from benchmarks.campaign import Scores, difference, in_words
from mmpkd.cohort.prepare import prepare
from mmpkd.config import TrialConfig
from mmpkd.vlm.training.run import VlmRun

PRIMARY, POINTING = "val/answer", "val/recall50"
GOALS = (PRIMARY, POINTING)
KEPT = (*GOALS, "val/RO/containment", "val/MII/containment", "val/VG/mean_iou")
CHANCE = ("val/answer_frequent", "val/recall50_mean_box")
TEACHER = ("teacher/answer", "teacher/recall50")
LABELLED = 0.25
JUMP = 0.5  # a recall above it is past the jump in localisation

PSEUDO: dict[str, Any] = {"pseudo_labels": {"use": True}}
SHUFFLED = {"control": "shuffled"}
ARMS: dict[str, dict[str, Any]] = {
    "labels": {},
    "pseudo": {"distillation": PSEUDO},
    "shuffled": {"distillation": PSEUDO, "teacher": SHUFFLED},
    "all labels": {},
    "kl": {"distillation": PSEUDO | {"kl": {"weight": 1.0, "temperature": 1.0}}},
    "gap": {"distillation": PSEUDO, "student": {"positions": {"border_gap": 2}}},
    "corrected": {"distillation": PSEUDO | {"corrections": {"rounds": 1}}, "teacher": {"hints": 0.25}},
}
PAIRS = (
    ("pseudo", "labels"),
    ("kl", "labels"),
    ("shuffled", "labels"),
    ("all labels", "labels"),
    ("kl", "pseudo"),
    ("gap", "pseudo"),
    ("corrected", "pseudo"),
)


@dataclass(frozen=True)
class Design:
    """What is run; `QUICK` is the reduced form that a test affords. It shows no effect."""

    seeds: tuple[int, ...] = (30, 31, 32, 33, 34)
    images: int = 384  # of the training part
    val: int = 200
    epochs: int = 27  # of 32 steps, in an arm in which all images have a target
    width: int = 32  # of the image encoder
    batch_size: int = 48

    def configs(self) -> dict[tuple[str, int], TrialConfig]:
        """Returns the configurations by arm and seed; the arms of the claims come first, each with all its seeds."""
        return {(arm, seed): self._config(arm, seed) for arm in ARMS for seed in self.seeds}

    def _config(self, arm: str, seed: int) -> TrialConfig:
        parts, labelled = ARMS[arm], 1.0 if arm == "all labels" else LABELLED
        repeats = round(1 / LABELLED)  # epochs on the answered quarter that have the steps of one on all images
        model = {
            "max_new_tokens": 16,
            "box_steps": 12,
            "vision": {"patch_size": 4, "width": self.width},
        }
        teacher = {"reads": ["superior"], "epochs": repeats * self.epochs}
        teacher |= {"learning_rate": 2e-3, "batch_size": self.batch_size}
        distillation = parts.get("distillation", {})
        if distillation:
            distillation = distillation | {"teacher": model | teacher | {"seed": seed} | parts.get("teacher", {})}
        images = {"train": self.images, "val": self.val, "test": 8, "labelled": labelled}
        return TrialConfig.model_validate(
            {
                "cohort": {
                    "reader": "synthetic_vqa",
                    "image_size": 48,
                    "params": images | {"texture": 0.4, "tint": 0.2, "darkness": 0.3, "seed": seed},
                },
                "student": {"kind": "vlm"} | model | parts.get("student", {}),
                "optimizer": {"lr": 2e-3, "batch_size": self.batch_size},
                "distillation": distillation,
                "epochs": repeats * self.epochs if arm == "labels" else self.epochs,
                "seed": seed,
                "threads": 1,
            }
        )


QUICK = Design(seeds=(100, 101), images=8, val=4, epochs=2, width=16, batch_size=8)


def train_one(config: TrialConfig, cache: Path) -> dict[str, float]:
    """Runs a training in a worker. Returns the last epoch's scores, those of the teacher, and the number of steps.

    It is that of `mmpkd.train` without checkpoints, and with one validation, because validations cost more than epochs.
    """
    import torch

    torch.set_num_threads(config.threads)
    run, step = VlmRun(config, prepare(config.cohort, cache), cache), 0
    for epoch in range(config.epochs):
        _, step = run.train_epoch(epoch, step)
    metrics = run.metrics(complete=True)
    return {name: metrics[name] for name in (*KEPT, *CHANCE, *TEACHER) if name in metrics} | {"steps": step}


def verdicts(scores: Scores) -> dict[str, bool]:
    """Returns each claim, with its numbers, and whether it holds."""
    real, control = (difference(scores, PRIMARY, arm, "labels") for arm in ("pseudo", "shuffled"))
    reached = mean_of(scores["all labels"], POINTING)
    return {
        f"{PRIMARY}: pseudo minus labels {in_words(real)} is above zero": real.low > 0,
        f"{PRIMARY}: shuffled minus labels {in_words(control)} is not above zero": control.low <= 0,
        f"{POINTING}: {reached:.3f} of all labels is above {JUMP}, past the jump in localisation": reached > JUMP,
    }


def mean_of(by_seed: dict[int, dict[str, float]], score: str) -> float:
    """Returns the mean of a score over seeds."""
    return float(np.mean([values[score] for values in by_seed.values()]))


def tables(scores: Scores) -> tuple[Table, Table]:
    """Returns the scores of the arms, and their paired differences."""
    arms = Table("arm", *KEPT, title="mean ± standard deviation over seeds")
    for arm, by_seed in scores.items():
        spread = {name: np.std([values[name] for values in by_seed.values()], ddof=1) for name in KEPT}
        arms.add_row(arm, *(f"{mean_of(by_seed, name):.3f} ± {spread[name]:.3f}" for name in KEPT))
    for name, keys, arm in (("teacher", TEACHER, "pseudo"), ("no image seen", CHANCE, "labels")):
        arms.add_row(name, *(f"{mean_of(scores[arm], key):.3f}" for key in keys))
    pairs = Table("paired difference", *GOALS, title="mean [95 % t interval over seeds]")
    for treated, control in PAIRS:
        cells = (in_words(difference(scores, goal, treated, control)) for goal in GOALS)
        pairs.add_row(f"{treated} - {control}", *cells)
    return arms, pairs


def main() -> None:
    parser = campaign.arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, and no effect")
    options = parser.parse_args()
    design = QUICK if options.quick else Design()
    design = replace(design, seeds=campaign.seeds_of(parser, options.seeds, design.seeds))
    kept = options.json and options.json.with_name(f"{options.json.name}.runs")
    configs = design.configs()
    done = campaign.run(configs, train_one, options.workers, options.cache, kept)
    scores: Scores = {arm: {seed: done[arm, seed] for seed in design.seeds} for arm in ARMS}
    for table in tables(scores):
        Console(width=120).print(table)
    figures = {"scores": scores, "claims": verdicts(scores)}
    campaign.conclude(options.json, configs.values(), figures, f"known answer of questions, {len(design.seeds)} seeds")


if __name__ == "__main__":
    main()
