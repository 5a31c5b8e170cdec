"""The five fold models of a teacher are brought to one level; its AUROC is the mean over folds; numbers by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmpkd.teachers.fold_levels import level_offsets
from mmpkd.teachers.quality import logit_quality
from mmpkd.types import TaskKind, lay_out

BINARY = lay_out([("ill", "binary", ("no", "yes"))])
CLASSES = lay_out([("kind", "multiclass", ("a", "b", "c"))])


def test_a_shift_by_hand() -> None:
    """Two folds of two patients, logits 0, 2 and 10, 12: means 1 and 11, each with a sampling variance of 2/2 = 1. The
    means' variance is 50, so 49 of it lies between models: 49/50 of the way to the common mean of 6."""
    logits = np.array([[0.0], [2.0], [10.0], [12.0]], np.float32)
    offsets = level_offsets(logits, np.array([0, 0, 1, 1]), np.arange(4), BINARY, 2)
    np.testing.assert_allclose(offsets, [[4.9], [-4.9]], rtol=1e-6)


def test_samples_of_the_same_patient_count_once() -> None:
    """The same logits of one patient a fold: a sampling variance of 2 each, so 48/50 of the way."""
    logits = np.array([[0.0], [2.0], [10.0], [12.0]], np.float32)
    offsets = level_offsets(logits, np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), BINARY, 2)
    np.testing.assert_allclose(offsets, [[4.8], [-4.8]], rtol=1e-6)


def test_differences_by_chance_are_not_moved() -> None:
    logits = np.array([[0.0], [2.0], [0.5], [2.5]], np.float32)
    np.testing.assert_array_equal(level_offsets(logits, np.array([0, 0, 1, 1]), np.arange(4), BINARY, 2), 0)


def test_silent_samples_and_folds_are_left_out() -> None:
    logits = np.array([[0.0], [2.0], [np.nan], [10.0], [12.0], [np.nan], [99.0], [np.nan]], np.float32)
    fold = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    offsets = level_offsets(logits, fold, np.arange(8), BINARY, 3)
    np.testing.assert_allclose(offsets, [[4.9], [-4.9], [0.0]], rtol=1e-6)
    np.testing.assert_array_equal(level_offsets(np.full((8, 1), np.nan, np.float32), fold, np.arange(8), BINARY, 3), 0)


def test_a_common_shift_of_all_classes_is_not_moved() -> None:
    same = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    logits = np.concatenate([same, same + 7])  # every class alike
    offsets = level_offsets(logits, np.repeat([0, 1], 20), np.arange(40), CLASSES, 2)
    np.testing.assert_allclose(offsets, 0, atol=1e-5)


@pytest.mark.parametrize("tasks", [BINARY, CLASSES])
def test_levels_are_removed_and_the_order_within_a_fold_is_kept(tasks: Any) -> None:
    rng = np.random.default_rng(1)
    num_logits = tasks[-1].columns.stop
    fold, level = np.arange(400) % 5, 3 * rng.normal(size=(5, num_logits))
    alone = rng.normal(size=(400, num_logits)).astype(np.float32)
    shifted = (alone + level[fold]).astype(np.float32)
    aligned = shifted + level_offsets(shifted, fold, np.arange(400), tasks, 5)[fold]
    for one in range(5):
        moved = (aligned - alone)[fold == one]
        np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-5)
    seen = aligned - aligned.mean(axis=1, keepdims=True) if num_logits > 1 else aligned
    means = np.array([seen[fold == one].mean(axis=0) for one in range(5)])
    assert means.std(axis=0).max() < 0.05, "they were about 3 apart"


def store_of(target: np.ndarray, kind: TaskKind = "binary") -> Any:
    names = ("no", "yes") if kind == "binary" else tuple("ab")
    return SimpleNamespace(
        facts=SimpleNamespace(tasks=lay_out([("t", kind, names)])),
        target_NK=target.astype(np.float32),
        known_NK=np.ones(target.shape, bool),
        patient_N=np.arange(len(target)),
    )


def test_auroc_is_the_mean_over_folds_by_hand() -> None:
    """Within fold 0 the one positive is above both negatives: 1. Within fold 1 one of two negatives is below: 0.5. All
    together 5 of 8 pairs would be in order, which says nothing of either model."""
    target = np.array([1, 0, 0, 1, 0, 0, 1, 0])[:, None]
    logits = np.array([-5, -6, -7, 5, 4, 6, 1, 0], np.float32)[:, None]
    quality = logit_quality(logits, store_of(target), np.arange(6), np.array([6, 7]), np.array([0, 0, 0, 1, 1, 1]))
    assert quality["auroc"] == pytest.approx(0.75) and quality["val_auroc"] == 1


def test_a_label_counts_in_folds_with_both_of_its_sides() -> None:
    target = np.array([[1, 0], [0, 0], [1, 1], [0, 0], [1, 0], [0, 1]])
    logits = np.array([[1, 9], [0, 9], [0, 1], [1, 0], [1, 1], [0, 0]], np.float32)
    quality = logit_quality(
        logits, store_of(target, "multilabel"), np.arange(4), np.array([4, 5]), np.array([0, 0, 1, 1])
    )
    assert quality["auroc"] == pytest.approx((0.5 + 1.0) / 2)  # first label: 1 and 0; second: 1, in fold 1 alone
