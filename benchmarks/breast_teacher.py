"""Is the tabular teacher as good as the table allows? Out-of-fold AUROC on all of BrEaST.

    python benchmarks/breast_teacher.py --root DIR [--json FILE]

The product's own teacher (linear, defaults) on descriptors and clinical columns, five patient-grouped
folds over all 252 labelled images; beside it what an independent scikit-learn pipeline reaches on the
same columns (`shared/reference`: 0.91) and what 32 x 32 pixels alone reach (0.70).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmpkd.cohort.prepare import prepare
from mmpkd.config import CohortConfig
from mmpkd.teachers.fitting import out_of_fold
from mmpkd.teachers.tabular import Tabular, TabularParams

LOW, HIGH = 0.86, 0.95
DESCRIPTORS = ("Shape", "Margin", "Echogenicity", "Posterior_features", "Halo", "Calcifications", "Skin_thickening")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the published BrEaST folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        store = prepare(CohortConfig(reader="breast_lesions_usg", root=options.root, image_size=32), Path(cache))
        rows, label = np.arange(len(store.sample_ids)), store.target_NK[:, 0]
        tables = {
            "descriptors and clinical columns": TabularParams(),
            "descriptors only": TabularParams(columns=DESCRIPTORS),
            "descriptors and clinical columns, small MLP": TabularParams(model="mlp"),
            "with BIRADS (near_label)": TabularParams(near_label=("BIRADS",)),
        }
        figures = {
            name: [
                roc_auc_score(label, out_of_fold(Tabular(params, store.facts), store, rows, seed).logits_NK[:, 0])
                for seed in range(5)
            ]
            for name, params in tables.items()
        }
        pixels = store.image_NCHW[:].reshape(len(rows), -1) / 255
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=5000))
    figures["32 x 32 pixels alone"] = [
        roc_auc_score(
            label,
            cross_val_predict(
                model, pixels, label, cv=StratifiedKFold(5, shuffle=True, random_state=s), method="decision_function"
            ),
        )
        for s in range(5)
    ]
    table = Table("input", "out-of-fold AUROC, 5 draws of the folds", "sd")
    for name, values in figures.items():
        table.add_row(name, f"{np.mean(values):.3f}", f"{np.std(values, ddof=1):.3f}")
    Console().print(table)
    found = float(np.mean(figures["descriptors and clinical columns"]))
    if options.json:
        options.json.write_text(json.dumps({"command": sys.argv, "samples": len(rows), "figures": figures}, indent=1))
    print(f"{len(rows)} images; {found:.3f}, wanted {LOW} to {HIGH}: {'PASS' if LOW <= found <= HIGH else 'FAIL'}")


if __name__ == "__main__":
    main()
