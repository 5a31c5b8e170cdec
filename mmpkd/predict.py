"""An exported student at work: image in, probabilities and an overlay of where it looked out. See HELP."""

from __future__ import annotations

import csv
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from mmpkd import command, export
from mmpkd.cohort.decode import Look, look, square, to_8_bit
from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.remarks import seen_badly
from mmpkd.frames import Letterbox
from mmpkd.machine.errors import machine_fault
from mmpkd.near_names import near
from mmpkd.scoring.patients import patients_of
from mmpkd.scoring.saliency import MAPS
from mmpkd.shown_images import WARNINGS, is_no_image, read_shown, warnings_of
from mmpkd.types import CohortError, ConfigError, Mistake, Task

HELP = """python -m mmpkd.predict model=FILE images=FILE|FOLDER [out=DIR] [overlays=false] [patients=FILE]

Images through an exported student. It reads the images and nothing else: no table, no report, no second scan.

  model=FILE       student.safetensors, as mmpkd.train leaves it; or a folder with one in it
  images=PATH      an image (docs/formats.md), or a folder of them, looked through to the bottom; where the student
                   learnt from NIfTI volumes, of a volume the slices that it learnt from
  out=DIR          predictions.csv and overlays/                             [runs/predict]
  overlays=false   no pictures                                               [true]
  patients=FILE    a CSV with the columns image (as in predictions.csv) and patient: whose several images are aggregated

predictions.csv has a row an image: the calibrated probability of each label (temperature fitted on the validation
patients), and for each task what is called: the likeliest class, or the labels above their validation thresholds
(in a column of the task's name; `image called` for a task named `image`). `warning` says where an image is unlike what
the student was trained on, or like a mask.
With patients=FILE, predictions_by_patient.csv has a row a patient: the mean probability over the patient's images, and
what is called of that; the thresholds were chosen on single images.
Originals are wanted in the form the student was trained on: of the same kind, bit depth and orientation.
From Python:

    from mmpkd.predict import Predictor
    model = Predictor("runs/train/best-0123456789abcdef")
    print(model("case.png").probabilities)
"""
COLOURS = matplotlib.colormaps["inferno"]
TABLE, BY_PATIENT = "predictions.csv", "predictions_by_patient.csv"
ALPHA = 0.6  # of the map over its image, where it is strongest
LARGEST = 1024  # pixels, longest side of an overlay


@dataclass(frozen=True)
class Prediction:
    """What a student says of one image.

    probabilities: calibrated, by `task/label`.
    called: by task, its likeliest class, or of a multi-label task the labels above their thresholds.
    map_Rhw: where it looked, on its patches; one for all tasks, or one a task.
    image: at its own size, 8 bits, H x W or H x W x 3.
    look: how bright it is in the window that the student learnt with.
    warnings: what is odd about the image, keys of `mmpkd.shown_images.WARNINGS`.
    """

    probabilities: dict[str, float]
    called: dict[str, tuple[str, ...]]
    map_Rhw: NDArray[np.float32]
    image: NDArray[np.uint8]
    letterbox: Letterbox
    look: Look
    warnings: tuple[str, ...] = ()

    def overlays(self) -> list[Image.Image]:
        """The image with each map over it, stretched from its least to its largest value, at most `LARGEST` pixels."""
        base = np.asarray(Image.fromarray(self.image).convert("RGB"), np.float32)
        drawn = []
        for map_hw in self.map_Rhw:
            heat_HW = self.letterbox.original_map(map_hw)
            heat_HW = (heat_HW - heat_HW.min()) / max(float(np.ptp(heat_HW)), 1e-12)
            colour_HWC = 255 * COLOURS(heat_HW)[..., :3]
            alpha_HW1 = ALPHA * heat_HW[..., None]
            picture = Image.fromarray(((1 - alpha_HW1) * base + alpha_HW1 * colour_HWC).round().astype(np.uint8))
            picture.thumbnail((LARGEST, LARGEST))
            drawn.append(picture)
        return drawn


class Predictor:
    """An exported student, ready for images.

    Raises:
        ConfigError: no exported student there.
    """

    def __init__(self, path: Path | str) -> None:
        exported = export.read(Path(path))
        self.student, self.card = exported.student, exported.card
        self._probabilities = exported.probabilities
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.student.to(self.device)
        self.names = [f"{task.name}/{name}" for task in self.card.tasks for name in task.logit_names]

    def __call__(self, image: Path | str) -> Prediction:
        """
        Raises:
            BadSample: the file cannot be read, or has another bit depth than the cohort it was trained on; or it is a
                volume, and the student learnt from none.
        """
        path, card = Path(image), self.card
        raw = read_shown(path, card)
        brightness = look(raw, card.depth)
        pixels_CHW = square(raw, card.image_size, card.channels, card.depth)
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
        )

    def called(self, probabilities: dict[str, float]) -> dict[str, tuple[str, ...]]:
        """By task, what calibrated probabilities call: see `Prediction`."""
        return {task.name: self._called(task, probabilities) for task in self.card.tasks}

    def _called(self, task: Task, probabilities: dict[str, float]) -> tuple[str, ...]:
        named = {name: f"{task.name}/{name}" for name in task.logit_names}
        if task.kind == "multiclass":
            return (max(named, key=lambda name: probabilities[named[name]]),)
        above = tuple(name for name, full in named.items() if probabilities[full] > self.card.threshold[full])
        return above or task.labels[:1] if task.kind == "binary" else above


def main(words: Sequence[str]) -> None:
    if not words or {"-h", "--help"} & set(words):
        print(HELP)
        return
    defaults = {"model": "", "images": "", "out": "runs/predict", "overlays": "true", "patients": ""}
    own, rest = command.own_words(words, defaults)
    mistakes = [Mistake(word, f"not a word of this command{near(word.partition('=')[0], own)}") for word in rest]
    mistakes += [Mistake(key, "which? --help explains") for key in ("model", "images") if not own[key]]
    if own["overlays"] not in ("true", "false"):
        mistakes.append(Mistake("overlays", f"true or false, got {own['overlays']!r}"))
    if mistakes:
        raise ConfigError(mistakes)
    root, out = Path(own["images"]), Path(own["out"])
    everything = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    files = everything if root.is_file() else [path for path in everything if not is_no_image(path)]
    others = sorted(set(everything).difference(files))
    if not files:
        raise ConfigError.at("images", f"no {'image' if others else 'file'} at {root.absolute()}")
    name_of = {path: (path.relative_to(root) if root.is_dir() else Path(path.name)).as_posix() for path in files}
    patients = patients_of(Path(own["patients"]), name_of.values()) if own["patients"] else {}
    model, console = Predictor(own["model"]), command.plain_console(stderr=True, soft_wrap=True)
    endings = file_names([task.name for task in model.card.tasks])
    bad, looks = [], []
    odd: Counter[str] = Counter()
    pictures_of = picture_names([name_of[path] for path in files])
    by_patient: dict[str, list[dict[str, float]]] = {}
    here, there = out.resolve(), root.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise ConfigError.at("out", f"{out} and the images lie one in the other: pictures would be taken for images")
    command.make_folder(out)
    beside = out / f"{TABLE}.partial"
    with beside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        table = csv.writer(opened)
        table.writerow(headings(["image", "warning"], model))
        for path in track(files, "predicting", console=console, disable=not console.is_terminal):
            try:
                said = model(path)
            except BadSample as error:
                if fault := machine_fault(error):
                    raise CohortError(
                        f"predicting stopped: {fault}; mend that, and run the same command again"
                    ) from error
                bad.append(f"{path}: {error.reason}")
                continue
            looks.append(said.look)
            inside = name_of[path]
            odd.update(said.warnings)
            table.writerow([inside, "; ".join(said.warnings), *_cells(model, said.probabilities)])
            if patients:
                by_patient.setdefault(patients[inside], []).append(said.probabilities)
            if own["overlays"] == "true":
                _save(said, out / "overlays" / pictures_of[inside], endings)
    if others:
        kinds = ", ".join(sorted({path.suffix.lower() or path.name for path in others}))
        counted = f"{len(others)} file{'s' * (len(others) > 1)}"
        console.print(f"passed over, as no images: {counted} ({kinds})", highlight=False)
    for line in seen_badly(looks, model.card.depth, "images", " in the student's window"):
        console.print(line, highlight=False, markup=False)
    command.warn(f"{odd[warning]} of {len(files)} images {WARNINGS[warning]}" for warning in WARNINGS if odd[warning])
    for line in bad:
        console.print(f"left out: {line}", highlight=False)
    if len(bad) == len(files):
        beside.unlink()
        raise CohortError(f"not one of {len(files)} files could be read as an image")
    os.replace(beside, out / TABLE)
    if patients:
        _leave_patients(out, model, by_patient, patients)
    pictures = f", where it looked: {out / 'overlays'}" if own["overlays"] == "true" else ""
    print(f"{len(files) - len(bad)} images: {out / TABLE}{pictures}")
    if bad:
        sys.exit(1)


def picture_names(images: Sequence[str]) -> dict[str, str]:
    """The name of each image's overlay, less the `.png` that all of them end in: of `a.png` it is `a`, unless two would
    then be alike, as those of `a` and `a.png` would; then all keep theirs."""
    short = {image: image[:-4] if image.lower().endswith(".png") else image for image in images}
    is_one_to_one = len({name.casefold() for name in short.values()}) == len(short)
    return short if is_one_to_one else {image: image for image in images}


def file_names(names: Sequence[str]) -> list[str]:
    """A part of a file's name for each of them: no two alike, even where case is not told apart."""
    given: list[str] = []
    for name in names:
        part = readable = re.sub(r"[^\w\-. ]", "-", name)[:100]
        for count in itertools.count(2):
            if part.casefold() not in {one.casefold() for one in given}:
                break
            part = f"{readable}-{count}"
        given.append(part)
    return given


def headings(own: Sequence[str], model: Predictor) -> list[str]:
    """Own columns, one a label and one a task, no two alike: of a task named `image` it is `image called`."""
    given = [*own, *model.names]
    for task in model.card.tasks:
        name = task.name
        while name in given:
            name += " called"
        given.append(name)
    return given


def _cells(model: Predictor, probabilities: dict[str, float]) -> list[str]:
    called = model.called(probabilities)
    return [*(f"{probabilities[name]:.6f}" for name in model.names), *("; ".join(labels) for labels in called.values())]


def _leave_patients(
    out: Path, model: Predictor, images_of: Mapping[str, Sequence[dict[str, float]]], patients: Mapping[str, str]
) -> None:
    """A row a patient; how many images are in the mean, and how many were left out of it."""
    beside = out / f"{BY_PATIENT}.partial"
    with beside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        table = csv.writer(opened)
        table.writerow(headings(["patient", "images", "left_out"], model))
        count = Counter(patients.values())
        for patient, several in images_of.items():
            mean = {name: fmean(probabilities[name] for probabilities in several) for name in model.names}
            table.writerow([patient, len(several), count[patient] - len(several), *_cells(model, mean)])
    os.replace(beside, out / BY_PATIENT)


def _save(said: Prediction, path: Path, endings: Sequence[str]) -> None:
    """Writes a picture for each task that has one; `endings` are of their files' names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = said.overlays()
    for ending, picture in zip(endings, pictures, strict=False):
        name = f"{path.name}.{ending}.png" if len(pictures) > 1 else f"{path.name}.png"
        picture.save(path.with_name(name))


if __name__ == "__main__":
    command.run(main)
