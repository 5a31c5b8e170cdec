"""Pictures of the same validation images under the best student of each arm, side by side.

They are drawn once, when a sweep ends, on the machine of its driver; this module loads torch, which other parts of the
report do not need. Nothing is drawn of a credentialed cohort.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from html import escape
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmpkd.cohort.store import Store
from mmpkd.config import TrialConfig
from mmpkd.scoring.pictures import OUTLINE, as_picture, example_rows, outline, student_maps, under_map
from sweep.selection import Selection, best_first, rule_of
from sweep.storage.layout import SweepFolder
from sweep.storage.records import candidates, compared_metric
from sweep.students import read_student
from sweep.transfer.attempts import kept_student
from sweep.types import Record

NUM_IMAGES: Final = 8
MAX_STUDENTS: Final = 8  # columns; more would make the page large and each picture small
SECONDS: Final = 60.0  # no further student is drawn after this time
SIDE: Final = 200  # pixels, longest side of a picture
LEGEND: Final = (
    "Bright: where the student looks. Outlined: the region. The images are spread over the validation part; they were "
    "not chosen by their scores."
)


def pictures(
    store: Store, folder: SweepFolder, records: Sequence[Record], arms: Sequence[str], select: str | Selection
) -> str:
    """Returns a table of pictures as HTML: a row for each of at most `NUM_IMAGES` validation images with a region,
    a column for the image alone and one for the best student of each arm. Where there is nothing to draw, returns the
    reason.

    Only trials on the front and the best by `search.select` keep their students. The best trial of an arm whose student
    is kept stands for the arm.
    """
    if store.facts.credentialed:
        return note("The cohort is credentialed, so the report has no pictures of it.")
    kept = [(arm, *_best_kept(folder, records, arm, select)) for arm in arms][:MAX_STUDENTS]
    folds = {_config(record).cohort.fold for _, record, _ in kept if record is not None}
    notes = [line for _, _, line in kept if line]
    if not folds:
        return note(" ".join(["No arm has a student that is kept.", *notes]))
    fold = min(folds)
    rows = example_rows(store, fold, NUM_IMAGES)
    if not any(store.rois(int(row)) for row in rows):
        return note("No validation image has a region, so there is nothing to compare maps with.")
    columns = [("image", [picture(store, int(row), None) for row in rows])]
    begin = time.monotonic()
    for arm, record, _ in kept:
        if record is None:
            continue
        if _config(record).cohort.fold != fold:
            notes.append(f"The student of trial {record.number} ({arm}) was trained with another validation fold.")
        elif time.monotonic() - begin > SECONDS:
            notes.append(f"No time was left for {arm}: pictures get {SECONDS:.0f} s.")
        else:
            maps = student_maps(read_student(folder, record.number), store, rows, _config(record).student.reads)
            drawn = [picture(store, int(row), map_hw) for row, map_hw in zip(rows, maps, strict=True)]
            columns.append((f"{arm}, trial {record.number}", drawn))
    notes.insert(0, LEGEND)
    return picture_table(columns) + note(" ".join(notes))


def picture_table(columns: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Returns a table of pictures as HTML.

    Args:
        columns: for each column its head and its pictures as HTML.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name, _ in columns)
    lines = zip(*(cells for _, cells in columns), strict=True)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    width = f"max-width:{SIDE * len(columns)}px"
    return f'<div class="pictures" style="{width}"><table class="plain"><tr>{head}</tr>{body}</table></div>'


def _best_kept(
    folder: SweepFolder, records: Sequence[Record], arm: str, select: str | Selection
) -> tuple[Record | None, str]:
    """Returns the best trial of an arm whose student is kept, with a sentence if it is not the best of the arm."""
    of_arm = [record for record in candidates(records) if record.arm == arm]
    metric = compared_metric(records, rule_of(select).maximize)
    ordered = best_first([record for record in of_arm if metric in record.metrics], metric)
    for record in ordered:
        if kept_student(folder, record.number) is not None:
            if record is ordered[0]:
                return record, ""
            return record, f"The student of trial {ordered[0].number}, the best of {arm}, is not kept."
    return None, f"No student of {arm} is kept." if of_arm else f"No trial of {arm} is complete."


def _config(record: Record) -> TrialConfig:
    return TrialConfig.model_validate_json(record.config)


def picture(store: Store, row: int, map_hw: NDArray[np.float32] | None) -> str:
    """Returns an image without its padding, under a map if there is one, with its regions outlined."""
    image = as_picture(np.array(store.image_NCHW[row]))
    picture = Image.fromarray(image).convert("RGB")
    if map_hw is not None:
        picture = under_map(image, map_hw).resize(picture.size)  # that of a large image is smaller than the image
    roi = Image.fromarray(store.roi_mask(np.array([row]))[0].any(axis=0))
    top, left, bottom, right = store.content_box_N4[row].tolist()
    scale = SIDE / max(bottom - top, right - left)
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
