"""A training through its command, followed from the raw files to every number that it reports.

What is expected is computed from the files that `colour_cohort` writes, with pandas, numpy, scikit-learn, Pillow and
timm, and from nothing of ours but the exported weights: so a sound formula that is given the wrong rows, part, label
or channel does not pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.metrics import average_precision_score, balanced_accuracy_score, log_loss, roc_auc_score, roc_curve

from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import TrialConfig
from mmpkd.predict import Predictor
from tests.colour_cohort import LABELS, SIDE, letterboxed, regions
from tests.followed import Array, Student, Trained, bootstrapped, letter_size, square_regions, trained_by

GRID = 4


@pytest.fixture(scope="module")
def trained(colour_trial: TrialConfig, colour_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    out = tmp_path_factory.mktemp("trained")
    return trained_by(colour_trial, colour_root, out, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def store(colour_trial: TrialConfig, trained: Trained) -> Store:
    return prepare(colour_trial.cohort, trained.cache)


@pytest.fixture(scope="module")
def student(trained: Trained) -> Student:
    return Student(trained.folder)


# --- what is stored ---


def test_whole_patients_are_dealt_into_five_parts(trained: Trained, store: Store) -> None:
    parts = trained.split.groupby(trained.table["patient"][trained.split.index])
    assert (parts.nunique() == 1).all()
    assert sorted(trained.split.unique()) == ["fold0", "fold1", "fold2", "fold3", "test"]
    counts = parts.first().value_counts()
    assert counts.between(7, 13).all(), "50 patients"
    malignant = trained.table[LABELS[0]].groupby(trained.split).mean()
    assert malignant.between(0.15, 0.55).all(), malignant
    for fold in range(4):
        wanted = {"val": {f"fold{fold}"}, "test": {"test"}}
        wanted["train"] = {"fold0", "fold1", "fold2", "fold3"} - wanted["val"]
        for part, names in wanted.items():
            rows = store.rows(part, fold)  # type: ignore[arg-type]
            assert set(store.sample_ids[rows]) == set(trained.split.index[trained.split.isin(names)])


def test_each_sample_has_the_cells_of_its_own_row(store: Store, trained: Trained) -> None:
    table = trained.table.loc[store.sample_ids]
    np.testing.assert_array_equal(np.where(store.known_NK, store.target_NK, np.nan), table[list(LABELS)].to_numpy())
    assert [task.name for task in store.facts.tasks] == ["malignant", "findings"]
    numbers = store.privileged(["size", "age"])
    np.testing.assert_array_equal(numbers.to_numpy(), table[["size", "age"]].astype(float).to_numpy())
    for name in ("shape", "signs", "sex", "birads"):
        cells = store.privileged([name])[name]
        assert cells.isna().tolist() == table[name].isna().tolist()
        assert cells.dropna().tolist() == table[name].dropna().tolist()
    text = store.text(["report"])["report"]
    assert text.fillna("").tolist() == table["report"].fillna("").tolist()
    stored = set(pd.read_parquet(store.path / "samples.parquet").columns)
    assert not {name for name in stored if "biopsy" in name or "scanner" in name}
    groups = pd.Series(store.patient_N).groupby(table["patient"].to_numpy())
    assert (groups.nunique() == 1).all() and len(np.unique(store.patient_N)) == 50


def test_stored_pixels_are_those_of_the_files(store: Store, trained: Trained) -> None:
    """Red stays the first channel, in the image and in the further view."""
    for row in range(0, len(store.sample_ids), 5):
        name = store.sample_ids[row]
        expected = letterboxed(trained.raw / "images" / name).transpose(2, 0, 1)
        np.testing.assert_array_equal(store.image_NCHW[row], expected)
        scan = letterboxed(trained.raw / trained.table.loc[name, "scan"]).transpose(2, 0, 1)
        np.testing.assert_array_equal(store.view("mri")[row], scan)


def test_regions_are_stored_under_their_own_label(store: Store, trained: Trained) -> None:
    assert store.facts.roi_labels == ("lesion", "node")
    seen = {"lesion": 0, "node": 0}
    for row, name in enumerate(store.sample_ids):
        stored = store.roi_mask(np.array([row]))[0]
        drawn, expected = (
            regions(trained.raw, trained.table.loc[name]),
            square_regions(trained, trained.table.loc[name]),
        )
        for index, label in enumerate(store.facts.roi_labels):
            assert stored[index].any() == (label in drawn)
            if label in drawn:
                seen[label] += 1
                np.testing.assert_array_equal(store.original_rois(row)[index], drawn[label])
                assert (stored[index] != expected[label]).mean() < 0.02, "but for rounding at an edge"
    assert min(seen.values()) > 30


# --- what is reported ---


def test_the_exported_file_predicts_raw_files_as_timm_does(student: Student, trained: Trained) -> None:
    """This covers the way from file to probability: channels, padding, statistics, temperature, order of labels."""
    names = trained.images("test").index[:6]
    predictor = Predictor(trained.folder)
    text = [predictor(trained.raw / "images" / name).probabilities for name in names]
    assert all(tuple(entry) == LABELS for entry in text)
    expected = student.probabilities(trained.raw, names)
    np.testing.assert_allclose([list(entry.values()) for entry in text], expected, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 1e-4, "images are told apart"


def test_scores_are_of_the_known_labels_of_the_validation_images(student: Student, trained: Trained) -> None:
    images = trained.images("val")
    logits = student.logits(trained.raw, images.index)
    auroc, ap, brier, accuracy = ({} for _ in range(4))
    for column, label in enumerate(LABELS):
        known = images[label].notna().to_numpy()
        target, logit = images[label].to_numpy()[known], logits[known, column]
        auroc[label] = roc_auc_score(target, logit)
        ap[label] = average_precision_score(target, logit)
        brier[label] = ((expit(logit) - target) ** 2).mean()
        accuracy[label] = balanced_accuracy_score(target, logit > 0)
        assert 0 < target.sum() < known.sum() < len(images), "some are unknown"
        assert trained.metrics[f"val/auroc/{label}"] == pytest.approx(auroc[label], abs=1e-9)
        assert trained.metrics[f"val/ap/{label}"] == pytest.approx(ap[label], abs=1e-9)
    for score, by_label in {"auroc": auroc, "ap": ap, "brier": brier, "balanced_accuracy": accuracy}.items():
        malignant, *findings = by_label.values()
        assert trained.metrics[f"val/{score}"] == pytest.approx((malignant + np.mean(findings)) / 2, abs=1e-5), score


def test_standard_errors_are_over_patients(student: Student, trained: Trained) -> None:
    images = trained.images("val")
    logits, target = student.logits(trained.raw, images.index), images[list(LABELS)].to_numpy(float)

    def auroc(rows: NDArray[np.int64]) -> float:
        sides = [[logits[rows[target[rows, column] == side], column] for side in (1, 0)] for column in range(3)]
        if not all(len(side) for pair in sides for side in pair):
            return float("nan")
        first, *findings = (float((positive[:, None] > negative).mean()) for positive, negative in sides)
        return (first + sum(findings) / 2) / 2

    patients = images["patient"].to_numpy()
    by_patient, by_image = bootstrapped(auroc, patients), bootstrapped(auroc, np.arange(len(images)))
    assert by_patient > 1.3 * by_image, "the cohort tells the two apart"
    assert trained.metrics["val/auroc_se"] == pytest.approx(by_patient, rel=0.15)


def test_temperatures_and_thresholds_are_of_the_validation_images(student: Student, trained: Trained) -> None:
    images = trained.images("val")
    logits = student.logits(trained.raw, images.index)

    def loss(log_temperature: float, columns: list[int]) -> float:
        scaled = expit(logits / np.exp(log_temperature))
        known = images[list(LABELS)].notna().to_numpy()
        target, text = (
            np.concatenate([values[known[:, column], column] for column in columns])
            for values in (images[list(LABELS)].to_numpy(), scaled)
        )
        return float(log_loss(target, text.astype(np.float64)))

    for task, columns in {"malignant": [0], "findings": [1, 2]}.items():
        best = minimize_scalar(loss, bounds=(-3, 3), method="bounded", args=(columns,)).x
        assert np.log(student.card["temperature"][task]) == pytest.approx(best, abs=0.02)
    probabilities = student.probabilities(trained.raw, images.index)
    for column, label in enumerate(LABELS):
        known = images[label].notna().to_numpy()
        target, text = images[label].to_numpy()[known], probabilities[known, column]
        false_rate, true_rate, _ = roc_curve(target, text)
        called = text > student.card["threshold"][label]
        youden = called[target == 1].mean() - called[target == 0].mean()
        assert youden == pytest.approx((true_rate - false_rate).max()), "no other threshold does better here"


def test_maps_are_scored_against_their_own_regions(trained: Trained) -> None:
    """Pointing, mass and the tuned IoU are recomputed from the student's maps and the raw masks."""
    predictor = Predictor(trained.folder)
    pointing: dict[str, list[float]] = {"lesion": [], "node": []}
    mass: dict[str, list[float]] = {"lesion": [], "node": []}
    iou: dict[str, list[Array]] = {"lesion": [], "node": []}
    patients: dict[str, list[str]] = {"lesion": [], "node": []}
    for name, row in trained.images("val").iterrows():
        map_hw = predictor(trained.raw / "images" / str(name)).map_Rhw[0]
        height, width = letter_size(trained.raw / "images" / str(name))
        for label, mask in square_regions(trained, row).items():
            cells = mask.reshape(GRID, SIDE // GRID, GRID, SIDE // GRID).mean(axis=(1, 3))
            pointing[label].append(cells[np.unravel_index(map_hw.argmax(), map_hw.shape)])
            mass[label].append((map_hw * cells).sum() / map_hw.sum())
            patients[label].append(row["patient"])
            scaled = (map_hw - map_hw.min()) / np.ptp(map_hw)
            options: Any = {"mode": "bilinear", "align_corners": False}
            up = F.interpolate(torch.tensor(scaled)[None, None], (SIDE, SIDE), **options)[0, 0].numpy()
            top, left = (SIDE - height) // 2, (SIDE - width) // 2
            up, mask = (entry[top : top + height, left : left + width] for entry in (up, mask))
            up = (up - up.min()) / np.ptp(up)
            cuts = [up > threshold + 1 / 512 for threshold in np.arange(2, 9) / 10]
            iou[label].append(np.array([(cut & mask).sum() / (cut | mask).sum() for cut in cuts]))
    for score, result in {"pointing": pointing, "mass": mass}.items():
        by_label = {label: np.mean(values) for label, values in result.items()}
        for label, value in by_label.items():
            assert trained.metrics[f"val/{score}/{label}"] == pytest.approx(value, abs=0.01), score
        assert trained.metrics[f"val/{score}"] == pytest.approx(np.mean(list(by_label.values())), abs=0.01)
    missing = 2 * len(trained.images("val")) - sum(map(len, pointing.values()))
    assert trained.metrics["val/pointing_undefined"] == missing
    card = Student(trained.folder).card
    for label, values in iou.items():
        means = np.mean(values, axis=0)
        assert means[round(card["map_threshold"][label] * 10) - 2] == pytest.approx(means.max(), abs=0.003)
