"""Writes the files of `mmpkd.predict`: the tables of predictions, by image and by patient, and the pictures."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from mmpkd.export.student_file import Card
from mmpkd.export.usage import label_names
from mmpkd.types import Task

TABLE, BY_PATIENT = "predictions.csv", "predictions_by_patient.csv"


def called(card: Card, probabilities: Mapping[str, float]) -> dict[str, tuple[str, ...]]:
    """Returns the decision of each task from calibrated probabilities by `task/label`: the likeliest class, or all
    labels above their thresholds."""
    return {task.name: _called(card, task, probabilities) for task in card.tasks}


def _called(card: Card, task: Task, probabilities: Mapping[str, float]) -> tuple[str, ...]:
    full_names = {name: f"{task.name}/{name}" for name in task.logit_names}
    if task.kind == "multiclass":
        return (max(full_names, key=lambda name: probabilities[full_names[name]]),)
    above = tuple(name for name, full in full_names.items() if probabilities[full] > card.threshold[full])
    return above or task.labels[:1] if task.kind == "binary" else above


def headings(own: Sequence[str], card: Card) -> list[str]:
    """Returns the column names of a table of predictions: the names in `own`, a name for each label and a name for each
    task. A task named `image` gets `image called`."""
    columns = [*own, *label_names(card)]
    for task in card.tasks:
        name = task.name
        while name in columns:
            name += " called"
        columns.append(name)
    return columns


def cells(card: Card, probabilities: Mapping[str, float]) -> list[str]:
    """Returns the cells of the columns of labels and tasks."""
    decisions = called(card, probabilities).values()
    return [*(f"{probabilities[name]:.6f}" for name in label_names(card)), *("; ".join(labels) for labels in decisions)]


@contextmanager
def open_table(path: Path) -> Iterator[Any]:
    """A context that yields the writer of a new CSV file."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        yield csv.writer(opened)


def write_patients(
    folder: Path, card: Card, images_of: Mapping[str, Sequence[Mapping[str, float]]], patients: Mapping[str, str]
) -> None:
    """Writes one row per patient, with the numbers of images in the mean and of unreadable images. Without a readable
    image, the cells of labels and tasks are empty.

    Args:
        images_of: the probabilities of each readable image of a patient.
        patients: the patient of each image.
    """
    count = Counter(patients.values())
    with open_table(folder / BY_PATIENT) as table:
        columns = headings(["patient", "images", "left_out"], card)
        table.writerow(columns)
        for patient, images in images_of.items():
            counts = [patient, len(images), count[patient] - len(images)]
            names = label_names(card) if images else []
            mean = {name: fmean(probabilities[name] for probabilities in images) for name in names}
            table.writerow([*counts, *(cells(card, mean) if mean else [""] * (len(columns) - len(counts)))])


def save_pictures(pictures: Sequence[Image.Image], path: Path, endings: Sequence[str]) -> None:
    """Writes the pictures of an image as `PATH.png`; if there are several, `endings` tell their file names apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for ending, picture in zip(endings, pictures, strict=False):
        name = f"{path.name}.{ending}.png" if len(pictures) > 1 else f"{path.name}.png"
        picture.save(path.with_name(name))
