"""What benchmarks/gpu.py trains: its models and sizes, and cohorts of any size that repeat a small store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import MANIFEST, Store
from mmpkd.config import CohortConfig, TrialConfig

DEMO = "demo"  # the student of search_spaces/demo.yaml
DEMO_STUDENT = {"model": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4}


@dataclass(frozen=True)
class Model:
    """A student, and the side of the images that it reads."""

    name: str
    student: Mapping[str, Any]
    image_size: int


@dataclass(frozen=True)
class Scale:
    """How large everything is: FULL on a GPU, QUICK on a CPU."""

    models: tuple[Model, ...]
    cells: tuple[tuple[str, int], ...]  # pairs of model and batch size; the ones with a target come first
    num_train: int = 2400
    num_val: int = 600
    seconds: float = 1.0  # how long each variant is timed after its warm-up
    matmul: int = 8192  # side of the square matrices of the measured peak
    profiled: tuple[int, int] = (4, 12)  # numbers of steps of the two profiles whose difference counts
    packed: tuple[int, ...] = (1, 2, 4, 8)
    packed_cells: tuple[tuple[str, int], ...] = ((DEMO, 32), ("ViT-Ti/16", 16), ("ViT-S/16", 64))
    epoch_cells: tuple[tuple[str, int], ...] = (("ViT-S/16", 64), ("ViT-Ti/16", 16), (DEMO, 32))
    taught_cells: tuple[tuple[str, int], ...] = (("ViT-Ti/16", 16), ("ViT-S/16", 64))
    encoder: tuple[int, int, int] = (384, 6, 128)  # width and layers of the live text teacher, and tokens that it reads
    equal_cells: tuple[tuple[str, int], ...] = ((DEMO, 32), ("ViT-Ti/16", 16))
    equal_steps: tuple[int, int] = (5, 10)  # epochs, and steps in each of them, after which trainings are compared
    execution_cells: tuple[tuple[str, int], ...] = (("ViT-Ti/16", 16), ("ViT-S/16", 64))
    executions: tuple[str, ...] = ("compile", "eager")  # what is measured elsewhere is `graph` on a GPU
    sizes: Mapping[str, Model] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", {model.name: model for model in self.models})

    def steps(self, batch_size: int) -> int:
        """Returns the number of whole batches in an epoch."""
        return max(1, self.num_train // batch_size)

    def most_steps(self, batch_size: int) -> int:
        """Returns the largest number of steps that a variant takes at once."""
        return max(self.steps(batch_size), self.profiled[1])


def _vit(name: str, model: str) -> Model:
    return Model(name, {"model": model}, 224)


FULL = Scale(
    models=(
        Model(DEMO, DEMO_STUDENT, 48),
        _vit("ViT-Ti/16", "vit_tiny_patch16_224"),
        _vit("ViT-S/16", "vit_small_patch16_224"),
        _vit("ViT-B/16", "vit_base_patch16_224"),
    ),
    cells=(
        (DEMO, 32),
        ("ViT-Ti/16", 16),
        ("ViT-S/16", 64),
        ("ViT-S/16", 256),
        ("ViT-B/16", 256),
        ("ViT-Ti/16", 64),
        ("ViT-S/16", 16),
        ("ViT-B/16", 64),
        ("ViT-B/16", 16),
        ("ViT-Ti/16", 256),
    ),
)
_SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
QUICK = Scale(
    models=(
        Model(DEMO, DEMO_STUDENT, 48),
        Model("ViT-Ti/16", {"model": "vit_tiny_patch16_224", **_SMALL}, 32),
        Model("ViT-S/16", {"model": "vit_small_patch16_224", **_SMALL}, 32),
    ),
    cells=((DEMO, 32), ("ViT-Ti/16", 16), ("ViT-S/16", 64)),
    num_train=192,
    num_val=96,
    seconds=0.2,
    matmul=512,
    profiled=(1, 3),
    packed=(1, 2),
    packed_cells=((DEMO, 32),),
    epoch_cells=((DEMO, 32),),
    taught_cells=(("ViT-Ti/16", 16),),
    encoder=(64, 2, 16),
    equal_cells=((DEMO, 32), ("ViT-Ti/16", 16)),
    execution_cells=(("ViT-Ti/16", 16),),
    executions=("eager",),
)


def config_of(model: Model, batch_size: int, execution: str = "auto") -> TrialConfig:
    """Returns the configuration of one training, which has no teachers."""
    return TrialConfig.model_validate(
        {
            "cohort": {"reader": "synthetic", "image_size": model.image_size},
            "student": dict(model.student),
            "optimizer": {"batch_size": batch_size, "lr": 1e-4},
            "epochs": 100_000,  # more than are run: on a GPU, an epoch of the smallest student takes milliseconds
            "execution": execution,
        }
    )


class Cohorts:
    """The cohorts of a run of the benchmark, one for each size of image, in a temporary folder.

    Args:
        carried: a folder that may hold `store`, a prepared cohort, whose images are used at their own size. At all
            other sizes the synthetic cohort is prepared.
    """

    def __init__(self, scale: Scale, folder: Path, carried: Path) -> None:
        self.scale, self.folder = scale, folder
        self.carried = Store.open(carried / "store") if (carried / "store" / MANIFEST).exists() else None
        self.origin: dict[int, str] = {}

    def path(self, image_size: int) -> Path:
        """Returns the folder of the repeated store of this image size, which is written when it is first needed."""
        folder = self.folder / f"repeated-{image_size}"
        if not (folder / MANIFEST).exists():
            small = self._small(image_size)
            self.origin[image_size] = small.path.name
            repeat(small, folder, self.scale.num_train, self.scale.num_val)
        return folder

    def store(self, image_size: int) -> Store:
        return open_repeated(self.path(image_size))

    def _small(self, image_size: int) -> Store:
        if self.carried is not None and self.carried.facts.image_size == image_size:
            return self.carried
        params = {"train": 96, "val": 48, "test": 12}
        config = CohortConfig(reader="synthetic", image_size=image_size, params=params)
        return prepare(config, self.folder / "cache")


def repeat(small: Store, folder: Path, num_train: int, num_val: int) -> None:
    """Writes a store in which the training and validation samples of a smaller store are repeated until there are
    enough of them. Each repetition counts as another sample of another patient."""
    parts = {"train": np.resize(small.rows("train"), num_train), "val": np.resize(small.rows("val"), num_val)}
    rows: NDArray[np.int64] = np.concatenate(list(parts.values()))
    names = np.array([f"s{position:06}" for position in range(len(rows))])
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", small.images(rows))
    samples = pd.read_parquet(small.path / "samples.parquet")
    old_names = samples["sample"].to_numpy(dtype=str)[rows]
    repeated = samples.iloc[rows].assign(
        sample=names, patient=names, split=np.repeat(list(parts), list(map(len, parts.values())))
    )
    repeated.to_parquet(folder / "samples.parquet")
    rois = pd.read_parquet(small.path / "rois.parquet") if small.facts.roi_labels else pd.DataFrame({"sample": []})
    pairs = pd.DataFrame({"sample": old_names, "new": names}).merge(rois, on="sample")
    pairs.drop(columns="sample").rename(columns={"new": "sample"}).to_parquet(folder / "rois.parquet")
    (folder / MANIFEST).write_text(json.dumps({**small.manifest, "fingerprint": folder.name}))


def open_repeated(folder: Path) -> Store:
    """Opens a store that `repeat` wrote. Its manifest has no checksums of its own, so that `Store.open` refuses it."""
    return Store(folder, json.loads((folder / MANIFEST).read_text()))


def write_pngs(store: Store, folder: Path, most: int = 256) -> list[Path]:
    """Writes the first training images of a store as PNG files, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for row in store.rows("train")[:most]:
        pixels = store.images(np.array([row]))[0].transpose(1, 2, 0)
        paths.append(folder / f"{row}.png")
        if not paths[-1].exists():
            Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(paths[-1])
    return paths
