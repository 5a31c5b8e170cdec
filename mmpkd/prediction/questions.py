"""The questions of `mmpkd.predict`, from the command line or a file, and the files of their answers."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.formats.tables import FIRST_ROW, read_table
from mmpkd.cohort.readers.questions.items import read_jsonl, text_problem
from mmpkd.machine.errors import machine_fault
from mmpkd.prediction.answering import Answer, Answerer
from mmpkd.prediction.files import open_table, save_pictures
from mmpkd.prediction.input_images import WARNINGS
from mmpkd.scoring.overlays import picture_names
from mmpkd.types import CohortError, ConfigError, Mistake

TABLE = "answers.csv"
COLUMNS = ("image", "question", "answer", "boxes", "margin", "warning")
REMEDY = "wanted a table, or a file whose name ends in .jsonl, with the columns image and question"
SHOWN = 5  # rows that a message names, and answers that are printed
QuestionsOf = Mapping[str, Sequence[str]]  # questions by the name of the image


class Outcome(NamedTuple):
    """What came of the questions.

    bad: a line for each file that cannot be read.
    warned: the images with a warning by its key in `WARNINGS`.
    num_unknown: number of questions with words that the student has not learnt.
    unknown: these words, and
    lines: answers as they are printed; none of both if the training images were credentialed.
    """

    bad: list[str]
    warned: dict[str, list[str]]
    num_answers: int
    num_unknown: int
    unknown: list[str]
    lines: list[str]


def of_other_kind(own: Mapping[str, str], answers: bool, words: Sequence[str]) -> list[Mistake]:
    """Returns a mistake for each word that belongs to the other kind of student, or that this kind lacks.

    Args:
        answers: whether the student answers questions. Otherwise it classifies.
        words: the command line, of which a message repeats what is right.
    """
    given = [key for key in ("question", "questions") if own[key]]

    def command_without(keys: Sequence[str]) -> str:
        kept = [word for word in words if word.partition("=")[0] not in keys]
        return shlex.join(["python", "-m", "mmpkd.predict", *kept])

    if not answers:
        problem = "the student classifies and answers no question; leave it out"
        return [Mistake(given[0], f"{problem}:\n    {command_without(given)}")] if given else []
    mistakes = []
    if not given:
        example = 'question="where is the lesion?"'
        problem = "missing: the student answers questions; ask one, or name a file of many with questions=FILE"
        mistakes.append(Mistake("question", f"{problem}:\n    {command_without(['table'])} {example}"))
    if len(given) == 2:
        problem = "the questions are in the file of questions=; leave question= out"
        mistakes.append(Mistake("question", f"{problem}:\n    {command_without(['question', 'table'])}"))
    if own["table"]:
        problem = "combines the probabilities of a patient's images, and the student gives answers; leave it out"
        mistakes.append(Mistake("table", problem))
    return mistakes


def read_questions(question: str, file: str, names: Sequence[str]) -> QuestionsOf:
    """Returns the questions about each image, in the order of the images.

    Args:
        question: a question about every image, or empty if `file` names a table.
        file: a table or JSONL file with the columns image and question, or empty.
        names: names of the images.

    Raises:
        ConfigError: the file lacks a column, or a question is empty, has a box that cannot be read, or is about an
            image that is not there.
        CohortError: the file cannot be read.
    """
    if not file:
        if problem := text_problem(question.strip(), None):
            form = "a box is <box>(left,top),(right,bottom)</box> on a grid of 0 to 1000 along each side of the image"
            raise ConfigError.at("question", f"has {problem}; {form}")
        return {name: [question.strip()] for name in names}
    path, wanted = Path(file), ("image", "question")
    options, is_lines = [("questions", name) for name in wanted], path.name.endswith(".jsonl")
    if is_lines:
        table = read_jsonl(path, options, REMEDY, is_public=False)
    else:
        table = read_table(path, wanted, REMEDY, options=options)
    questions: dict[str, list[str]] = {name: [] for name in names}
    bad: dict[str, list[int]] = {}
    for row, cells in enumerate(table.to_dict("records"), 1 if is_lines else FIRST_ROW):
        image, text = PurePosixPath(str(cells["image"])).as_posix(), str(cells["question"])
        if problem := text_problem(text, None):
            bad.setdefault(problem, []).append(row)
        elif image not in questions:
            bad.setdefault("an image that images= does not hold", []).append(row)
        else:
            questions[image].append(text)
    if bad:
        listed = "; ".join(f"{_rows(rows)} {'has' if len(rows) == 1 else 'have'} {why}" for why, rows in bad.items())
        raise ConfigError.at("questions", f"{path}: {listed}; mend or delete these rows")
    return {name: texts for name, texts in questions.items() if texts}


def _rows(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:SHOWN])) + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
    return f"row{'s' * (len(rows) > 1)} {shown}"


def answer_all(
    model: Answerer,
    name_of: Mapping[Path, str],
    questions: QuestionsOf,
    folder: Path,
    pictures: Path | None,
    console: Console,
) -> Outcome:
    """Writes the table of answers to a folder, and a picture of each answer.

    Args:
        name_of: the name of each image's file in the table.
        pictures: the folder of the pictures; None draws none.

    Raises:
        CohortError: the machine fails while an image is read, or no image can be read.
    """
    outcome, num_answers, num_unknown = Outcome([], {}, 0, 0, [], []), 0, 0
    files, picture_of = {path: name for path, name in name_of.items() if name in questions}, picture_names([*questions])
    with open_table(folder / TABLE) as table:
        table.writerow(COLUMNS)
        for path, name in track(files.items(), "answering", console=console, disable=not console.is_terminal):
            try:
                answers = model(path, *questions[name])
            except BadSample as error:
                if fault := machine_fault(error):
                    problem = f"prediction stopped: {fault}; repair this, then run the same command again"
                    raise CohortError(problem) from error
                outcome.bad.append(f"{path}: {error.reason}")
                continue
            for key in answers[0].warnings:
                if key in WARNINGS:
                    outcome.warned.setdefault(key, []).append(name)
            for answer in answers:
                table.writerow([name, *_cells(answer)])
                unknown = model.unknown_words(answer.question)
                num_unknown += bool(unknown)
                if not model.card.credentialed:
                    outcome.unknown.extend(word for word in unknown if word not in outcome.unknown)
            num_answers += len(answers)
            if not model.card.credentialed and len(outcome.lines) < SHOWN:
                outcome.lines.extend(f"{name}: {answer.text or '(an empty answer)'}" for answer in answers)
            if pictures is not None:
                numbers = [str(number) for number in range(1, len(answers) + 1)]
                save_pictures([answer.picture() for answer in answers], pictures / picture_of[name], numbers)
    if not num_answers:
        raise CohortError("\n  ".join([f"none of {len(files)} files could be read as an image", *outcome.bad[:SHOWN]]))
    shown = outcome.lines if num_answers <= SHOWN else []
    return outcome._replace(num_answers=num_answers, num_unknown=num_unknown, lines=shown)


def _cells(answer: Answer) -> list[str]:
    boxes = "; ".join(" ".join(f"{value:.0f}" for value in box) for box in answer.boxes)
    return [answer.question, answer.text, boxes, f"{answer.margin:.6f}", "; ".join(answer.warnings)]
