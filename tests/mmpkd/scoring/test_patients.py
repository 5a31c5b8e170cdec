"""Patients with several images: probabilities, labels and scores by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import logit, softmax

from mmpkd.scoring import classify, stats
from mmpkd.scoring.patients import auroc_of_patients, by_patient, patients_of, rarer_class, warn_of_few
from mmpkd.types import ConfigError, lay_out

BINARY = lay_out([("cancer", "binary", ("no", "yes"))])
CLASSES = lay_out([("kind", "multiclass", ("a", "b", "c"))])
FINDINGS = lay_out([("found", "multilabel", ("edema", "mass"))])


def column(values: list[float]) -> np.ndarray:
    return np.array(values, float)[:, None]


def all_known(logits_NK: np.ndarray) -> np.ndarray:
    return np.ones(logits_NK.shape, bool)


def test_a_patients_probability_is_the_mean_over_images() -> None:
    logits = column(logit([0.9, 0.1, 0.3, 0.3]).tolist())
    result = by_patient(logits, column([1, 1, 0, 0]), all_known(logits), BINARY, np.array([7, 7, 2, 7]))
    assert result.images_P.tolist() == [1, 3] and result.first_P.tolist() == [2, 0]  # patients 2 and 7
    np.testing.assert_allclose(classify.probabilities(result.logits_PK, BINARY)[:, 0], [0.3, (0.9 + 0.1 + 0.3) / 3])
    assert result.mixed_PK[:, 0].tolist() == [False, True]


def test_multiclass_probabilities_are_the_mean_of_softmaxes() -> None:
    logits = np.array([[2.0, 0, 1], [0, 3, 0], [1, 1, 1]])
    target = np.eye(3)[[1, 1, 2]]
    result = by_patient(logits, target, all_known(logits), CLASSES, np.array([0, 0, 1]))
    wanted = [softmax(logits[:2], axis=1).mean(axis=0), np.full(3, 1 / 3)]
    np.testing.assert_allclose(classify.probabilities(result.logits_PK, CLASSES), wanted)
    assert result.target_PK.tolist() == [[0, 1, 0], [0, 0, 1]]


def test_with_one_image_of_each_patient_the_auroc_is_that_of_images() -> None:
    """Three positives and three negatives; 7 of the 9 pairs are in order. With a second image of patient 0, the mean of
    whose probabilities (0.9 + 0.1) / 2 = 0.5 lies below those of two negatives, 5 pairs are."""
    logits = column(logit([0.9, 0.65, 0.3, 0.6, 0.55, 0.2]).tolist())
    target, patients = column([1, 1, 1, 0, 0, 0]), np.arange(6)
    of_images = classify.score(logits, target, all_known(logits), BINARY)
    scores = auroc_of_patients(logits, target, all_known(logits), BINARY, patients)
    assert scores["auroc_patient"] == of_images["auroc"] == pytest.approx(7 / 9)
    assert scores["auroc_patient_se"] == pytest.approx(of_images["auroc_se"]) and scores["auroc_patient_mixed"] == 0
    logits, target = np.r_[logits, column([logit(0.1)])], np.r_[target, column([1])]
    scores = auroc_of_patients(logits, target, all_known(logits), BINARY, np.r_[patients, 0])
    assert scores["auroc_patient"] == pytest.approx(5 / 9)


def test_disagreeing_images_exclude_the_patient_from_that_label_only() -> None:
    logits = np.zeros((4, 2))
    target = np.array([[1, 0], [0, 0], [1, 1], [1, 1]], float)
    result = by_patient(logits, target, all_known(logits), FINDINGS, np.array([0, 0, 1, 1]))
    assert result.known_PK.tolist() == [[False, True], [True, True]]
    assert result.mixed_PK.tolist() == [[True, False], [False, False]]
    assert result.target_PK.tolist() == [[0, 0], [1, 1]]


def test_disagreeing_classes_exclude_the_patient_from_the_task() -> None:
    """Otherwise a patient with an image of class a and one of class b would count as a certain 'not c'."""
    logits = np.zeros((3, 3))
    result = by_patient(logits, np.eye(3)[[0, 1, 2]], all_known(logits), CLASSES, np.array([0, 0, 1]))
    assert result.known_PK.tolist() == [[False] * 3, [True] * 3] and result.mixed_PK[0].all()


def test_an_image_with_an_unknown_label_still_counts() -> None:
    logits = column(logit([0.2, 0.8, 0.5]).tolist())
    known = np.array([[True], [False], [False]])
    result = by_patient(logits, column([1, 0, 0]), known, BINARY, np.array([0, 0, 1]))
    assert result.known_PK.tolist() == [[True], [False]] and result.target_PK.tolist() == [[1], [0]]
    assert not result.mixed_PK.any()
    assert classify.probabilities(result.logits_PK, BINARY)[0, 0] == pytest.approx(0.5)


def test_the_auroc_of_patients_by_hand() -> None:
    # Three patients with cancer at .9, .5 and .3, two without at .4 and .2: of six pairs five are in the right order.
    logits = column(logit([0.9, 0.9, 0.6, 0.4, 0.3, 0.4, 0.1, 0.3]).tolist())
    target, patient = column([1, 1, 1, 1, 1, 0, 0, 0]), np.array([0, 0, 1, 1, 2, 3, 4, 4])
    result = by_patient(logits, target, all_known(logits), BINARY, patient)
    score = classify.score(result.logits_PK, result.target_PK, result.known_PK, BINARY)
    assert score["auroc"] == pytest.approx(5 / 6)
    by_image = classify.score(logits, target, all_known(logits), BINARY)["auroc"]
    assert by_image == pytest.approx(13 / 15)


def test_saturated_patients_do_not_tie() -> None:
    logits = column([60.0, 61, 80, 81])
    result = by_patient(logits, column([0, 0, 1, 1]), all_known(logits), BINARY, np.array([0, 0, 1, 1]))
    assert classify.score(result.logits_PK, result.target_PK, result.known_PK, BINARY)["auroc"] == 1
    assert classify.probabilities(logits, BINARY).min() == 1  # as probabilities they are the same


def test_patients_with_one_image_score_as_their_images() -> None:
    generator = np.random.default_rng(0)
    tasks = lay_out([("a", "binary", ("no", "yes")), ("b", "multiclass", ("x", "y", "z"))])
    logits, patient = generator.normal(size=(40, 4)), generator.permutation(40)
    target = np.concatenate([generator.integers(0, 2, (40, 1)), np.eye(3)[generator.integers(0, 3, 40)]], axis=1)
    known = np.repeat(generator.random((40, 2)) < 0.8, [1, 3], axis=1)
    result = by_patient(logits, target * known, known, tasks, patient)
    weight = stats.patient_weights(patient)
    images = classify.score(logits, target * known, known, tasks, weight)
    patients = classify.score(result.logits_PK, result.target_PK, result.known_PK, tasks, weight[:, result.first_P])
    assert patients == pytest.approx(images)


def test_the_standard_error_is_over_patients() -> None:
    """The images of a patient are copies, so the replicates of patients do not depend on the number of images."""
    generator = np.random.default_rng(1)
    logits, target = generator.normal(size=(30, 1)), generator.integers(0, 2, (30, 1)).astype(float)
    copies = np.repeat(np.arange(30), generator.integers(1, 5, 30))
    entry = classify.score(logits, target, all_known(logits), BINARY, stats.patient_weights(np.arange(30)))
    result = by_patient(logits[copies], target[copies], all_known(logits[copies]), BINARY, copies)
    weight = stats.patient_weights(copies)[:, result.first_P]
    several = classify.score(result.logits_PK, result.target_PK, result.known_PK, BINARY, weight)
    assert (several["auroc"], several["auroc_se"]) == pytest.approx((entry["auroc"], entry["auroc_se"]))


def test_patients_of_the_rarer_class_are_counted_and_few_are_named() -> None:
    patient = np.array([0, 0, 1, 2, 3, 3, 3, 4])
    target = np.array([[1, 0], [1, 0], [0, 0], [0, 0], [0, 0], [1, 1], [0, 0], [1, 0]], float)
    known = np.ones((8, 2), bool)
    # Of the first label, patients 0, 3 and 4 have the four positive images, and 1, 2 and 3 the four negative ones.
    assert rarer_class(target, known, patient).tolist() == [3, 1]
    known[5, 1] = False
    assert rarer_class(target, known, patient).tolist() == [3, 0], "the second label has a single class"
    (line,) = warn_of_few(np.array([9, 0]), FINDINGS)
    first, second = FINDINGS[0].logit_names
    rough = "of its rarer class: with fewer than about 10, both its AUROC and the standard error are rough"
    assert line == f"label found/{first} has 9 patients {rough}"
    (line,) = warn_of_few(np.array([9, 2]), FINDINGS, "validation patients")
    assert line == f"label found/{second} has 2 validation patients {rough}; another label has fewer than 10"
    (line,) = warn_of_few(np.array([3, 1, 2]), CLASSES)
    assert line.startswith(f"label {CLASSES[0].name}/{CLASSES[0].logit_names[1]} has 1 patient of")
    assert line.endswith("; 2 other labels have fewer than 10")
    assert warn_of_few(np.array([10, 0]), FINDINGS) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,patient\na.png,p1\n", "gives image b.png no patient; give each image one"),
        ("image,patient\na.png,p1\na.png,p2\nb.png,p1\n", "gives image a.png 2 patients;"),
        ("image,patient\na.png,\nb.png,\n", "gives image a.png no patient; this is so for 1 other images"),
        ("file;patient\na.png;p1\n", "lacks the column image and patient; its columns are file;patient"),
        ("", "lacks the column image and patient; its columns are none"),
    ],
)
def test_a_table_without_a_clear_patient_for_each_image_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "patients.csv").write_text(text)
    with pytest.raises(ConfigError, match=words):
        patients_of(tmp_path / "patients.csv", ["a.png", "b.png"])


def test_patients_of_images_are_read(tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("patient,image,age\np1,./a.png,3\np1,deep/b.png,4\np9,other.png,5\n")
    assert patients_of(tmp_path / "patients.csv", ["a.png", "deep/b.png"]) == {"a.png": "p1", "deep/b.png": "p1"}
    with pytest.raises(ConfigError, match="cannot be read"):
        patients_of(tmp_path / "nowhere.csv", ["a.png"])


@pytest.mark.parametrize(
    ("names", "printed"),
    [
        (("00001", "1"), "in several ways"),
        (("a", "A"), "in several ways"),
        (("nan", "nan"), "word for a missing name"),
        (("1.2E+09", "7"), "word for a missing name"),
    ],
)
def test_misspelt_patients_are_refused(tmp_path: Path, names: tuple[str, str], printed: str) -> None:
    path = tmp_path / "patients.csv"
    path.write_text("Image,Patient\n" + "".join(f"{at}.png,{name}\n" for at, name in enumerate(names)))
    with pytest.raises(ConfigError, match=printed) as raised:
        patients_of(path, ["0.png", "1.png"])
    assert not any(repr(name) in str(raised.value) for name in names)
