"""Applies an exported student: images in, probabilities and overlays of its saliency map out. See HELP."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from mmpkd import command
from mmpkd.cohort.facts import BadSample
from mmpkd.export import lookup
from mmpkd.machine.errors import machine_fault
from mmpkd.machine.new_folder import new_folder, refuse_taken
from mmpkd.prediction import questions as questions_of
from mmpkd.prediction.answering import UNKNOWN_WORDS, Answerer
from mmpkd.prediction.classifying import Predictor as Predictor
from mmpkd.prediction.files import TABLE, cells, headings, open_table, save_pictures, write_patients
from mmpkd.prediction.input_images import input_images, warnings_in_words
from mmpkd.scoring.overlays import file_names, picture_names
from mmpkd.scoring.patients import patients_of
from mmpkd.types import CohortError, ConfigError, Mistake

HELP = """\
usage: python -m mmpkd.predict model=FILE images=FILE|FOLDER [key=value ...]

Applies an exported student to images. It reads the images and nothing else: no
table, no report, no second scan. The images should have the form of the
training images: the same kind, bit depth and orientation. A student that
answers (vlm.safetensors) is asked a question about them.

  model=FILE      student.safetensors or vlm.safetensors of mmpkd.train, or a
                  folder that holds one
  images=PATH     an image (docs/formats.md), or a folder that is searched with
                  all its subfolders; of a NIfTI volume, the slices that the
                  student was trained on
  pattern=GLOB    of a folder, only files whose names match, e.g. 'case???.png';
                  a pattern with / is compared with the path below the folder
  question=TEXT   a student that answers: the question, asked about every image
  questions=FILE  the same: a table or JSONL file with the columns image (its
                  path below images=) and question
  out=DIR         the new folder for predictions.csv or answers.csv, and
                  overlays/ [runs/predict]
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
answers.csv has a row a question: answer, its boxes in pixels (left top right
bottom), and a margin from 0 to 1 (how clearly its words led). Boxes in texts
are <box>(left,top),(right,bottom)</box>, from 0 to 1000 along each side of the
image. Pictures show the boxes of the answer (solid) and the question (dashed).

examples
  python -m mmpkd.predict model=runs/demo/picked/12 images=scans
  python -m mmpkd.predict model=student.safetensors images=scan.png out=DIR
  python -m mmpkd.predict model=runs/vqa_demo/picked/3 images=scan.png \\
    question="where is the lesion?"
  from Python:
    from mmpkd.predict import Predictor
    model = Predictor("runs/demo/picked/12")
    print(model("scan.png").probabilities)
"""
OVERLAYS = "overlays"  # the folder of the pictures
SHOWN = 20  # files that are named if none can be read


def main(words: Sequence[str]) -> None:
    """Runs the command line; see HELP."""
    if not words or command.asks_for_help(words):
        print(HELP, end="")
        return
    defaults = {"model": "", "images": "", "pattern": "", "out": "runs/predict", "overlays": "true", "table": ""}
    defaults |= {"question": "", "questions": ""}
    own, others = command.own_words(words, defaults)
    mistakes = command.unknown_words(others, own)
    mistakes += [Mistake(key, f"missing: write {key}=...; see --help") for key in ("model", "images") if not own[key]]
    if own["overlays"] not in ("true", "false"):
        mistakes.append(Mistake("overlays", f"true or false, got {own['overlays']!r}"))
    if mistakes:
        raise ConfigError(mistakes)
    file = lookup.find(Path(own["model"]))
    if mistakes := questions_of.of_other_kind(own, lookup.is_answering(file), words):
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
    console = command.plain_console(stderr=True, soft_wrap=True)
    is_drawn = own["overlays"] == "true"
    if lookup.is_answering(file):
        questions, answerer = (
            questions_of.read_questions(own["question"], own["questions"], [*name_of.values()]),
            Answerer(file),
        )
        with new_folder(out, again) as folder:
            outcome = questions_of.answer_all(
                answerer, name_of, questions, folder, folder / OVERLAYS if is_drawn else None, console
            )
        bad, warned, table = outcome.bad, outcome.warned, questions_of.TABLE
        counted_results = f"{outcome.num_answers} answer{'s' * (outcome.num_answers > 1)}"
        if num_unknown := outcome.num_unknown:
            problem = f"{num_unknown} of {outcome.num_answers} questions hold {UNKNOWN_WORDS}"
            which = ", ".join(outcome.unknown[: questions_of.SHOWN])
            command.warn([f"{problem}{f', such as {which}' * bool(which)}; ask as the questions of its cohort do"])
        for line in outcome.lines:
            print(line)
    else:
        model = Predictor(file)
        with new_folder(out, again) as folder:
            bad, warned = _predict(model, name_of, patients, folder, is_drawn, console)
        table, counted_results = TABLE, f"{len(files) - len(bad)} images"
    if skipped:
        kinds = ", ".join(sorted({path.suffix.lower() or path.name for path in skipped}))
        counted = f"{len(skipped)} file{'s' * (len(skipped) > 1)}"
        console.print(f"skipped, not images: {counted} ({kinds})", highlight=False)
    command.warn(warnings_in_words(warned, Path() if root.is_file() else root, [*name_of.values()]))
    for line in bad:
        console.print(f"left out: {line}", highlight=False)
    pictures = f", overlays: {out / OVERLAYS}" if is_drawn else ""
    print(f"{counted_results}: {out / table}{pictures}")
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
