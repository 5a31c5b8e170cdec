"""A training through its command, whose files are read without the package; see `colour_cohort.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from scipy.special import expit

from mmpkd.cohort.prepare import prepare
from mmpkd.config import TrialConfig, dump_trial
from mmpkd.train import main
from tests import colour_cohort
from tests.colour_cohort import LABELS, SIDE, letterboxed, regions

Array = NDArray[np.float64]


class Trained(NamedTuple):
    folder: Path  # what the command left
    cache: Path
    raw: Path
    table: pd.DataFrame  # of the raw files
    split: pd.Series  # of each image: its part, as the store says
    reports: list[dict[str, Any]]

    def images(self, part: str) -> pd.DataFrame:
        """Rows of the raw table in a part; fold 1 validates, and fold4 is the sealed test."""
        inside = {"val": ["fold1"], "test": ["test"], "train": ["fold0", "fold2", "fold3"]}[part]
        return self.table.loc[self.split.index[self.split.isin(inside)]]

    @property
    def metrics(self) -> Mapping[str, float]:
        metrics: dict[str, float] = self.reports[-1]["metrics"]
        return metrics


def trained_by(config: TrialConfig, raw: Path, out: Path, cache: Path) -> Trained:
    (out / "trial.yaml").write_text(dump_trial(config))
    main([f"config={out / 'trial.yaml'}", f"out={out / 'out'}", f"cache={cache}"])
    (folder,) = (out / "out").iterdir()
    samples = pd.read_parquet(prepare(config.cohort, cache).path / "samples.parquet").set_index("sample")
    reports = json.loads((folder / "metrics.json").read_text())
    return Trained(folder, cache, raw, colour_cohort.read(raw), samples["split"], reports)


class Student:
    """The exported file, read by timm."""

    def __init__(self, folder: Path):
        with safe_open(folder / "student.safetensors", "pt") as opened:
            self.card = json.loads(opened.metadata()["card"])
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        sizes = {key: value for key, value in self.card["model"].items() if key in ("embed_dim", "depth", "num_heads")}
        options = {"patch_size": self.card["model"]["patch_size"], "img_size": SIDE, "num_classes": len(LABELS)}
        self.network = timm.create_model(self.card["model"]["model"], **sizes, **options).eval()
        self.network.load_state_dict(
            {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
        )

    def logits(self, root: Path, names: pd.Index) -> Array:
        """N x K, of files by name."""
        pixels = np.stack([letterboxed(root / "images" / name) for name in names]) / 255
        inputs = (pixels - self.card["mean"]) / self.card["std"]
        with torch.inference_mode():
            text: Array = self.network(torch.tensor(inputs, dtype=torch.float32).permute(0, 3, 1, 2)).double().numpy()
        return text

    def probabilities(self, root: Path, names: pd.Index) -> Array:
        temperature = self.card["temperature"]
        divisors = [temperature["malignant"], temperature["findings"], temperature["findings"]]
        return np.asarray(expit(self.logits(root, names) / divisors))


def square_regions(trained: Trained, row: pd.Series) -> dict[str, NDArray[np.bool_]]:
    """Returns masks in the stored square: the pixels that are covered at least by half."""
    result = {}
    for label, mask in regions(trained.raw, row).items():
        scale = SIDE / max(mask.shape)
        size = tuple(round(side * scale) for side in mask.shape)
        covered = Image.fromarray(mask.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BOX)
        square = np.zeros((SIDE, SIDE), bool)
        top, left = ((SIDE - side) // 2 for side in size)
        square[top : top + size[0], left : left + size[1]] = np.asarray(covered) >= 0.4999
        result[label] = square
    return result


def letter_size(path: Path) -> tuple[int, int]:
    """Height and width of an image inside its square."""
    image = Image.open(path)
    width, height = (round(side * SIDE / max(image.size)) for side in image.size)
    return height, width


def bootstrapped(values: Any, groups: NDArray[Any], replicates: int = 400) -> float:
    """Standard error of `values(rows)` over whole groups drawn with replacement."""
    rng = np.random.default_rng(7)
    names = np.unique(groups)
    members = {name: np.flatnonzero(groups == name) for name in names}
    drawn = (rng.choice(names, len(names)) for _ in range(replicates))
    result = np.array([values(np.concatenate([members[name] for name in entry])) for entry in drawn])
    return float(np.nanstd(result, ddof=1))


def cross_entropy(target: Array, logit: Array) -> Array:
    return np.logaddexp(0, logit) - target * logit
