"""The image teacher: the image that it reads, its maps, and how its maps follow the student's view."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmpkd.build import build
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig, TeacherConfig, TrialConfig
from mmpkd.objectives import OBJECTIVES
from mmpkd.teachers import check, resolve
from mmpkd.teachers.cache import CachedOutputs, cached_outputs
from mmpkd.teachers.image import Image, ImageParams
from mmpkd.training.stages import Run
from mmpkd.training.step import epoch_inputs, loss_terms
from mmpkd.types import TeacherOutput
from tests.mmpkd.teacher_fixtures import IMAGE, NETWORK, StoreWithInputs


@pytest.fixture(scope="module")
def store(tiny_cohort: CohortConfig, cache: Path) -> Store:
    return prepare(tiny_cohort, cache)


def test_it_reads_the_view_that_it_is_given(store: Store, tmp_path: Path) -> None:
    tiny_store = StoreWithInputs.open(store.path)
    tiny_store.brightness = np.array([40, 120, 200])[tiny_store.target_NK.argmax(1)]
    tiny_store.fingerprint = "bright"
    params = IMAGE | {"epochs": 6, "lr": 0.003, "augmentation": {"shift": 0.0}}
    superior = cached_outputs(resolve(TeacherConfig(kind="image", params=params)), tiny_store, 0, tmp_path)
    own = cached_outputs(resolve(TeacherConfig(kind="image", params=params | {"view": None})), tiny_store, 0, tmp_path)
    assert superior.quality["auroc"] > 0.95 and superior.quality["val_auroc"] > 0.95
    assert own.quality["val_auroc"] < 0.8


def test_the_map_by_hand(store: Store) -> None:
    """Without keys all patches get equal attention; if only one patch has a key, it gets the most."""
    teacher, val = Image(ImageParams(**IMAGE | {"epochs": 1}), store.facts), store.rows("val")
    teacher.fit(store, store.rows("train"))
    attention: Any = teacher.network.model.blocks[-1].attn
    attention.qkv.weight.zero_()
    attention.qkv.bias.zero_()
    outputs = teacher.outputs(store, val)
    assert outputs.map_Bhw is not None and outputs.embedding_BD is not None and outputs.logits_BK is not None
    torch.testing.assert_close(outputs.map_Bhw, torch.full((len(val), 4, 4), 1 / 16))
    head = teacher.network.model.get_classifier()
    torch.testing.assert_close(head(outputs.embedding_BD), outputs.logits_BK)
    pixels = torch.from_numpy(np.array(store.view("superior")[val])).float() / 255
    with torch.no_grad():
        tokens = teacher.network(pixels, layers=[0]).hidden_BND[0]
    torch.testing.assert_close(outputs.hidden_BD[0], tokens[:, 0])


def test_the_offered_head_computes_logits_from_the_embedding(store: Store, cache: Path) -> None:
    outputs = cached_outputs(resolve(TeacherConfig(kind="image", params=IMAGE)), store, 0, cache)
    val = store.rows("val")
    assert outputs.head is not None
    weight_KD, bias_K = outputs.head
    torch.testing.assert_close(outputs.arrays["embedding"][val] @ weight_KD.T + bias_K, outputs.arrays["logits"][val])


def test_maps_get_the_view_of_the_images(
    store: Store, tiny_trial: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The map that an objective gets matches the student's image, and is flipped if the image is."""
    content = tiny_trial.model_dump() | {
        "augmentation": {"shift": 0.0, "flip_horizontal": True},
        "objectives": {"logits": {}},
    }
    config = TrialConfig.model_validate(content)
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(len(store.sample_ids), 4, 4, generator=generator)
    maps = maps / maps.sum(dim=(1, 2), keepdim=True)
    logits = torch.zeros(len(maps), 3)
    student, objectives = build(config, store.facts, {"findings": 0})
    teachers = {"findings": CachedOutputs({"logits": logits, "map": maps}, {}, 0.0)}
    run = Run(config, store, store.rows("train"), student, objectives, teachers, torch.device("cpu"))
    heard: list[TeacherOutput] = []
    monkeypatch.setattr(OBJECTIVES["logits"], "forward", lambda self, s, t, b: (heard.append(t), s.logits_BK.sum())[1])
    flipped = 0
    for batch, view in map(run.samples.batch, epoch_inputs(run, 0)):
        loss_terms(run, batch, view)
        whole = torch.from_numpy(np.array(store.image_NCHW[batch.rows_B.numpy()])).float() / 255
        for image, seen, own, moved in zip(whole, batch.image_BCHW, maps[batch.rows_B], heard[-1].map_Bhw, strict=True):  # type: ignore[arg-type]
            is_flipped = torch.equal(seen, image.flip(-1))
            assert is_flipped or torch.equal(seen, image)
            torch.testing.assert_close(moved, own.flip(-1) if is_flipped else own)
            flipped += is_flipped
    assert 10 < flipped < 50


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        (
            {"view": "superier"},
            r"params\.view: the cohort has no further image 'superier' \(did you mean 'superior'\?\)",
        ),
        ({"network": NETWORK | {"model": "vit_tny"}}, r"params\.network\.model: timm has no model 'vit_tny'"),
        (
            {"network": NETWORK | {"patch_size": 7}},
            r"params\.network: cohort\.image_size: 32 is not a multiple of its patch",
        ),
        ({"network": NETWORK | {"weights": "x.pt"}}, r"params\.network\.weights: is given but network\.pretrained"),
        ({"network": NETWORK | {"embed_dims": 8}}, r"params\.network\.embed_dims: unknown key"),
    ],
)
def test_refusals_at_planning(store: Store, params: dict[str, Any], problem: str) -> None:
    mistakes = [str(mistake) for mistake in check(TeacherConfig(kind="image", params=IMAGE | params), store.facts)]
    assert len(mistakes) == 1 and re.match(problem, mistakes[0]), mistakes
