"""Who may influence what: a part of the prepared cohort is altered on disk, and a training with every kind of teacher
is run on it as on the original. Results that must not depend on that part are the same to the last bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mmpkd import checkpoint
from mmpkd.cohort import leakage
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import TrialConfig
from mmpkd.export import student_file
from mmpkd.frames import run_lengths
from mmpkd.scoring.validation import BASELINES
from mmpkd.teachers.input_leakage import warnings_before_fitting
from mmpkd.train import train
from tests.colour_cohort import SIDE
from tests.mmpkd.teacher_fixtures import FUSED, IMAGE, TEXT

MRI: dict[str, Any] = IMAGE | {"view": "mri", "epochs": 1}
MEMBERS = {"findings": {"kind": "tabular"}, "scan": {"kind": "image", "params": MRI}}
TEACHERS: dict[str, Any] = {
    "findings": {"kind": "tabular"},
    "trees": {"kind": "tabular", "params": {"model": "boosting"}},
    "report": {"kind": "text", "params": TEXT | {"epochs": 1}},
    "scan": {"kind": "image", "params": MRI},
    "both": {"kind": "fused", "params": FUSED | {"view": "mri", "epochs": 1}},
    "all": {"kind": "ensemble", "params": {"members": MEMBERS, "weights": "learned"}},
}
Samples = pd.DataFrame


class Outcome(NamedTuple):
    metrics: dict[str, float]
    weights: dict[str, torch.Tensor]  # of the student
    card: student_file.Card
    cache: Path

    def answers(self) -> dict[str, torch.Tensor]:
        """All that lies in the teachers' cache, by the teacher's address and the array's name."""
        folders = sorted((self.cache / "teachers").glob("*/"))
        result = {f"{path.parent.name}/{path.stem}": torch.tensor(np.load(path)) for path in self._all(folders, "npy")}
        for path in self._all(folders, "safetensors"):
            result |= {f"{path.parent.name}/{path.stem}/{name}": value for name, value in load_file(path).items()}
        return result

    @staticmethod
    def _all(folders: list[Path], suffix: str) -> list[Path]:
        return [path for folder in folders for path in sorted(folder.glob(f"*.{suffix}"))]


@pytest.fixture(scope="module")
def config(colour_trial: TrialConfig) -> TrialConfig:
    """The second fold validates, so that code that always uses the first fold is detected."""
    objectives = {f"from_{name}": {"kind": "logits", "teacher": name, "weight": 0.3} for name in TEACHERS}
    changes = {"teachers": TEACHERS, "objectives": objectives, "epochs": 2}
    optimizer = {"batch_size": 16, "lr": 3e-3, "class_weights": "balanced"}
    return TrialConfig.model_validate(colour_trial.model_dump() | changes | {"optimizer": optimizer})


@pytest.fixture(scope="module")
def store(config: TrialConfig, cache: Path) -> Store:
    return prepare(config.cohort, cache)


def outcome(config: TrialConfig, store: Store, folder: Path) -> Outcome:
    BASELINES.clear()  # they are kept by the fingerprint of a cohort, and an altered one keeps its fingerprint
    metrics = dict(train(config, folder / "cache", folder / "out", store=store)[-1].metrics)
    weights = checkpoint.read(folder / "out" / checkpoint.NAME)["student"]
    return Outcome(metrics, weights, student_file.read(folder / "out").card, folder / "cache")


@pytest.fixture(scope="module")
def plain(config: TrialConfig, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return outcome(config, store, tmp_path_factory.mktemp("plain"))


def copied(store: Store, folder: Path) -> Path:
    """Copies a store under the same name; see `reopened`."""
    shutil.copytree(store.path, folder)
    return folder


def reopened(folder: Path) -> Store:
    """Opens an altered copy with a matching manifest: only its content differs from the original."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: (folder / name).stat().st_size for name in manifest["files"]}
    for name in ("crc", "checksums"):
        del manifest[name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Store.open(folder)


def alter_samples(folder: Path, rows: np.ndarray, *changes: Callable[[Samples], None]) -> None:
    samples = pd.read_parquet(folder / "samples.parquet")
    part = samples.iloc[rows].copy()
    for change in changes:
        change(part)
    samples.iloc[rows] = part
    samples.to_parquet(folder / "samples.parquet", index=False)


def alter_pixels(folder: Path, rows: np.ndarray, *names: str) -> None:
    for name in names:
        array = np.load(folder / f"{name}.npy")
        array[rows] = 255 - array[rows][:, ::-1, ::-1]
        np.save(folder / f"{name}.npy", array)


def alter_reports(folder: Path, rows: np.ndarray) -> None:
    text = pd.read_parquet(folder / "text.parquet")
    text.iloc[rows, text.columns.get_loc("report")] = "quite another lesion dark and rough"
    text.to_parquet(folder / "text.parquet", index=False)


def alter_regions(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_parquet(folder / "rois.parquet")).to_parquet(folder / "rois.parquet", index=False)


def flip_labels(part: Samples) -> None:
    labels = [name for name in part if name.startswith("label/")]
    part[labels] = 1 - part[labels]


def other_columns(part: Samples) -> None:
    part["privileged/shape"] = "irregular"
    part["privileged/size"] = 40.0


def assert_same(entry: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert set(entry) == set(other)
    for name, values in entry.items():
        assert torch.equal(values.nan_to_num(), other[name].nan_to_num()), name


def test_sealed_patients_and_unknown_labels_have_no_influence(
    config: TrialConfig, store: Store, plain: Outcome, tmp_path: Path
) -> None:
    rows, folder = store.rows("test"), copied(store, tmp_path / "store")

    def exchanged(rois: pd.DataFrame) -> pd.DataFrame:
        sealed = rois["sample"].isin(store.sample_ids[rows])
        return rois.assign(label=rois["label"].where(~sealed, rois["label"].map({"lesion": "node", "node": "lesion"})))

    alter_samples(folder, rows, flip_labels, other_columns)
    alter_pixels(folder, rows, "images", "views/mri")
    alter_reports(folder, rows)
    alter_regions(folder, exchanged)
    changed = reopened(folder)
    assert (~changed.known_NK).any(axis=0).all()
    changed.target_NK = np.where(changed.known_NK, changed.target_NK, 1).astype(np.float32)
    printed = outcome(config, changed, tmp_path)
    assert_same(printed.answers(), plain.answers())
    assert_same(printed.weights, plain.weights)
    for name, value in plain.metrics.items():
        assert printed.metrics[name] == value or np.isnan(value), name
    assert printed.card == plain.card


def test_validation_labels_influence_scores_and_calibration_only(
    config: TrialConfig, store: Store, plain: Outcome, tmp_path: Path
) -> None:
    """Privileged data of a validation sample influence only the teacher outputs for this sample."""
    val, folder = store.rows("val", 1), copied(store, tmp_path / "store")
    entry = val[:1]
    alter_samples(folder, val, flip_labels)
    alter_samples(folder, entry, other_columns)
    alter_pixels(folder, entry, "views/mri")
    alter_reports(folder, entry)
    printed = outcome(config, reopened(folder), tmp_path)
    assert_same(printed.weights, plain.weights)
    before, after, moved = plain.answers(), printed.answers(), set()
    for name, values in before.items():
        differs = values.nan_to_num() != after[name].nan_to_num()
        rows = np.arange(len(store.sample_ids))
        if name.endswith("model-5/cells"):  # of the fused teacher, what it is given of each sample
            rows = before[name.replace("cells", "rows")].numpy()
        elif "/model-" in name or "/head-" in name or name.endswith("/offsets"):  # what was learnt
            assert not differs.any(), name
            continue
        assert rows[differs.flatten(1).any(dim=1).numpy()].tolist() == entry.tolist(), name
        moved.add(name.partition("-")[0])
    assert moved == {"tabular", "text", "image", "fused", "ensemble"}
    assert printed.metrics["val/auroc"] == pytest.approx(1 - plain.metrics["val/auroc"])
    assert printed.card.temperature != plain.card.temperature and printed.card.threshold != plain.card.threshold
    assert printed.card.map_threshold == plain.card.map_threshold
    for name in TEACHERS:
        assert printed.metrics[f"teacher/{name}/auroc"] == plain.metrics[f"teacher/{name}/auroc"]


def test_regions_influence_only_the_scores_of_maps(
    config: TrialConfig, store: Store, plain: Outcome, tmp_path: Path
) -> None:
    """Those of training images are the yardstick `prior`; those of validation images are what is scored, and what
    the thresholds of maps are chosen by. Of one part all regions are a single pixel here."""
    changed: dict[str, set[str]] = {}
    cards: dict[str, student_file.Card] = {}
    for part, rows in {"train": store.rows("train", 1), "val": store.rows("val", 1)}.items():
        folder = copied(store, tmp_path / part / "store")
        here = store.sample_ids[rows]
        tops = dict(zip(store.sample_ids, store.content_box_N4[:, :2].tolist(), strict=True))

        def dotted(rois: pd.DataFrame, here: np.ndarray = here, tops: dict[str, Any] = tops) -> pd.DataFrame:
            inside = rois["sample"].isin(here)
            dots = []
            for sample in rois.loc[inside, "sample"]:
                mask = np.zeros((SIDE, SIDE), bool)
                mask[tuple(tops[sample])] = True
                dots.append(run_lengths(mask))
            runs = rois["store_runs"].copy()
            runs[inside] = pd.Series(dots, rois.index[inside])
            return rois.assign(store_runs=runs)

        alter_regions(folder, dotted)
        shutil.copytree(plain.cache, tmp_path / part / "cache")
        printed = outcome(config, reopened(folder), tmp_path / part)
        assert_same(printed.weights, plain.weights)
        assert printed.card.temperature == plain.card.temperature and printed.card.threshold == plain.card.threshold
        changed[part] = {
            name
            for name, value in plain.metrics.items()
            if not np.array_equal(printed.metrics[name], value, equal_nan=True)  # NaN: no standard error
        }
        cards[part] = printed.card
    assert changed["train"] and all(name.endswith("_prior") for name in changed["train"])
    assert cards["train"].map_threshold == plain.card.map_threshold != cards["val"].map_threshold
    assert {"val/pointing", "val/mass", "val/iou_tuned", "val/pointing_se"} <= changed["val"]
    assert not {name for name in changed["val"] if "auroc" in name or "brier" in name}
    teachers = {name for name in changed["val"] if name.startswith("teacher")}
    assert all(name.endswith(("/pointing", "/mass")) for name in teachers)


def test_words_of_sealed_reports_are_not_probed(
    config: TrialConfig, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[str] = []
    probe = leakage.probe

    def noting(columns: pd.DataFrame, *rest: Any, **named: Any) -> Any:
        requested.extend(columns.index)
        return probe(columns, *rest, **named)

    monkeypatch.setattr(leakage, "probe", noting)
    report = {"kind": "text", "params": TEXT | {"mask_labels": True}}
    changes = {"teachers": {"report": report}, "objectives": {"logits": {}}}
    warnings_before_fitting(TrialConfig.model_validate(config.model_dump() | changes), store)
    open_rows = np.r_[store.rows("train", 1), store.rows("val", 1)]
    assert set(requested) == set(store.sample_ids[open_rows])
