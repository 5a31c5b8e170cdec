"""Pictures of the same validation images under the best student of each arm, side by side: where it looks, or what it
answers.

They are drawn once, when a sweep ends, on the machine of its driver; this module loads torch, which other parts of the
report do not need. Nothing is drawn of a credentialed cohort.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from html import escape
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from mmpkd.cohort.store import Store
from mmpkd.config import TrialConfig
from mmpkd.prediction.answering import with_boxes
from mmpkd.scoring.pictures import OUTLINE, as_picture, example_rows, outline, student_maps, under_map
from mmpkd.vlm.training.items import Items
from sweep.selection import Selection, best_first, rule_of
from sweep.space.search_config import are_of_answers, is_of_places
from sweep.storage.layout import SweepFolder
from sweep.storage.records import candidates, compared_metric
from sweep.students import read_answering_student, read_student
from sweep.transfer.attempts import kept_student
from sweep.types import Record

NUM_IMAGES: Final = 8
MAX_STUDENTS: Final = 8  # columns; more would make the page large and each picture small
SECONDS: Final = 60.0  # no further student is drawn after this time
SIDE: Final = 200  # pixels, longest side of a picture where few stand beside each other
PAGE_WIDTH: Final = 1080  # pixels, of the page's text (`style.py`)
LEGEND: Final = (
    "Each column is one trial, which its head names. Bright: where the student looks. Outlined: the region. The images "
    "are spread over the validation part; they were not chosen by their scores."
)
LEGEND_OF_ANSWERS: Final = (
    "Each row is a question about a validation image, with its true answer; each column is one trial, which its head "
    "names. Boxes of an answer are solid, boxes of a question dashed. The questions are spread over the validation "
    "part; they were not chosen by their scores."
)
CREDENTIALED: Final = (
    "The cohort is credentialed, so the report has no pictures of it. Where its images may be looked at, mmpkd.predict "
    "draws the map or the answers of a picked student over them."
)


def pictures(
    store: Store,
    folder: SweepFolder,
    records: Sequence[Record],
    arms: Sequence[str],
    goals: Sequence[str],
    select: str | Selection,
) -> str:
    """Returns a table of pictures as HTML: a row for each of at most `NUM_IMAGES` validation images with a region, a
    column for the image alone, one for the best student of each arm, and one for the best by each goal of localisation.
    Students that answer have a row for each of at most `NUM_IMAGES` questions. Where there is nothing to draw, returns
    the reason.

    Only trials on the front and the best by `search.select` keep their students. The best trial whose student is kept
    stands for an arm or a goal. Its column names it.
    """
    if store.facts.credentialed:
        return note(CREDENTIALED)
    students, notes = _students(folder, records, arms, goals, select)
    if not students:
        return note(" ".join(["No arm has a student that is kept.", *notes]))
    fold = min(_config(record).cohort.fold for record, _ in students)
    side = side_of(len(students))
    examples = Answers(store, store.rows("val", fold), side) if are_of_answers(goals) else Maps(store, fold, side)
    if not examples.rows:
        return note(examples.missing)
    columns, begin = [examples.first], time.monotonic()
    for record, title in students:
        if _config(record).cohort.fold != fold:
            notes.append(f"The student of trial {record.number} was trained with another validation fold.")
        elif time.monotonic() - begin > SECONDS:
            notes.append(f"No time was left for trial {record.number}: pictures get {SECONDS:.0f} s.")
        else:
            columns.append((title, examples.of_student(folder, record)))
    return note(" ".join([examples.legend, *notes])) + picture_table(columns, side)


class Maps:
    """Validation images with a region, and where students look.

    Attributes:
        rows: the samples, at most `NUM_IMAGES`; none if there is nothing to draw, for the reason `missing`.
        first: title and pictures of the first column, which shows no student.
    """

    legend, missing = LEGEND, "No validation image has a region, so there is nothing to compare maps with."

    def __init__(self, store: Store, fold: int, side: int):
        self._store, self._side = store, side
        rows = example_rows(store, fold, NUM_IMAGES)
        self.rows = rows.tolist() if any(store.rois(int(row)) for row in rows) else []
        self.first = ("image", [picture(store, row, None, side) for row in self.rows])

    def of_student(self, folder: SweepFolder, record: Record) -> list[str]:
        """Returns a picture of each sample under the map of the student of a trial, as HTML."""
        student, reads = read_student(folder, record.number), _config(record).student.reads
        maps = student_maps(student, self._store, np.array(self.rows), reads)
        return [picture(self._store, row, map_hw, self._side) for row, map_hw in zip(self.rows, maps, strict=True)]


class Answers:
    """Questions about images, with their true answers and those of students. Attributes as of `Maps`.

    Args:
        rows: the samples about which questions may be shown.
        side: the longer side of a picture in pixels.
    """

    legend, missing = LEGEND_OF_ANSWERS, "No image has a question with an answer."

    def __init__(self, store: Store, rows: NDArray[np.int64], side: int):
        self._store, self._side = store, side
        table = store.questions
        table = table[table["row"].isin(rows) & table["answer"].notna()]
        tasks, images = sorted(table["task"].unique()), table["row"].unique()
        shown = images[np.linspace(0, len(images) - 1, min(NUM_IMAGES, len(images))).astype(int)]
        self._questions = []
        for place, row in enumerate(shown):
            of_image = table[table["row"] == row]
            of_task = of_image[of_image["task"] == tasks[place % len(tasks)]]
            self._questions.append((of_task if len(of_task) else of_image).iloc[0])
        self.rows = [int(each["row"]) for each in self._questions]
        truths = [f"{self._drawn(each, each['answer'])}<p>{escape(each['question'])}</p>" for each in self._questions]
        self.first = ("question and true answer", truths)

    def of_student(self, folder: SweepFolder, record: Record) -> list[str]:
        """Returns a picture with the answer of the student of a trial to each question, as HTML."""
        student, device = read_answering_student(folder, record.number), torch.device("cpu")
        items = Items(self._store, np.array(self.rows), student.config, student.vlm.processor)
        keys = zip(items.table["row"], items.table["question"], strict=True)
        numbered = {key: number for number, key in enumerate(keys)}
        chosen = [numbered[each["row"], each["question"]] for each in self._questions]
        answers, _ = items.answers(student.vlm, chosen, student.config.max_new_tokens, len(chosen), device)
        return [self._drawn(each, text) for each, text in zip(self._questions, answers, strict=True)]

    def _drawn(self, question: pd.Series[Any], answer: str) -> str:
        row = int(question["row"])
        top, left, bottom, right = self._store.content_box_N4[row].tolist()
        image = as_picture(np.array(self._store.image_NCHW[row]))[top:bottom, left:right]
        drawn = with_boxes(np.ascontiguousarray(image), question["question"], answer, self._side / max(image.shape[:2]))
        return f"{_tag(drawn, 'image with boxes')}<p><strong>{escape(answer or '(empty)')}</strong></p>"


def side_of(num_students: int) -> int:
    """Returns the longer side of a picture in pixels, if a row has the image alone and one for each student."""
    return min(SIDE, PAGE_WIDTH // (1 + num_students))


def picture_table(columns: Sequence[tuple[str, Sequence[str]]], side: int) -> str:
    """Returns a table of pictures as HTML.

    Args:
        columns: for each column its title and its pictures as HTML.
        side: the longer side of a picture in pixels.
    """
    head = "".join(f"<th>{escape(title)}</th>" for title, _ in columns)
    named = [[f'<td data-name="{escape(title, quote=True)}">{cell}</td>' for cell in cells] for title, cells in columns]
    body = "".join(f"<tr>{''.join(line)}</tr>" for line in zip(*named, strict=True))
    on_a_phone = 2 if len(columns) in (2, 4) else 3  # pictures beside each other
    width = f"max-width:{side * len(columns)}px;--on-a-phone:{on_a_phone}"
    drawing = f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="pictures" style="{width}">{drawing}</div>'


def _students(
    folder: SweepFolder, records: Sequence[Record], arms: Sequence[str], goals: Sequence[str], select: str | Selection
) -> tuple[list[tuple[Record, str]], list[str]]:
    """Returns the trials whose students are drawn, each with the title of its column, and sentences about those that
    cannot be drawn. A trial that is the best in several respects has one column.
    """
    chosen = rule_of(select).maximize
    of_regions = [goal for goal in goals if is_of_places(goal)]
    most = MAX_STUDENTS - len(of_regions)
    wanted = [(f"best of {arm} by {chosen}", [arm], chosen) for arm in arms[:most]]
    wanted += [(f"best {goal}", list(arms), goal) for goal in of_regions]
    titles: dict[int, str] = {}
    notes = [f"Only the first {most} of {len(arms)} arms have pictures."] if len(arms) > most else []
    for title, among, goal in wanted:
        metric = compared_metric(records, goal)
        trials = [each for each in candidates(records) if each.arm in among and metric in each.metrics]
        ordered = best_first(trials, metric)
        kept = next((record for record in ordered if kept_student(folder, record.number) is not None), None)
        if kept is None:
            notes.append(
                f"No student of {title} is kept." if trials else f"No trial of {', '.join(among)} is complete."
            )
            continue
        if kept is not ordered[0]:
            notes.append(
                f"The student of trial {ordered[0].number}, {title}, is not kept; the next best stands for it."
            )
        before = titles.get(kept.number)
        titles[kept.number] = f"{before}, {title}" if before else f"trial {kept.number}: {title}"
    by_number = {record.number: record for record in records}
    return [(by_number[number], title) for number, title in titles.items()], notes


def _config(record: Record) -> TrialConfig:
    return TrialConfig.model_validate_json(record.config)


def picture(store: Store, row: int, map_hw: NDArray[np.float32] | None, side: int) -> str:
    """Returns an image without its padding, under a map if there is one, with its regions outlined.

    Args:
        side: the longer side of the picture in pixels.
    """
    image = as_picture(np.array(store.image_NCHW[row]))
    picture = Image.fromarray(image).convert("RGB")
    if map_hw is not None:
        picture = under_map(image, map_hw).resize(picture.size)  # that of a large image is smaller than the image
    roi = Image.fromarray(store.roi_mask(np.array([row]))[0].any(axis=0))
    top, left, bottom, right = store.content_box_N4[row].tolist()
    scale = side / max(bottom - top, right - left)
    size = (max(round((right - left) * scale), 1), max(round((bottom - top) * scale), 1))
    picture, roi = (each.crop((left, top, right, bottom)).resize(size) for each in (picture, roi))
    pixels = np.array(picture)
    pixels[outline(np.asarray(roi, bool))] = OUTLINE
    return _tag(Image.fromarray(pixels), "validation image" if map_hw is None else "map of the student")


def _tag(picture: Image.Image, text: str) -> str:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=80)
    code = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="{text}" src="data:image/jpeg;base64,{code}">'


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'
