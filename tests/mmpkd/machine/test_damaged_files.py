"""Damaged files of the cache and damaged checkpoints are reported with their path and the way to continue."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mmpkd import checkpoint
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig, TeacherConfig
from mmpkd.teachers import resolve
from mmpkd.teachers.cache import cached_outputs
from mmpkd.types import CohortError, ConfigError, TeacherError
from tests.damage import BINARY, harm, mended


def test_a_damaged_store_is_reported(tiny_cohort: CohortConfig, cache: Path, tmp_path: Path) -> None:
    store = prepare(tiny_cohort, cache)
    folder = shutil.copytree(store.path, tmp_path / "stores" / store.path.name)
    for saved in sorted(path for path in store.path.rglob("*") if path.is_file()):
        path = folder / saved.relative_to(store.path)
        for kind in BINARY:
            harm(path, kind)
            with pytest.raises(CohortError, match=rf"{path.name}.*delete it") as error:
                Store.open(folder)
            assert str(folder) in str(error.value)
            mended(path, saved)
    Store.open(folder)
    other = folder.rename(folder.with_name("synthetic-0123456789abcdef"))
    with pytest.raises(CohortError, match="holds another cohort"):
        Store.open(other)


def test_damaged_teacher_outputs_are_reported(tiny_cohort: CohortConfig, cache: Path, tmp_path: Path) -> None:
    store, config = prepare(tiny_cohort, cache), TeacherConfig(kind="tabular")
    cached_outputs(resolve(config), store, 0, tmp_path)
    (folder,) = (path for path in (tmp_path / "teachers").iterdir() if path.is_dir())
    whole = shutil.copytree(folder, tmp_path / "whole")
    for saved in sorted(whole.iterdir()):
        for kind in BINARY:
            harm(folder / saved.name, kind)
            with pytest.raises(TeacherError, match="delete that folder") as error:
                cached_outputs(resolve(config), store, 0, tmp_path)
            assert str(folder) in str(error.value)
            mended(folder / saved.name, saved)
    cached_outputs(resolve(config), store, 0, tmp_path)


@pytest.mark.parametrize("kind", [kind for kind in BINARY if "its end" not in kind])  # there are names, no values
def test_a_damaged_checkpoint_is_reported(tmp_path: Path, kind: str) -> None:
    layer = torch.nn.Linear(40, 40)
    optimizer = torch.optim.AdamW(layer.parameters())
    place = checkpoint.Progress(0, 1)
    state = checkpoint.state_of(layer, torch.nn.ModuleDict(), optimizer, [], place, "mine", "identity")
    path = checkpoint.write(tmp_path, state)
    with pytest.raises(ConfigError, match="belongs to another configuration"):
        checkpoint.history(path, "another's")
    harm(path, kind)
    with pytest.raises(ConfigError, match=r"last.pt: (is not a readable checkpoint .*delete it|cannot be read)"):
        checkpoint.history(path, "mine")
