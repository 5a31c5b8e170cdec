"""Does the tabular teacher know what CBIS-DDSM's descriptions know? Test AUROC on the official split.

    python benchmarks/cbis_teacher.py --root DIR [--json FILE]

DIR holds the four case description files; no image is read. The product's own linear teacher is fitted to
the training rows of a kind, a row an abnormality, and scored on its test rows, target MALIGNANT. Beside it
the independent reference (one-hot, ridge-penalised logistic regression, `shared/reference/mmpkd.md` 3.5),
within 0.02 of which it must be; near 0.5 on all columns, rows and labels would be joined wrongly.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, it finds itself
from mmpkd.cohort.readers.cbis_ddsm.reader import OF_KIND, CbisDdsm, CbisDdsmParams
from mmpkd.teachers.tabular import Tabular, TabularParams

WITHIN = 0.02
CONTEXT = ("breast_density", "left_or_right_breast", "image_view")
REFERENCE = {  # mass, calc
    "density, side, view, subtlety, descriptors, assessment": (0.886, 0.878),
    "the same without assessment": (0.834, 0.801),
    "density, side, view": (0.478, 0.548),
}


class Described:
    """What a teacher reads of a store, from the description files alone."""

    def __init__(self, root: Path, kind: str):
        reader = CbisDdsm(root, CbisDdsmParams(kinds=(kind,), rows="abnormality"))
        scan, _ = reader.describe()
        self.facts = scan.facts(image_size=1, credentialed=False)
        self.target_NK = scan.labels.to_numpy(np.float32)
        self.known_NK = np.ones(self.target_NK.shape, bool)
        self.part_N = scan.samples["split"].to_numpy(str)
        self._privileged = scan.privileged

    def privileged(self, names: list[str]) -> pd.DataFrame:
        return self._privileged[names]


def columns_of(kind: str) -> dict[str, TabularParams]:
    descriptors = tuple(column.name for column in OF_KIND[kind])
    most = (*CONTEXT, "subtlety", *descriptors)
    asked = (TabularParams(columns=most, near_label=("assessment",)), TabularParams(columns=most))
    return dict(zip(REFERENCE, (*asked, TabularParams(columns=CONTEXT)), strict=True))


def auroc(described: Described, params: TabularParams) -> float:
    teacher = Tabular(params, described.facts)
    teacher.fit(described, np.flatnonzero(described.part_N == "train"))
    test = np.flatnonzero(described.part_N == "test")
    logit_N = teacher.outputs(described, test).logits_BK[:, 0].numpy()
    return float(roc_auc_score(described.target_NK[test, 0], logit_N))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the folder of the four description files")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kinds = {kind: Described(options.root, kind) for kind in OF_KIND}
    found = {
        name: {kind: auroc(described, columns_of(kind)[name]) for kind, described in kinds.items()}
        for name in REFERENCE
    }
    table = Table("columns", *(word for kind in kinds for word in (f"{kind}, test AUROC", "reference")))
    for name, values in found.items():
        pairs = zip(values.values(), REFERENCE[name], strict=True)
        table.add_row(name, *(f"{value:.3f}" for pair in pairs for value in pair))
    Console(width=120).print(table)
    worst = max(
        abs(value - wanted)
        for name, values in found.items()
        for value, wanted in zip(values.values(), REFERENCE[name], strict=True)
    )
    if options.json:
        options.json.write_text(json.dumps({"command": sys.argv, "found": found, "reference": REFERENCE}, indent=1))
    print(f"furthest from its reference: {worst:.3f}, at most {WITHIN}: {'PASS' if worst <= WITHIN else 'FAIL'}")


if __name__ == "__main__":
    main()
