"""One tiny teacher of every sort, and stores in which something of a teacher's input is planted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mmpkd.cohort.store import Store
from mmpkd.config import TeacherConfig
from mmpkd.teachers import TEACHERS, resolve
from mmpkd.teachers.cache import CachedOutputs, cached_outputs
from mmpkd.teachers.online import online

NETWORK = {"model": "vit_tiny_patch16_224", "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
TEXT: dict[str, Any] = {"hidden": 16, "epochs": 2, "vocabulary": 100, "max_length": 24}
IMAGE: dict[str, Any] = {"view": "superior", "epochs": 2, "network": NETWORK}
FUSED: dict[str, Any] = {"view": "superior", "epochs": 2, "latents": 4, "dim": 16, "heads": 2}
MEMBERS = {"findings": {"kind": "tabular"}, "report": {"kind": "text", "params": TEXT}}

EXAMPLES = {
    "linear": TeacherConfig(kind="tabular"),
    "mlp": TeacherConfig(kind="tabular", params={"model": "mlp"}),
    "boosting": TeacherConfig(kind="tabular", params={"model": "boosting"}),
    "text": TeacherConfig(kind="text", params=TEXT),
    "image": TeacherConfig(kind="image", params=IMAGE),
    "fused": TeacherConfig(kind="fused", params=FUSED),
    "ensemble": TeacherConfig(kind="ensemble", params={"members": MEMBERS, "weights": "learned_per_sample"}),
}


def outputs_of(config: TeacherConfig, store: Store, cache: Path) -> CachedOutputs:
    """Returns the outputs of a teacher for training and validation samples; views are whole images."""
    if not TEACHERS[config.kind].sees_view:
        return cached_outputs(resolve(config), store, 0, cache)
    teacher = online(resolve(config), store, 0, cache)
    rows = np.r_[store.rows("train"), store.rows("val")]
    output = teacher.at(torch.from_numpy(rows), torch.from_numpy(store.image_NCHW[rows]).float() / 255)
    arrays = {}
    for name, values in {"logits": output.logits_BK, "embedding": output.embedding_BD}.items():
        assert values is not None
        arrays[name] = torch.full((len(store.sample_ids), values.shape[1]), torch.nan)
        arrays[name][rows] = values
    return CachedOutputs(arrays, teacher.quality, teacher.seconds)


class StoreWithInputs(Store):
    """A store whose reports and superior images are given by the test."""

    sentences: np.ndarray  # N, None where there is no report
    brightness: np.ndarray  # N, of the superior image

    def text(self, sections: Sequence[str]) -> pd.DataFrame:
        return pd.DataFrame(dict.fromkeys(sections, self.sentences), index=pd.Index(self.sample_ids))

    def view(self, name: str) -> np.ndarray:
        return np.broadcast_to(self.brightness[:, None, None, None], self.image_NCHW.shape).astype(np.uint8)
