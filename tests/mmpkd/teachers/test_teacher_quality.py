"""The scores of a teacher by hand, and when it is suspected of stating the label."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mmpkd.cohort.prepare import prepare
from mmpkd.config import CohortConfig
from mmpkd.scoring import classify
from mmpkd.scoring.teacher_scores import warnings
from mmpkd.teachers import TEACHERS
from mmpkd.teachers.quality import logit_quality, map_quality
from mmpkd.types import lay_out

TASKS = lay_out([("finding", "multilabel", ("common", "rare"))])
TRAIN, VAL = np.arange(100), np.arange(100, 120)
FOLD = np.arange(100) // 20


def made(target: np.ndarray, tasks: Any = TASKS) -> Any:
    return SimpleNamespace(
        facts=SimpleNamespace(tasks=tasks),
        target_NK=target.astype(np.float32),
        known_NK=np.ones(target.shape, bool),
        patient_N=np.arange(len(target)),
    )


@pytest.fixture
def labels() -> np.ndarray:
    """Of 120 samples every other has the first label, every thirtieth the second."""
    index = np.arange(120)
    return np.stack([index % 2 == 0, index % 30 == 0], axis=1)


def test_a_teacher_that_states_the_label(labels: np.ndarray) -> None:
    quality = logit_quality(np.where(labels, 5.0, -5.0).astype(np.float32), made(labels), TRAIN, VAL, FOLD)
    assert quality["auroc"] == quality["val_auroc"] == quality["agreement"] == quality["leak"] == 1
    (line,) = warnings("report", quality)
    assert "'report' all but states the label (out of fold: AUROC 1.000, agreement 100.0%)" in line
    for kind, words in {"tabular": "near_label or forbidden", "image": "view", "text": "(mask_labels)"}.items():
        (line,) = warnings("report", quality, TEACHERS[kind].LEAKAGE_REMEDY)
        assert words in line and ("mask_labels" in line) == (kind == "text")


def test_agreement_on_a_rare_label_is_not_a_leak(labels: np.ndarray) -> None:
    rare = labels[:, 1:]
    noise = np.random.default_rng(0).normal(size=(120, 1)).astype(np.float32)
    quality = logit_quality(noise - 6, made(rare, lay_out([("f", "binary", ("no", "yes"))])), TRAIN, VAL, FOLD)
    assert quality["agreement"] == pytest.approx(0.96) and quality["leak"] == 0


def test_agreement_alone_is_enough(labels: np.ndarray) -> None:
    """It is right on 97 of 100 samples and confident where it is wrong, so the AUROC is below the alarm."""
    common = labels[:, :1]
    logits = np.where(common, 1.0, -1.0).astype(np.float32)
    logits[[0, 2, 4]] = -9
    quality = logit_quality(logits, made(common, lay_out([("f", "binary", ("no", "yes"))])), TRAIN, VAL, FOLD)
    assert quality["auroc"] == pytest.approx(0.94) and quality["agreement"] == pytest.approx(0.97)
    assert quality["leak"] == 1


def test_samples_without_outputs_are_counted_and_left_out(labels: np.ndarray) -> None:
    logits = np.where(labels, 5.0, -5.0).astype(np.float32)
    logits[1:100:4] = np.nan
    quality = logit_quality(logits, made(labels), TRAIN, VAL, FOLD)
    assert quality["silent"] == pytest.approx(0.25) and quality["auroc"] == 1
    logits[VAL] = np.nan
    assert np.isnan(logit_quality(logits, made(labels), TRAIN, VAL, FOLD)["val_auroc"])


def test_entropy_by_hand() -> None:
    tasks = lay_out([("a", "multiclass", ("x", "y", "z")), ("b", "multilabel", ("u", "v"))])
    logits = np.array([[0.0, 0.0, 0.0, 0.0, 100.0], [200.0, 0.0, 0.0, np.log(3), np.log(3)]])
    quarter = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    expected = [(np.log(3) + np.log(2) / 2) / 2, quarter / 2]
    np.testing.assert_allclose(classify.entropy(logits, tasks), expected, atol=1e-12)


def test_map_quality_by_hand(tiny_cohort: CohortConfig, cache: Path) -> None:
    store = prepare(tiny_cohort, cache)
    val = store.rows("val")
    area_n44 = store.roi_mask(val)[:, 0].reshape(len(val), 4, 8, 4, 8).mean(axis=(2, 4))  # of each patch, in the ROI
    uniform_N44 = torch.full((len(store.sample_ids), 4, 4), 1 / 16)
    by_chance = area_n44.mean()
    assert map_quality(uniform_N44, store, val) == pytest.approx({"pointing": by_chance, "mass": by_chance}, abs=1e-6)

    best_N44 = torch.zeros_like(uniform_N44).flatten(1)
    best_N44[torch.from_numpy(val), torch.from_numpy(area_n44.reshape(len(val), 16).argmax(axis=1))] = 1.0
    best_N44 = best_N44.view(-1, 4, 4)
    best_n = area_n44.max(axis=(1, 2))
    assert map_quality(best_N44, store, val) == pytest.approx(
        {"pointing": best_n.mean(), "mass": best_n.mean()}, abs=1e-6
    )

    best_N44[torch.from_numpy(val[5:])] = torch.nan
    assert map_quality(best_N44, store, val)["mass"] == pytest.approx(best_n[:5].mean(), abs=1e-6), (
        "of those it speaks of"
    )
    best_N44[torch.from_numpy(val)] = torch.nan
    assert map_quality(best_N44, store, val) == {}
