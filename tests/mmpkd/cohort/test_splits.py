"""Whole patients, and in each part something to tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mmpkd.cohort import splits
from mmpkd.cohort.facts import Scan, encode_labels, label_columns
from mmpkd.types import CohortError, ConfigError, Task, lay_out

TASKS = lay_out([("malignant", "binary", ("benign", "malignant"))])


def scan_of(patients: Any, labels: pd.DataFrame, split: Sequence[str] | None = None, tasks: Any = TASKS) -> Scan:
    index = pd.Index([f"s{position}" for position in range(len(patients))], name="sample")
    samples = pd.DataFrame({"patient": [str(one) for one in patients]}, index=index)
    if split is not None:
        samples["split"] = split
    return Scan(tasks, samples, labels.set_axis(index, axis=0), pd.DataFrame(index=index))


def binary(target: Any) -> pd.DataFrame:
    return encode_labels(TASKS[0], pd.Series(np.where(target, "malignant", "benign")))


def check(scan: Scan) -> pd.Series:
    split = splits.assign(scan)
    splits.check(split, scan.samples["patient"], scan.labels, scan.tasks)
    return split


def test_five_folds_are_even_stratified_by_patient_and_repeatable() -> None:
    patients = np.repeat(np.arange(100), 2)
    target = patients % 4 == 0  # 25 of 100 patients
    scan = scan_of(patients, binary(target))
    split = check(scan)
    assert sorted(set(split)) == [*splits.FOLDS, "test"]
    assert (split.groupby(patients).nunique() == 1).all()
    for part in set(split):
        chosen = (split == part).to_numpy()
        assert chosen.sum() == 40 and target[chosen].sum() == 10
    assert split.equals(splits.assign(scan))


def test_parts_are_dealt_alike_whichever_is_sealed_and_each_validates_once() -> None:
    patients = np.repeat(np.arange(30), 2)
    scan = scan_of(patients, binary(patients % 3 == 0), ["train"] * 20 + ["test"] * 40)
    dealt = [splits.deal_parts(scan, 5, sealed) for sealed in range(5)]
    for name in ("test", "fold0"):
        chosen = np.array([(split == name).to_numpy() for split in dealt])
        assert (chosen.sum(axis=0) == 1).all() and (chosen.sum(axis=1) == 12).all()
    assert ((dealt[1] == "test") == (dealt[0] == "fold0")).all()
    plain = scan_of(patients, binary(patients % 3 == 0))
    assert splits.deal_parts(plain, 5).equals(splits.assign(plain)), "the last of five is what is sealed by default"


def test_parts_that_cannot_be_dealt_are_refused() -> None:
    scan = scan_of(range(4), binary([0, 1] * 2))
    with pytest.raises(CohortError, match="4 patients cannot be dealt into 5 parts"):
        splits.deal_parts(scan, 5)
    with pytest.raises(ConfigError, match=r"cohort.sealed: is one of 0 to 2, because cohort.parts=3, got 3"):
        splits.deal_parts(scan, 3, 3)
    grouped = scan_of(range(4), binary([0, 1] * 2), ["fold0", "fold1", "fold0", "test"])
    with pytest.raises(ConfigError, match="the data set gives folds of its own"):
        splits.deal_parts(grouped, 3)


def test_an_official_split_is_kept() -> None:
    official = ["train", "train", "val", "val", "test", "test"]
    scan = scan_of(range(6), binary([0, 1] * 3), official)
    assert check(scan).tolist() == official


@pytest.mark.parametrize("official", [["val", "test"] * 4, ["test"] * 8])
def test_without_a_training_part_a_cohort_is_external(official: list[str]) -> None:
    scan = scan_of(range(8), binary([0, 0, 1, 1] * 2), official)
    assert check(scan).tolist() == official and scan.facts(32, False).external
    trained = scan_of(range(8), binary([0, 0, 1, 1] * 2), ["train", *official[1:]])
    assert not trained.facts(32, False).external
    assert not scan_of(range(8), binary([0, 1] * 4)).facts(32, False).external


def test_official_training_patients_are_dealt_into_four_folds() -> None:
    patients = np.repeat(np.arange(40), 2)
    official = np.where(patients < 24, "train", "test")
    split = check(scan_of(patients, binary(patients % 2), list(official)))
    assert set(split[patients < 24]) == set(splits.FOLDS) and set(split[patients >= 24]) == {"test"}
    assert split.value_counts()[list(splits.FOLDS)].tolist() == [12] * 4


def test_a_patient_in_two_official_parts_is_refused_unnamed() -> None:
    scan = scan_of(["ann", "bob", "ann", "eve"], binary([0, 1, 0, 1]), ["train", "train", "test", "test"])
    with pytest.raises(CohortError, match="1 of 3 patients are in more than one part") as caught:
        splits.check(scan.samples["split"], scan.samples["patient"], scan.labels, scan.tasks)
    assert "ann" not in str(caught.value)


def test_unknown_parts_and_too_few_patients() -> None:
    with pytest.raises(CohortError, match="train, val and test, got 'dev'"):
        splits.assign(scan_of(range(2), binary([0, 1]), ["train", "dev"]))
    with pytest.raises(CohortError, match="3 patients cannot be dealt into 5 parts"):
        splits.assign(scan_of([1, 1, 2, 3], binary([0, 1, 0, 1])))


def test_a_task_with_one_class_names_task_part_and_counts() -> None:
    with pytest.raises(CohortError, match="task malignant has one class in the whole cohort: benign 10, malignant 0"):
        check(scan_of(range(10), binary([0] * 10)))
    official = ["train"] * 4 + ["val"] * 3
    with pytest.raises(CohortError, match="task malignant has one class in part val: benign 0, malignant 3"):
        check(scan_of(range(7), binary([0, 1, 0, 1, 1, 1, 1]), official))


def one_task(
    kind: Any, labels: Sequence[str], columns: Sequence[Sequence[float]]
) -> tuple[tuple[Task, ...], pd.DataFrame]:
    tasks = lay_out([("findings", kind, labels)])
    return tasks, pd.DataFrame(np.array(columns).T, columns=label_columns(tasks))


def test_multilabel_tolerates_single_labels_but_not_all() -> None:
    one_sided = [0.0, 0.0, 0.0, 0.0]
    tasks, labels = one_task("multilabel", ("a", "b"), [one_sided, [0.0, 1.0, np.nan, 1.0]])
    splits.check_classes("part val", labels, tasks)
    tasks, labels = one_task("multilabel", ("a", "b"), [one_sided, [np.nan, 1.0, 1.0, 1.0]])
    with pytest.raises(
        CohortError, match=r"task findings has one class in part val: a 0, b 3 \(4 of 4 samples labelled\)"
    ):
        splits.check_classes("part val", labels, tasks)


def test_multiclass_needs_two_of_its_classes() -> None:
    tasks, labels = one_task("multiclass", ("a", "b", "c"), [[1, 0, np.nan], [0, 0, np.nan], [0, 1, np.nan]])
    splits.check_classes("part val", labels, tasks)
    tasks, labels = one_task("multiclass", ("a", "b", "c"), [[1, 1, np.nan], [0, 0, np.nan], [0, 0, np.nan]])
    with pytest.raises(CohortError, match=r"a 2, b 0, c 0 \(2 of 3 samples labelled\)"):
        splits.check_classes("part val", labels, tasks)


def test_rare_labels_are_dealt_first() -> None:
    """A label of ten patients among a hundred reaches every fold, though another is everywhere."""
    rare, common = np.arange(100) % 10 == 0, np.arange(100) % 2 == 0
    tasks, labels = one_task("multilabel", ("common", "rare"), [common.astype(float), rare.astype(float)])
    split = splits.assign(scan_of(range(100), labels, tasks=tasks)).to_numpy()
    assert [rare[split == part].sum() for part in sorted(set(split))] == [2] * 5


def test_dealt_keeps_patients_whole_and_strata_even() -> None:
    patient = np.repeat(np.arange(50), 2)
    stratum = (patient % 5 == 0).astype(int)  # 10 of 50 patients
    fold = splits.deal_folds(stratum, patient, 5, seed=7)
    assert fold.dtype == np.int64 and all(len(set(fold[patient == one])) == 1 for one in range(50))
    assert [int(stratum[fold == part].sum()) for part in range(5)] == [4] * 5
    assert (fold == splits.deal_folds(stratum, patient, 5, seed=7)).all()
    assert (fold != splits.deal_folds(stratum, patient, 5, seed=8)).any()


def test_dealt_goes_on_where_every_stratum_is_smaller_than_the_folds() -> None:
    fold = splits.deal_folds(np.arange(12), np.arange(12), 4, seed=0)
    assert np.bincount(fold).tolist() == [3] * 4
    with pytest.raises(CohortError, match="3 patients cannot be dealt into 4 parts"):
        splits.deal_folds(np.zeros(6, int), np.repeat([1, 2, 3], 2), 4, seed=0)
