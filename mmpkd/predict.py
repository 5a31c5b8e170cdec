"""Applies an exported student: images in, probabilities and overlays of its saliency map out. See HELP."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from mmpkd import command
from mmpkd.cohort.decode import measure_appearance, to_8_bit, to_stored_square
from mmpkd.cohort.facts import BadSample
from mmpkd.export import student_file
from mmpkd.export.usage import label_names
from mmpkd.frames import Letterbox
from mmpkd.machine.errors import machine_fault
from mmpkd.machine.new_folder import new_folder, refuse_taken
from mmpkd.prediction.files import TABLE, called, cells, headings, open_table, save_pictures, write_patients
from mmpkd.prediction.input_images import input_images, read_input_image, spacing_of, warnings_in_words, warnings_of
from mmpkd.scoring import overlays
from mmpkd.scoring.overlays import file_names, picture_names
from mmpkd.scoring.patients import patients_of
from mmpkd.scoring.saliency import MAPS
from mmpkd.types import CohortError, ConfigError, Mistake

HELP = """\
usage: python -m mmpkd.predict model=FILE images=FILE|FOLDER [key=value ...]

Applies an exported student to images. It reads the images and nothing else: no
table, no report, no second scan. The images should have the form of the
training images: the same kind, bit depth and orientation.

  model=FILE      student.safetensors of mmpkd.train, or a folder that holds one
  images=PATH     an image (docs/formats.md), or a folder that is searched with
                  all its subfolders; of a NIfTI volume, the slices that the
                  student was trained on
  pattern=GLOB    of a folder, only files whose names match, e.g. 'case???.png';
                  a pattern with / is compared with the path below the folder
  out=DIR         the new folder for predictions.csv and overlays/
                  [runs/predict]
  overlays=false  writes no pictures [true]
  table=FILE      a CSV with the columns image (as in predictions.csv) and
                  patient; aggregates the images of a patient

predictions.csv has a row an image: the calibrated probability of each label
(its temperature is fitted on the validation patients) and the decision for each
task: the likeliest class, or the labels above their validation thresholds (in a
column named after the task; `image called` for a task named `image`).
The column `warning` names what was noticed: colour where the student sees only
brightness, grey where it was trained on colour, a picture where it was trained
on volumes, two values or hardly more (a mask), hardly any contrast, nearly
black or nearly white. Nothing else is checked: an image of another organ or
machine gets probabilities without a warning.
A picture in overlays/ shows the image, its overlay, the probabilities, any
warning and the scale of the map's colours, which run from the lowest to the
highest value in this image. It has a ruler if the file states the spacing of
its pixels (DICOM, NIfTI).
With table=FILE, predictions_by_patient.csv has a row a patient: the mean
probability over the patient's images and the decision from it; the thresholds
were chosen on single images.

examples
  python -m mmpkd.predict model=runs/demo/picked/12 images=scans
  python -m mmpkd.predict model=student.safetensors images=scan.png out=DIR
  from Python:
    from mmpkd.predict import Predictor
    model = Predictor("runs/demo/picked/12")
    print(model("scan.png").probabilities)
"""
OVERLAYS = "overlays"  # the folder of the pictures
NAMED = 3  # labels of a task that the text below an overlay names
SHOWN = 20  # files that are named if none can be read


@dataclass(frozen=True)
class Prediction:
    """The prediction of a student for one image.

    probabilities: calibrated probabilities by `task/label`.
    called: decision by task: the likeliest class or, for a multi-label task, all labels above their thresholds.
    map_Rhw: saliency on the patch grid; one map for all tasks, or one per task.
    image: the image at its own size, 8 bits, H x W or H x W x 3.
    warnings: keys of `mmpkd.prediction.input_images.WARNINGS` that apply to the image.
    spacing: distance of neighbouring columns of the image in millimetres; None if its file does not state it.
    """

    probabilities: dict[str, float]
    called: dict[str, tuple[str, ...]]
    map_Rhw: NDArray[np.float32]
    image: NDArray[np.uint8]
    letterbox: Letterbox
    warnings: tuple[str, ...] = ()
    spacing: float | None = None

    def overlays(self) -> list[Image.Image]:
        """Returns the overlay of each map, see `mmpkd.scoring.overlays.overlay`."""
        return [overlays.overlay(self.image, self.letterbox.original_map(map_hw)) for map_hw in self.map_Rhw]

    def pictures(self, lines: Sequence[str]) -> list[Image.Image]:
        """Returns for each map the image beside its overlay, see `mmpkd.scoring.overlays.beside`.

        `lines` has a line for each task. A picture has all of them, or that of its task if each task has a map.
        """
        notes = [f"warning: {'; '.join(self.warnings)}"] if self.warnings else []
        texts = [[line, *notes] for line in lines] if len(self.map_Rhw) > 1 else [[*lines, *notes]]
        pairs = zip(self.overlays(), texts, strict=True)
        return [overlays.beside(self.image, overlaid, text, self.spacing) for overlaid, text in pairs]


class Predictor:
    """An exported student that is ready for images.

    Raises:
        ConfigError: the path holds no exported student.
    """

    def __init__(self, path: Path | str) -> None:
        exported = student_file.read(Path(path))
        self.student, self.card, self.origin = exported.student, exported.card, exported.origin
        self._probabilities = exported.probabilities
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.student.to(self.device)
        self.names = label_names(self.card)

    def __call__(self, image: Path | str) -> Prediction:
        """Returns the prediction for the image in a file.

        Raises:
            BadSample: the file cannot be read; it has another bit depth than the training images; or it is a volume
                and the student was not trained on volumes.
        """
        path, card = Path(image), self.card
        raw = read_input_image(path, card)
        look = measure_appearance(raw, card.depth)
        pixels_CHW = to_stored_square(raw, card.image_size, card.channels, card.depth)
        pixels_BCHW = torch.from_numpy(pixels_CHW).to(self.device)[None].float() / 255
        columns = [tuple(range(task.columns.start, task.columns.stop)) for task in card.tasks]
        logits_BK, map_BRhw = MAPS[card.map]()(self.student, pixels_BCHW, columns)
        probability_K = self._probabilities(logits_BK.float().cpu().numpy())[0]
        probabilities = dict(zip(self.names, probability_K.tolist(), strict=True))
        letterbox = Letterbox(raw.shape[0], raw.shape[1], card.image_size)
        return Prediction(
            probabilities,
            called(card, probabilities),
            map_BRhw[0].float().cpu().numpy(),
            to_8_bit(raw, card.depth),
            letterbox,
            warnings_of(raw, path.name, card, self.origin, look),
            spacing_of(path),
        )

    def lines(self, prediction: Prediction) -> list[str]:
        """Returns a line for each task: its likeliest labels with their probabilities, and the decision."""
        lines = []
        for task in self.card.tasks:
            probability = {name: prediction.probabilities[f"{task.name}/{name}"] for name in task.logit_names}
            likeliest = sorted(probability, key=lambda name: -probability[name])
            shown = ", ".join(f"{name} {probability[name]:.3f}" for name in likeliest[:NAMED])
            more = f", and {len(likeliest) - NAMED} less likely" if len(likeliest) > NAMED else ""
            decision = ", ".join(prediction.called[task.name]) or "none"
            lines.append(f"{task.name}: {shown}{more}; decision: {decision}")
        return lines


def main(words: Sequence[str]) -> None:
    """Runs the command line; see HELP."""
    if not words or command.asks_for_help(words):
        print(HELP, end="")
        return
    defaults = {"model": "", "images": "", "pattern": "", "out": "runs/predict", "overlays": "true", "table": ""}
    own, others = command.own_words(words, defaults)
    mistakes = command.unknown_words(others, own)
    mistakes += [Mistake(key, f"missing: write {key}=...; see --help") for key in ("model", "images") if not own[key]]
    if own["overlays"] not in ("true", "false"):
        mistakes.append(Mistake("overlays", f"true or false, got {own['overlays']!r}"))
    if mistakes:
        raise ConfigError(mistakes)
    root, out = Path(own["images"]), command.named_folder(own["out"])
    again = ["python", "-m", "mmpkd.predict", *words]
    refuse_taken(out, again)
    files, skipped = input_images(root, own["pattern"])
    name_of = {path: (path.relative_to(root) if root.is_dir() else Path(path.name)).as_posix() for path in files}
    patients = patients_of(Path(own["table"]), name_of.values()) if own["table"] else {}
    if out.resolve().is_relative_to(root.resolve()) or root.resolve().is_relative_to(out.resolve()):
        problem = f"{out} and the images are inside one another, so that overlays would be read as images"
        raise ConfigError.at("out", f"{problem}; choose another folder")
    model, console = Predictor(own["model"]), command.plain_console(stderr=True, soft_wrap=True)
    with new_folder(out, again) as folder:
        bad, warned = _predict(model, name_of, patients, folder, own["overlays"] == "true", console)
    if skipped:
        kinds = ", ".join(sorted({path.suffix.lower() or path.name for path in skipped}))
        counted = f"{len(skipped)} file{'s' * (len(skipped) > 1)}"
        console.print(f"skipped, not images: {counted} ({kinds})", highlight=False)
    command.warn(warnings_in_words(warned, Path() if root.is_file() else root, [*name_of.values()]))
    for line in bad:
        console.print(f"left out: {line}", highlight=False)
    pictures = f", overlays: {out / OVERLAYS}" if own["overlays"] == "true" else ""
    print(f"{len(files) - len(bad)} images: {out / TABLE}{pictures}")
    if bad:
        sys.exit(1)


def _predict(
    model: Predictor,
    name_of: Mapping[Path, str],
    patients: Mapping[str, str],
    folder: Path,
    with_pictures: bool,
    console: Console,
) -> tuple[list[str], dict[str, list[str]]]:
    """Writes the tables and pictures of all images to a folder.

    Args:
        name_of: the name of each image's file in the table.
        patients: the patient of each image by its name; empty if predictions are not aggregated by patient.

    Returns:
        A line for each file that cannot be read, and the images with a warning, by its key in
        `mmpkd.prediction.input_images.WARNINGS`.

    Raises:
        CohortError: the machine fails while an image is read, or no image can be read.
    """
    endings, pictures_of = file_names([task.name for task in model.card.tasks]), picture_names([*name_of.values()])
    bad: list[str] = []
    warned: dict[str, list[str]] = {}
    by_patient: dict[str, list[dict[str, float]]] = {patient: [] for patient in patients.values()}
    with open_table(folder / TABLE) as table:
        table.writerow(headings(["image", "warning"], model.card))
        for path, name in track(name_of.items(), "predicting", console=console, disable=not console.is_terminal):
            try:
                prediction = model(path)
            except BadSample as error:
                if fault := machine_fault(error):
                    problem = f"prediction stopped: {fault}; repair this, then run the same command again"
                    raise CohortError(problem) from error
                bad.append(f"{path}: {error.reason}")
                continue
            for warning in prediction.warnings:
                warned.setdefault(warning, []).append(name)
            table.writerow([name, "; ".join(prediction.warnings), *cells(model.card, prediction.probabilities)])
            if patients:
                by_patient[patients[name]].append(prediction.probabilities)
            if with_pictures:
                drawn = prediction.pictures(model.lines(prediction))
                save_pictures(drawn, folder / OVERLAYS / pictures_of[name], endings)
    if len(bad) == len(name_of):
        for line in bad[:SHOWN]:
            console.print(f"left out: {line}", highlight=False)
        raise CohortError(f"none of {len(name_of)} files could be read as an image")
    if patients:
        write_patients(folder, model.card, by_patient, patients)
    return bad, warned


if __name__ == "__main__":
    with command.command_line() as words:
        main(words)
