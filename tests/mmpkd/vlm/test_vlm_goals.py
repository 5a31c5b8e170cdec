"""The goals of students that answer: by hand, against a bootstrap over patients, and at the edges."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score

from mmpkd.scoring.stats import Floats, macro, patient_weights, standard_error
from mmpkd.vlm.scores.averages import AUTHORS_MODALITIES, bootstrapped, mean_and_error, patients_that_count
from mmpkd.vlm.scores.goals import all_scores, goals, own_scores, parts_of
from mmpkd.vlm.scores.yardsticks import yardsticks

LEFT, RIGHT = "<box>(0,0),(100,100)</box>", "<box>(500,0),(600,100)</box>"
LONG = "a round lesion on the left"


def items_of(*rows: tuple[str, str, str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["task", "modality", "patient", "answer", "response"])


SMALL = items_of(
    ("RO", "ct", "p1", "cyst", "a cyst"),
    ("RO", "ct", "p2", "cyst", "mass"),
    ("RO", "mr", "p3", "mass", "mass"),
    ("GC", "ct", "p1", LONG, "a round lesion"),  # precision 1, recall 1/2: ROUGE-L 2/3
    ("GC", "ct", "p2", "none", "none"),
    ("VG", "ct", "p1", LEFT + RIGHT, LEFT),
    ("VG", "mr", "p3", RIGHT, RIGHT + LEFT + LEFT),
    ("VG", "mr", "p4", RIGHT, "nowhere"),
    ("VG", "mr", "p4", RIGHT, LEFT),
)


def random_items(num_patients: int, generator: np.random.Generator) -> pd.DataFrame:
    """Items whose patients have a modality, a skill and up to four items of each task."""
    rows = []
    for number in range(num_patients):
        skill, modality = generator.beta(2, 2), ("ct", "mr", "us")[number % 3]
        for task in generator.choice(["RO", "MII", "GC", "VG"], size=generator.integers(1, 9)):
            is_right = generator.random() < skill
            answers = {"RO": ("cyst", "mass"), "MII": ("yes", "no"), "GC": (LONG, "a lesion"), "VG": (LEFT, RIGHT)}
            right, wrong = answers[task]
            more = RIGHT if task == "VG" and generator.random() < 0.3 else ""
            rows.append((task, modality, f"p{number}", right + more, right if is_right else wrong))
    return items_of(*rows)


def bootstrap(items: pd.DataFrame, tasks: tuple[str, ...], value_N: Floats, size_N: Floats) -> float:
    """The standard error of the mean over tasks and modalities under a bootstrap over patients."""
    weight_RN = patient_weights(items["patient"].to_numpy(), replicates=3000)
    of_task = []
    for task in tasks:
        columns = []
        for modality in ("ct", "mr", "us"):
            cell_N = ((items["task"] == task) & (items["modality"] == modality)).to_numpy()
            columns.append(weight_RN[:, cell_N] @ value_N[cell_N] / (weight_RN[:, cell_N] @ size_N[cell_N]))
        of_task.append(macro(np.stack(columns, axis=1)))
    return standard_error(macro(np.stack(of_task, axis=1)))


def test_goals_by_hand() -> None:
    """RO: ct 1/2, mr 1. GC: ct (2/3 + 1) / 2. Boxes: ct 1 of 2, mr 1 of 3."""
    scores = goals(SMALL)
    assert scores["answer"] == pytest.approx((0.75 + 5 / 6) / 2)
    assert scores["recall50"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert set(scores) == {"answer", "answer_se", "recall50", "recall50_se"}


def test_the_error_by_hand() -> None:
    """Four patients with one item each, one right: the sample deviation of the mean."""
    items = items_of(*(("RO", "ct", f"p{number}", "cyst", "cyst" if number == 0 else "mass") for number in range(4)))
    assert goals(items)["answer_se"] == pytest.approx(np.std([1, 0, 0, 0], ddof=1) / 2)
    twice = pd.concat([items, items])  # no patient is new
    assert goals(twice)["answer_se"] == pytest.approx(goals(items)["answer_se"])


def test_errors_agree_with_a_bootstrap_over_patients() -> None:
    items = random_items(240, np.random.default_rng(3))
    scores = goals(items)
    rouge = 2 * (2 / 2) * (2 / 6) / (2 / 2 + 2 / 6)  # of "a lesion", where it is wrong
    wrong = {"RO": 0, "MII": 0, "GC": rouge, "VG": 0}
    is_right = [response in answer for answer, response in zip(items["answer"], items["response"], strict=True)]
    value_N = np.where(is_right, 1.0, items["task"].map(wrong))
    size_N = items["answer"].str.count("<box>").clip(1).to_numpy(float)
    value_N = np.where((items["answer"] == LEFT + RIGHT), 1.0, value_N)  # either box is one of the two
    ones_N = np.ones(len(items))
    assert scores["answer_se"] == pytest.approx(bootstrap(items, ("RO", "MII", "GC"), value_N, ones_N), rel=0.08)
    assert scores["recall50_se"] == pytest.approx(bootstrap(items, ("VG",), value_N, size_N), rel=0.08)


def test_a_modality_of_one_patient_has_the_largest_possible_spread() -> None:
    """Its score is 1/2 of two items; the other modality has no spread. The mean is over two modalities."""
    rows = [("RO", "mr", f"p{number}", "cyst", "cyst") for number in range(5)]
    items = items_of(*rows, ("RO", "ct", "q", "cyst", "cyst"), ("RO", "ct", "q", "cyst", "mass"))
    assert goals(items)["answer_se"] == pytest.approx(0.5 / 2)


@pytest.mark.parametrize("kept", [{"patient": ["p1"]}, {"task": ["VG"], "modality": ["ct"]}])
def test_one_patient_gives_no_error(kept: dict[str, list[str]]) -> None:
    scores = goals(SMALL[SMALL[list(kept)].isin(kept).all(axis=1)])
    assert scores["recall50"] == 0.5 and np.isnan(scores["recall50_se"])


def test_a_goal_without_items_is_absent() -> None:
    assert set(goals(SMALL[SMALL["task"] == "VG"])) == {"recall50", "recall50_se"}
    assert set(goals(SMALL[SMALL["task"] != "VG"])) == {"answer", "answer_se"}
    assert goals(SMALL[:0]) == {} and all_scores(SMALL[:0]) == {}


def test_how_tasks_are_judged() -> None:
    rows = [("RO", LONG), ("VG", "it is " + LEFT), ("where", LEFT), ("short", "not so large"), ("short", LEFT)]
    rows += [("long", "yes"), ("long", "not so very large")]
    items = pd.DataFrame(rows, columns=["task", "answer"])
    assert own_scores(items) == {"RO": "containment", "short": "containment", "long": "rouge_l"}


def test_all_scores_by_hand() -> None:
    scores = all_scores(SMALL)
    assert all(type(score) is float for score in scores.values())
    assert not any(np.isnan(score) for name, score in scores.items() if not name.endswith("_se"))
    assert scores["VG/recall50/mr"] == scores["VG/recall50_matched/mr"] == pytest.approx(1 / 3)
    assert scores["VG/precision50_matched/mr"] == pytest.approx(1 / 4)
    assert scores["VG/mean_iou"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert scores["VG/unparsable"] == scores["unparsable"] == 1
    of_ct = SMALL[(SMALL["task"] == "RO") & (SMALL["modality"] == "ct")]
    assert scores["RO/exact_match/mr"] == 1
    assert scores["RO/exact_match/ct"] == accuracy_score(of_ct["answer"], of_ct["response"])
    assert scores["RO/containment"] == 0.75
    assert scores["GC/rouge_l"] == pytest.approx(5 / 6)
    parts = ("bleu1", "bleu2", "bleu3", "bleu4", "meteor", "rouge_l")
    assert scores["GC/mbmr"] == pytest.approx(np.mean([scores[f"GC/{name}"] for name in parts]))
    assert not {"VG/rouge_l", "RO/recall50", "containment"} & set(scores)


def test_the_authors_count_missing_modalities_as_0() -> None:
    scores = all_scores(SMALL, authors=True)
    assert scores["VG/recall50"] == pytest.approx((1 / 2 + 1 / 3) / len(AUTHORS_MODALITIES))
    assert scores["recall50"] == goals(SMALL)["recall50"]


def test_without_any_box_predicted_the_precision_is_0() -> None:
    scores = all_scores(items_of(("VG", "ct", "p", LEFT, "")))
    assert scores["VG/precision50_matched"] == scores["recall50"] == 0 and scores["unparsable"] == 1


def test_goals_are_fast() -> None:
    sentence = " ".join(f"word{number}" for number in range(25))
    rows = [("RO", "cyst", "mass"), ("MII", "yes", "no"), ("GC", sentence, sentence + " more"), ("VG", LEFT, RIGHT)]
    items = items_of(*((*rows[n % 4][:1], "ct", f"p{n // 4}", *rows[n % 4][1:]) for n in range(1000)))
    goals(items[:4])  # imports the libraries
    start = time.process_time()
    goals(items)
    assert time.process_time() - start < 1


TRAIN = pd.DataFrame(
    [
        ("RO", "ct", "what is at <box>(1,2),(3,4)</box>?", "mass"),
        ("RO", "ct", "what is at <box>(5,6),(7,8)</box>?", "mass"),
        ("RO", "ct", "which class?", "cyst"),
        ("RO", "mr", "which class?", "cyst"),
        ("RO", "mr", "which class?", "tumour"),
        ("VG", "ct", "where?", "<box>(0,0),(80,100)</box>"),
        ("VG", "ct", "where?", "<box>(0,0),(120,100)</box>"),
        ("VG", "mr", "where?", None),
    ],
    columns=["task", "modality", "question", "answer"],
)


def test_yardsticks_by_hand() -> None:
    """The prior answers mass, cyst, and cyst (a new question); the mean box is that of ct, also for mr."""
    rows = [
        ("RO", "ct", "p1", "mass", "what is at <box>(9,9),(10,10)</box>?"),
        ("RO", "ct", "p1", "mass", "which class?"),
        ("RO", "ct", "p2", "cyst", "and this?"),
        ("VG", "ct", "p1", LEFT, "where?"),
        ("VG", "mr", "p2", RIGHT, "where?"),
        ("VG", "mr", "p3", "<box>(0,0),(100,90)</box>", "where?"),
    ]
    items = pd.DataFrame(rows, columns=["task", "modality", "patient", "answer", "question"])
    assert yardsticks(TRAIN, items) == pytest.approx({"answer_frequent": 2 / 3, "recall50_mean_box": 0.75})
    assert yardsticks(TRAIN[TRAIN["task"] == "RO"], items) == pytest.approx({"answer_frequent": 2 / 3})
    assert yardsticks(TRAIN[:0], items) == {}
    assert yardsticks(TRAIN, items[items["task"] == "VG"]) == {"recall50_mean_box": 0.75}


def test_replicates_by_hand() -> None:
    """The ratios of two modalities under the weights of five patients; the last has no box, and counts for nothing."""
    rows = [("ct", 0, 1, 1), ("ct", 0, 0, 1), ("ct", 1, 1, 2), ("ct", 2, 0, 1), ("mr", 2, 1, 1), ("mr", 3, 0, 2)]
    part = pd.DataFrame([*rows, ("us", 4, 0, 0)], columns=["modality", "patient", "value", "size"])
    weight_RP = patient_weights(np.arange(5), 50)
    expected = []
    for a, b, c, d, _ in weight_RP:
        ct = (a + b) / (2 * a + 2 * b + c) if a + b + c else np.nan
        mr = c / (c + 2 * d) if c + d else np.nan
        expected.append((ct + mr) / 2)
    assert np.isnan(expected).any() and np.isfinite(expected).sum() > 30
    np.testing.assert_allclose(bootstrapped([part], np.arange(5), weight_RP), expected)
    other = part[part["modality"] == "ct"]
    of_ct = [(a + b) / (2 * a + 2 * b + c or np.nan) for a, b, c, *_ in weight_RP]
    both = (np.array(expected) + of_ct) / 2
    np.testing.assert_allclose(bootstrapped([part, other], np.arange(5), weight_RP), both)


def test_replicates_scatter_as_much_as_the_error_says() -> None:
    items = random_items(240, np.random.default_rng(5))
    items["patient"] = items["patient"].str[1:].astype(int)
    patient_P = np.unique(items["patient"])
    for name, parts in parts_of(items).items():
        value, error = mean_and_error(parts)
        replicate_R = bootstrapped(parts, patient_P, patient_weights(patient_P, 2000))
        assert replicate_R.mean() == pytest.approx(value, abs=0.2 * error), name
        assert replicate_R.std(ddof=1) == pytest.approx(error, rel=0.1), name


@pytest.mark.parametrize(
    ("patients", "count"),
    [
        ([12], 12),  # one modality: all of them
        ([5, 5, 5], 13),  # three times four degrees of freedom, and one
        ([2, 100], 2),  # (1/2 + 1/100)^2 / (1/4 / 1 + 1/10000 / 99) = 1.04, and one
        ([2] * 9 + [100], 2),  # by degrees of freedom 10, but the replicates of each vary too little
        ([1, 100], 1),
        ([], 0),
    ],
)
def test_for_how_many_patients_those_of_modalities_count(patients: list[int], count: int) -> None:
    modality = np.repeat(np.arange(len(patients)), patients).astype(str)
    part = pd.DataFrame({"modality": modality, "patient": np.arange(len(modality)), "value": 0.0, "size": 1})
    assert patients_that_count([part] * bool(patients)) == count
    few = part.groupby("modality").head(3)  # of a further task, whose patients are the same
    assert patients_that_count([part, few] * bool(patients)) == patients_that_count([few] * bool(patients))


def test_patients_of_several_modalities_count_once() -> None:
    part = pd.DataFrame({"modality": ["ct"] * 6 + ["mr"] * 6, "patient": [*range(6)] * 2, "value": 0.0, "size": 1})
    assert patients_that_count([part]) == 6
