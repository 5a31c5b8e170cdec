"""The address of a teacher in the cache changes with everything that determines its outputs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from safetensors.torch import load_file, save_file
from timm.models import VisionTransformer

from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import TeacherConfig, TrialConfig
from mmpkd.teachers import TEACHERS, resolve, text_encoders
from mmpkd.teachers.cache import CachedOutputs, fit_or_load
from tests.mmpkd.teacher_fixtures import EXAMPLES, NETWORK

ENCODER: dict[str, Any] = {"frozen": True, "max_length": 24}


@pytest.fixture
def store(colour_trial: TrialConfig, cache: Path) -> Store:
    return prepare(colour_trial.cohort, cache)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a tiny text encoder that `save_pretrained` wrote."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer, model = text_encoders.build(["a rough lesion", "a smooth ring"], 50, 16, 2, 2, 24)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def address(config: TeacherConfig, store: Store, cache: Path, fold: int = 0) -> str:
    """Returns the name of the cache folder of a teacher, without fitting it."""
    logits = np.random.default_rng(0).normal(size=store.target_NK.shape).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmpkd.teachers.cache.instantiate", lambda *_: None)
        patch.setattr("mmpkd.teachers.cache.cached_outputs", lambda *_: CachedOutputs({}, {}, 0.0))  # of members
        folder, _ = fit_or_load(resolve(config), store, fold, cache, "one", lambda *_: {"logits": logits})
    return folder.name


def among(config: TeacherConfig) -> TeacherConfig:
    """Returns an ensemble with this teacher as a member."""
    members = {"one": config.model_dump(), "other": {"kind": "tabular"}}
    return TeacherConfig(kind="ensemble", params={"members": members})


def text(folder: Path) -> TeacherConfig:
    return TeacherConfig(kind="text", params=ENCODER | {"encoder": str(folder)})


@pytest.mark.parametrize("kind", EXAMPLES)
def test_seed_fold_version_and_data_change_the_address(
    kind: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EXAMPLES[kind]
    if "view" in config.params:
        config = TeacherConfig(kind=config.kind, params=config.params | {"view": "mri"})
    first = address(config, store, tmp_path)
    assert address(config, store, tmp_path) == first
    found = [
        address(config.model_copy(update={"params": dict(config.params) | {"seed": 1}}), store, tmp_path),
        address(config, store, tmp_path, fold=1),
    ]
    plain = store.sample_ids
    others = np.setdiff1d(np.arange(len(plain)), store.rows("train"))
    store.sample_ids = plain.copy()
    store.sample_ids[others] = plain[others[::-1]]  # rows in another order, but for the training samples
    found.append(address(config, store, tmp_path))
    store.sample_ids, store.fingerprint = plain, "other labels"
    found.append(address(config, store, tmp_path))
    store = Store.open(store.path)
    parts = {"train": np.arange(1, 41), "val": np.arange(60, 80)}
    with monkeypatch.context() as patch:  # as many training samples as others have, and not the same
        for start in (0, 1):
            patch.setattr(Store, "rows", lambda self, part, fold, start=start: parts[part] - start)
            found.append(address(config, store, tmp_path))
    monkeypatch.setattr(TEACHERS[config.kind], "VERSION", 1000)
    found.append(address(config, store, tmp_path))
    assert len({first, *found}) == 8


def test_the_version_of_a_member_changes_the_address(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = address(among(EXAMPLES["text"]), store, tmp_path)
    monkeypatch.setattr(TEACHERS["text"], "VERSION", 1000)
    assert address(among(EXAMPLES["text"]), store, tmp_path) != first


@pytest.mark.parametrize("within", [lambda one: one, among], ids=["alone", "in an ensemble"])
def test_the_content_of_encoder_files_changes_the_address(
    within: Callable[[TeacherConfig], TeacherConfig], saved: Path, store: Store, tmp_path: Path
) -> None:
    copy = shutil.copytree(saved, tmp_path / "copy")
    first = address(within(text(copy)), store, tmp_path)
    weights = load_file(copy / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, copy / "model.safetensors", {"format": "pt"})
    trained = address(within(text(copy)), store, tmp_path)
    assert trained != first
    shutil.copy(saved / "model.safetensors", copy)
    assert address(within(text(copy)), store, tmp_path) == first
    vocabulary = (copy / "tokenizer.json").read_text()
    (copy / "tokenizer.json").write_text(vocabulary + " ")
    assert address(within(text(copy)), store, tmp_path) not in (first, trained)


@pytest.mark.parametrize("within", [lambda one: one, among], ids=["alone", "in an ensemble"])
def test_the_content_of_pretrained_weights_changes_the_address(
    within: Callable[[TeacherConfig], TeacherConfig], store: Store, tmp_path: Path
) -> None:
    sizes = {key: value for key, value in NETWORK.items() if key != "model"}
    network: VisionTransformer = timm.create_model(NETWORK["model"], img_size=32, **sizes)
    file = tmp_path / "weights.safetensors"
    found = []
    for shift in (0, 1):
        save_file({name: value + shift for name, value in network.state_dict().items()}, file)
        params = {"view": "mri", "network": NETWORK | {"pretrained": True, "weights": str(file)}}
        found.append(address(within(TeacherConfig(kind="image", params=params)), store, tmp_path))
    assert found[0] != found[1]
