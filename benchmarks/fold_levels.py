"""Do the five fold models of a teacher stand at one level? Their logits as they come, and as they are brought to one.

    python benchmarks/fold_levels.py [--root DIR] [--seeds 3] [--json FILE]

Of weakly and of normally trained teachers, on the demo's cohort or with --root on BrEaST: AUROC of all out-of-fold
logits together (pooled) and as the mean over folds, which no level changes, and the log loss of a sample, in nats.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mmpkd.cohort.prepare import prepare
from mmpkd.config import CohortConfig, validate
from mmpkd.fit import task_loss
from mmpkd.scoring import classify
from mmpkd.teachers import TEACHERS
from mmpkd.teachers.fitting import folds, out_of_fold

NETWORK = {"model": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4}
DEMO = CohortConfig(reader="synthetic", image_size=48, params={"train": 600, "val": 240, "test": 60, "texture": 0.2})
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "text, 2 epochs": ("text", {"epochs": 2}),
    "text, 10 epochs": ("text", {}),
    "image, 3 epochs": ("image", {"network": NETWORK, "epochs": 3}),
    "fused, 3 epochs": ("fused", {"patch_size": 8, "epochs": 3}),
    "tabular": ("tabular", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="the published BrEaST folder; the demo's cohort by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cohort = DEMO
    if options.root:
        cohort = CohortConfig(reader="breast_lesions_usg", root=options.root, image_size=64)
    figures: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as cache:
        store = prepare(cohort, Path(cache))
        tasks, train = store.facts.tasks, store.rows("train")
        for name, (kind, params) in KINDS.items():
            for seed in range(options.seeds):
                teacher = TEACHERS[kind](validate(TEACHERS[kind].Params, params | {"seed": seed}), store.facts)
                logits_NK, offset_FK = out_of_fold(teacher, store, train, seed)
                fold_N, answered_N = folds(store, train, seed), np.isfinite(logits_NK).all(axis=1)
                rows, fold_N = train[answered_N], fold_N[answered_N]
                labels = store.target_NK[rows], store.known_NK[rows]
                moved_NK = logits_NK[answered_N]
                raw_NK = moved_NK - offset_FK[fold_N]
                by_fold = [
                    classify.score(raw_NK[fold_N == one], *(each[fold_N == one] for each in labels), tasks)["auroc"]
                    for one in range(len(offset_FK))
                ]
                pooled = [classify.score(each, *labels, tasks)["auroc"] for each in (raw_NK, moved_NK)]
                losses = [
                    task_loss(
                        torch.from_numpy(each), torch.from_numpy(labels[0]), torch.from_numpy(labels[1]), tasks
                    ).item()
                    for each in (raw_NK, moved_NK)
                ]
                figures.setdefault(name, []).append([float(np.mean(by_fold)), *pooled, *losses])
    table = Table("teacher", "AUROC by fold", "pooled, raw", "pooled, one level", "log loss, raw", "one level")
    for name, values in figures.items():
        table.add_row(name, *(f"{mean:.3f}" for mean in np.mean(values, axis=0)))
    Console(width=120).print(table)
    if options.json:
        options.json.write_text(json.dumps({"command": sys.argv, "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
