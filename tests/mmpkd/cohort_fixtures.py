"""A small cohort on disk for the `table` reader, every file of it written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from mmpkd.config import CohortConfig

PARAMS: dict[str, Any] = {
    "file": "cases.csv",
    "image": "image",
    "image_root": "images",
    "patient": "patient",
    "tasks": {"malignant": {"kind": "binary", "column": "pathology", "labels": ["benign", "malignant"]}},
    "masks": {"lesion": "mask"},
    "columns": {
        "shape": {"role": "descriptor"},
        "signs": {"role": "descriptor", "separator": "|"},
        "age": {"role": "context", "kind": "numeric"},
        "birads": {"role": "near_label"},
        "biopsy": {"role": "forbidden"},
    },
    "missing": ["n/a"],
    "credentialed": False,
}


def cases(num_patients: int = 30) -> pd.DataFrame:
    """Returns a table with two images per patient; every third patient is malignant, odd images have no mask."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(2 * num_patients):
        malignant = (index // 2) % 3 == 0
        rows.append(
            {
                "image": f"case{index}.png",
                "patient": f"p{index // 2}",
                "pathology": "malignant" if malignant else "benign",
                "mask": f"masks/case{index}.png" if index % 2 == 0 else "",
                "shape": str(rng.choice(["oval", "round", "n/a"])),
                "signs": str(rng.choice(["halo", "halo|shadow", ""])),
                "age": str(rng.integers(30, 80)),
                "birads": "5" if malignant else "2",
                "biopsy": "positive" if malignant else "negative",
                "scanner": "x1",
            }
        )
    return pd.DataFrame(rows)


def write_cohort(root: Path, table: pd.DataFrame | None = None, depth: int = 8) -> pd.DataFrame:
    """Writes images of 20 x 30 pixels (height x width), grey 2 x position; lesions in rows 5-9, columns 10-19."""
    table = cases() if table is None else table
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index, row in table.reset_index(drop=True).iterrows():
        grey = np.full((20, 30), 2 * int(str(index)), np.uint8 if depth == 8 else np.uint16)
        Image.fromarray(grey if depth == 8 else grey * np.uint16(100)).save(root / "images" / row["image"])
        if row["mask"]:
            write_mask(root / row["mask"], (20, 30))
    table.to_csv(root / "cases.csv", index=False)
    return table


def write_mask(path: Path, shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, np.uint8)
    mask[5:10, 10:20] = 255
    Image.fromarray(mask).save(path)


def config(root: Path, *, max_bad: float = 0.0, image_size: int = 15, **params: Any) -> CohortConfig:
    """Returns the configuration of `write_cohort`, with some params replaced."""
    return CohortConfig(reader="table", root=root, image_size=image_size, max_bad=max_bad, params={**PARAMS, **params})
