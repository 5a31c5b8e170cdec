"""Validation: maps by name on one training, tables of pairs, and the frame of the original images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import EvaluationConfig, StudentConfig, TrialConfig
from mmpkd.scoring import classify, localize, stats, validation
from mmpkd.scoring.saliency import MAPS
from mmpkd.scoring.validation import GOALS, Evaluator
from mmpkd.student import build_student
from mmpkd.train import train
from mmpkd.types import DivergedError
from tests.mmpkd import cohort_fixtures

GRID = (3, 3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """20 x 30 pixels in rows 2 to 11 of squares of 15. Every other image has an ROI: rows 5 to 9, columns 10 to 19."""
    root = tmp_path_factory.mktemp("cohort")
    cohort_fixtures.write_cohort(root)
    return prepare(cohort_fixtures.config(root), root / "cache")


def evaluator(store: Store, map: str = "cls_attention", **config: Any) -> Evaluator:
    rows = store.rows("val"), store.rows("train")
    return Evaluator(store, rows[0], EvaluationConfig(map=map, **config), GRID, torch.device("cpu"), rows[1])


def test_every_map_has_the_logits_of_the_plain_forward_pass(store: Store) -> None:
    sizes = {"patch_size": 5, "embed_dim": 24, "depth": 2, "num_heads": 2}
    student = build_student(StudentConfig(model="vit_tiny_patch16_224", **sizes), 15, 1, 1)
    plain = evaluator(store)(student)
    for name in MAPS:
        scores = evaluator(store, name)(student)
        assert scores.keys() == plain.keys()
        assert scores["val/auroc"] == plain["val/auroc"] and scores["val/brier"] == pytest.approx(plain["val/brier"])
        assert all(np.isfinite(value) for key, value in scores.items() if not key.endswith("_se"))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("goals", [GOALS, ("val/auroc", "val/mass"), ("val/auroc", "val/auroc_patient")])
def test_goals_alone_are_those_of_the_complete_scoring_bit_by_bit(
    store: Store, name: str, goals: tuple[str, ...]
) -> None:
    """Of the last goals none needs a map, without which a forward pass rounds otherwise."""
    sizes = {"patch_size": 5, "embed_dim": 24, "depth": 2, "num_heads": 2}
    student = build_student(StudentConfig(model="vit_tiny_patch16_224", **sizes), 15, 1, 1)
    config, cpu = EvaluationConfig(map=name), torch.device("cpu")
    result = Evaluator(store, store.rows("val"), config, GRID, cpu, store.rows("train"), goals=goals)
    alone, scores = result.score_goals(student), result(student)
    counts = {"val/auroc_patient_undefined", "val/auroc_patient_mixed"} if "val/auroc_patient" in goals else set()
    assert set(alone) == {*goals, *counts}
    assert alone == {goal: scores[goal] for goal in alone}


@pytest.mark.parametrize("goals", [("val/auroc", "val/auroc_patient"), ("val/auroc", "val/pointing", "val/mass")])
def test_of_an_epoch_with_goals_alone_nothing_else_is_computed(
    store: Store, goals: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"patch_size": 5, "embed_dim": 24, "depth": 2, "num_heads": 2}
    student = build_student(StudentConfig(model="vit_tiny_patch16_224", **sizes), 15, 1, 1)
    scores = "formulas.histogram", "formulas.rank", "baselines.baseline_maps", "localize.measure", "localize.bounds"
    errors = "stats.patient_weights", "stats.standard_error", "classify.auroc_error", "classify.average_precision"
    maps = () if "val/pointing" in goals else ("saliency.ClsAttention.__call__", "formulas.pointing")
    for function in (*scores, *errors, *maps, "baselines.mean_roi", "patients.rarer_class"):
        name = f"mmpkd.scoring.{function}"
        monkeypatch.setattr(name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    monkeypatch.setattr(Store, "original_rois", lambda *_: pytest.fail("ROIs were read at their original size"))
    cpu = torch.device("cpu")
    result = Evaluator(
        store, store.rows("val"), EvaluationConfig(), GRID, cpu, store.rows("train"), goals=goals
    ).score_goals(student)
    assert set(goals) <= set(result) and all(map(np.isfinite, result.values()))


def test_an_infinite_logit_is_a_divergence_also_where_goals_alone_are_computed(store: Store) -> None:
    sizes = {"patch_size": 5, "embed_dim": 24, "depth": 2, "num_heads": 2}
    student = build_student(StudentConfig(model="vit_tiny_patch16_224", **sizes), 15, 1, 1)
    torch.nn.init.constant_(student.model.head.bias, torch.inf)
    with pytest.raises(DivergedError, match="no longer finite"):
        evaluator(store).score_goals(student)


def test_the_error_of_an_auroc_is_over_patients(store: Store) -> None:
    """Every patient has two images. With one of them each, the error is DeLong's; with both, it is the bootstrap's."""
    sizes = {"patch_size": 5, "embed_dim": 24, "depth": 2, "num_heads": 2}
    student = build_student(StudentConfig(model="vit_tiny_patch16_224", **sizes), 15, 1, 1)
    rows = store.rows("val")
    _, first = np.unique(store.patient_N[rows], return_index=True)
    for some, one_each in ((rows, False), (rows[first], True)):
        result = Evaluator(store, some, EvaluationConfig(), GRID, torch.device("cpu"))
        logits_NK, _ = result.predict(student)
        labels = result.target_NK, result.known_NK, result.tasks
        weight_RN = None if one_each else stats.patient_weights(store.patient_N[some])
        assert result.one_each == one_each
        scores = result(student)
        assert scores["val/auroc_se"] == classify.score(logits_NK, *labels, weight_RN)["auroc_se"]
        by_image = classify.score(logits_NK, *labels)["auroc_se"]
        assert one_each == (scores["val/auroc_se"] == by_image), "the error would be another one over images"


def test_the_choice_of_map_does_not_change_the_training(tiny_trial: TrialConfig, cache: Path) -> None:
    """Gradient maps freeze the parameters and compute gradients, which must not change the following epochs."""
    plain, other = (
        train(
            TrialConfig.model_validate(
                tiny_trial.model_dump() | {"evaluation": {"map": name}, "epochs": 2, "objectives": {}}
            ),
            cache,
        )[-1]
        for name in ("cls_attention", "legrad")
    )
    assert plain.terms == other.terms and plain.metrics["val/auroc"] == other.metrics["val/auroc"]
    assert plain.metrics["val/mass"] != other.metrics["val/mass"]


def test_the_prior_is_the_mean_roi_of_training_images_only(store: Store) -> None:
    requested: list[int] = []
    own = Store.roi_mask

    def watched(self: Store, rows: np.ndarray) -> np.ndarray:
        requested.extend(rows.tolist() if len(rows) == 1 else [])
        return own(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "roi_mask", watched)
        result = evaluator(store)
        assert not requested, "the prior is computed when it is used"
        assert result.prior_Rhw is not None
    # Stored in rows 4 to 6 and columns 5 to 9: rows 2 to 4 of the content's 10, of which cells take 0-3, 3-6, 6-9.
    assert result.prior_Rhw[0].tolist() == [[0, 0.5, 0], [0, 0.5, 0], [0, 0, 0]]
    assert set(requested) <= set(store.rows("train").tolist()) and len(requested) > 10
    assert result.fixed["val/pointing_prior"] > result.fixed["val/pointing_chance"]


def test_a_table_of_pairs_in_both_frames(store: Store) -> None:
    result = evaluator(store)
    rows = store.rows("val")
    maps = torch.zeros(len(rows), 1, *GRID)
    maps[:, 0, 0, 1] = 1
    stored, original = result.table(maps), result.table(maps, original=True)
    with_roi = [sample for sample, row in zip(store.sample_ids[rows], rows, strict=True) if store.rois(row)]
    for table in (stored, original):
        assert table["sample"].tolist() == with_roi and set(table["label"]) == {"lesion"}
        names = {kind: [f"{score}{kind}" for score in localize.SCORES] for kind in ("", "_chance", "_centre", "_prior")}
        without_padding, highest = ([f"pointing_{kind}", f"mass_{kind}"] for kind in ("content", "max"))
        expected = [*names[""], *names["_chance"], *without_padding, *names["_centre"], *names["_prior"], *highest]
        assert list(table)[2:] == expected
    # Of the upper middle cell, stored rows 0 to 4, the ROI covers row 4.5 to 5, which the stored mask rounds to row 4.
    np.testing.assert_allclose(original[["pointing", "mass"]], 0.1, rtol=1e-5)
    np.testing.assert_allclose(stored[["pointing", "mass"]], 0.2, rtol=1e-5)
    np.testing.assert_allclose(original["mass_chance"], 2.5 * 5 / 15**2, rtol=1e-5)
    np.testing.assert_allclose(original["pixel_ap_chance"], 50 / 600)
    np.testing.assert_allclose(original[["iou_otsu_chance", "iou_tuned_chance"]], 50 / 600)
    # The content covers 3/5, 1 and 2/5 of the cells' rows (2 to 11). Of the ROI, the first two hold 0.5 and 2 rows.
    of_rows = (0.6 * 0.5 + 1 * 2) / (5 * (0.6 + 1 + 0.4))
    np.testing.assert_allclose(original["mass_content"], of_rows * 5 / 15, rtol=1e-5)
    assert np.isnan(result.table(maps, np.array([np.nan]))["iou_tuned"]).all()


def test_original_rois_are_those_in_the_files(store: Store) -> None:
    row = next(int(row) for row in store.rows("val") if store.rois(row))
    drawn = np.zeros((1, 20, 30), bool)
    drawn[0, 5:10, 10:20] = True
    assert np.array_equal(store.original_rois(row), drawn)
    bare = next(int(row) for row in store.rows("val") if not store.rois(row))
    assert store.original_rois(bare).shape == (1, 20, 30) and not store.original_rois(bare).any()
    assert (store.letterbox(row).height, store.letterbox(row).width) == (20, 30)


def test_the_foreground_applies_in_the_original_frame(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lit = np.zeros((15, 15), bool)
    lit[:, :8] = True  # of the ROI's columns 5 to 9, three; of the original's 30 columns the first 16
    monkeypatch.setattr(validation, "foreground", lambda images: np.repeat(lit[None], len(images), 0))
    table = evaluator(store, within="foreground").table(torch.ones(len(store.rows("val")), 1, *GRID), original=True)
    np.testing.assert_allclose(table["pixel_ap"], 5 * 6 / (20 * 16))
    np.testing.assert_allclose(table["mass"], 5 * 6 / (20 * 16), rtol=1e-5)


@pytest.mark.parametrize("original", [False, True])
def test_samples_without_any_roi_have_an_empty_table(store: Store, original: bool) -> None:
    rows = np.array([row for row in store.rows("val") if not store.rois(int(row))])
    result = Evaluator(store, rows, EvaluationConfig(), GRID, torch.device("cpu"))
    table = result.table(torch.ones(len(rows), 1, *GRID), original=original)
    assert len(table) == 0 and {"sample", "label", "cnr", "mass_centre"} <= set(table)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Like `store`, with a second ROI, `duct`, on every image: rows 14 to 17, columns 24 to 27."""
    root = tmp_path_factory.mktemp("two")
    table = cohort_fixtures.cases()
    table["duct"] = [f"masks/duct{index}.png" for index in range(len(table))]
    cohort_fixtures.write_cohort(root, table)
    mask = np.zeros((20, 30), np.uint8)
    mask[14:18, 24:28] = 255
    for name in table["duct"]:
        Image.fromarray(mask).save(root / name)
    config = cohort_fixtures.config(root, masks={"lesion": "mask", "duct": "duct"})
    return prepare(config, root / "cache")


def test_one_map_for_two_labels_is_compared_with_one_prior(two: Store) -> None:
    """An attention map does not depend on the label, so its prior must not depend on the label either."""
    apart, together = evaluator(two, "grad_cam"), evaluator(two)
    assert apart.prior_Rhw is not None and together.prior_Rhw is not None
    assert apart.prior_Rhw.shape == (2, *GRID) and together.prior_Rhw.shape == (1, *GRID)
    # Lesions lie on every other image, ducts on all: each label's mean over its own images, the union's over all.
    assert float(together.prior_Rhw[0, 2, 2]) == pytest.approx(float(apart.prior_Rhw[1, 2, 2]))
    lesion = apart.prior_Rhw[0]
    torch.testing.assert_close(together.prior_Rhw[0, :2], lesion[:2] / 2)
    assert together.fixed["val/pointing_prior"] < apart.fixed["val/pointing_prior"] <= apart.fixed["val/pointing_max"]
    # One map points at one place: the lesion's, which covers more of its cell; of the duct it gets nothing.
    result = together.table(torch.ones(len(together.rows), 1, *GRID))
    means = result.groupby("label")[["pointing_prior", "pointing_max", "pointing_max_alone"]].mean()
    assert means.loc["duct", "pointing_prior"] == 0 < means.loc["lesion", "pointing_prior"]
    assert (means["pointing_max_alone"] > 0).all()
    assert together.fixed["val/pointing_max"] == pytest.approx(means["pointing_max"].mean())
    assert (
        together.fixed["val/pointing_max"]
        < apart.fixed["val/pointing_max"]
        == pytest.approx(means["pointing_max_alone"].mean())
    )


@pytest.mark.parametrize("original", [False, True])
def test_no_map_scores_above_the_attainable_bound(two: Store, original: bool) -> None:
    result = evaluator(two)
    generator = torch.Generator().manual_seed(0)
    best = result.table(torch.ones(len(result.rows), 1, *GRID), original=original)
    highest = best.groupby("label")[["pointing_max", "mass_max"]].mean().mean()
    for _ in range(5):
        maps = torch.rand(len(result.rows), 1, *GRID, generator=generator) ** 8
        scores = result.table(maps, original=original).groupby("label")[["pointing", "mass"]].mean().mean()
        assert scores["pointing"] <= highest["pointing_max"] + 1e-6 and scores["mass"] <= highest["mass_max"] + 1e-6


def test_all_rois_of_an_image_as_one_region(two: Store) -> None:
    apart, union = evaluator(two), evaluator(two, roi="union")
    assert union.regions is not None and apart.regions is not None
    assert union.regions.shape == (len(union.rows), 1) and union.roi_labels == ("any",)
    assert torch.equal(union.regions.roi_PHW[0], apart.regions.roi_PHW[apart.regions.image_P == 0].any(dim=0))
    maps = torch.zeros(len(union.rows), 1, *GRID)
    maps[:, 0, 2, 2] = 1  # the duct's cell
    table = union.table(maps)
    assert len(table) == len(union.rows) and set(table["label"]) == {"any"} and "pointing_max_alone" not in table
    duct = apart.table(maps).query("label == 'duct'")
    assert table["pointing"].tolist() == duct["pointing"].tolist()
    original = union.table(maps, original=True)
    assert (
        original["pointing"].tolist() == apart.table(maps, original=True).query("label == 'duct'")["pointing"].tolist()
    )
    assert union.thresholds(maps).keys() == {"any"}
    assert union.fixed["val/pointing_max"] >= apart.fixed["val/pointing_max"]


def test_a_map_per_label_explains_all_logits_of_a_union(two: Store) -> None:
    student = build_student(
        StudentConfig(model="vit_tiny_patch16_224", patch_size=5, embed_dim=24, depth=2, num_heads=2), 15, 1, 1
    )
    scores = evaluator(two, "grad_cam", roi="union")(student)
    assert np.isfinite(scores["val/pointing"]) and "val/pointing/duct" not in scores


def test_the_union_of_a_single_label_is_that_label(store: Store) -> None:
    assert evaluator(store).fixed == evaluator(store, roi="union").fixed


def test_patients_are_scored_if_one_has_several_images(store: Store) -> None:
    """There are two images per patient; the scores follow from their logits by hand."""
    student = build_student(
        StudentConfig(model="vit_tiny_patch16_224", patch_size=5, embed_dim=24, depth=2, num_heads=2), 15, 1, 1
    )
    result = evaluator(store)
    scores = result(student)
    logits, _ = result.predict(student)
    pairs = logits.reshape(-1, 2)  # a patient's images stand side by side
    mean = (1 / (1 + np.exp(-pairs))).mean(axis=1)
    sick = result.target_NK.reshape(-1, 2)[:, 0] > 0
    ordered = np.sign(mean[sick][:, None] - mean[~sick]) / 2 + 0.5
    assert scores["val/auroc_patient"] == pytest.approx(ordered.mean())
    assert scores["val/auroc_patient_mixed"] == scores["val/auroc_patient_undefined"] == 0
    assert np.isfinite(scores["val/auroc_patient_se"]) and store.facts.several_images
    assert scores["val/auroc_rarer_class"] == min(sick.sum(), (~sick).sum()) < len(sick), "patients, not images"


def test_patients_with_one_image_have_no_separate_score(tmp_path: Path) -> None:
    table = cohort_fixtures.cases(15)
    table["patient"] = [f"p{index}" for index in range(len(table))]
    cohort_fixtures.write_cohort(tmp_path, table)
    result = prepare(cohort_fixtures.config(tmp_path), tmp_path / "cache")
    assert not result.facts.several_images
    student = build_student(
        StudentConfig(model="vit_tiny_patch16_224", patch_size=5, embed_dim=24, depth=1, num_heads=2), 15, 1, 1
    )
    assert not [name for name in evaluator(result)(student) if "patient" in name]


def test_scores_of_baselines_are_computed_once_for_all_students_of_a_process(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They depend on the samples, the grid, and how ROIs and maps are taken, and on nothing else."""
    monkeypatch.setattr(validation, "BASELINES", {})
    computed: list[str] = []
    own = Evaluator._of_baselines

    def counted(self: Evaluator, *arguments: Any) -> dict[str, float]:
        computed.append("once more")
        return own(self, *arguments)

    monkeypatch.setattr(Evaluator, "_of_baselines", counted)
    first = evaluator(store).fixed
    assert evaluator(store).fixed == first and len(computed) == 1
    assert evaluator(store, "grad_cam").fixed == first, "a single label has one map, of whichever kind"
    rows, cpu = store.rows("val"), torch.device("cpu")
    others = [
        Evaluator(store, rows, EvaluationConfig(), GRID, cpu).fixed,  # without a prior
        Evaluator(store, rows, EvaluationConfig(), (5, 5), cpu, store.rows("train")).fixed,
        Evaluator(store, rows[1:], EvaluationConfig(), GRID, cpu, store.rows("train")).fixed,
        Evaluator(store, rows, EvaluationConfig(), GRID, cpu, store.rows("train")[:9]).fixed,
    ]
    assert len(computed) == 5 and others[0] != first and others[1] != first
