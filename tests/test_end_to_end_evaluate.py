"""A student at work, followed from raw files to the tables of `mmpkd.predict` and `mmpkd.evaluate`.

The other cohort has other patients and brighter images of the stored size, so that a threshold or a temperature that
was chosen anew on it would be another one, and the frame of its originals is the frame of the student.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from mmpkd import evaluate, predict
from mmpkd.config import CohortConfig, TrialConfig
from tests import colour_cohort
from tests.colour_cohort import LABELS, SIDE
from tests.followed import Student, Trained, bootstrapped, square_regions, trained_by


class External(NamedTuple):
    """The results of both commands for another cohort."""

    root: Path
    table: pd.DataFrame  # of its raw files, in the order of `predictions`
    predictions: pd.DataFrame  # of mmpkd.evaluate
    labels: pd.DataFrame
    images: pd.DataFrame
    regions: pd.DataFrame
    groups: pd.DataFrame
    predicted: pd.DataFrame  # of mmpkd.predict


@pytest.fixture(scope="module")
def trained(colour_trial: TrialConfig, colour_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    out = tmp_path_factory.mktemp("trained")
    config = TrialConfig.model_validate(colour_trial.model_dump() | {"objectives": {}, "teachers": {}})
    return trained_by(config, colour_root, out, out / "cache")


def evaluated(trained: Trained, cohort: CohortConfig, out: Path, *words: str) -> dict[str, pd.DataFrame]:
    (out / "cohort.yaml").write_text(yaml.safe_dump({"cohort": cohort.model_dump(mode="json")}))
    text = [f"model={trained.folder}", f"config={out / 'cohort.yaml'}", f"cache={trained.cache}", f"out={out / 'e'}"]
    evaluate.main([*text, *words])
    (folder,) = (out / "e").iterdir()
    return {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}


@pytest.fixture(scope="module")
def external(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> External:
    root, out = tmp_path_factory.mktemp("external"), tmp_path_factory.mktemp("evaluated")
    cohort = colour_cohort.write(root, seed=5, patients=40, square=True).model_copy(update={"own_numbering": True})
    tables = evaluated(trained, cohort, out)
    predict.main([f"model={trained.folder}", f"images={root / 'images'}", f"out={out / 'p'}", "overlays=false"])
    table = colour_cohort.read(root).loc[tables["predictions"]["sample"]]
    predicted = pd.read_csv(out / "p" / "predictions.csv").set_index("image").loc[table.index]
    return External(root, table, tables["predictions"].set_index("sample"), *(
        tables[name] for name in ("labels", "images", "regions", "groups")
    ), predicted)  # fmt: skip


def test_both_commands_agree_with_timm_on_every_file(trained: Trained, external: External) -> None:
    expected = Student(trained.folder).probabilities(external.root, external.table.index)
    assert len(external.table) == len(list((external.root / "images").iterdir()))
    np.testing.assert_allclose(external.predictions[list(LABELS)], expected, atol=1e-5)
    np.testing.assert_allclose(external.predicted[list(LABELS)], expected, atol=1e-5)


def test_decisions_use_the_students_thresholds(trained: Trained, external: External) -> None:
    threshold = Student(trained.folder).card["threshold"]
    above = {label: external.predicted[label] > threshold[label] for label in LABELS}
    called = external.predicted["malignant"]
    assert called.tolist() == np.where(above[LABELS[0]], "malignant", "benign").tolist()
    findings = external.predicted["findings"].fillna("")
    for name in ("halo", "shadow"):
        assert (
            findings.str.split("; ").map(lambda called, name=name: name in called).tolist()
            == above[f"findings/{name}"].tolist()
        )


def test_scores_of_another_cohort_use_the_students_thresholds(trained: Trained, external: External) -> None:
    """Thresholds are chosen on the student's validation patients, never on the patients of a test."""
    threshold = Student(trained.folder).card["threshold"]
    rows = external.labels.set_index("label")
    assert tuple(rows.index) == LABELS
    differs = []
    for label in LABELS:
        known = external.table[label].notna().to_numpy()
        target, text = external.table[label].to_numpy()[known], external.predictions[label].to_numpy()[known]
        assert (rows.loc[label, "samples"], rows.loc[label, "positive"]) == (known.sum(), target.sum())
        assert rows.loc[label, "auroc"] == pytest.approx(roc_auc_score(target, text), abs=1e-6)
        assert rows.loc[label, "ap"] == pytest.approx(average_precision_score(target, text), abs=1e-6)
        assert rows.loc[label, "brier"] == pytest.approx(((text - target) ** 2).mean(), abs=1e-6)
        balanced = balanced_accuracy_score(target, text > threshold[label])
        assert rows.loc[label, "balanced_accuracy"] == pytest.approx(balanced, abs=1e-9)
        best = max(balanced_accuracy_score(target, text > cut) for cut in text)
        differs.append(best - balanced)
    assert max(differs) > 0.02, "a threshold chosen here would be another one"


def test_intervals_are_over_patients(external: External) -> None:
    rows = external.labels.set_index("label")
    for label in LABELS:
        known = external.table[label].notna().to_numpy()
        target, text = external.table[label].to_numpy()[known], external.predictions[label].to_numpy()[known]
        patients = external.table["patient"].to_numpy()[known]

        def auroc(some: Any, target: Any = target, text: Any = text) -> float:
            positive, negative = (text[some][target[some] == side] for side in (1, 0))
            return float((positive[:, None] > negative).mean()) if len(positive) and len(negative) else float("nan")

        by_patient, by_image = bootstrapped(auroc, patients), bootstrapped(auroc, np.arange(len(target)))
        width = (rows.loc[label, "auroc_high"] - rows.loc[label, "auroc_low"]) / (2 * 1.96)
        assert by_patient > 1.3 * by_image and width == pytest.approx(by_patient, rel=0.15)


def test_maps_of_another_cohort_use_the_students_thresholds(trained: Trained, external: External) -> None:
    predictor, chosen = predict.Predictor(trained.folder), Student(trained.folder).card["map_threshold"]
    followed = Trained(trained.folder, trained.cache, external.root, external.table, trained.split, [])
    rows, best = external.images.set_index(["sample", "label"]), []
    assert len(rows) == sum(len(square_regions(followed, row)) for _, row in external.table.iterrows())
    result: dict[str, dict[str, list[float]]] = {"iou_tuned": {"lesion": [], "node": []}}
    for name, row in external.table.iterrows():
        map_hw = predictor(external.root / "images" / str(name)).map_Rhw[0]
        up = F.interpolate(torch.tensor(map_hw)[None, None], (SIDE, SIDE), mode="bilinear")[0, 0].numpy()
        up = (up - up.min()) / np.ptp(up)
        for label, mask in square_regions(followed, row).items():
            cuts = [up > threshold + 1 / 512 for threshold in np.arange(2, 9) / 10]
            iou = np.array([(cut & mask).sum() / (cut | mask).sum() for cut in cuts])
            cut = round(chosen[label] * 10) - 2
            cells = mask.reshape(4, SIDE // 4, 4, SIDE // 4).mean(axis=(1, 3))
            text = rows.loc[(str(name), label)]
            assert text["iou_tuned"] == pytest.approx(iou[cut], abs=0.02), (name, label)
            assert text["pointing"] == pytest.approx(cells.flat[map_hw.argmax()], abs=1e-6)
            assert text["pointing_chance"] == pytest.approx(mask.mean(), abs=1e-6)
            result["iou_tuned"][label].append(text["iou_tuned"])
            best.append(iou.max() - iou[cut])
    assert np.mean(best) > 0.01, "thresholds chosen here would be others"
    means = external.regions.set_index(["label", "score"])["student"]
    by_label = {label: np.mean(values) for label, values in result["iou_tuned"].items()}
    for label, mean in by_label.items():
        assert means[label, "iou_tuned"] == pytest.approx(mean)
    assert means["mean over labels", "iou_tuned"] == pytest.approx(np.mean(list(by_label.values())))


def test_groups_hold_their_own_samples(external: External) -> None:
    rows = external.groups[external.groups["column"] == "sex"].set_index("group")
    assert set(rows.index) == {"f", "m"}
    aurocs = {}
    for group, row in rows.iterrows():
        inside = external.table["sex"] == group
        assert (row["samples"], row["patients"]) == (inside.sum(), external.table["patient"][inside].nunique())
        by_label = []
        for label in LABELS:
            known = inside & external.table[label].notna()
            by_label.append(roc_auc_score(external.table[label][known], external.predictions[label][known]))
        aurocs[group] = (by_label[0] + np.mean(by_label[1:])) / 2
        assert row["auroc"] == pytest.approx(aurocs[group], abs=1e-6)
        images = external.images[external.images["sample"].isin(external.table.index[inside])]
        assert row["pointing"] == pytest.approx(images.groupby("sample")["pointing"].mean().mean())
    assert aurocs["f"] != pytest.approx(aurocs["m"], abs=1e-3)


def test_groups_of_a_part_hold_the_samples_of_that_part(trained: Trained, external: External, tmp_path: Path) -> None:
    tables = evaluated(
        trained, colour_cohort.config(external.root), tmp_path, "part=train", "cohort.own_numbering=true"
    )
    part = external.table.loc[tables["predictions"]["sample"]]
    assert 0.4 < len(part) / len(external.table) < 0.8, "four folds of five but the one that validates"
    groups = tables["groups"].query("column == 'sex'").set_index("group")
    assert groups["samples"].to_dict() == part["sex"].value_counts().to_dict()
    assert groups["patients"].to_dict() == part.groupby("sex")["patient"].nunique().to_dict()


def test_on_its_own_cohort_a_student_is_scored_on_its_validation_images(
    trained: Trained, colour_trial: TrialConfig, tmp_path: Path
) -> None:
    tables = evaluated(trained, colour_trial.cohort, tmp_path)
    assert set(tables["predictions"]["sample"]) == set(trained.images("val").index)
    auroc = tables["labels"].set_index("label")["auroc"]
    for label in LABELS:
        assert auroc[label] == pytest.approx(trained.metrics[f"val/auroc/{label}"], abs=1e-9)
