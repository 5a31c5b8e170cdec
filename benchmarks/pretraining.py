"""Does a student that was pre-trained without labels, on several images, learn more from few labels?

    python benchmarks/pretraining.py [--json FILE] [--workers 2] [--seeds 100 101]

The cohort `synthetic` has 1,500 training images, of which 80 have a label; the labels are true and there is no marker.
Three arms, on the same seeds; one seed sets the cohort and the trial, so differences between arms are paired by seed:
    scratch      the student begins with random weights
    several      pre-trained on the main image and the superior one, either of them hidden as a whole at times
    main         pre-trained on the main image alone
All students read the main image alone when they are trained and scored. All train for the same number of epochs on the
same images, so a pre-trained one has had more computation. Scores are those of the last epoch on 300 validation images;
no epoch is chosen, and no knob was tuned: they were tried once, on seed 100, to see that scores are neither at chance
nor at their ceiling (docs/decisions/training.md).

Claim: several minus scratch is above zero in AUROC (95 % t interval over seeds). Exit status 1 if it fails.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from benchmarks import campaign
from benchmarks.campaign import Scores, difference, in_words
from mmpkd.config import TrialConfig
from mmpkd.train import train

SEEDS = (0, 1, 2, 3, 4)
SCORES = ("val/auroc", "val/pointing")
PRETRAIN: dict[str, Any] = {"epochs": 20, "lr": 1e-3, "batch_size": 64, "decoder_width": 64, "decoder_depth": 1}
ARMS: dict[str, dict[str, Any]] = {
    "scratch": {},
    "several": {"pretrain": PRETRAIN | {"views": ["superior"]}},
    "main": {"pretrain": PRETRAIN},
}
PAIRS = (("several", "scratch"), ("main", "scratch"), ("several", "main"))
SHARED: dict[str, Any] = {
    "student": {"model": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4},
    "optimizer": {"lr": 1e-3, "weight_decay": 0.05, "batch_size": 128},
    "augmentation": {"flip_horizontal": True, "flip_vertical": True, "shift": 0.1},
    "epochs": 20,
    "threads": 1,
}
COHORT = {"train": 1500, "labelled": 80, "val": 300, "test": 60, "label_noise": 0.0, "marker": False}


def config_of(arm: str, seed: int) -> TrialConfig:
    """Returns the configuration of an arm."""
    cohort = {"reader": "synthetic", "image_size": 48, "params": COHORT | {"seed": seed}}
    return TrialConfig.model_validate({**SHARED, **ARMS[arm], "cohort": cohort, "seed": seed})


def train_one(config: TrialConfig, cache: Path) -> dict[str, float]:
    """Runs a training in a worker. Returns the last epoch's scores and the seconds of all epochs."""
    reports = train(config, cache)
    scores = {score: reports[-1].metrics[score] for score in SCORES}
    return scores | {"seconds": sum(report.seconds for report in reports)}


def tables(scores: Scores) -> tuple[Table, Table]:
    """Returns the scores of the arms, and their paired differences."""
    arms = Table("arm", *SCORES, "seconds a run", title="mean and standard deviation over seeds")
    for arm, by_seed in scores.items():
        columns = {key: [values[key] for values in by_seed.values()] for key in (*SCORES, "seconds")}
        cells = [f"{np.mean(columns[score]):.3f} ± {np.std(columns[score], ddof=1):.3f}" for score in SCORES]
        arms.add_row(arm, *cells, f"{np.mean(columns['seconds']):.0f}")
    pairs = Table("paired difference", *SCORES, title="mean [95 % t interval over seeds]")
    for pair in PAIRS:
        pairs.add_row(" - ".join(pair), *(in_words(difference(scores, score, *pair)) for score in SCORES))
    return arms, pairs


def main() -> None:
    parser = campaign.arguments(__doc__)
    options = parser.parse_args()
    seeds = campaign.seeds_of(parser, options.seeds, SEEDS)
    configs = {(arm, seed): config_of(arm, seed) for seed in seeds for arm in ARMS}
    kept = options.json and options.json.with_name(f"{options.json.name}.runs")
    done = campaign.run(configs, train_one, options.workers, options.cache, kept)
    scores: Scores = {arm: {seed: done[arm, seed] for seed in seeds} for arm in ARMS}
    for table in tables(scores):
        Console(width=100).print(table)
    gain = difference(scores, "val/auroc", "several", "scratch")
    claims = {f"val/auroc: several minus scratch {in_words(gain)} is above zero": gain.low > 0}
    figures = {"scores": scores, "claims": claims}
    campaign.conclude(options.json, configs.values(), figures, f"pre-training, {len(seeds)} seeds")


if __name__ == "__main__":
    main()
