"""The statistics of benchmarks/breast_students.py, on invented predictions."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.breast_students import ARMS, NONE, TEACHERS, UNSEEING, Design, Scores, auroc_over_folds, estimate

NAN = np.nan


def test_folds_are_averaged_and_never_pooled() -> None:
    """Fold 0 orders one of its two pairs, fold 1 its only one; their logits have no common scale."""
    logit_NF = np.array([[2.0, NAN], [1.0, NAN], [3.0, NAN], [NAN, -50.0], [NAN, -60.0]])
    positive_N = np.array([1, 0, 0, 1, 0])
    weight_RN = np.array([[1.0, 1, 1, 1, 1], [1, 2, 1, 1, 1], [1, 1, 1, 0, 1]])
    whole, doubled, undefined = auroc_over_folds(logit_NF, positive_N, weight_RN)
    assert whole == pytest.approx((1 / 2 + 1) / 2)
    assert whole != pytest.approx(roc_auc_score(positive_N, np.nansum(logit_NF, axis=1)))
    assert doubled == pytest.approx((2 / 3 + 1) / 2)
    assert np.isnan(undefined)  # a replicate without a positive in fold 1


@pytest.fixture(scope="module")
def scores() -> tuple[Scores, np.ndarray]:
    """120 patients of which the last 20 are sealed; students whose masses differ by little that varies less."""
    design, generator = Design(folds=(0, 1), seeds=(5, 6)), np.random.default_rng(0)
    of_fold = {0: np.arange(50), 1: np.arange(50, 100)}
    store = SimpleNamespace(
        sample_ids=np.arange(120),
        patient_N=np.arange(120),
        target_NK=(np.arange(120) % 2)[:, None],
        rows=lambda part, fold: of_fold[fold if part == "val" else 1 - fold],
    )
    mass_N, gain_N = generator.normal(0.5, 0.3, 100), generator.normal(0.2, 0.03, 100)
    seen = {}
    for fold, rows in of_fold.items():
        for seed in design.seeds:
            for arm in ARMS:
                gain = 0 if arm == NONE else gain_N[rows] + (0.01 if seed == 6 else 0)
                values = {"logit": store.target_NK[rows, 0] * (1 if arm == "text" else -1), "mass": mass_N[rows] + gain}
                seen[arm, fold, seed] = values | {f"mass_{name}": np.full(len(rows), 0.1) for name in UNSEEING}
    answers = {(name, fold): store.target_NK[:, 0] * 1.0 for name in TEACHERS for fold in design.folds}
    for said_N in answers.values():
        said_N[100:] = NAN  # of the sealed patients
    return Scores(design, store, seen, answers), gain_N


def test_differences_are_paired_by_patient(scores: tuple[Scores, np.ndarray]) -> None:
    """The interval is that of the mean difference by patient, ten times narrower than that of an arm."""
    result, gain_N = scores
    gain, over_seeds = result.gain("tabular", "mass")
    assert gain.mean == pytest.approx(gain_N.mean() + 0.005)
    assert over_seeds == pytest.approx(0.01 / np.sqrt(2))
    half = 1.96 * gain_N.std() / np.sqrt(100)
    assert (gain.high - gain.low) / 2 == pytest.approx(half, rel=0.1)
    arm = estimate(result.students["tabular", "mass"].mean(axis=0))
    assert arm.high - arm.low > 8 * (gain.high - gain.low)


def test_perfect_and_reversed_scores_hold_in_every_fold_and_replicate(scores: tuple[Scores, np.ndarray]) -> None:
    result, _ = scores
    assert result.num_patients == 100
    assert (result.students["text", "auroc"] == 1).all() and (result.students[NONE, "auroc"] == 0).all()
    assert all((value_R == 1).all() for value_R in result.teachers.values())
    assert result.gain("text", "auroc")[0].mean == 1 and result.gain("tabular", "auroc")[0].mean == 0
    assert result.unseeing["chance"][0] == pytest.approx(0.1)
