"""python -m mmpkd.evaluate: an exported student on its own validation part and on other cohorts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from sklearn.metrics import roc_auc_score

from mmpkd import predict
from mmpkd.cohort.decode import Depth, depth_of
from mmpkd.cohort.prepare import prepare
from mmpkd.config import CohortConfig, TrialConfig
from mmpkd.evaluate import main
from mmpkd.export import student_file
from mmpkd.prediction import other_cohort
from mmpkd.train import train
from mmpkd.types import CohortError, ConfigError, UserError
from tests.mmpkd import cohort_fixtures


@pytest.fixture(scope="module")
def trained(tiny_trial: TrialConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of a trained student, and the last AUROC and pointing of its training."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, dict(train(tiny_trial, cache, folder)[-1].metrics)["val/auroc"]


@pytest.fixture
def words(trained: tuple[Path, float], cache: Path, tmp_path: Path, tiny_trial: TrialConfig) -> list[str]:
    config = tmp_path / "cohort.yaml"
    config.write_text(yaml.safe_dump({"cohort": tiny_trial.cohort.model_dump(mode="json")}))
    return [f"model={trained[0]}", f"config={config}", f"cache={cache}", f"out={tmp_path / 'out'}"]


def test_scores_on_the_own_cohort_agree_with_the_training(
    words: list[str],
    trained: tuple[Path, float],
    tiny_trial: TrialConfig,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(words)
    (folder,) = (tmp_path / "out").iterdir()
    labels = pd.read_csv(folder / "labels.csv")
    assert labels["auroc"].mean() == pytest.approx(trained[1], abs=0.02)  # a temperature moves a class against the rest
    record = json.loads((folder / "evaluation.json").read_text())
    assert record["part"] == "val" and record["fitted_on_these_patients"]
    (note,) = record["notes"]
    images = pd.read_csv(folder / "images.csv")
    assert len(images) == 30 and images["pointing_chance"].between(0, 1).all()
    predictions = pd.read_csv(folder / "predictions.csv").drop(columns="sample")
    assert np.allclose(predictions.sum(axis=1), 1) and predictions.shape == (30, 3)
    store = prepare(tiny_trial.cohort, cache)
    known_N3 = store.target_NK[store.rows("val")]
    for row, (name, probability) in zip(labels["auroc"], predictions.items(), strict=True):
        assert row == pytest.approx(roc_auc_score(known_N3[:, labels["label"].tolist().index(name)], probability))
    text, warned = (" ".join(printed.split()) for printed in capsys.readouterr())
    patients = pd.Series(store.patient_ids[store.rows("val")])
    sides = [[patients[known_N3[:, column] == side].nunique() for side in (0, 1)] for column in range(3)]
    rarest = int(np.argmin(np.min(sides, axis=1)))
    assert f"warning: label {labels['label'][rarest]} has {np.min(sides)} patients of its rarer class" in warned
    assert "synthetic, part val: 30 samples" in text and "iou_otsu" in text and "age" in text
    assert "in training: at 0.5" in text and "of the original images" in text
    assert "its temperatures and thresholds were fitted on them: its scores on other patients are lower" in note
    assert note in text


def test_a_folder_in_place_of_a_table_is_reported(words: list[str], tmp_path: Path) -> None:
    main([*words, f"out={tmp_path}"])
    (old,) = tmp_path.rglob("evaluation.json")
    old.unlink()
    old.mkdir()
    old.with_name("of_the_user.csv").touch()
    with pytest.raises(UserError, match=r"evaluation.json: cannot be read or written .Is a directory"):
        main([*words, f"out={tmp_path}"])
    assert old.with_name("of_the_user.csv").exists()


@pytest.mark.parametrize("part", ["train", "test", "all"])
def test_other_parts_of_the_own_cohort_are_refused(words: list[str], part: str) -> None:
    with pytest.raises(ConfigError, match="scores on its training part would be too high"):
        main([*words, f"part={part}"])


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["cohort.fold=1"], "cohort.fold=1: the cohort has an official validation part"),
        (["cohort.fold=4", "cohort.params.seed=9"], "cohort.fold=4: the cohort has an official validation part"),
        (["cohort.image_size=64"], "cohort.image_size: the student sees"),
        (
            ["cohort.window.level=40", "cohort.window.width=90", "cohort.params.seed=9"],
            "cohort.window: cohort.window and cohort.clahe are not used",
        ),
        (["cohort.clahe={}", "cohort.params.seed=9"], "cohort.clahe: cohort.window and cohort.clahe are not used"),
        (["optimizer.lr=3"], "optimizer: not an option of this command"),
        (["evaluation.map=rollout"], "evaluation: not an option of this command"),
    ],
)
def test_an_option_without_effect_is_refused(words: list[str], given: list[str], wanted: str) -> None:
    with pytest.raises((ConfigError, CohortError), match=re.escape(wanted)):
        main([*words, *given])


def test_folds_of_the_own_and_of_another_cohort(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The student is validated on fold 1 of four; the other cohort has other pixels."""
    for name in ("own", "other"):
        cohort_fixtures.write_cohort(tmp_path / name)
    for path in (tmp_path / "other" / "images").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) + 1).save(path)
    configs = {name: cohort_fixtures.config(tmp_path / name) for name in ("own", "other")}
    for name, config in configs.items():
        content = config.model_dump(mode="json", exclude={"fold"})
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"cohort": content}))
    trial = {
        "cohort": configs["own"].model_copy(update={"fold": 1}),
        "student": {"model": "vit_tiny_patch16_224", "patch_size": 5, "embed_dim": 24, "depth": 1, "num_heads": 2},
        "epochs": 1,
    }
    train(TrialConfig.model_validate(trial), tmp_path / "cache", tmp_path / "run")
    words = [f"model={tmp_path / 'run'}", f"cache={tmp_path / 'cache'}", f"out={tmp_path / 'out'}"]
    own, other = ([*words, f"config={tmp_path / name}.yaml"] for name in ("own", "other"))
    other.append("cohort.own_numbering=true")
    for given in ([], ["cohort.fold=1"]):
        main([*own, *given])
        assert "table, part val, fold 1: " in capsys.readouterr().out
    for fold in (0, 2):
        with pytest.raises(ConfigError, match=r"cohort.fold: this student validated on fold 1; the other folds"):
            main([*own, f"cohort.fold={fold}"])
    for cohort in (own, other):
        with pytest.raises(CohortError, match=r"cohort.fold=7: this cohort can validate on the folds 0 to 3"):
            main([*cohort, "cohort.fold=7"])
    with pytest.raises(ConfigError, match=r"cohort.fold: part=all is the same for every validation fold"):
        main([*other, "cohort.fold=2"])
    main([*other, "cohort.fold=2", "part=val"])
    assert "table, part val, fold 2: " in capsys.readouterr().out
    store = prepare(configs["other"], tmp_path / "cache")
    (folder,) = (tmp_path / "out").glob("*-val-fold2")
    assert pd.read_csv(folder / "predictions.csv")["sample"].tolist() == store.sample_ids[store.rows("val", 2)].tolist()
    assert json.loads((folder / "evaluation.json").read_text())["fold"] == 2
    for num_patients, reason in ((3, "3 patients cannot be dealt into 5 parts"), (8, "has one class in part")):
        name = f"of{num_patients}"  # too small for folds, which scores of the whole cohort do not need
        cohort_fixtures.write_cohort(tmp_path / name, cohort_fixtures.cases(num_patients))
        for path in (tmp_path / name / "images").iterdir():
            Image.fromarray(np.asarray(Image.open(path)) + 1).save(path)
        small = cohort_fixtures.config(tmp_path / name)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"cohort": small.model_dump(mode="json")}))
        for _ in range(2):  # the second time with the store of the first
            main([*words, f"config={tmp_path / name}.yaml", "cohort.own_numbering=true"])
            assert f"table, part all: {2 * num_patients} samples of {num_patients} patients" in capsys.readouterr().out
        with pytest.raises(CohortError, match=reason):  # also after the evaluation, whose store nothing else reads
            prepare(small, tmp_path / "cache")


def test_the_own_data_set_with_other_options_is_refused(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Other options give other folds, whose validation patients may have trained the student."""
    monkeypatch.setattr(other_cohort, "source_of", lambda manifest: student_file.read(Path(words[0][6:])).card.source)
    with pytest.raises(ConfigError, match="prepared with other options or from other files"):
        main([*words, "cohort.params.seed=9"])


def test_shared_images_and_patients_are_refused(
    words: list[str], tiny_cohort: CohortConfig, cache: Path, tmp_path: Path
) -> None:
    """A copied study with an edited cell is another data set by its files, but has the same pictures."""
    known = student_file.read(Path(words[0][6:]))
    assert np.isin(prepare(tiny_cohort, cache).digests(), known.seen).all()
    other = tiny_cohort.model_copy(update={"params": {**tiny_cohort.params, "seed": 9}})
    assert not np.isin(prepare(other, cache).digests(), known.seen).any()
    seen = np.append(known.seen, prepare(other, cache).digests()[:2])
    model = student_file.write(tmp_path, known.student, known.card, seen)
    with pytest.raises(ConfigError, match="2 of its 102 images show a picture, pixel for pixel or nearly so, of"):
        main([f"model={model}", *words[1:], "cohort.params.seed=9", "cohort.own_numbering=true"])
    with pytest.raises(ConfigError, match=r"45 of its 45 patients have the name of a patient of the student's own"):
        main([*words, "cohort.params.seed=9"])


def test_another_cohort_is_read_with_the_students_window(tmp_path: Path) -> None:
    """As in predict, values 0 to 100 become 0 to 255, although the cohort itself has larger values."""
    cohort_fixtures.write_cohort(tmp_path / "raw", depth=16)
    config = cohort_fixtures.config(tmp_path / "raw")
    own, theirs = prepare(config, tmp_path / "cache"), prepare(config, tmp_path / "cache", Depth(16, (0.0, 100.0)))
    assert own.path != theirs.path and theirs.manifest["window"] == [0.0, 100.0]
    assert depth_of(theirs.manifest) == Depth(16, (0.0, 100.0)) != depth_of(own.manifest)
    assert (theirs.image_NCHW >= own.image_NCHW).all() and (theirs.image_NCHW > own.image_NCHW).any()
    with pytest.raises(CohortError, match="has 16-bit pixels where the cohort"):
        prepare(config, tmp_path / "cache", Depth())


def test_all_patients_or_one_part_are_scored(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what could not be compared with the training cohort, or was not, stands beside the scores."""
    main([*words, "cohort.params.seed=9", "groups=margin", f"cache={tmp_path / 'elsewhere'}"])
    text = {"all": " ".join(capsys.readouterr().out.split())}
    options = ["part=test", "class_weights=balanced", "cohort.own_numbering=true"]
    main([*words, "cohort.params.seed=9", *options])
    text["test"] = " ".join(capsys.readouterr().out.split())
    folder = {path.name.rpartition("-")[2]: path for path in (tmp_path / "out").iterdir()}
    assert len(pd.read_csv(folder["all"] / "predictions.csv")) == 102
    assert len(pd.read_csv(folder["test"] / "predictions.csv")) == 12
    groups = pd.read_csv(folder["all"] / "groups.csv")
    assert set(groups["column"]) == {"margin"} and (groups["patients"] >= 10).all()
    problems = {
        "all": "The store of the student's own cohort is not in cache=, so the two cohorts were not compared in full",
        "test": "45 of its 45 patients have the name of a patient of the student's own cohort; cohort.own_numbering",
    }
    for part, problem in problems.items():
        (note,) = json.loads((folder[part] / "evaluation.json").read_text())["notes"]
        assert note.startswith(problem) and note in text[part]


def test_mistakes_are_reported_together(words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        main([*words, "part=tset", "class_weights=even", "grups=age"])
    message = str(caught.value)
    assert "part: wanted all or train or val or test, got 'tset'" in message
    assert "class_weights: wanted equal or balanced" in message
    assert "grups: not an option of this command (did you mean 'groups'?)" in message
    with pytest.raises(ConfigError, match="model: missing: write model=FILE"):
        main(words[1:])


def test_a_cohort_with_other_labels_is_refused(words: list[str], tmp_path: Path) -> None:
    cohort_fixtures.write_cohort(tmp_path / "raw")
    other = tmp_path / "other.yaml"
    content = cohort_fixtures.config(tmp_path / "raw").model_dump(mode="json")
    other.write_text(yaml.safe_dump({"cohort": content}))
    with pytest.raises(ConfigError, match=r"no label in common: the student has pattern .multiclass of lamellar"):
        main([words[0], *words[2:], f"config={other}"])


def test_evaluate_and_predict_use_the_same_window(
    tiny_trial: TrialConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The 16-bit images are darker than the training images, so that their own window would differ."""
    for name in ("own", "other"):
        cohort_fixtures.write_cohort(tmp_path / name, depth=16)
    for path in (tmp_path / "other" / "images").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) // 2 + np.arange(30, dtype=np.uint16) * 20).save(path)
    own, other = (cohort_fixtures.config(tmp_path / name, image_size=16) for name in ("own", "other"))
    content = tiny_trial.model_dump() | {"cohort": own, "objectives": {}, "teachers": {}, "epochs": 1}
    train(TrialConfig.model_validate(content), tmp_path / "cache", tmp_path / "run")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"cohort": other.model_dump(mode="json")}))
    model, out = f"model={tmp_path / 'run'}", f"out={tmp_path / 'out'}"
    main([model, out, f"config={tmp_path / 'other.yaml'}", f"cache={tmp_path / 'cache'}", "cohort.own_numbering=true"])
    text = capsys.readouterr().out
    assert "0.115 [no interval]" in text and "no interval: resampling the patients always gives" in text  # a flat map
    assert "nan," not in text
    predicting = [model, f"out={tmp_path / 'new'}", f"images={tmp_path / 'other' / 'images'}"]
    predict.main([*predicting, "overlays=false"])
    (folder,) = (tmp_path / "out").iterdir()
    evaluated = pd.read_csv(folder / "predictions.csv").set_index("sample")["malignant/malignant"]
    predicted = pd.read_csv(tmp_path / "new" / "predictions.csv").set_index("image")["malignant/malignant"]
    assert evaluated.nunique() > 20
    np.testing.assert_allclose(predicted.loc[evaluated.index], evaluated, atol=2e-6)


def test_patients_with_several_images_are_scored_and_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There are two images per patient; in the table, one image of the benign patient p1 is malignant."""
    table = cohort_fixtures.cases()
    table.loc[2, "pathology"] = "malignant"
    cohort_fixtures.write_cohort(tmp_path / "raw", table)
    table["hospital"] = [("Cairo", "Lima", "Warsaw")[index // 20] for index in range(60)]
    cohort_fixtures.write_cohort(tmp_path / "raw", table)
    params = {"masks": {}, "groups": "hospital", "credentialed": True}
    cohort = cohort_fixtures.config(tmp_path / "raw", **params).model_dump(mode="json")
    trial = {
        "cohort": cohort,
        "student": {"model": "vit_tiny_patch16_224", "patch_size": 5, "embed_dim": 24, "depth": 1, "num_heads": 2},
        "epochs": 1,
    }
    train(TrialConfig.model_validate(trial), tmp_path / "cache", tmp_path / "trained")
    other = tmp_path / "other.yaml"
    table["patient"] = "q" + table["patient"]
    cohort_fixtures.write_cohort(tmp_path / "others", table, depth=8)
    for path in (tmp_path / "others" / "images").iterdir():  # other pixels, so that no image is shared
        Image.fromarray(np.asarray(Image.open(path)) + 1).save(path)
    other.write_text(yaml.safe_dump({"cohort": cohort | {"root": str(tmp_path / "others")}}))
    words = [f"model={tmp_path / 'trained'}", f"config={other}", f"cache={tmp_path / 'cache'}"]
    main([*words, f"out={tmp_path / 'out'}", "groups=hospital,age,birads"])
    text = capsys.readouterr().out
    (folder,) = (tmp_path / "out").iterdir()
    groups = pd.read_csv(folder / "groups.csv").query("column == 'hospital'").set_index("group")
    assert groups["samples"].to_dict() == {"fold0": 20, "fold1": 20, "test": 20}
    assert "folds are given in column 'hospital': each of its values validates in turn" in text and "Lima" not in text
    assert "predictions.csv, predictions_by_patient.csv hold names of files and patients of a credentialed" in text
    for word in ("within=foreground", "roi=union"):
        with pytest.raises(ConfigError, match="the cohort has no regions, so this option has no effect"):
            main([*words, word])
    images = pd.read_csv(folder / "predictions.csv")
    patients = pd.read_csv(folder / "predictions_by_patient.csv").set_index("patient")
    assert len(images) == 60 and len(patients) == 30 and (patients["images"] == 2).all()
    (name,) = [column for column in images if "/" in column]
    assert patients.loc["qp0", name] == pytest.approx(images[name][:2].mean())
    scores = pd.read_csv(folder / "labels_by_patient.csv")
    assert scores[["patients", "positive", "mixed"]].to_numpy().tolist() == [[29, 10, 1]]
    assert "labels_by_patient" in text
