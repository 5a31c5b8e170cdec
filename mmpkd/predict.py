"""Applies an exported student: images in, probabilities and overlays of its saliency map out. See HELP."""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from mmpkd import command
from mmpkd.cohort.decode import Appearance, measure_appearance, to_8_bit, to_stored_square
from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.remarks import nearly_black_or_white
from mmpkd.export import student_file
from mmpkd.frames import Letterbox
from mmpkd.input_images import WARNINGS, input_images, read_input_image, spacing_of, warnings_of
from mmpkd.machine.errors import machine_fault
from mmpkd.near_names import near
from mmpkd.scoring import overlays
from mmpkd.scoring.overlays import file_names, picture_names
from mmpkd.scoring.patients import patients_of
from mmpkd.scoring.saliency import MAPS
from mmpkd.types import CohortError, ConfigError, Mistake, Task

HELP = """python -m mmpkd.predict model=FILE images=FILE|FOLDER [pattern=GLOB] [out=DIR] [overlays=false]
                        [table=FILE]

Applies an exported student to images. It reads the images and nothing else: no table, no report, no second scan.

  model=FILE       student.safetensors, as mmpkd.train writes it; or a folder that holds one
  images=PATH      an image (docs/formats.md), or a folder that is searched with all its subfolders; of a NIfTI volume,
                   the slices that the student was trained on
  pattern=GLOB     of a folder, only files whose names match, e.g. 'case???.png'; a pattern with / is compared with the
                   path below the folder
  out=DIR          the folder for predictions.csv and overlays/              [runs/predict]
  overlays=false   writes no pictures                                        [true]
  table=FILE       a CSV with the columns image (as in predictions.csv) and patient; aggregates the images of a patient

predictions.csv has one row per image: the calibrated probability of each label (its temperature is fitted on the
validation patients) and the decision for each task: the likeliest class, or the labels above their validation
thresholds (in a column named after the task; `image called` for a task named `image`). The column `warning` is filled
for an image that is unlike the training images, or like a mask.
A picture in overlays/ shows the image, its overlay, the probabilities and the scale of the map's colours, which run
from the lowest to the highest value in this image. It has a ruler if the file states the spacing of its pixels (DICOM,
NIfTI).
With table=FILE, predictions_by_patient.csv has one row per patient: the mean probability over the patient's images
and the decision from it; the thresholds were chosen on single images.
The images should have the form of the training images: the same kind, bit depth and orientation.
From Python:

    from mmpkd.predict import Predictor
    model = Predictor("runs/train/best-0123456789abcdef")
    print(model("case.png").probabilities)
"""
TABLE, BY_PATIENT = "predictions.csv", "predictions_by_patient.csv"
NAMED = 3  # labels of a task that the text below an overlay names


@dataclass(frozen=True)
class Prediction:
    """The prediction of a student for one image.

    probabilities: calibrated probabilities by `task/label`.
    called: decision by task: the likeliest class or, for a multi-label task, all labels above their thresholds.
    map_Rhw: saliency on the patch grid; one map for all tasks, or one per task.
    image: the image at its own size, 8 bits, H x W or H x W x 3.
    look: brightness of the image in the window of the student.
    warnings: keys of `mmpkd.input_images.WARNINGS` that apply to the image.
    spacing: distance of neighbouring columns of the image in millimetres; None if its file does not state it.
    """

    probabilities: dict[str, float]
    called: dict[str, tuple[str, ...]]
    map_Rhw: NDArray[np.float32]
    image: NDArray[np.uint8]
    letterbox: Letterbox
    look: Appearance
    warnings: tuple[str, ...] = ()
    spacing: float | None = None

    def overlays(self) -> list[Image.Image]:
        """Returns the overlay of each map, see `mmpkd.scoring.overlays.overlay`."""
        return [overlays.overlay(self.image, self.letterbox.original_map(map_hw)) for map_hw in self.map_Rhw]

    def pictures(self, lines: Sequence[str]) -> list[Image.Image]:
        """Returns for each map the image beside its overlay, see `mmpkd.scoring.overlays.beside`.

        `lines` has a line for each task. A picture has all of them, or that of its task if each task has a map.
        """
        texts = [[line] for line in lines] if len(self.map_Rhw) > 1 else [lines]
        pairs = zip(self.overlays(), texts, strict=True)
        return [overlays.beside(self.image, overlaid, text, self.spacing) for overlaid, text in pairs]


class Predictor:
    """An exported student that is ready for images.

    Raises:
        ConfigError: the path holds no exported student.
    """

    def __init__(self, path: Path | str) -> None:
        exported = student_file.read(Path(path))
        self.student, self.card = exported.student, exported.card
        self._probabilities = exported.probabilities
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.student.to(self.device)
        self.names = [f"{task.name}/{name}" for task in self.card.tasks for name in task.logit_names]

    def __call__(self, image: Path | str) -> Prediction:
        """Returns the prediction for the image in a file.

        Raises:
            BadSample: the file cannot be read; it has another bit depth than the training images; or it is a volume
                and the student was not trained on volumes.
        """
        path, card = Path(image), self.card
        raw = read_input_image(path, card)
        brightness = measure_appearance(raw, card.depth)
        pixels_CHW = to_stored_square(raw, card.image_size, card.channels, card.depth)
        pixels_BCHW = torch.from_numpy(pixels_CHW).to(self.device)[None].float() / 255
        columns = [tuple(range(task.columns.start, task.columns.stop)) for task in card.tasks]
        logits_BK, map_BRhw = MAPS[card.map]()(self.student, pixels_BCHW, columns)
        probability_K = self._probabilities(logits_BK.float().cpu().numpy())[0]
        probabilities = dict(zip(self.names, probability_K.tolist(), strict=True))
        called = self.called(probabilities)
        letterbox = Letterbox(raw.shape[0], raw.shape[1], card.image_size)
        return Prediction(
            probabilities,
            called,
            map_BRhw[0].float().cpu().numpy(),
            to_8_bit(raw, card.depth),
            letterbox,
            brightness,
            warnings_of(raw, path.name, card, brightness),
            spacing_of(path),
        )

    def called(self, probabilities: dict[str, float]) -> dict[str, tuple[str, ...]]:
        """Returns the decision of each task from calibrated probabilities, see `Prediction`."""
        return {task.name: self._called(task, probabilities) for task in self.card.tasks}

    def lines(self, prediction: Prediction) -> list[str]:
        """Returns a line for each task: its likeliest labels with their probabilities, and what is called."""
        lines = []
        for task in self.card.tasks:
            probability = {name: prediction.probabilities[f"{task.name}/{name}"] for name in task.logit_names}
            likeliest = sorted(probability, key=lambda name: -probability[name])
            shown = ", ".join(f"{name} {probability[name]:.3f}" for name in likeliest[:NAMED])
            more = f", and {len(likeliest) - NAMED} less likely" if len(likeliest) > NAMED else ""
            called = ", ".join(prediction.called[task.name]) or "none"
            lines.append(f"{task.name}: {shown}{more}; called: {called}")
        return lines

    def _called(self, task: Task, probabilities: dict[str, float]) -> tuple[str, ...]:
        full_names = {name: f"{task.name}/{name}" for name in task.logit_names}
        if task.kind == "multiclass":
            return (max(full_names, key=lambda name: probabilities[full_names[name]]),)
        above = tuple(name for name, full in full_names.items() if probabilities[full] > self.card.threshold[full])
        return above or task.labels[:1] if task.kind == "binary" else above


def main(words: Sequence[str]) -> None:
    """Runs the command line; see HELP."""
    if not words or {"-h", "--help"} & set(words):
        print(HELP)
        return
    defaults = {"model": "", "images": "", "pattern": "", "out": "runs/predict", "overlays": "true", "table": ""}
    own, others = command.own_words(words, defaults)
    mistakes = [Mistake(word, f"not an option of this command{near(word.partition('=')[0], own)}") for word in others]
    mistakes += [Mistake(key, f"missing: write {key}=...; see --help") for key in ("model", "images") if not own[key]]
    if own["overlays"] not in ("true", "false"):
        mistakes.append(Mistake("overlays", f"true or false, got {own['overlays']!r}"))
    if mistakes:
        raise ConfigError(mistakes)
    root, out = Path(own["images"]), Path(own["out"])
    files, skipped = input_images(root, own["pattern"])
    name_of = {path: (path.relative_to(root) if root.is_dir() else Path(path.name)).as_posix() for path in files}
    patients = patients_of(Path(own["table"]), name_of.values()) if own["table"] else {}
    model, console = Predictor(own["model"]), command.plain_console(stderr=True, soft_wrap=True)
    endings = file_names([task.name for task in model.card.tasks])
    bad, looks = [], []
    num_warned: Counter[str] = Counter()
    pictures_of = picture_names([name_of[path] for path in files])
    by_patient: dict[str, list[dict[str, float]]] = {}
    if out.resolve().is_relative_to(root.resolve()) or root.resolve().is_relative_to(out.resolve()):
        problem = f"{out} and the images are inside one another, so that overlays would be read as images"
        raise ConfigError.at("out", f"{problem}; choose another folder")
    command.make_folder(out)
    partial = out / f"{TABLE}.partial"
    with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        table = csv.writer(opened)
        table.writerow(headings(["image", "warning"], model))
        for path in track(files, "predicting", console=console, disable=not console.is_terminal):
            try:
                prediction = model(path)
            except BadSample as error:
                if fault := machine_fault(error):
                    problem = f"prediction stopped: {fault}; repair this, then run the same command again"
                    raise CohortError(problem) from error
                bad.append(f"{path}: {error.reason}")
                continue
            looks.append(prediction.look)
            name = name_of[path]
            num_warned.update(prediction.warnings)
            table.writerow([name, "; ".join(prediction.warnings), *_cells(model, prediction.probabilities)])
            if patients:
                by_patient.setdefault(patients[name], []).append(prediction.probabilities)
            if own["overlays"] == "true":
                _save_overlays(prediction, model.lines(prediction), out / "overlays" / pictures_of[name], endings)
    if skipped:
        kinds = ", ".join(sorted({path.suffix.lower() or path.name for path in skipped}))
        counted = f"{len(skipped)} file{'s' * (len(skipped) > 1)}"
        console.print(f"skipped, not images: {counted} ({kinds})", highlight=False)
    for line in nearly_black_or_white(looks, model.card.depth, "images", " in the student's window"):
        console.print(line, highlight=False, markup=False)
    warned = [warning for warning in WARNINGS if num_warned[warning]]
    command.warn(f"{num_warned[warning]} of {len(files)} images {WARNINGS[warning]}" for warning in warned)
    for line in bad:
        console.print(f"left out: {line}", highlight=False)
    if len(bad) == len(files):
        partial.unlink()
        raise CohortError(f"none of {len(files)} files could be read as an image")
    os.replace(partial, out / TABLE)
    if patients:
        _write_patients(out, model, by_patient, patients)
    pictures = f", overlays: {out / 'overlays'}" if own["overlays"] == "true" else ""
    print(f"{len(files) - len(bad)} images: {out / TABLE}{pictures}")
    if bad:
        sys.exit(1)


def headings(own: Sequence[str], model: Predictor) -> list[str]:
    """Returns the column names of a table of predictions: the names in `own`, a name for each label and a name for each
    task. A task named `image` gets `image called`."""
    columns = [*own, *model.names]
    for task in model.card.tasks:
        name = task.name
        while name in columns:
            name += " called"
        columns.append(name)
    return columns


def _cells(model: Predictor, probabilities: dict[str, float]) -> list[str]:
    called = model.called(probabilities)
    return [*(f"{probabilities[name]:.6f}" for name in model.names), *("; ".join(labels) for labels in called.values())]


def _write_patients(
    out: Path, model: Predictor, images_of: Mapping[str, Sequence[dict[str, float]]], patients: Mapping[str, str]
) -> None:
    """Writes one row per patient, with the numbers of images in the mean and of unreadable images."""
    partial = out / f"{BY_PATIENT}.partial"
    with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        table = csv.writer(opened)
        table.writerow(headings(["patient", "images", "left_out"], model))
        count = Counter(patients.values())
        for patient, images in images_of.items():
            mean = {name: fmean(probabilities[name] for probabilities in images) for name in model.names}
            table.writerow([patient, len(images), count[patient] - len(images), *_cells(model, mean)])
    os.replace(partial, out / BY_PATIENT)


def _save_overlays(prediction: Prediction, lines: Sequence[str], path: Path, endings: Sequence[str]) -> None:
    """Writes the overlay of each map; with several maps, `endings` tell their file names apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = prediction.pictures(lines)
    for ending, picture in zip(endings, pictures, strict=False):
        name = f"{path.name}.{ending}.png" if len(pictures) > 1 else f"{path.name}.png"
        picture.save(path.with_name(name))


if __name__ == "__main__":
    with command.command_line() as words:
        main(words)
