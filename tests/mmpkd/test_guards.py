"""Properties that a careless change could break silently: each test fails if the named guard is removed.

A folded cohort with unknown labels, where official splits and full labels would hide the mistake.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig, TeacherConfig, TrialConfig
from mmpkd.scoring.validation import Evaluator
from mmpkd.teachers import resolve
from mmpkd.teachers.cache import cached_outputs
from mmpkd.teachers.fitted import fit_teachers
from mmpkd.teachers.fitting import out_of_fold
from mmpkd.teachers.tabular import Tabular, TabularParams
from mmpkd.train import train
from mmpkd.training.stages import Run
from mmpkd.training.step import epoch_inputs, loss_terms
from tests.mmpkd.teacher_fixtures import FUSED, IMAGE, MEMBERS, TEXT


class Folded(Store):
    """The tiny cohort without an official split: its patients are dealt into four folds and a test part."""

    def rows(self, part: Any, fold: int = 0) -> np.ndarray:
        own = self.patient_N % 5
        inside = {"test": own == 4, "val": own == fold, "train": (own != fold) & (own != 4)}
        return np.flatnonzero(inside[part])


@pytest.fixture
def folded(tiny_cohort: CohortConfig, cache: Path) -> Store:
    store = Folded.open(prepare(tiny_cohort, cache).path)
    store.known_NK = store.known_NK.copy()
    store.known_NK[::7] = False
    store.target_NK = np.where(store.known_NK, store.target_NK, 0).astype(np.float32)
    return store


def changed(config: TrialConfig, **changes: Any) -> TrialConfig:
    return TrialConfig.model_validate(config.model_dump() | changes)


def test_each_fold_has_its_own_teacher(folded: Store, tmp_path: Path) -> None:
    """A teacher of fold 0 was trained on the validation patients of fold 1, which must not use its outputs."""
    teacher = TeacherConfig(kind="tabular")
    first, second = (cached_outputs(resolve(teacher), folded, fold, tmp_path) for fold in (0, 1))
    assert len(list((tmp_path / "teachers").glob("*/manifest.json"))) == 2
    fresh = Tabular(TabularParams(), folded.facts)
    fresh.fit(folded, folded.rows("train", 1))
    val = folded.rows("val", 1)
    expected = fresh.outputs(folded, val).logits_BK
    torch.testing.assert_close(second.arrays["logits"][val], expected)
    assert not torch.allclose(first.arrays["logits"][val], expected)  # type: ignore[arg-type]


def test_the_cache_holds_the_out_of_fold_logits(folded: Store, tmp_path: Path) -> None:
    rows = folded.rows("train")
    cached = cached_outputs(resolve(TeacherConfig(kind="tabular")), folded, 0, tmp_path).arrays["logits"][rows]
    fresh = out_of_fold(Tabular(TabularParams(), folded.facts), folded, rows, 0).logits_NK
    np.testing.assert_allclose(cached.numpy(), fresh, rtol=1e-4, atol=1e-4)


def test_a_new_version_of_a_teacher_has_a_new_address(
    folded: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_outputs(resolve(TeacherConfig(kind="tabular")), folded, 0, tmp_path)
    monkeypatch.setattr(Tabular, "VERSION", Tabular.VERSION + 1)
    cached_outputs(resolve(TeacherConfig(kind="tabular")), folded, 0, tmp_path)
    assert len(list((tmp_path / "teachers").glob("*/manifest.json"))) == 2


def test_cached_outputs_belong_to_an_order_of_samples(folded: Store, tmp_path: Path) -> None:
    """The same fingerprint and training patients, but another row order: not the same cache."""
    cached_outputs(resolve(TeacherConfig(kind="tabular")), folded, 0, tmp_path)
    folded.sample_ids = np.roll(folded.sample_ids, 1)
    folded.sample_ids[folded.rows("train")] = np.sort(folded.sample_ids[folded.rows("train")])
    cached_outputs(resolve(TeacherConfig(kind="tabular")), folded, 0, tmp_path)
    assert len(list((tmp_path / "teachers").glob("*/manifest.json"))) == 2


def test_validation_scores_are_those_of_the_validation_patients(
    folded: Store, tiny_trial: TrialConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[list[int]] = []
    make = Evaluator.__init__

    def watched(self: Evaluator, store: Store, rows: np.ndarray, *rest: Any, **named: Any) -> None:
        requested.append(rows.tolist())
        make(self, store, rows, *rest, **named)

    monkeypatch.setattr(Evaluator, "__init__", watched)
    config = changed(tiny_trial, epochs=1, objectives={}, cohort={**tiny_trial.cohort.model_dump(), "fold": 2})
    train(config, cache, store=folded)
    assert requested == [folded.rows("val", 2).tolist()]


def run_of(store: Store, config: TrialConfig, cache: Path) -> Run:
    from mmpkd.build import build

    teachers = fit_teachers(config, store, cache)
    student, objectives = build(config, store.facts, {name: entry.width for name, entry in teachers.items()})
    return Run(config, store, store.rows("train"), student, objectives, teachers, torch.device("cpu"))


def test_unknown_labels_teach_nothing(folded: Store, tiny_trial: TrialConfig, cache: Path) -> None:
    run = run_of(folded, changed(tiny_trial, objectives={}), cache)
    batch, view = next(map(run.samples.batch, epoch_inputs(run, 0)))
    run.student.eval()
    unknown = ~batch.known_BK[:, 0]
    assert unknown.any() and not unknown.all()
    other = replace(batch, target_BK=torch.where(batch.known_BK, batch.target_BK, 1.0))
    assert loss_terms(run, batch, view)["task"] == loss_terms(run, other, view)["task"]
    assert (batch.known_BK.numpy() == folded.known_NK[batch.rows_B.numpy()]).all()


def test_threads_are_those_of_the_configuration(folded: Store, tiny_trial: TrialConfig, cache: Path) -> None:
    seen: list[int] = []
    train(
        changed(tiny_trial, epochs=1, threads=2, objectives={}),
        cache,
        store=folded,
        report=lambda _: seen.append(torch.get_num_threads()),
    )
    train(
        changed(tiny_trial, epochs=1, threads=1, objectives={}),
        cache,
        store=folded,
        report=lambda _: seen.append(torch.get_num_threads()),
    )
    assert seen == [2, 1]


def test_a_checkpoint_belongs_to_its_data(folded: Store, tiny_trial: TrialConfig, cache: Path, tmp_path: Path) -> None:
    from mmpkd.types import ConfigError

    config = changed(tiny_trial, epochs=1, objectives={})
    train(config, cache, tmp_path, store=folded)
    folded.fingerprint = "labels-corrected"
    with pytest.raises(ConfigError, match="other data"):
        train(config, cache, None, tmp_path / "last.pt", store=folded)


def test_nothing_is_fitted_or_prepared_for_a_wrong_configuration(tiny_trial: TrialConfig, tmp_path: Path) -> None:
    from mmpkd.types import ConfigError

    wrong = changed(tiny_trial, teachers={"findings": {"kind": "tabular", "params": {"columns": ["assessment"]}}})
    with pytest.raises(ConfigError, match=r"teachers\.findings\.params\.columns: .*near_label"):
        train(wrong, tmp_path / "cache", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("tabular", {}),
        ("text", TEXT),
        ("image", IMAGE),
        ("fused", FUSED | {"epochs": 1}),
        ("ensemble", {"members": MEMBERS, "weights": "learned_per_sample"}),
    ],
)
def test_privileged_inputs_permuted_at_evaluation_change_no_prediction(
    tiny_trial: TrialConfig, cache: Path, tmp_path: Path, kind: str, params: dict[str, Any]
) -> None:
    """Columns, reports and superior images are permuted among the validation patients, on disk."""
    store = prepare(tiny_trial.cohort, cache)
    content = tiny_trial.model_dump() | {
        "teachers": {"one": {"kind": kind, "params": params}},
        "objectives": {"logits": {}},
        "epochs": 1,
    }
    config = TrialConfig.model_validate(content)
    folder = tmp_path / "store"
    shutil.copytree(store.path, folder)
    val = store.rows("val")
    order = np.arange(len(store.sample_ids))
    order[val] = np.random.default_rng(0).permutation(val)
    samples = pd.read_parquet(folder / "samples.parquet")
    columns = [name for name in samples if name.startswith("privileged/")]
    samples[columns] = samples[columns].iloc[order].to_numpy()
    samples.to_parquet(folder / "samples.parquet", index=False)
    text = pd.read_parquet(folder / "text.parquet")
    text.assign(report=text["report"].iloc[order].to_numpy()).to_parquet(folder / "text.parquet", index=False)
    np.save(folder / "views" / "superior.npy", np.load(folder / "views" / "superior.npy")[order])
    manifest = json.loads((folder / "manifest.json").read_text())
    sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
    del manifest["crc"], manifest["checksums"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": sizes, "fingerprint": "permuted"}))

    histories = [train(config, tmp_path / "cache", store=entry) for entry in (store, Store.open(folder))]
    plain, permuted = (dict(history[-1].metrics) for history in histories)
    teachers = {name for name in plain if name.startswith("teacher/")}
    assert plain["teacher/one/val_auroc"] != permuted["teacher/one/val_auroc"]
    assert len(teachers) > 4 and plain["val/auroc"] != 0.5
    for name in plain.keys() - teachers:
        assert plain[name] == permuted[name] or math.isnan(plain[name]), name
