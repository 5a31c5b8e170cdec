"""Shows what a prepared cohort holds: tables on the console, and a contact sheet of images."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from mmpkd.cohort import leakage
from mmpkd.cohort.decode import depth_of
from mmpkd.cohort.facts import label_columns
from mmpkd.cohort.store import Store
from mmpkd.types import CohortError, Task
from mmpkd.vlm import boxes

SHEET = "contact_sheet.png"
COLUMNS, ROWS = 6, 4  # columns and rows of pictures on the contact sheet; each further image takes a column of its own
MAX_NAME_LENGTH = 30  # number of characters of a sample's name that are shown, the last ones, because they differ most
COLOURS = matplotlib.color_sequences["tab10"]


def show(store: Store, console: Console) -> Path:
    """Prints counts, label balance, missing cells, roles and the probe's scores, and draws the contact sheet.

    For privileged columns it prints counts and never a value. The contact sheet is saved in the store's folder, because
    images of credentialed cohorts must not leave that folder. It shows no image of the sealed test part.

    Returns:
        The path of the contact sheet.
    """
    manifest, facts = store.manifest, store.facts
    counts, (bits, window, clahe) = manifest["counts"], depth_of(manifest)
    depth = f"{bits} bits" + (f", {window[0]:g} to {window[1]:g} made 0 to 255" if window else "")
    if manifest.get("is_stretched"):  # older stores lack this key
        depth = "volumes, each slice spread over 8 bits from its volume's own range"
    depth += f", CLAHE of {clahe.tiles} x {clahe.tiles} tiles clipped at {clahe.clip_limit:g}" if clahe else ""
    size = f"{facts.channels} x {facts.image_size} x {facts.image_size}"
    console.print(
        f"{manifest['reader']}: {counts['samples']} samples of {counts['patients']} patients, {size} from {depth}\n"
        f"store: {store.path}",
        highlight=False,
        markup=False,
    )
    for note in manifest["notes"]:
        console.print(f"- {note}", highlight=False, markup=False)
    if manifest["left_out"]:
        reasons = pd.Series([reason for _, reason in manifest["left_out"].values()]).value_counts()
        for reason, count in reasons.items():
            console.print(f"- left out: {count} ({reason})", highlight=False, markup=False)
    for task in facts.tasks:
        console.print(_label_table(store, task))
    if facts.questions is not None:
        console.print(_question_table(store))
    if facts.roi_labels:
        console.print(_region_table(store))
    if facts.columns:
        console.print(_column_table(store))
    if facts.views:
        console.print(f"further images of each sample: {', '.join(facts.views)}", highlight=False, markup=False)
    if facts.sections:
        text = store.text(list(facts.sections))
        shares = ", ".join(
            f"{name} (missing {text[name].isna().mean():.0%}{', near-label' if section.near_label else ''})"
            for name, section in facts.sections.items()
        )
        console.print(f"sections of reports: {shares}", highlight=False, markup=False)
    if facts.unlisted:
        console.print(f"columns without a role, not stored: {', '.join(facts.unlisted)}", markup=False)
    path = store.path / SHEET
    _contact_sheet(store).savefig(path)
    console.print(f"contact sheet: {path}", highlight=False, markup=False)
    return path


def _rows_by_part(store: Store) -> dict[str, NDArray[np.int64]]:
    names = [f"fold {fold}" for fold in range(store.num_folds)] if store.num_folds > 1 else ["train", "val"]
    rows = [store.rows("val", fold) for fold in range(store.num_folds)]
    if store.num_folds == 1:
        rows = [store.rows("train"), store.rows("val")]
    parts = {**dict(zip(names, rows, strict=True)), "test (sealed)": store.rows("test")}
    return {name: rows_of_part for name, rows_of_part in parts.items() if len(rows_of_part)}


def _label_table(store: Store, task: Task) -> Table:
    """Returns a table of the number of samples by part and label.

    For a multi-label task, the table also states for each label how many samples have a known value of it, because only
    some of a sample's labels may be known.
    """
    labels = task.labels if task.kind == "binary" else task.logit_names
    is_multilabel = task.kind == "multilabel"
    unknown = "all unknown" if is_multilabel else "unknown"
    table = Table("part", "samples", "patients", unknown, *labels, title=f"task {task.name} ({task.kind})")
    columns = task.columns
    for name, rows in _rows_by_part(store).items():
        target, known = store.target_NK[rows, columns], store.known_NK[rows, columns]
        positive = target.sum(axis=0).astype(int)
        if is_multilabel:
            pairs = zip(positive, known.sum(axis=0), strict=True)
            cells = [f"{num_positive} positive of {num_known} known" for num_positive, num_known in pairs]
        else:
            counts = [int(known[:, 0].sum()) - positive[0], positive[0]] if task.kind == "binary" else positive
            cells = [str(count) for count in counts]
        patients = len(np.unique(store.patient_N[rows]))
        table.add_row(name, str(len(rows)), str(patients), str(int((~known).all(axis=1).sum())), *cells)
    return table


def _question_table(store: Store) -> Table:
    """Returns a table of the number of questions by modality and task, and of those without an answer.

    The task is often seen in the answer only, so that questions without an answer are counted for no task.
    """
    known, items = store.facts.questions, store.questions
    assert known is not None
    answered = set(items.loc[items["answer"].notna(), "task"])
    tasks = [task for task in known.tasks if task in answered]
    parts = ", ".join(f"{name} {int(items['row'].isin(rows).sum())}" for name, rows in _rows_by_part(store).items())
    title = f"questions ({parts})"
    table = Table("modality", "images", *tasks, "without an answer", "all", title=title)
    for name in (*known.modalities, None):
        chosen = items if name is None else items[items["modality"] == name]
        is_answered = chosen["answer"].notna()
        counts = [int((is_answered & (chosen["task"] == task)).sum()) for task in tasks]
        cells = [chosen["row"].nunique(), *counts, int((~is_answered).sum()), len(chosen)]
        table.add_row("all" if name is None else name, *map(str, cells))
    return table


def _region_table(store: Store) -> Table:
    table = Table("part", *store.facts.roi_labels, title="samples with a region; mean share of the square it covers")
    for name, rows in _rows_by_part(store).items():
        # One sample at a time, because the masks of a large cohort do not fit in memory.
        share_RN = np.array([store.roi_mask(rows[at : at + 1])[0].mean(axis=(1, 2)) for at in range(len(rows))]).T
        cells = (f"{(share > 0).sum()}; {share[share > 0].mean():.1%}" if share.any() else "0" for share in share_RN)
        table.add_row(name, *cells)
    return table


def _column_table(store: Store) -> Table:
    probed, names = store.manifest["probe"], label_columns(store.facts.tasks)
    meaning = f"out-of-fold AUROC of this column by itself, for the label that it predicts best; ! from {leakage.ALARM}"
    table = Table(title="privileged columns", caption=f"alone: {meaning}")
    table.add_column("column", overflow="fold")
    for heading in ("role", "kind", "missing", "values", "alone"):
        table.add_column(heading)
    for name, column in store.facts.columns.items():
        if name not in probed:
            table.add_row(name, column.role, "", "", "", "not stored")
            continue
        cells = store.privileged([name])[name]
        values = cells.dropna().str.split(column.separator).explode() if column.separator else cells.dropna()
        scores = {label: probed[name][label] for label in names if label in probed[name]}
        best = max(scores, key=lambda label: scores[label], default="")
        alone = f"{scores[best]:.2f}{' !' if scores[best] >= leakage.ALARM else ''}" if best else "too few patients"
        alone += f" {best}" if best and len(names) > 1 else ""
        table.add_row(name, column.role, column.kind, f"{cells.isna().mean():.0%}", str(values.nunique()), alone)
    return table


def _contact_sheet(store: Store) -> Figure:
    """Draws evenly spaced images of the training and validation parts with the outlines of their regions,
    and the boxes of answers about them.

    The further images of a sample are drawn to the right of its image, unless their files were deleted from the store.
    """
    images = {"": store.image_NCHW}
    for name in store.facts.views:
        with suppress(CohortError):  # the user may have deleted the file of the view
            images[name] = store.view(name)
    columns = max(1, COLUMNS // len(images))  # number of samples side by side
    unsealed = np.setdiff1d(np.arange(len(store.sample_ids)), store.rows("test"))
    rows = unsealed[np.linspace(0, len(unsealed) - 1, min(columns * ROWS, len(unsealed))).astype(int)]
    figure = Figure(figsize=(2 * columns * len(images), 2.4 * ROWS), layout="constrained")
    axes = figure.subplots(ROWS, columns * len(images), squeeze=False).ravel()
    masks = store.roi_mask(rows)
    for axis in axes:
        axis.axis("off")
    for position, (row, mask_RHW) in enumerate(zip(rows, masks, strict=True)):
        for axis, (name, pixels_NCHW) in zip(axes[position * len(images) :], images.items(), strict=False):
            pixels = pixels_NCHW[row]
            axis.imshow(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
            title = name or _title(store, int(row))
            axis.set_title(title, fontsize=7, parse_math=False)
            if not name:  # regions are drawn on the image itself
                _draw_outlines(axis, mask_RHW)
                _draw_boxes(axis, store, int(row))
    if store.facts.roi_labels:
        colours = zip(store.facts.roi_labels, COLOURS * len(store.facts.roi_labels), strict=False)
        lines = [Line2D([], [], color=colour, label=label) for label, colour in colours]
        figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
    return figure


def _draw_outlines(axis: Axes, mask_RHW: NDArray[np.bool_]) -> None:
    for index, mask_HW in enumerate(mask_RHW):
        if mask_HW.any():
            axis.contour(mask_HW, [0.5], colors=[COLOURS[index % len(COLOURS)]], linewidths=1)


def _draw_boxes(axis: Axes, store: Store, row: int) -> None:
    """Draws the boxes of the answers about an image, so that boxes in another unit or order are seen."""
    if store.facts.questions is None:
        return
    content = store.letterbox(row).content
    height, width = content.bottom - content.top, content.right - content.left
    answers = store.questions.loc[store.questions["row"] == row, "answer"].dropna()
    for box in {box for answer in answers if boxes.TAGGED.search(answer) for box in boxes.parse(answer)}:
        corner = (content.left + box.left * width / boxes.GRID - 0.5, content.top + box.top * height / boxes.GRID - 0.5)
        size = ((box.right - box.left) * width / boxes.GRID, (box.bottom - box.top) * height / boxes.GRID)
        axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor=COLOURS[0], linewidth=1))


def _title(store: Store, row: int) -> str:
    """Returns the caption of a sample, with the sample's name above it if the data are public.

    Names of samples in other cohorts are not shown, because they may carry patient identities.
    """
    caption = _caption(store, row)
    if store.facts.credentialed:
        return caption
    name = str(store.sample_ids[row])
    return f"{name if len(name) <= MAX_NAME_LENGTH else f'...{name[-MAX_NAME_LENGTH:]}'}\n{caption}"


def _caption(store: Store, row: int) -> str:
    """Returns the sample's labels in words."""
    words = []
    for task in store.facts.tasks:
        target, known = store.target_NK[row, task.columns], store.known_NK[row, task.columns]
        if not known.any():
            words.append("?")
        elif task.kind == "binary":
            words.append(task.labels[int(target[0])])
        else:
            positive = [name for name, value in zip(task.logit_names, target, strict=True) if value]
            unknown = [f"{name} ?" for name, is_known in zip(task.logit_names, known, strict=True) if not is_known]
            words += [*positive, *unknown] or ["negative"]
    return ", ".join(words[:3]) + (" ..." if len(words) > 3 else "")
