"""Aggregates images by patient: the predictions of a student for patients with several images.

The probability of a patient is the mean over the patient's images. The label of a patient is the one on which all
images with a known label agree. Where they disagree (a benign left breast, a malignant right one) the patient has no
label, is left out of the score of that label and counted: a rule that chose one label would silently change the
question.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit

from mmpkd.cohort.identities import UNNAMED
from mmpkd.cohort.spelling import DIFFERENCE, group_spellings, is_scientific, normalise_name
from mmpkd.scoring import classify
from mmpkd.scoring.stats import Floats
from mmpkd.types import ConfigError, Task

Bools = NDArray[np.bool_]

FEW_PATIENTS = 10  # with fewer patients of the rarer class, an AUROC and its standard error are rough


class Patients(NamedTuple):
    """Predictions and labels of P patients, in the layout of the K logits; see `by_patient`."""

    logits_PK: Floats  # logits of the mean probabilities over a patient's images
    target_PK: NDArray[np.float32]
    known_PK: Bools
    mixed_PK: Bools  # the images of the patient disagree; set in all columns of a multi-class task
    first_P: NDArray[np.int64]  # position of each patient's first image among the N images
    images_P: NDArray[np.int64]  # number of images of each patient


def by_patient(
    logits_NK: Floats, target_NK: NDArray[Any], known_NK: Bools, tasks: Sequence[Task], patient_N: NDArray[Any]
) -> Patients:
    """Aggregates N images by patient, in the order of `np.unique`.

    Means are computed from log probabilities, so that patients with probabilities close to 0 or 1 do not tie.
    """
    _, first_P, patient_N, images_P = np.unique(patient_N, return_index=True, return_inverse=True, return_counts=True)
    shape = (len(first_P), logits_NK.shape[1])
    odds_NK = classify.log_odds(logits_NK, tasks)
    yes_PK, no_PK = np.full(shape, -np.inf), np.full(shape, -np.inf)
    np.logaddexp.at(yes_PK, patient_N, log_expit(odds_NK))
    np.logaddexp.at(no_PK, patient_N, log_expit(-odds_NK))
    logits_PK = yes_PK - no_PK
    positive_NK = np.asarray(target_NK) > 0.5
    positive_PK, negative_PK = np.zeros(shape, bool), np.zeros(shape, bool)
    np.logical_or.at(positive_PK, patient_N, known_NK & positive_NK)
    np.logical_or.at(negative_PK, patient_N, known_NK & ~positive_NK)
    mixed_PK = positive_PK & negative_PK
    for task in tasks:
        if task.kind == "multiclass":
            logits_PK[:, task.columns] = yes_PK[:, task.columns]  # its softmax is the mean of the softmaxes
            mixed_PK[:, task.columns] = mixed_PK[:, task.columns].any(axis=1, keepdims=True)
    known_PK = (positive_PK | negative_PK) & ~mixed_PK
    target_PK = (positive_PK & known_PK).astype(np.float32)
    return Patients(logits_PK, target_PK, known_PK, mixed_PK, first_P.astype(np.int64), images_P.astype(np.int64))


def auroc_of_patients(
    logits_NK: Floats,
    target_NK: NDArray[Any],
    known_NK: Bools,
    tasks: Sequence[Task],
    patient_N: NDArray[Any],
    error: bool = True,
) -> dict[str, float]:
    """Returns the AUROC of patients as `auroc_patient`; with `error` its standard error, `auroc_patient_se`; and the
    numbers of labels without both classes (`_undefined`) and of patients whose images disagree (`_mixed`)."""
    patients = by_patient(logits_NK, target_NK, known_NK, tasks, patient_N)
    positive_PK, known_PK = patients.target_PK > 0.5, patients.known_PK
    mean, auroc_K, odds_PK = classify.aurocs(patients.logits_PK, positive_PK, known_PK, tasks)
    defined_K = np.isfinite(auroc_K)
    scores = {
        "auroc_patient": mean,
        "auroc_patient_undefined": float((~defined_K).sum()),
        "auroc_patient_mixed": float(patients.mixed_PK.any(axis=1).sum()),
    }
    if error:
        scores["auroc_patient_se"] = classify.auroc_error(odds_PK, positive_PK, known_PK, defined_K, tasks, None)
    return scores


def rarer_class(target_NK: NDArray[Any], known_NK: Bools, patient_N: NDArray[Any]) -> NDArray[np.int64]:
    """Returns for each label (K) the number of patients of its rarer class; 0 for a label without both classes.

    A patient with images of both classes counts for both.
    """
    positive_NK = np.asarray(target_NK) > 0.5
    sides = (known_NK & positive_NK, known_NK & ~positive_NK)
    counts = [[len(np.unique(patient_N[side_N])) for side_N in side_NK.T] for side_NK in sides]
    rarer_K: NDArray[np.int64] = np.array(counts, np.int64).min(axis=0)
    return rarer_K


def warn_of_few(rarer_K: NDArray[Any], tasks: Sequence[Task], patients: str = "patients") -> list[str]:
    """Returns a warning if a label has fewer than `FEW_PATIENTS` patients of its rarer class, else an empty list. It
    names the label with the fewest. Labels without both classes are left out, as in the AUROC.

    Args:
        rarer_K: the result of `rarer_class`.
        patients: what the warning calls the patients.
    """
    columns = [
        (f"{task.name}/{name}", task.start + index) for task in tasks for index, name in enumerate(task.logit_names)
    ]
    few = {name: int(rarer_K[column]) for name, column in columns if 0 < rarer_K[column] < FEW_PATIENTS}
    if not few:
        return []
    label = min(few, key=lambda name: few[name])
    others = {1: "", 2: "; another label has"}.get(len(few), f"; {len(few) - 1} other labels have")
    further = f"{others} fewer than {FEW_PATIENTS}" if others else ""
    return [few_in_words(f"label {label}", few[label], patients) + further]


def few_in_words(label: str, count: int, patients: str) -> str:
    """Returns a warning about a label with `count` patients of its rarer class. `patients` is what it calls them."""
    of_class = f"{label} has {count} {patients if count != 1 else patients.removesuffix('s')} of its rarer class"
    return f"{of_class}: with fewer than about {FEW_PATIENTS}, both its AUROC and the standard error are rough"


def patients_of(path: Path, images: Iterable[str]) -> dict[str, str]:
    """Returns the patient of each image, from a CSV with the columns image and patient. Rows of other images are
    ignored.

    Raises:
        ConfigError: the file cannot be read, or does not give exactly one patient for each image.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
            rows = list(csv.DictReader(opened))
    except OSError as error:
        raise ConfigError.at("table", f"{path} cannot be read: {error.strerror}") from None
    rows = [{normalise_name(str(key)): cell for key, cell in row.items()} for row in rows]
    columns = list(rows[0]) if rows else []
    if missing := [name for name in ("image", "patient") if name not in columns]:
        held = ", ".join(map(str, columns)) or "none"
        raise ConfigError.at("table", f"{path} lacks the column {' and '.join(missing)}; its columns are {held}")
    listed: dict[str, set[str]] = {}
    for row in rows:
        patient = (row["patient"] or "").strip()
        listed.setdefault(Path(row["image"] or "").as_posix(), set()).update({patient} if patient else ())
    patients = {patient for names in listed.values() for patient in names}
    if groups := group_spellings(patients):
        problem = f"{path} spells {len(groups)} of its patients in several ways, which {DIFFERENCE}"
        raise ConfigError.at("table", f"{problem}; write each in one way")
    if num_unnamed := sum(is_scientific(name) or normalise_name(name) in UNNAMED for name in patients):
        problem = f"{path} has {num_unnamed} patients named by a word for a missing name, or in scientific notation"
        raise ConfigError.at("table", f"{problem}; give the names of the patients, and write numbers in full")
    names = list(images)
    unclear = [name for name in names if len(listed.get(name, ())) != 1]
    if unclear:
        count = len(listed.get(unclear[0], ())) or "no"
        more = f"; this is so for {len(unclear) - 1} other images" if len(unclear) > 1 else ""
        problem = f"{path} gives image {unclear[0]} {count} patient{'s' * (count != 'no')}{more}"
        raise ConfigError.at("table", f"{problem}; give each image one patient, by its path below images=")
    return {name: next(iter(listed[name])) for name in names}
