"""Classification scores by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, balanced_accuracy_score, brier_score_loss, roc_auc_score

from mmpkd.scoring.classify import log_odds, probabilities, scorable, score
from mmpkd.scoring.stats import patient_weights
from mmpkd.types import lay_out

BINARY = lay_out([("pathology", "binary", ("benign", "malignant"))])
SHAPE = lay_out([("shape", "multiclass", ("round", "oval", "irregular"))])
FINDINGS = lay_out([("findings", "multilabel", ("edema", "effusion"))])
MIXED = lay_out(
    [
        ("pathology", "binary", ("benign", "malignant")),
        ("shape", "multiclass", ("round", "oval", "irregular")),
        ("findings", "multilabel", ("edema", "effusion")),
    ]
)


def logit(probability):
    probability = np.asarray(probability, dtype=float)
    return np.log(probability / (1 - probability))


def known_all(target):
    return np.ones_like(np.asarray(target), dtype=bool)


def random_split(seed: int, num: int = 80):
    generator = np.random.default_rng(seed)
    target = np.concatenate(
        [
            generator.random((num, 1)) < 0.4,
            np.eye(3)[generator.integers(3, size=num)],
            generator.random((num, 2)) < 0.3,
        ],
        axis=1,
    ).astype(float)
    logits = 2 * generator.normal(size=(num, 6)) + target
    logits[:, [0, 4, 5]] = np.round(logits[:, [0, 4, 5]], 1)  # ties
    logits[:20, 1:4] = logits[20:40, 1:4]  # whole rows: a softmax ties exactly only there
    return logits, target, generator


def test_binary_by_hand():
    target = [[0], [0], [1], [1]]
    metrics = score(logit([[0.1], [0.4], [0.4], [0.8]]), target, known_all(target), BINARY)
    assert metrics["auroc"] == metrics["auroc/pathology/malignant"] == 3.5 / 4
    # Thresholds 0.8: precision 1, recall 1/2; 0.4: precision 2/3, recall 1.
    assert metrics["ap"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metrics["brier"] == pytest.approx((0.01 + 0.16 + 0.36 + 0.04) / 4)
    # Bins of 1/15: 0.1 alone, both 0.4 together (one correct), 0.8 alone.
    assert metrics["ece"] == pytest.approx((0.1 + abs(0.8 - 1) + 0.2) / 4)
    assert metrics["auroc_undefined"] == 0
    assert metrics["balanced_accuracy"] == (1 + 0.5) / 2  # both benign ones stay below 0.5, one of two malignant


def test_multiclass_by_hand():
    probability = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
    target = np.eye(3)[[0, 1, 1, 2]]
    metrics = score(np.log(probability), target, known_all(target), SHAPE)
    assert metrics["auroc/shape/round"] == 1
    assert metrics["auroc/shape/oval"] == 1  # 0.3 and 0.6 against 0.2 and 0.2
    assert metrics["auroc/shape/irregular"] == 1
    assert metrics["auroc"] == 1
    wrong = 0.25 + 0.49 + 0.04
    assert metrics["brier"] == pytest.approx(((0.09 + 0.04 + 0.01) + wrong + (0.01 + 0.16 + 0.09) + 0.24) / 4)
    # Top classes: 0.7 right, 0.5 wrong, 0.6 right, 0.6 right; the two 0.6 share a bin.
    assert metrics["ece"] == pytest.approx((0.3 + 0.5 + 0.8) / 4)
    assert metrics["balanced_accuracy"] == metrics["balanced_accuracy/shape"] == pytest.approx((1 + 0.5 + 1) / 3)


def test_multilabel_ignores_unknown_labels():
    target = np.array([[1, 0], [0, 0], [1, 1], [0, 0]], dtype=float)
    known = np.array([[1, 1], [1, 1], [1, 1], [0, 1]], dtype=bool)
    probability = np.array([[0.9, 0.2], [0.6, 0.7], [0.3, 0.8], [0.99, 0.1]])
    metrics = score(logit(probability), target, known, FINDINGS)
    assert metrics["auroc/findings/edema"] == 0.5  # 0.9 is above 0.6, 0.3 below; the unknown 0.99 is ignored
    assert metrics["auroc/findings/effusion"] == 1
    assert metrics["auroc"] == 0.75
    edema, effusion = (0.01 + 0.36 + 0.49) / 3, (0.04 + 0.49 + 0.04 + 0.01) / 4
    assert metrics["brier"] == pytest.approx((edema + effusion) / 2)
    assert metrics["ece"] == pytest.approx(((0.1 + 0.6 + 0.7) / 3 + (0.2 + 0.7 + 0.2 + 0.1) / 4) / 2)
    # Edema: one of two found, 0.6 is a false positive; effusion: found, one of three is a false positive.
    assert metrics["balanced_accuracy"] == pytest.approx(((0.5 + 0) / 2 + (1 + 2 / 3) / 2) / 2)
    probability[3, 0] = 0.01
    assert score(logit(probability), target, known, FINDINGS) == metrics


def test_a_label_with_one_class_is_nan_counted_and_left_out():
    target = np.array([[1, 0], [0, 0], [1, 0]], dtype=float)
    metrics = score([[2.0, 1.0], [0.0, 3.0], [1.0, 2.0]], target, known_all(target), FINDINGS)
    assert np.isnan(metrics["auroc/findings/effusion"]) and np.isnan(metrics["ap/findings/effusion"])
    assert metrics["auroc"] == metrics["auroc/findings/edema"] == 1
    assert metrics["auroc_undefined"] == 1
    assert metrics["balanced_accuracy"] == 1  # of edema alone; a logit of 0 is not above 0.5
    assert scorable(target, known_all(target), FINDINGS) == {"findings": ("edema",)}


def test_a_task_without_a_defined_label_makes_the_mean_nan():
    logits, target, _ = random_split(0)
    target[:, 0] = 1
    metrics = score(logits, target, known_all(target), MIXED)
    assert np.isnan(metrics["auroc"]) and metrics["auroc_undefined"] == 1
    assert np.isnan(metrics["balanced_accuracy"])
    assert scorable(target, known_all(target), MIXED)["pathology"] == ()


def test_tasks_weigh_equally_for_any_number_of_labels():
    logits, target, _ = random_split(1)
    metrics = score(logits, target, known_all(target), MIXED)
    by_task = [np.mean([metrics[key] for key in metrics if key.startswith(f"auroc/{task.name}/")]) for task in MIXED]
    assert metrics["auroc"] == pytest.approx(np.mean(by_task))


def test_agrees_with_sklearn():
    for seed in range(25):
        logits, target, generator = random_split(seed)
        known = generator.random(target.shape) < 0.8
        known[:, 1:4] = known[:, 1:2]
        metrics = score(logits, target, known, MIXED)
        probability = probabilities(logits, MIXED)
        for task in MIXED:
            for name, column in zip(task.logit_names, range(task.columns.start, task.columns.stop), strict=True):
                rows = known[:, column]
                ranked = probability[rows, column]
                auroc, ap = metrics[f"auroc/{task.name}/{name}"], metrics[f"ap/{task.name}/{name}"]
                assert auroc == pytest.approx(roc_auc_score(target[rows, column], ranked), abs=1e-12)
                assert ap == pytest.approx(average_precision_score(target[rows, column], ranked), abs=1e-12)
        whole = known[:, 1]
        brier = [
            brier_score_loss(target[known[:, 0], 0], probability[known[:, 0], 0]),
            brier_score_loss(target[whole, 1:4].argmax(1), probability[whole, 1:4], scale_by_half=False),
            np.mean([brier_score_loss(target[known[:, k], k], probability[known[:, k], k]) for k in (4, 5)]),
        ]
        assert metrics["brier"] == pytest.approx(np.mean(brier))
        accuracy = [
            balanced_accuracy_score(target[known[:, 0], 0], probability[known[:, 0], 0] > 0.5),
            balanced_accuracy_score(target[whole, 1:4].argmax(1), probability[whole, 1:4].argmax(1)),
            np.mean(
                [balanced_accuracy_score(target[known[:, k], k], probability[known[:, k], k] > 0.5) for k in (4, 5)]
            ),
        ]
        assert [metrics[f"balanced_accuracy/{task.name}"] for task in MIXED] == pytest.approx(accuracy)
        assert metrics["balanced_accuracy"] == pytest.approx(np.mean(accuracy))


def sklearn_calibration_error(correct, confidence):
    """Returns the gaps of scikit-learn's reliability curve, weighted by the number of samples in each bin."""
    observed, claimed = calibration_curve(correct, confidence, n_bins=15, strategy="uniform")
    count = np.histogram(confidence, np.linspace(0, 1, 16))[0]
    return np.sum(np.abs(observed - claimed) * count[count > 0]) / len(confidence)


def test_calibration_error_agrees_with_sklearn():
    for seed in range(10):
        logits, target, _ = random_split(seed, num=200)
        known = known_all(target)
        known[150:, 1:4] = False
        probability = probabilities(logits, MIXED)
        top = 1 + probability[:, 1:4].argmax(axis=1)
        rows = np.arange(150)
        expected = [
            sklearn_calibration_error(target[:, 0], probability[:, 0]),
            sklearn_calibration_error(target[rows, top[:150]], probability[rows, top[:150]]),
            np.mean([sklearn_calibration_error(target[:, k], probability[:, k]) for k in (4, 5)]),
        ]
        metrics = score(logits, target, known, MIXED)
        assert metrics["ece"] == pytest.approx(np.mean(expected))


def test_saturated_probabilities_are_still_ranked():
    logits = np.array([[90.0, 0, 0], [80, 0, 0], [70, 0, 0], [60, 0, 0]])
    assert (probabilities(logits, SHAPE)[:2, 0] == 1).all()
    target = np.eye(3)[[0, 0, 1, 2]]
    assert score(logits, target, known_all(target), SHAPE)["auroc/shape/round"] == 1
    odds = log_odds(logits[:, :1], BINARY)
    assert (odds == logits[:, :1]).all()


def test_standard_error_is_that_of_the_macro_mean():
    logits, target, generator = random_split(3)
    known, patient_N = known_all(target), generator.integers(0, 30, len(target))
    weight_RN = patient_weights(patient_N, replicates=60, seed=4)
    metrics = score(logits, target, known, MIXED, weight_RN)
    naive = []
    for weight in weight_RN.astype(int):
        rows = np.repeat(np.arange(len(target)), weight)
        naive.append(score(logits[rows], target[rows], known[rows], MIXED)["auroc"])
    assert metrics["auroc_se"] == pytest.approx(np.std(naive, ddof=1), rel=1e-9)


def test_without_replicates_every_sample_is_of_another_patient():
    """The error of the mean over tasks against 4,000 bootstrap replicates of samples, with unknown labels and ties."""
    logits, target, generator = random_split(3, num=400)
    known = np.repeat(generator.random((400, 4)) < 0.7, [1, 3, 1, 1], axis=1)
    by_delong = score(logits, target, known, MIXED)
    by_bootstrap = score(logits, target, known, MIXED, patient_weights(np.arange(400), 4000))
    assert by_delong["auroc"] == by_bootstrap["auroc"]
    # 4,000 replicates know their spread to 1.1 %.
    assert by_delong["auroc_se"] == pytest.approx(by_bootstrap["auroc_se"], rel=0.04)


def test_standard_error_is_near_hanley_and_mcneil():
    # A separation of 1 sd: AUROC Phi(1 / sqrt 2) = 0.76; Hanley & McNeil 1982 give its standard error.
    generator = np.random.default_rng(0)
    target = (np.arange(400) < 200).astype(float)[:, None]
    logits = generator.normal(size=(400, 1)) + target
    metrics = score(logits, target, known_all(target), BINARY)
    auroc = metrics["auroc"]
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = (auroc * (1 - auroc) + 199 * (q1 - auroc**2) + 199 * (q2 - auroc**2)) / 200**2
    resampled = score(logits, target, known_all(target), BINARY, patient_weights(np.arange(400), 1000))
    for error in (metrics["auroc_se"], resampled["auroc_se"]):
        assert error == pytest.approx(np.sqrt(variance), rel=0.1)


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="1 of 2 samples"):
        score([[0.0], [np.nan]], [[0], [1]], [[True], [True]], BINARY)
