"""Reads and checks the cells of a user's table: labels, regions, paths and numbers."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd

from mmpkd.cohort.facts import ADMITTED, encode_labels, label_columns
from mmpkd.cohort.formats.regions import boxes_mask, polygon_mask, read_box_list, read_polygons
from mmpkd.cohort.readers.table.mistakes import cell_mistakes
from mmpkd.cohort.readers.table.params import TableParams
from mmpkd.cohort.spelling import DIFFERENCE, normalise_name, strip_padding
from mmpkd.types import Mistake, Task

DrawRegion = Callable[[tuple[int, ...], str], np.ndarray]  # (image's shape, file name for messages) -> mask
FLAGS = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}  # values of a multi-label task's cells without padding zeros
ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]")  # the beginning of an absolute path, also on Windows
OUTSIDE = "cohort.allow_outside=true"
# Minimum number of boxes for the warning that boxes may be two corners; fewer boxes may look like corners by chance
MIN_BOXES = 5
MAX_GRADES = 10  # a column of numbers with more different values is probably a quantity, not a grade
ODD_REGION = (ValueError, TypeError, IndexError, RecursionError, OverflowError)


def labels_of(task: Task, params: TableParams, cells: pd.DataFrame) -> pd.DataFrame:
    """Returns the label columns of a task for each row of the table; NaN means unknown."""
    source = params.tasks[task.name].column
    if source is not None:
        return encode_labels(task, class_names(task, cells[source]))
    flags = [cells[name].map(_flag, na_action="ignore").astype(float) for name in task.labels]
    return pd.concat(flags, axis=1).set_axis(label_columns([task]), axis=1)


def class_names(task: Task, cells: pd.Series) -> pd.Series:
    """Returns the label that each cell names, or NaN if the cell names no label. Numbers may be padded: 0.0 and 00 name
    the label 0."""
    numbers = {strip_padding(label): label for label in task.labels if strip_padding(label).lstrip("-").isdigit()}
    names = {
        cell: cell if cell in task.labels else numbers.get(strip_padding(cell), np.nan)
        for cell in cells.dropna().unique()
    }
    return cells.map(names, na_action="ignore").astype(object)


def _flag(cell: str) -> float:
    return FLAGS.get(strip_padding(cell), np.nan)


def check_cells(params: TableParams, cells: pd.DataFrame, tasks: Sequence[Task], may_lead_out: bool) -> list[Mistake]:
    """Returns all mistakes in the cells of images, patients, paths, labels, regions and numbers.

    Args:
        cells: the table; blank cells are NaN.
        may_lead_out: whether paths may lead out of the root.
    """
    image = cells[params.image]
    mistakes = cell_mistakes(params, "image", "missing", image, image.isna())
    twice = image.dropna().map(posixpath.normpath).duplicated()  # ./a.png and a.png are the same file
    mistakes += cell_mistakes(params, "image", "listed before (one row, one image)", image, twice)
    patient = cells[params.patient]
    mistakes += cell_mistakes(params, "patient", "missing", patient, patient.isna())
    for name, column in params.views.items():
        mistakes += cell_mistakes(params, f"views.{name}", "missing", cells[column], cells[column].isna())
    for where, column in params.requested_columns:
        if column in params.paths and not may_lead_out:
            absolute = cells[column].dropna().map(lambda cell: bool(ABSOLUTE.match(cell)))
            what = f"absolute; paths are relative to cohort.root, unless {OUTSIDE}"
            mistakes += cell_mistakes(params, where, what, cells[column], absolute)
    mistakes += _check_regions(params, cells)
    for task in tasks:
        mistakes += _check_labels(params, task, cells)
    for name, options in params.columns.items():
        if options.kind == "numeric" and options.role in (*ADMITTED, "near_label"):
            mistakes += _check_numbers(params, f"columns.{name}", cells[name])
    return mistakes


def _check_labels(params: TableParams, task: Task, cells: pd.DataFrame) -> list[Mistake]:
    source = params.tasks[task.name].column
    mistakes = []
    is_read = source and any(isinstance(label, int) for label in params.tasks[task.name].labels)
    quotes = " (as YAML reads numbers; labels in quotes stay as they are written)" if is_read else ""
    for name in [source] if source else task.labels:
        column = cells[name].dropna()
        is_wrong = class_names(task, column).isna() if source else column.map(_flag).isna()
        known = {strip_padding(label) for label in task.labels} if source else set()
        misspelt = is_wrong & column.map(strip_padding).isin(known)
        where, words = f"tasks.{task.name}", ", ".join(task.labels if source else ("0", "1"))
        what = f"spelt otherwise than a label ({words}): they {DIFFERENCE}; write them alike, in column {name!r}"
        mistakes += cell_mistakes(params, where, what, cells[name], misspelt)
        what = f"neither one of {words} nor listed under `missing`, in column {name!r}{quotes}"
        mistakes += cell_mistakes(params, where, what, cells[name], is_wrong & ~misspelt)
    return mistakes


def _check_numbers(params: TableParams, where: str, cells: pd.Series) -> list[Mistake]:
    filled = cells.dropna()
    numbers = pd.to_numeric(filled, errors="coerce").astype(float)
    is_wrong = pd.Series(~np.isfinite(numbers), filled.index)
    comma = is_wrong & filled.str.fullmatch(r"[+-]?[0-9]+,[0-9]+")
    what = "not a finite number: decimals follow a point, not a comma (3.5, not 3,5)"
    mistakes = cell_mistakes(params, where, what, cells, comma)
    return mistakes + cell_mistakes(params, where, "not a finite number", cells, is_wrong & ~comma)


def _check_regions(params: TableParams, cells: pd.DataFrame) -> list[Mistake]:
    mistakes = []
    for label, columns in params.boxes.items():
        if isinstance(columns, str):
            is_wrong = cells[columns].dropna().map(partial(_fails, read_box_list))
            wanted = "no box; [left, top, width, height] is wanted, a list of several such boxes, or a blank cell"
            mistakes += cell_mistakes(params, f"boxes.{label}", wanted, cells[columns], is_wrong)
            continue
        numbers = cells[list(columns)].apply(pd.to_numeric, errors="coerce").astype(float)
        is_wrong = ~np.isfinite(numbers).all(axis=1) | (numbers[[columns[2], columns[3]]] <= 0).any(axis=1)
        is_wrong &= cells[list(columns)].notna().any(axis=1)
        wanted = "no box: four numbers are wanted, of which width and height above 0, or four blanks"
        mistakes += cell_mistakes(params, f"boxes.{label}", wanted, cells[columns[0]], is_wrong)
    for label, column in params.polygons.items():
        is_wrong = cells[column].dropna().map(partial(_fails, read_polygons))
        wanted = "no polygon; [[x, y], ...] is wanted, a list of several such polygons, or a blank cell"
        mistakes += cell_mistakes(params, f"polygons.{label}", wanted, cells[column], is_wrong)
    return mistakes or _check_units(params, cells)


def _check_units(params: TableParams, cells: pd.DataFrame) -> list[Mistake]:
    """Returns a mistake if a label's regions are in shares of the image's size, as in YOLO, and not in pixels. Read as
    pixels, each region would be a single pixel."""
    what = "regions whose numbers all lie between 0 and 1; pixels of the image are wanted, so multiply by its sides"
    mistakes = []
    for key, labels, read in (("boxes", params.boxes, _boxes_of), ("polygons", params.polygons, _polygons_of)):
        for label in labels:
            regions = read(params, label, cells)
            if len(regions) and all(
                0 <= np.concatenate(each).min() <= np.concatenate(each).max() <= 1 for each in regions
            ):
                column = cells.loc[regions.index].iloc[:, 0]
                mistakes += cell_mistakes(params, f"{key}.{label}", what, column.map(lambda _: None), column.notna())
    return mistakes


def _boxes_of(params: TableParams, label: str, cells: pd.DataFrame) -> pd.Series:
    """Returns the boxes of a label for each row that has any. Other rows are left out."""
    columns = params.boxes[label]
    if isinstance(columns, str):
        return cells[columns].dropna().map(read_box_list)
    frames = cells[list(columns)].dropna().astype(float)
    return pd.Series([[tuple(frame)] for frame in frames.to_numpy().tolist()], frames.index, object)


def _polygons_of(params: TableParams, label: str, cells: pd.DataFrame) -> pd.Series:
    """Returns the polygons of a label for each row that has any. Other rows are left out."""
    return cells[params.polygons[label]].dropna().map(read_polygons)


def _fails(read: Callable[[str], object], cell: str) -> bool:
    try:
        read(cell)
    except ODD_REGION:
        return True
    return False


def drawn_regions(params: TableParams, cells: pd.DataFrame) -> dict[str, list[tuple[str, DrawRegion]]]:
    """Returns, for each sample with boxes or polygons, pairs of an ROI label and the function that draws its mask.

    Args:
        cells: the table, with the sample ids as index.
    """
    drawn: dict[str, list[tuple[str, DrawRegion]]] = {}
    for label in params.boxes:
        for sample, several in _boxes_of(params, label, cells).items():
            drawn.setdefault(str(sample), []).append((label, partial(boxes_mask, several)))
    for label in params.polygons:
        for sample, several in _polygons_of(params, label, cells).items():
            drawn.setdefault(str(sample), []).append((label, partial(polygon_mask, several)))
    return drawn


def notes_of_cells(params: TableParams, cells: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Returns warnings about boxes that may be two corners, about cells that resemble a word of the option `missing`,
    and about categories that are probably quantities."""
    words = {normalise_name(word) for word in params.missing}
    numbers = {strip_padding(word) for word in params.missing if strip_padding(word).lstrip("-").isdigit()}
    notes = []
    for label in params.boxes:
        boxes = np.array([box for several in _boxes_of(params, label, cells) for box in several]).reshape(-1, 4)
        if len(boxes) >= MIN_BOXES and (boxes[:, 2:] > boxes[:, :2]).all():
            what = f"in all {len(boxes)} boxes of {label!r} the last two numbers are larger than the first two"
            notes.append(f"warning: {what}: are they two corners? Left, top, width and height are wanted")
    for name in columns:
        nearly = cells[name].dropna().map(lambda cell: normalise_name(cell) in words or strip_padding(cell) in numbers)
        if nearly.any():
            what = f"{int(nearly.sum())} cells differ from a word under `missing` in case, blanks or padding only"
            notes.append(f"warning: column {name!r}: {what}; list that spelling too if they are missing")
        values = cells[name].dropna().unique()
        options = params.columns.get(name)
        is_category = options is None or (options.kind == "categorical" and options.separator is None)
        if is_category and len(values) > MAX_GRADES and np.isfinite(pd.to_numeric(values, errors="coerce")).all():
            what = f"it has {len(values)} different values, all of them numbers, and each is read as a category"
            notes.append(f"warning: column {name!r}: {what}; if they are quantities, set its kind to numeric")
    return notes
