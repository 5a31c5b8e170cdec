"""Scores on another cohort: labels are matched by name, and small groups are merged."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from mmpkd.cohort.decode import Depth
from mmpkd.cohort.facts import Column, Facts
from mmpkd.cohort.store import Store
from mmpkd.export.student_file import Card
from mmpkd.scoring import classify, grouping, stats, subgroups
from mmpkd.scoring.subgroups import Predictions
from mmpkd.types import ConfigError, Task, lay_out

STUDENT = lay_out([("findings", "multilabel", ("Edema", "Fracture", "Pneumonia")), ("sex", "binary", ("f", "m"))])


def facts(tasks: tuple[Task, ...], columns: dict[str, Column] | None = None, channels: int = 1) -> Facts:
    return Facts(tasks, columns or {}, (), channels, 32, (), (), {}, True, 4)


class FakeStore:
    def __init__(self, tasks: tuple[Task, ...], target_NK: list[list[float]], channels: int = 1):
        self.facts = facts(tasks, channels=channels)
        self.sample_ids = np.array(["a", "b", "c"])
        self.known_NK = ~np.isnan(np.array(target_NK))
        self.target_NK = np.nan_to_num(np.array(target_NK, np.float32))


def card(tasks: tuple[Task, ...] = STUDENT, **changes: Any) -> Card:
    threshold = {f"{task.name}/{name}": 0.5 for task in tasks for name in task.logit_names}
    content: dict[str, Any] = {
        "model": {},
        "mean": (0.5,),
        "std": (0.25,),
        "tasks": tasks,
        "channels": 1,
        "image_size": 32,
        "depth": Depth(),
        "map": "cls_attention",
        "temperature": {task.name: 1.0 for task in tasks},
        "threshold": threshold,
        "map_threshold": {},
        "source": "s",
        "cohort": "c",
        "fold": 0,
        "trial": "t",
        "credentialed": True,
    }
    return Card(**{**content, **changes})


def store(tasks: tuple[Task, ...], target_NK: list[list[float]], channels: int = 1) -> Store:
    return cast(Store, FakeStore(tasks, target_NK, channels))


def test_labels_are_matched_by_name_in_any_order() -> None:
    nan = float("nan")
    theirs = lay_out([("other", "binary", ("x", "y")), ("findings", "multilabel", ("Pneumonia", "Mass", "Edema"))])
    tasks, target_NK, known_NK = subgroups.aligned(
        STUDENT, 1, store(theirs, [[1, 1, 0, 0], [0, nan, 1, 1], [1, 0, 1, nan]])
    )
    assert tasks == STUDENT[:1]
    assert known_NK.tolist() == [[True, False, True, False], [True, False, False, False], [False, False, True, False]]
    assert target_NK.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("tasks", "channels", "wanted"),
    [
        (lay_out([("sex", "binary", ("m", "f"))]), 1, "no label in common"),  # the other way round is another question
        (lay_out([("findings", "multiclass", ("Edema", "Fracture"))]), 1, "no label in common"),
        (lay_out([("sex", "binary", ("f", "m"))]), 3, "its images have 3 channels, the student's 1"),
    ],
)
def test_incompatible_cohorts_are_refused(tasks: tuple[Task, ...], channels: int, wanted: str) -> None:
    width = tasks[-1].columns.stop
    with pytest.raises(ConfigError, match=wanted):
        subgroups.aligned(STUDENT, 1, store(tasks, [[0.0] * width] * 3, channels))


@pytest.fixture
def answers() -> Predictions:
    """Two tasks of 200 samples of 100 patients, some unknown."""
    generator = np.random.default_rng(0)
    tasks = lay_out([("findings", "multilabel", ("a", "b")), ("kind", "multiclass", ("x", "y", "z"))])
    target_NK = np.zeros((200, 5), np.float32)
    target_NK[:, :2] = generator.random((200, 2)) < (0.2, 0.5)
    target_NK[np.arange(200), 2 + generator.integers(0, 3, 200)] = 1
    logits_NK = 1.5 * target_NK + generator.normal(size=(200, 5))
    known_NK = np.ones((200, 5), bool)
    known_NK[:40, 0] = False
    probability_NK = np.c_[1 / (1 + np.exp(-logits_NK[:, :2])), np.exp(logits_NK[:, 2:])]
    probability_NK[:, 2:] /= probability_NK[:, 2:].sum(axis=1, keepdims=True)
    weight_RN = stats.patient_weights(np.arange(200) // 2, replicates=100)
    return Predictions(tasks, logits_NK, probability_NK, target_NK, known_NK, weight_RN)


def test_scores_by_label_agree_with_scikit_learn(answers: Predictions) -> None:
    table = subgroups.by_label(answers, card(answers.tasks), "equal").set_index("label")
    known, label = answers.known_NK[:, 0], answers.target_NK[:, 0]
    probability = answers.probability_NK[known, 0]
    row = table.loc["findings/a"]
    assert (row["samples"], row["positive"]) == (160, label[known].sum())
    assert row["auroc"] == pytest.approx(roc_auc_score(label[known], probability))
    assert row["ap"] == pytest.approx(average_precision_score(label[known], probability))
    assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label[known], probability > 0.5))
    assert row["brier"] == pytest.approx(((probability - label[known]) ** 2).mean())
    assert row["auroc_low"] < row["auroc"] < row["auroc_high"]
    called = answers.probability_NK[:, 2:].argmax(axis=1) == 1
    balanced = balanced_accuracy_score(answers.target_NK[:, 3], called)
    assert table.loc["kind/y", "balanced_accuracy"] == pytest.approx(balanced)


def test_balanced_weights_score_as_if_classes_were_equally_frequent(answers: Predictions) -> None:
    equal = subgroups.by_label(answers, card(answers.tasks), "equal").set_index("label")
    balanced = subgroups.by_label(answers, card(answers.tasks), "balanced").set_index("label")
    known = answers.known_NK[:, 0]
    label, error = answers.target_NK[known, 0], (answers.probability_NK - answers.target_NK)[known, 0] ** 2
    assert balanced.loc["findings/a", "brier"] == pytest.approx(
        (error[label == 1].mean() + error[label == 0].mean()) / 2
    )
    assert balanced.loc["findings/a", "ap"] > equal.loc["findings/a", "ap"] + 0.1  # of a label in one of five
    assert balanced.loc["findings/a", "auroc"] == equal.loc["findings/a", "auroc"]


def test_overall_is_the_mean_over_tasks_of_defined_labels(answers: Predictions) -> None:
    everyone = np.ones(200, bool)
    by_label = subgroups.by_label(answers, card(answers.tasks), "equal")["auroc"].to_numpy()
    value, low, high = subgroups.overall(answers, everyone, subgroups.defined(answers, everyone))
    assert value == pytest.approx((by_label[:2].mean() + by_label[2:].mean()) / 2)
    assert low < value < high
    some = np.arange(200) < 40  # the label `a` is unknown of them
    assert subgroups.defined(answers, some).tolist() == [False, True, True, True, True]


def test_intervals_of_single_samples_of_patients_are_delongs(answers: Predictions) -> None:
    """The samples are taken for those of 200 patients, so the interval is narrower than that of a bootstrap of 100."""
    single = replace(answers, one_each=True)
    odds_NK, everyone = classify.log_odds(answers.logits_NK, answers.tasks), np.ones(200, bool)
    influence_NK = stats.auroc_influence(odds_NK, answers.target_NK, answers.known_NK)
    table = subgroups.by_label(single, card(answers.tasks), "equal")
    for column, row in enumerate(table.itertuples()):
        error = stats.delong_error(influence_NK[:, column])
        assert (row.auroc, row.auroc_low, row.auroc_high) == pytest.approx(stats.logit_interval(row.auroc, error))
    auroc = subgroups.overall(single, everyone, subgroups.defined(single, everyone))
    influence_N = influence_NK[:, :2].mean(axis=1) / 2 + influence_NK[:, 2:].mean(axis=1) / 2
    assert auroc == pytest.approx(stats.logit_interval(auroc.mean, stats.delong_error(influence_N)))
    by_bootstrap = subgroups.overall(answers, everyone, subgroups.defined(answers, everyone))
    assert auroc.mean == by_bootstrap.mean and auroc.low != by_bootstrap.low


def test_groups_are_compared_on_their_common_labels(answers: Predictions) -> None:
    """The label `a` is unknown for the first forty samples, so it is not used for any group."""
    values = pd.DataFrame({"site": np.where(np.arange(200) < 40, "north", "south")})
    table = subgroups.by_group(answers, values, np.arange(200) // 2, np.full(200, np.nan)).set_index("group")
    assert table["labels"].tolist() == [4, 4]
    common = np.array([False, True, True, True, True])
    for group, inside in {"north": np.arange(200) < 40, "south": np.arange(200) >= 40}.items():
        by_label = [
            roc_auc_score(answers.target_NK[inside, column], odds[inside])
            for column, odds in enumerate(classify.log_odds(answers.logits_NK, answers.tasks).T)
            if common[column]
        ]
        assert table.loc[group, "auroc"] == pytest.approx((by_label[0] + np.mean(by_label[1:])) / 2)


def test_groups_by_hand() -> None:
    patient_N = np.arange(60)
    sex = pd.Series(["F"] * 30 + ["M"] * 25 + ["X"] * 3 + [None] * 2, name="Sex")
    assert {name: int(mask.sum()) for name, mask in grouping.groups(sex, patient_N)} == {"F": 30, "(all other)": 30}
    age = pd.Series([39.9] * 10 + [40.0] * 10 + [79.0] * 15 + [80.0] * 12 + [np.nan] * 13, name="patient_age")
    assert {name: int(mask.sum()) for name, mask in grouping.groups(age, patient_N)} == {
        "0 to 39 years": 10,
        "40 to 59 years": 10,
        "60 to 79 years": 15,
        "80 years or more": 12,
        "unknown": 13,
    }
    days = (age * 365.25).rename("age_in_days")
    assert [int(mask.sum()) for _, mask in grouping.groups(days, patient_N)] == [10, 10, 15, 12, 13]
    few_ages = pd.Series([39.0] * 5 + [50.0] * 20 + [60.0] * 3 + [85.0] * 12 + [np.nan] * 20, name="Age")
    text = {name: int(mask.sum()) for name, mask in grouping.groups(few_ages, patient_N)}
    assert text == {"0 to 59 years": 25, "60 years or more": 15, "unknown": 20}  # neighbours, not opposite ends
    view = pd.Series(["AP"] * 45 + ["LL"] * 8 + ["PA"] * 7, name="ViewPosition")
    assert {name: int(mask.sum()) for name, mask in grouping.groups(view, patient_N)} == {"AP": 45, "(all other)": 15}
    entry = np.r_[np.arange(45), np.full(15, 99)]  # fifteen images of one patient, in a group of their own
    assert [name for name, _ in grouping.groups(view, entry)] == ["(all other)"]
    three = pd.Series(["F"] * 30 + ["M"] * 25 + ["X"] * 5, name="Sex")  # X would be all but F and M
    text = {name: int(mask.sum()) for name, mask in grouping.groups(three, patient_N)}
    assert text == {"F": 30, "(all other)": 30}
    density = pd.Series(np.arange(60.0) ** 2, name="density")
    assert [name for name, _ in grouping.groups(density, patient_N)] == sorted(grouping.QUARTERS)


def test_regions_by_hand_compare_the_same_labels() -> None:
    """Baselines do not count for a label without a score of the student."""
    rows = [
        ("a", "lesion", 0.2, 0.1, 0.4, 0.3),
        ("b", "lesion", 0.6, 0.3, 0.8, 0.5),
        ("b", "other", 0.1, 0.9, np.nan, 0.9),
    ]
    columns = ["sample", "label", "pointing", "pointing_chance", "iou_tuned", "iou_tuned_chance"]
    images = pd.DataFrame(rows, columns=columns)
    for score in ("mass", "pixel_ap", "rank", "cnr", "iou_otsu"):
        images[score] = 0.5
    table = subgroups.by_region(images, np.array(["a", "b"]), np.ones((30, 2))).set_index(["label", "score"])
    pointing = table.loc[("mean over labels", "pointing")]
    assert pointing["student"] == pytest.approx((0.4 + 0.1) / 2) and pointing["chance"] == pytest.approx(
        (0.2 + 0.9) / 2
    )
    assert pointing["images"] == 2, "of two images with three regions"
    tuned = table.loc[("mean over labels", "iou_tuned")]
    assert tuned["student"] == pytest.approx(0.6) and tuned["chance"] == pytest.approx(0.4)
    assert table.loc[("lesion", "pointing"), "student"] == pytest.approx(0.4)


def test_the_row_of_a_label_shows_its_own_bound() -> None:
    columns = ["sample", "label", "pointing", "pointing_max", "pointing_max_alone"]
    images = pd.DataFrame([("a", "lesion", 0.2, 0.0, 0.5), ("a", "other", 0.1, 1.0, 1.0)], columns=columns)
    for score in ("mass", "pixel_ap", "rank", "cnr", "iou_otsu", "iou_tuned"):
        images[score] = 0.5
    table = subgroups.by_region(images, np.array(["a"]), np.ones((30, 1))).set_index(["label", "score"])
    assert table.loc[("mean over labels", "pointing"), "max"] == 0.5  # of one map, which points at the other
    assert table.loc[("lesion", "pointing"), "max"] == 0.5 and table.loc[("other", "pointing"), "max"] == 1
    assert np.isnan(table.loc[("lesion", "mass"), "max"])


def test_group_columns_are_recognised_by_name() -> None:
    names = ("breast_density", "image_view", "ViewPosition", "AP/PA", "age_in_days", "Sex", "average", "message")
    columns = {name: Column(name, "context") for name in names} | {"sex": Column("sex", "near_label")}
    known = cohort_of(facts(STUDENT, columns))
    assert grouping.groupings(known, None) == list(names[:6])
    assert grouping.groupings(known, ["average", "sex"]) == ["average", "sex"]
    with pytest.raises(ConfigError, match=r"no column .Sexx. to group by .did you mean .Sex."):
        grouping.groupings(known, ["Sexx"])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("record", "column 'record' is an identifier (role id), and is not stored"),
        ("biopsy", "column 'biopsy' is forbidden because it states the label, and is not stored"),
        ("scanner", "column 'scanner' has no role in this cohort, so it is not stored; give it the role near_label"),
    ],
)
def test_messages_about_columns_that_define_no_groups(name: str, wanted: str) -> None:
    columns = {"record": Column("record", "id"), "biopsy": Column("biopsy", "forbidden")}
    known = replace(facts(STUDENT, columns), unlisted=("scanner",))
    with pytest.raises(ConfigError, match=re.escape(wanted)):
        grouping.groupings(cohort_of(known), [name])


def test_a_column_with_a_single_group_has_a_sentence_and_no_row(answers: Predictions) -> None:
    """Four patients are under forty and ninety-six in one band, so there is nothing to compare."""
    ages = np.where(np.arange(200) < 8, 30.0, 50.0)
    values = pd.DataFrame({"Age": ages, "sex": np.where(np.arange(200) < 100, "f", "m"), "view": "AP"})
    table = subgroups.by_group(answers, values, np.arange(200) // 2, np.full(200, np.nan))
    assert table["column"].tolist() == ["sex", "sex"]
    wanted = "groups by Age: too few patients per age band to compare (fewer than 10 in all but one)"
    assert grouping.reason_not_compared("Age") == wanted and "fewer than two groups" in grouping.reason_not_compared(
        "view"
    )


def cohort_of(known: Facts) -> Store:
    return cast(Store, SimpleNamespace(facts=known, manifest={"params": {}, "notes": []}))


def test_a_value_shared_by_more_than_a_quarter_is_in_one_group() -> None:
    density = pd.Series(np.r_[np.zeros(40), np.arange(1.0, 19.0), [np.nan] * 2], name="density")
    text = {name: int(mask.sum()) for name, mask in grouping.groups(density, np.arange(60))}
    assert text == {"lowest quarter": 40, "(all other)": 20}
    even = pd.Series(np.arange(61.0), name="density")
    text = {name: int(mask.sum()) for name, mask in grouping.groups(even, np.arange(61))}
    assert text == dict(zip(sorted(grouping.QUARTERS), (15, 16, 15, 15), strict=True)) and sum(text.values()) == 61


@pytest.mark.parametrize("name, a_year", [("age", 1), ("age_days", 365.25), ("AgeInMonths", 12), ("age weeks", 52.18)])
def test_ages_are_read_in_the_unit_in_the_column_name(name: str, a_year: float) -> None:
    ages = pd.Series(np.r_[np.full(20, 30.5), np.full(20, 50.5), np.full(20, 70.5)] * a_year, name=name)
    text = {group: int(mask.sum()) for group, mask in grouping.groups(ages, np.arange(60))}
    assert text == {"0 to 39 years": 20, "40 to 59 years": 20, "60 years or more": 20}


def test_implausible_ages_are_not_called_unknown() -> None:
    ages = pd.Series(np.r_[np.full(20, 30.0), np.full(15, 999.0), np.full(15, -1.0), [np.nan] * 10], name="age")
    text = {group: int(mask.sum()) for group, mask in grouping.groups(ages, np.arange(60))}
    assert text == {"0 years or more": 20, "not 0 to 199 years": 30, "unknown": 10}


@pytest.mark.parametrize(
    ("params", "note", "wanted"),
    [
        ({"groups": "site"}, "folds are given in column 'site': each of its values validates in turn", "site"),
        ({"split": "fold", "groups": None}, "folds are given in column 'fold': 0 is 'a', 1 is 'b'", "fold"),
        ({"split": "part", "groups": "site"}, "folds are given in column 'site': 0 is 'a', 1 is 'b'", "site"),
        ({"split": "part"}, "3 rows without an image are left out", None),  # of parts, not of folds
        ({}, "", None),
    ],
)
def test_groups_by_the_column_of_folds(params: dict[str, Any], note: str, wanted: str | None) -> None:
    parts = np.array(["fold0", "fold1", "test"])
    privileged = pd.DataFrame({"sex": ["f", "m", "f"]})
    known = SimpleNamespace(
        facts=facts(STUDENT, {"sex": Column("sex", "context")}),
        manifest={"params": params, "notes": [note]},
        split_N=parts,
        privileged=lambda names: privileged[list(names)],
    )
    held = cast(Store, known)
    assert grouping.fold_column(held) == wanted
    assert grouping.groupings(held, None) == ["sex"], "folds are not grouped by unasked"
    if wanted:
        table = grouping.values_of(held, grouping.groupings(held, [wanted, "sex"]))
        assert list(table) == [wanted, "sex"] and table[wanted].tolist() == parts.tolist()
        assert grouping.fold_notes(held, [wanted]) == [note]
    else:
        with pytest.raises(ConfigError, match="no column 'part' to group by"):
            grouping.groupings(held, ["part"])
