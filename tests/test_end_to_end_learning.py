"""The data that a training learns from, followed from the raw files to the terms of its loss.

The student does not move here, so that each term can be computed again from the exported weights, the raw files and
what lies in the teachers' cache; see `test_end_to_end_training.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from sklearn.utils.class_weight import compute_class_weight

from mmpkd.build import build
from mmpkd.cohort.prepare import prepare
from mmpkd.config import TrialConfig
from mmpkd.predict import Predictor
from mmpkd.teachers.fitted import fit_teachers
from mmpkd.teachers.fitting import folds
from mmpkd.training.stages import Run
from mmpkd.training.step import epoch_inputs
from tests import colour_cohort
from tests.colour_cohort import LABELS
from tests.followed import Student, Trained, cross_entropy, trained_by
from tests.mmpkd.teacher_fixtures import FUSED, NETWORK


@pytest.fixture(scope="module")
def still(colour_trial: TrialConfig, colour_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trains on all images in one unaugmented batch with a frozen student, so that the terms can be recomputed."""
    changes = {
        "teachers": {
            "findings": {"kind": "tabular"},
            "scan": {"kind": "image", "params": {"view": "mri", "epochs": 1, "network": NETWORK}},
        },
        "objectives": {
            "logits": {"teacher": "findings", "weight": 3.0, "schedule": "cosine", "params": {"temperature": 2.5}},
            "attention": {"teacher": "scan", "weight": 0.2, "schedule": "warmup", "params": {"layer": 1}},
        },
        "student": colour_trial.student.model_dump() | {"drop_path_rate": 0.0},
        "optimizer": {"lr": 1e-30, "batch_size": 500, "class_weights": "balanced", "label_smoothing": 0.2},
        "augmentation": {"shift": 0.0, "flip_horizontal": False},
        "epochs": 6,
    }
    config = TrialConfig.model_validate(colour_trial.model_dump() | changes)
    return trained_by(config, colour_root, tmp_path_factory.mktemp("still"), tmp_path_factory.mktemp("cache"))


def cached_outputs(still: Trained, kind: str, name: str) -> pd.Series:
    """Returns the cached outputs of a teacher, by image."""
    (path,) = (still.cache / "teachers").glob(f"{kind}-*/{name}.npy")
    return pd.Series(list(np.load(path)), index=still.split.index)


def test_the_task_term_uses_known_training_labels_weighted_by_frequency(still: Trained) -> None:
    """Frequencies, labels and pixels are those of training images alone, and targets are smoothed on both sides."""
    images = still.images("train")
    logits = Student(still.folder).logits(still.raw, images.index)
    total, count = np.zeros(3), np.zeros(3)
    for column, label in enumerate(LABELS):
        known = images[label].notna().to_numpy()
        target = images[label].to_numpy()[known]
        by_class = compute_class_weight("balanced", classes=np.array([0.0, 1.0]), y=target)
        weight = by_class[target.astype(int)]
        total[column] = (weight * cross_entropy(0.8 * target + 0.1, logits[known, column])).sum()
        count[column] = weight.sum()
    expected = (total[0] / count[0] + total[1:].sum() / count[1:].sum()) / 2
    for report in still.reports:
        assert report["terms"]["task"] == pytest.approx(expected, abs=1e-5)


def test_the_terms_of_teachers_use_the_outputs_for_each_image(still: Trained) -> None:
    names = still.images("train").index
    logits = Student(still.folder).logits(still.raw, names) / 2.5
    text = np.stack(cached_outputs(still, "tabular", "logits")[names].to_list()).astype(float) / 2.5
    divergence = cross_entropy(expit(text), logits) - cross_entropy(expit(text), text)
    expected = 2.5**2 * (divergence[:, 0].mean() + divergence[:, 1:].mean()) / 2
    assert still.reports[0]["terms"]["logits"] == pytest.approx(expected, abs=1e-5)
    predictor = Predictor(still.folder)
    ours = np.stack([predictor(still.raw / "images" / name).map_Rhw[0] for name in names])
    theirs = np.stack(cached_outputs(still, "image", "map")[names].to_list())
    looked = (theirs * (np.log(theirs) - np.log(ours))).sum(axis=(1, 2)).mean()
    assert still.reports[0]["terms"]["attention"] == pytest.approx(looked, abs=1e-5)


def test_each_gradient_share_follows_weight_and_schedule(still: Trained, colour_root: Path, tmp_path: Path) -> None:
    """A gradient share is proportional to the weight and to the factor of the schedule in the sixth epoch."""

    def ratio(report: Mapping[str, Any], term: str) -> float:
        shares: Mapping[str, float] = report["terms"]
        return shares[f"gradient_share/{term}"] / shares["gradient_share/task"]

    content = yaml.safe_load((still.folder / "config.yaml").read_text())
    content["epochs"] = 1
    content["objectives"] |= {name: entry | {"weight": 1.0} for name, entry in content["objectives"].items()}
    repeated = trained_by(TrialConfig.model_validate(content), colour_root, tmp_path, still.cache)
    first, sixth = still.reports[0], still.reports[5]
    assert ratio(first, "logits") / ratio(repeated.reports[0], "logits") == pytest.approx(3.0, rel=1e-3)
    assert ratio(first, "attention") / ratio(repeated.reports[0], "attention") == pytest.approx(0.2, rel=1e-3)
    fallen = (1 + math.cos(math.pi * 5 / 6)) / 2
    assert ratio(sixth, "logits") / ratio(first, "logits") == pytest.approx(fallen, rel=1e-3)
    assert ratio(sixth, "attention") / ratio(first, "attention") == pytest.approx(1.0, rel=1e-3), "warm already"


def test_teacher_quality_is_out_of_fold_for_training_images_only(still: Trained, colour_trial: TrialConfig) -> None:
    """Training images are scored fold by fold, since five models differ in scale; validation images together."""
    store = prepare(colour_trial.cohort, still.cache)
    rows = store.rows("train", 1)
    fold = pd.Series(folds(store, rows, 0), store.sample_ids[rows])
    for kind, name in {"tabular": "findings", "image": "scan"}.items():
        logits = cached_outputs(still, kind, "logits")
        for part, key in {"train": "auroc", "val": "val_auroc"}.items():
            images = still.images(part)
            groups = images.groupby(fold[images.index] if part == "train" else np.zeros(len(images)))
            by_label = []
            for column, label in enumerate(LABELS):
                result = []
                for _, group in groups:
                    known = group.dropna(subset=label)
                    if known[label].nunique() == 2:
                        text = np.stack(logits[known.index].to_list())
                        result.append(roc_auc_score(known[label], text[:, column]))
                by_label.append(np.mean(result))
            expected = (by_label[0] + np.mean(by_label[1:])) / 2
            assert still.metrics[f"teacher/{name}/{key}"] == pytest.approx(expected, abs=1e-6)
        sealed = np.stack(logits[still.images("test").index].to_list())
        assert np.isnan(sealed).all(), "nobody is asked about sealed patients"


# --- what each epoch shows, and how fast ---


def test_every_epoch_has_its_own_order_and_views(colour_trial: TrialConfig, cache: Path) -> None:
    """Each training image occurs once per epoch, with its own random shift of at most 3 pixels."""
    changes: dict[str, Any] = {"teachers": {}, "objectives": {}}
    augmentation = {"shift": 0.1, "flip_horizontal": False}
    config = TrialConfig.model_validate(colour_trial.model_dump() | changes | {"augmentation": augmentation})
    store = prepare(config.cohort, cache)
    rows = store.rows("train", 1)
    run = Run(config, store, rows, *build(config, store.facts, {}), {}, torch.device("cpu"))
    orders, shifts, drawn = [], [], set()
    for epoch in range(12):
        shown = list(map(run.samples.batch, epoch_inputs(run, epoch)))
        orders.append(torch.cat([batch.rows_B for batch, _ in shown]).tolist())
        assert sorted(orders[-1]) == rows.tolist()
        first_row_B = torch.cat([view.rows_BH[:, 0] for _, view in shown])
        shifts.append(first_row_B[np.argsort(orders[-1])].tolist())
        drawn.add(tuple(first_row_B.tolist()))
        for batch, _ in shown:
            assert (batch.patient_B.numpy() == store.patient_N[batch.rows_B]).all()
    firsts = {order[0] for order in orders}
    assert len(firsts) > 6, "12 epochs begin with as many images, but for chance"
    assert min(len(set(entry)) for entry in zip(*shifts, strict=True)) >= 3, "of 7 rows to begin at"
    assert len(drawn) == 12, "nor is the first image of an epoch seen as the first of another"


def test_the_learning_rate_falls_over_all_epochs(colour_trial: TrialConfig, colour_root: Path, tmp_path: Path) -> None:
    config = TrialConfig.model_validate(colour_trial.model_dump() | {"teachers": {}, "objectives": {}})
    followed = trained_by(config, colour_root, tmp_path, tmp_path / "cache")
    steps_per_epoch = math.ceil(len(followed.images("train")) / 16)
    steps = 3 * steps_per_epoch
    assert [report["step"] for report in followed.reports] == [steps_per_epoch * epoch for epoch in (1, 2, 3)]
    warm = round(0.1 * steps)
    progress = (steps - 1 - warm) / (steps - warm)
    expected = 3e-3 * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
    optimizer = torch.load(followed.folder / "last.pt", weights_only=True)["optimizer"]
    assert [group["lr"] for group in optimizer["param_groups"]] == pytest.approx([expected] * 2)
    assert {int(state["step"]) for state in optimizer["state"].values()} == {steps}


def test_the_gradient_of_a_step_is_clipped_as_a_whole(
    colour_trial: TrialConfig, colour_root: Path, tmp_path: Path
) -> None:
    """After the first step, Adam's first moment is a tenth of the gradient of student and objective together."""
    changes = {"optimizer": {"lr": 1e-4, "batch_size": 500, "clip_norm": 0.02}, "epochs": 1}
    config = TrialConfig.model_validate(colour_trial.model_dump() | changes)
    followed = trained_by(config, colour_root, tmp_path, tmp_path / "cache")
    state = torch.load(followed.folder / "last.pt", weights_only=True)["optimizer"]["state"]
    squares = [entry["exp_avg"].double().square().sum().item() for entry in state.values()]
    assert math.sqrt(sum(squares)) == pytest.approx(0.1 * 0.02, rel=1e-4)


# --- the control ---


@pytest.mark.parametrize("kind", ["tabular", "fused"])
def test_a_shuffled_output_is_that_of_another_training_patient(
    kind: str, colour_trial: TrialConfig, colour_root: Path, tmp_path: Path
) -> None:
    """The output is never of the same, a validation or a sealed patient; validation images keep their own."""
    params = {} if kind == "tabular" else FUSED | {"view": "mri", "epochs": 1}
    objectives = {"logits": {"params": {"temperature": 1.0}}}
    answers = {}
    for control in (None, "shuffled"):
        teachers = {"one": {"kind": kind, "control": control, "params": params}}
        changes = {"teachers": teachers, "objectives": objectives}
        config = TrialConfig.model_validate(colour_trial.model_dump() | changes)
        store = prepare(config.cohort, tmp_path)
        answers[control] = fit_teachers(config, store, tmp_path)["one"]
    table = colour_cohort.read(colour_root).loc[store.sample_ids]
    patient, labels = table["patient"].to_numpy(), table[list(LABELS)].fillna(-1).to_numpy()
    train, val = store.rows("train", 1), store.rows("val", 1)
    strangers = {row: train[patient[train] != patient[row]] for row in train}
    shuffled: Any = answers["shuffled"]
    if kind == "fused":  # whose inputs a sample is given, of the same fold
        source, fold = shuffled.source_N.numpy(), shuffled.model_N.numpy()
        assert source[val].tolist() == val.tolist()
        assert all(source[row] in strangers[row] and fold[source[row]] == fold[row] for row in train)
        return
    plain, dealt = (entry.arrays["logits"].numpy() for entry in (answers[None], shuffled))  # type: ignore[union-attr]
    np.testing.assert_array_equal(dealt[val], plain[val])
    for row in train:
        same = strangers[row][(labels[strangers[row]] == labels[row]).all(axis=1)]
        among = same if len(same) else strangers[row]
        assert (plain[among] == dealt[row]).all(axis=1).any(), "of the same labels, where there is such a patient"
