"""Assigns patients to parts: training, validation and the sealed test part. All samples of a patient are in one part.

If the data set has an official split, the part of a sample is train, val or test. Otherwise the part is test, which
stays sealed, or one of the folds fold0, fold1 ... The option `cohort.fold` chooses the fold for validation, and the
other folds are for training. Folds are given by the reader, or else dealt by this module.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmpkd.cohort.facts import Scan, label_columns
from mmpkd.types import CohortError, ConfigError, Task

PARTS = ("train", "val", "test")
FOLD = "fold"  # a fold's name is this prefix and the fold's number, from 0
FOLDS = ("fold0", "fold1", "fold2", "fold3")  # names of the folds that this module deals
SPLIT_SEED = 0  # seed of the folds; it is never an option, because all stores of a cohort have the same folds


def assign(scan: Scan) -> pd.Series:
    """Returns the part of each sample: train, val or test if the split is official, else fold0, fold1 ... or test.

    Folds that the reader gives are kept. Without an official split, patients are dealt into five stratified folds, and
    the fifth is sealed as test. With an official test part but no validation part, the training patients are dealt into
    four folds. An external cohort has an official split without train, which is kept; `build.check` refuses to train on
    such a cohort.

    Raises:
        CohortError: a part has an unknown name, or there are too few patients.
    """
    if "split" not in scan.samples:
        folds = _deal_by_strata(scan, np.ones(len(scan.samples), bool), 5)
        return folds.replace({"fold4": "test"})
    split = scan.samples["split"].astype(str)
    if has_folds(split):
        assert set(split) - {"test"} == set(fold_names(split)), "given folds are numbered from 0, beside test alone"
        return split
    unknown = sorted(set(split) - set(PARTS))
    if unknown:
        raise CohortError(f"official split: the parts are train, val and test, got {', '.join(map(repr, unknown))}")
    if "val" in set(split) or "train" not in set(split):
        return split
    training = (split == "train").to_numpy()
    folds = _deal_by_strata(scan, training, len(FOLDS))
    return folds.where(training, split)


def deal_parts(scan: Scan, parts: int, sealed: int | None = None) -> pd.Series:
    """Returns the part of each sample as `assign` does, after all patients are dealt into equal parts.

    What is dealt does not depend on the part that is sealed, so a cross-validation seals one after the other. The fold
    fold0 is the part after the sealed one, fold1 the next, and so on, so that each part validates once as well.

    Args:
        sealed: index of the part that is sealed as test; None for the last.

    Raises:
        ConfigError: there is no such part, or the data set gives folds of its own, which group patients.
        CohortError: there are fewer patients than parts.
    """
    last = parts - 1 if sealed is None else sealed
    if last >= parts:
        raise ConfigError.at("cohort.sealed", f"is one of 0 to {parts - 1}, because cohort.parts={parts}, got {last}")
    if "split" in scan.samples and has_folds(scan.samples["split"].astype(str)):
        problem = "the data set gives folds of its own, and dealt parts would tear its groups of patients apart"
        raise ConfigError.at("cohort.parts", f"{problem}; seal one of its own folds instead")
    dealt = _deal_by_strata(scan, np.ones(len(scan.samples), bool), parts)
    names = {f"{FOLD}{(last + 1 + step) % parts}": f"{FOLD}{step}" for step in range(parts - 1)}
    return dealt.map({**names, f"{FOLD}{last}": "test"}).astype(object)


def assign_if_possible(scan: Scan) -> pd.Series | None:
    """Returns the part of each sample, as `assign` does; or None if a cohort without an official split has too few
    patients for folds: fewer patients than parts, or a part in which a task has only one class.

    Raises:
        CohortError: an official split has a part with an unknown name.
    """
    if "split" in scan.samples:
        return assign(scan)
    try:
        split = assign(scan)
        check(split, scan.samples["patient"], scan.labels, scan.tasks)
    except CohortError:
        return None
    return split


def has_folds(split: Iterable[str]) -> bool:
    """Returns whether a split has folds, one of which `cohort.fold` chooses for validation."""
    return any(part.startswith(FOLD) for part in set(split))


def fold_names(split: Iterable[str]) -> list[str]:
    """Returns the names of a split's folds, from fold0 to the last one. The list is empty if the split has no folds."""
    last = max((int(part.removeprefix(FOLD)) for part in set(split) if part.startswith(FOLD)), default=-1)
    return [f"{FOLD}{number}" for number in range(last + 1)]


def num_folds(parts: Iterable[str] | None) -> int:
    """Returns how many values `cohort.fold` can take. The number is 1 if the validation part is official.

    Args:
        parts: the part of each sample. None means that the reader states no parts, so that patients will be dealt into
            folds.
    """
    names = None if parts is None else set(parts)
    if names is None or names == {"train"} or names == {"train", "test"}:
        return len(FOLDS)
    return max(1, len(fold_names(names)))


def refuse_fold(fold: int, num_folds: int) -> None:
    """Checks that a fold exists.

    Raises:
        CohortError: the fold does not exist.
    """
    if fold >= num_folds == 1:
        raise CohortError(f"cohort.fold={fold}: the cohort has an official validation part; leave cohort.fold at 0")
    if fold >= num_folds:
        known = f"can validate on the folds 0 to {num_folds - 1}; the sealed part is not among them"
        raise CohortError(f"cohort.fold={fold}: this cohort {known}")


def check(split: pd.Series, patients: pd.Series, labels: pd.DataFrame, tasks: tuple[Task, ...]) -> None:
    """Checks that no patient is in two parts, and that each task has at least two classes in every part.

    Raises:
        CohortError: a check failed. The message names the task and the part, and states the counts of its classes.
    """
    check_patients(split, patients)
    check_classes("the whole cohort", labels, tasks)
    for part in sorted(set(split)):
        check_classes(f"part {part}", labels[split == part], tasks)


def check_patients(split: pd.Series, patients: pd.Series) -> None:
    """Raises CohortError if a patient is in two parts. The message counts such patients but does not name them."""
    shared = int((split.groupby(patients).nunique() > 1).sum())
    if shared:
        raise CohortError(
            f"{shared} of {patients.nunique()} patients are in more than one part of the official split; "
            "leave the split out, so that patients are dealt into folds, or mend it in the source"
        )


def check_classes(part: str, labels: pd.DataFrame, tasks: tuple[Task, ...]) -> None:
    """Raises CohortError if a task has only one class in a part.

    A multi-label task passes if at least one of its labels has both a positive and a negative sample.
    """
    for task in tasks:
        known = labels[label_columns([task])].dropna(how="all")
        counts = known.sum().astype(int).set_axis(task.logit_names)
        if task.kind == "binary":
            counts = pd.Series([len(known) - counts.iloc[0], counts.iloc[0]], index=task.labels)
        two_sided = (counts > 0).sum() > 1 if task.kind != "multilabel" else (known.nunique() > 1).any()
        if not two_sided:
            listed = ", ".join(f"{label} {count}" for label, count in counts.items())
            raise CohortError(
                f"task {task.name} has one class in {part}: {listed} ({len(known)} of {len(labels)} samples labelled); "
                "nothing can be learnt or scored there: label more patients, or drop the task from the cohort"
            )


def deal_folds(stratum_N: NDArray[Any], patient_N: NDArray[Any], num_folds: int, seed: int) -> NDArray[np.int64]:
    """Deals whole patients into folds, so that each fold gets about the same share of every stratum.

    If a stratum has fewer samples than there are folds, only some folds get samples of it. If all strata are this
    small, strata are ignored.

    Args:
        stratum_N: the stratum of each sample, as integers.
        patient_N: the patient of each sample, as integers or names.
        num_folds: number of folds, 2 or more.
        seed: seed of the random assignment, 0 to 2**32 - 1. The same seed gives the same folds.

    Returns:
        The fold of each sample, 0 to num_folds - 1.

    Raises:
        CohortError: the number of patients is smaller than the number of folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # takes half a second, and few processes deal patients

    num_patients = len(np.unique(patient_N))
    if num_patients < num_folds:
        raise CohortError(f"{num_patients} patients cannot be dealt into {num_folds} parts; each part needs a few")
    if np.unique(stratum_N, return_counts=True)[1].max() < num_folds:  # scikit-learn would refuse
        stratum_N = np.zeros_like(stratum_N)
    fold_N = np.empty(len(patient_N), np.int64)
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about strata smaller than the number of folds
        for fold, (_, rows) in enumerate(splitter.split(stratum_N, stratum_N, patient_N)):
            fold_N[rows] = fold
    return fold_N


def _deal_by_strata(scan: Scan, chosen: np.ndarray, count: int) -> pd.Series:
    """Deals the patients of the chosen samples into `count` folds, stratified by all tasks, or by the modality of the
    images if the cohort has questions instead of tasks.

    Returns:
        The name of the fold of each chosen sample (fold0, fold1 ...), and NaN for the other samples.
    """
    patients = scan.samples["patient"].to_numpy(dtype=object)[chosen]
    strata_TN = [_task_stratum(task, scan.labels) for task in scan.tasks]
    if scan.questions is not None:
        modality = scan.questions.drop_duplicates("sample").set_index("sample")["modality"].reindex(scan.samples.index)
        strata_TN.append(pd.factorize(modality, sort=True)[0])
    strata = np.stack(strata_TN, axis=1)[chosen]
    _, stratum = np.unique(strata, axis=0, return_inverse=True)
    folds = pd.Series(np.nan, index=scan.samples.index, dtype=object)
    folds[chosen] = np.array([f"fold{fold}" for fold in deal_folds(stratum, patients, count, SPLIT_SEED)], object)
    return folds


def _task_stratum(task: Task, labels: pd.DataFrame) -> np.ndarray:
    """Returns the stratum of each sample: its class or, for a multi-label task, the rarest of its positive labels.

    The stratum is -1 if the class is unknown or no label is positive.
    """
    one_hot = labels[label_columns([task])].fillna(-1).to_numpy()
    if task.kind == "binary":
        return one_hot[:, 0].astype(int)
    rarest_first = np.argsort((one_hot > 0).sum(axis=0), kind="stable")
    position = (one_hot[:, rarest_first] > 0).argmax(axis=1)
    return np.where((one_hot > 0).any(axis=1), rarest_first[position], -1)
