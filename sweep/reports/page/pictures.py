"""Pictures of the same validation images under the best student of each arm, side by side.

They are drawn once, when a sweep ends, on the machine of its driver. Nothing is drawn of a credentialed cohort.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mmpkd.config import TrialConfig
from mmpkd.types import UserError
from sweep.selection import Selection, best_first, rule_of
from sweep.storage.layout import STUDENT, SweepFolder
from sweep.storage.records import candidates, compared_metric
from sweep.transfer.attempts import kept_student
from sweep.types import Record

if TYPE_CHECKING:
    from mmpkd.cohort.store import Store
    from mmpkd.export.student_file import Exported

NUM_IMAGES: Final = 8
MAX_STUDENTS: Final = 8  # columns; more would make the page large and each picture small
SECONDS: Final = 60.0  # no further student is drawn after this time
SIDE: Final = 200  # pixels, longest side of a picture
LEGEND: Final = (
    "Bright: where the student looks. Outlined: the region. The images are spread over the validation part; they were "
    "not chosen by their scores."
)
OUTLINE: Final = (0, 229, 255)  # cyan, which the colours of the maps do not have


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
        return _note("The cohort is credentialed, so the report has no pictures of it.")
    kept = [(arm, *_best_kept(folder, records, arm, select)) for arm in arms][:MAX_STUDENTS]
    folds = {_config(record).cohort.fold for _, record, _ in kept if record is not None}
    notes = [line for _, _, line in kept if line]
    if not folds:
        return _note(" ".join(["No arm has a student that is kept.", *notes]))
    fold = min(folds)
    with_region = np.array([row for row in store.rows("val", fold) if store.rois(int(row))], np.int64)
    if not len(with_region):
        return _note("No validation image has a region, so there is nothing to compare maps with.")
    places = np.linspace(0, len(with_region) - 1, min(NUM_IMAGES, len(with_region))).round().astype(int)
    rows = with_region[places]
    columns = [("image", [_picture(store, int(row), None) for row in rows])]
    begin = time.monotonic()
    for arm, record, _ in kept:
        if record is None:
            continue
        if _config(record).cohort.fold != fold:
            notes.append(f"The student of trial {record.number} ({arm}) was trained with another validation fold.")
        elif time.monotonic() - begin > SECONDS:
            notes.append(f"No time was left for {arm}: pictures get {SECONDS:.0f} s.")
        else:
            maps = _maps(store, rows, _read(folder, record), _config(record))
            drawn = [_picture(store, int(row), map_hw) for row, map_hw in zip(rows, maps, strict=True)]
            columns.append((f"{arm}, trial {record.number}", drawn))
    notes.insert(0, LEGEND)
    head = "".join(f"<th>{escape(name)}</th>" for name, _ in columns)
    lines = zip(*(cells for _, cells in columns), strict=True)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    width = f"max-width:{SIDE * len(columns)}px"
    drawing = f'<table class="plain"><tr>{head}</tr>{body}</table>'
    return f'<div class="pictures" style="{width}">{drawing}</div>{_note(" ".join(notes))}'


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


def _read(folder: SweepFolder, record: Record) -> Exported:
    from mmpkd.export import student_file  # loads torch, which a report at intervals does not need

    place = kept_student(folder, record.number)
    if place is None:
        raise UserError(f"the student of trial {record.number} is gone; train it again with sweep.pick")
    with TemporaryDirectory() as scratch:
        place.download(STUDENT, Path(scratch) / STUDENT)
        return student_file.read(Path(scratch) / STUDENT)


def _maps(store: Store, rows: NDArray[np.int64], exported: Exported, config: TrialConfig) -> list[NDArray[np.float32]]:
    """Returns the student's map of each image, on its patches. Where each label has a map, it is that of the first
    label with a region.
    """
    import torch

    from mmpkd.scoring.saliency import MAPS, columns_explained

    kind = MAPS[exported.card.map]
    explained = columns_explained(store.facts.roi_labels, exported.card.tasks) if kind.per_label else []
    pixels_BCHW = torch.from_numpy(np.array(store.images(rows, config.student.reads))).float() / 255
    _, map_BRhw = kind()(exported.student.eval(), pixels_BCHW, explained)
    labels = [store.rois(int(row))[0][0] if kind.per_label else 0 for row in rows]
    return [map_Rhw[label].float().numpy() for map_Rhw, label in zip(map_BRhw.cpu(), labels, strict=True)]


def _picture(store: Store, row: int, map_hw: NDArray[np.float32] | None) -> str:
    """Returns an image without its padding, under a map if there is one, with its regions outlined."""
    from PIL import Image

    from mmpkd.scoring.overlays import overlay

    image_CHW = np.array(store.image_NCHW[row])
    image = image_CHW[0] if len(image_CHW) == 1 else np.ascontiguousarray(image_CHW[:3].transpose(1, 2, 0))
    picture = Image.fromarray(image).convert("RGB")
    if map_hw is not None:
        size = (picture.width, picture.height)
        heat_HW = np.asarray(Image.fromarray(map_hw).resize(size, Image.Resampling.BILINEAR))
        picture = overlay(image, heat_HW).resize(size)  # the overlay of a large image is smaller than the image
    roi = Image.fromarray(store.roi_mask(np.array([row]))[0].any(axis=0))
    top, left, bottom, right = store.content_box_N4[row].tolist()
    scale = SIDE / max(bottom - top, right - left)
    size = (max(round((right - left) * scale), 1), max(round((bottom - top) * scale), 1))
    picture, roi = (each.crop((left, top, right, bottom)).resize(size) for each in (picture, roi))
    pixels = np.array(picture)
    pixels[_outline(np.asarray(roi, bool))] = OUTLINE
    return _tag(Image.fromarray(pixels), "validation image" if map_hw is None else "map of the student")


def _outline(roi_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the pixels of a region that touch its outside."""
    padded = np.pad(roi_HW, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: NDArray[np.bool_] = roi_HW & ~inside
    return edge


def _tag(picture: Any, text: str) -> str:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=80)
    code = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="{text}" src="data:image/jpeg;base64,{code}">'


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'
