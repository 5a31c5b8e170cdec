"""A second tiny cohort on disk, for the `table` reader, with properties that the generated cohort lacks.

Colour images of several sizes in which every channel means something; a binary and a multi-label task with unknown
labels; one to four images of a patient, whose rows do not stand together; no official split, so folds are dealt; two
ROI labels, one as masks and one as boxes; privileged columns of every role, a report, and a further image.
Everything that tests recompute they read from the files that are written here, with pandas, numpy and Pillow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from mmpkd.config import CohortConfig

SIDE = 32  # of the stored square
LABELS = ("malignant/malignant", "findings/halo", "findings/shadow")  # the logits, in their order
PARAMS: dict[str, Any] = {
    "file": "cases.csv",
    "image": "image",
    "image_root": "images",
    "patient": "patient",
    "channels": 3,
    "tasks": {
        "malignant": {"kind": "binary", "column": "pathology", "labels": ["benign", "malignant"]},
        "findings": {"kind": "multilabel", "labels": ["halo", "shadow"]},
    },
    "masks": {"lesion": "mask"},
    "boxes": {"node": ["left", "top", "width", "height"]},
    "views": {"mri": "scan"},
    "text": {"report": "report"},
    "columns": {
        "shape": {"role": "descriptor"},
        "signs": {"role": "descriptor", "separator": "|"},
        "size": {"role": "descriptor", "kind": "numeric"},
        "age": {"role": "context", "kind": "numeric"},
        "sex": {"role": "context"},
        "birads": {"role": "near_label"},
        "biopsy": {"role": "forbidden"},
    },
    "missing": ["n/a"],
    "credentialed": False,
}


def write(root: Path, seed: int = 0, patients: int = 50, square: bool = False) -> CohortConfig:
    """Writes the cohort, and returns its configuration.

    Args:
        square: every image is `SIDE` pixels a side, so that its own frame is the stored one; and brighter.
    """
    rng = np.random.default_rng(seed)
    for folder in ("images", "masks", "scans"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rows = []
    for patient in range(patients):
        malignant, halo, shadow = rng.random(3) < (0.4, 0.3, 0.5)
        tint = rng.normal(60 + 40 * square, 50, 3)  # shared by all images of the patient, so that they are similar
        for _ in range(rng.integers(1, 5)):
            own = np.array([malignant, halo ^ (rng.random() < 0.1), shadow ^ (rng.random() < 0.1)])
            rows.append(_image(root, rng, len(rows), patient, own, tint, square))
    table = pd.DataFrame(rows).sample(frac=1, random_state=seed)
    table.to_csv(root / "cases.csv", index=False)
    return config(root)


def config(root: Path, **changes: Any) -> CohortConfig:
    return CohortConfig(reader="table", root=root, image_size=SIDE, params=PARAMS, **changes)


def _image(
    root: Path,
    rng: np.random.Generator,
    number: int,
    patient: int,
    labels: NDArray[np.bool_],
    tint: NDArray[np.float64],
    square: bool,
) -> dict[str, Any]:
    malignant, halo, shadow = labels.tolist()
    height, width = (SIDE, SIDE) if square else [(20, 32), (32, 24), (40, 64), (32, 32)][number % 4]
    # Red encodes malignant, green a halo, blue a shadow.
    picture = 70 * labels + tint + rng.normal(0, 8, (height, width, 3))
    picture[rng.integers(0, height), rng.integers(0, width)] = 255  # so that no two images are equal
    name = f"im{number:03}.png"
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / "images" / name)
    # The further image is cleaner, and has a size of its own.
    clean = 120 * labels + rng.normal(60, 15, 3) + rng.normal(0, 5, (24, 24, 3))
    Image.fromarray(clean.clip(0, 255).astype(np.uint8)).save(root / "scans" / name)
    mask = ""
    if rng.random() < 0.7:
        drawn = np.zeros((height, width), np.uint8)
        row, column = rng.integers(0, height // 2), rng.integers(0, width // 2)
        drawn[row : row + height // 3, column : column + width // 3] = 255
        mask = f"masks/{name}"
        Image.fromarray(drawn).save(root / mask)
    box: list[Any] = [""] * 4
    if rng.random() < 0.4:
        box = [int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2)), width // 4, height // 4]
    unknown = rng.random(3) < (0.08, 0.2, 0.15)
    words = ["rough" if malignant else "smooth", "ring" if halo else "plain", "dark" if shadow else "bright"]
    words = [word if rng.random() < 0.85 else "unclear" for word in words]
    return {
        "image": name,
        "patient": f"p{(patient * 37) % 101:03}",
        "pathology": "n/a" if unknown[0] else "malignant" if malignant else "benign",
        "halo": "" if unknown[1] else str(int(halo)),
        "shadow": "n/a" if unknown[2] else str(int(shadow)),
        "mask": mask,
        **dict(zip(("left", "top", "width", "height"), box, strict=True)),
        "scan": f"scans/{name}",
        "report": "" if rng.random() < 0.15 else f"a {words[0]} lesion {words[1]} and {words[2]}",
        "shape": "irregular" if rng.random() < (0.7 if malignant else 0.2) else rng.choice(["oval", "round", "n/a"]),
        "signs": "|".join(filter(None, ["h" * halo, "s" * shadow])) if rng.random() < 0.7 else "",
        "size": "" if rng.random() < 0.1 else f"{rng.normal(12 + 4 * malignant, 3):.1f}",
        "age": str(rng.integers(30, 80)),
        "sex": ["f", "m"][patient % 2],
        "birads": "5" if malignant else "2",
        "biopsy": "positive" if malignant else "negative",
        "scanner": "x1",
    }


# --- the files again, read without the package ---


def read(root: Path) -> pd.DataFrame:
    """Returns the table by image: every cell as text, with blank and n/a missing; and the labels as numbers."""
    table = pd.read_csv(root / "cases.csv", dtype=str, keep_default_na=False)
    table = table.mask(table.isin(["", "n/a"])).set_index("image")
    table[LABELS[0]] = table["pathology"].map({"benign": 0.0, "malignant": 1.0})
    for name in ("halo", "shadow"):
        table[f"findings/{name}"] = table[name].astype(float)
    return table


def letterboxed(path: Path) -> NDArray[np.uint8]:
    """Returns a file as SIDE x SIDE x 3 uint8: the longest side is scaled to SIDE, the other padded with black."""
    image = Image.open(path).convert("RGB")
    scale = SIDE / max(image.size)
    width, height = (round(side * scale) for side in image.size)
    square = Image.new("RGB", (SIDE, SIDE))
    square.paste(image.resize((width, height), Image.Resampling.BILINEAR), ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.asarray(square)


def regions(root: Path, row: pd.Series) -> dict[str, NDArray[np.bool_]]:
    """Returns masks by ROI label, at the size of the original image, for the labels that are present."""
    result = {}
    if isinstance(row["mask"], str):
        result["lesion"] = np.asarray(Image.open(root / row["mask"])) > 0
    if isinstance(row["left"], str):
        width, height = Image.open(root / "images" / str(row.name)).size
        left, top, wide, high = (int(row[name]) for name in ("left", "top", "width", "height"))
        mask = np.zeros((height, width), bool)
        mask[top : top + high, left : left + wide] = True
        result["node"] = mask
    return result
