"""Reads a user's own questions: a table (CSV, Parquet, .xlsx) or a JSONL file with a question in each row.

```yaml
cohort:
  reader: vqa
  root: /data/my-questions              # everything below is relative to it
  params: {file: questions.jsonl, image_root: images, patient: patient_id, split: part}
```

A line of the file: {"image": "a.png", "question": "where is the lesion?", "answer": "<box>(120,80),(300,260)</box>"}
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import pandas as pd
from pydantic import Field, field_validator

from mmpkd.cohort.decode import read_image
from mmpkd.cohort.facts import RawImage, Reader, Scan
from mmpkd.cohort.formats.tables import FIRST_ROW, NUM_SHOWN, read_table, refuse_rows
from mmpkd.cohort.readers.questions.items import (
    Exclusions,
    Item,
    likely_task,
    read_jsonl,
    refuse_outside,
    scan_of,
    text_problem,
    without_repeats,
)
from mmpkd.cohort.spelling import normalise_name
from mmpkd.cohort.splits import PARTS
from mmpkd.types import CohortError, Strict
from mmpkd.vlm.boxes import Box, written
from mmpkd.vlm.scores.answers import words

BOX_FORMS = (
    "a box is [left, top, right, bottom] in the column of boxes, and <box>(left,top),(right,bottom)</box> in a text, "
    "on a grid of 0 to 1000 along each side of the image: 1000 x pixel / side"
)
OTHER_BOX = "boxes that are not of the form [left, top, right, bottom], or a list of these"
FRACTIONS = "boxes in fractions of the image instead of 0 to 1000"
REMEDY = "wanted a table (.csv, .parquet or .xlsx) or a .jsonl file with a question in each row (cohort.params.file)"
MOST_NAMES = 50  # different tasks or modalities; a score is computed for each
NUMBER = r"\s*-?\d+(?:\.\d+)?\s*"
BOX_LIST = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]")
BOX_LIKE = re.compile(rf"[\[(]{NUMBER}(?:,{NUMBER}){{3}}[\])]")


class VqaParams(Strict):
    file: str
    image: str = "image"  # column of paths under `image_root`
    question: str = "question"
    answer: str = "answer"  # a blank cell is an unanswered question, which only the part train may have
    boxes: str | None = (
        None  # column of boxes, [left, top, right, bottom] on the grid of 0 to 1000, put after the answer
    )
    patient: str | None = None  # None: each image is a patient
    task: str | None = None  # None: see `_task_of`
    modality: str | None = None
    split: str | None = None  # None: patients are dealt into five folds
    views: dict[str, str] = Field({})  # for the name of each view (a further image of each image): column of its paths
    image_root: str = "."
    channels: Literal[1, 3] = 1
    credentialed: bool = True

    @field_validator("views")
    @classmethod
    def _plain_names(cls, views: dict[str, str]) -> dict[str, str]:
        for name in views:
            if not name.isidentifier() or name in ("image", "sample"):  # names of files of the store, and of the image
                raise ValueError(f"a view has a name of letters, digits and underscores, and not {name!r}")
        return views


class Vqa(Reader):
    """Reads a user's table of questions, in which each row is a question about one image."""

    Params = VqaParams
    VERSION: ClassVar[int] = 2
    needs_root: ClassVar[bool] = True

    def __init__(self, root: Path | None, params: VqaParams) -> None:
        assert root is not None
        self.root = root
        self.params = params
        self._views: dict[str, tuple[str, ...]] = {}  # of each sample, since the scan: paths of its views

    @property
    def credentialed(self) -> bool:
        return self.params.credentialed

    def scan(self) -> Scan:
        params, path = self.params, self.root / self.params.file
        refuse_outside("file", params.file, self.allow_outside)
        refuse_outside("image_root", params.image_root, self.allow_outside)
        table = self._read_table(path)
        unit = "row" if self._first_row == FIRST_ROW else "line"
        if params.patient is not None:
            what = f"a question without a patient (column {params.patient!r})"
            refuse_rows(path, table[params.patient] == "", what, unit=unit)
        for name, column in params.views.items():
            what = f"a question without the view {name} (column {column!r})"
            refuse_rows(path, table[column] == "", what, unit=unit)
        if params.split is not None:
            table[params.split] = table[params.split].map(normalise_name)
            what = f"a part that is not train, val or test (column {params.split!r})"
            refuse_rows(path, ~table[params.split].isin(PARTS), what, unit=unit)
        exclusions = Exclusions()
        items, num_boxed, num_usable = [], 0, 0
        for row, cells in enumerate(table.to_dict("records"), self._first_row):
            exclusions.num_seen += 1
            is_boxed = params.boxes is not None and bool(cells[params.boxes])
            item, problem = self._item({str(name): str(cell) for name, cell in cells.items()}, row)
            num_boxed += is_boxed
            if item is None:
                exclusions.leave_out(problem, str(row))
            else:
                items.append(item)
                num_usable += is_boxed
        if num_boxed and not num_usable:
            problem = f"{path}: not one of {num_boxed} cells of the column of boxes can be used; {BOX_FORMS}"
            raise CohortError("\n  ".join([problem, *exclusions.notes()]))
        self._refuse_conflicts(items, path)
        _refuse_free_text(items, path)
        items = without_repeats(items, exclusions)
        notes = exclusions.notes()
        if any("box" in reason for reason in exclusions.counts):
            notes.append(f"warning: mend these boxes, or delete their rows: {BOX_FORMS}")
        if num_like := sum(BOX_LIKE.search(f"{item.question} {item.answer or ''}") is not None for item in items):
            problem = f"{num_like} of {len(items)} questions hold four numbers in brackets, which are read as words"
            notes.append(f"warning: {problem}; {BOX_FORMS}")
        self._views = {item.sample: item.views for item in items}
        return scan_of(
            items,
            channels=params.channels,
            tables=[params.file],
            notes=notes,
            share_left_out=exclusions.share,
            where=str(path),
            views=tuple(params.views),
        )

    def column_of(self, sample_id: str, file: str) -> str | None:
        views = zip(self.params.views.values(), self._views.get(sample_id, ()), strict=False)
        return next((column for column, view in views if view == file != self._file(sample_id)), None)

    def load(self, sample_id: str) -> RawImage:
        if self.params.views and not self._views:
            self.scan()
        files = zip(self.params.views, self._views[sample_id], strict=True) if self.params.views else ()
        views = {name: read_image(self.root, file) for name, file in files}
        return RawImage(read_image(self.root, self._file(sample_id)), views)

    def _file(self, sample: str) -> str:
        return (Path(self.params.image_root) / sample).as_posix()

    @property
    def _first_row(self) -> int:
        return 1 if self.params.file.endswith(".jsonl") else FIRST_ROW

    def _item(self, cells: dict[str, str], row: int) -> tuple[Item | None, str]:
        """Returns the question of a row; or None, and why it cannot be used."""
        params = self.params
        image, question, answer = cells[params.image], cells[params.question], cells[params.answer]
        if not image:
            return None, "without an image"
        if params.boxes is not None and cells[params.boxes]:
            listed = _boxes_of(cells[params.boxes])
            if listed is None:
                return None, OTHER_BOX
            if all(max(box) <= 1 for box in listed):
                return None, FRACTIONS
            answer = f"{answer} {''.join(map(written, listed))}".strip()
        if problem := text_problem(question, answer):
            return None, problem
        sample = posixpath.normpath(image)
        return (
            Item(
                sample=sample,
                file=self._file(sample),
                question=question,
                answer=answer or None,
                task=(cells[params.task] if params.task else "") or _task_of(question, answer),
                modality=(cells[params.modality] if params.modality else "") or "image",
                patient=cells[params.patient] if params.patient else sample,
                split=cells[params.split] if params.split else None,
                row=str(row),
                views=tuple(posixpath.normpath(cells[column]) for column in params.views.values()),
            ),
            "",
        )

    def _read_table(self, path: Path) -> pd.DataFrame:
        """Returns the table as text without surrounding blanks; missing cells are empty."""
        params = self.params
        names = ("image", "question", "answer", "boxes", "patient", "task", "modality", "split")
        named = [(name, column) for name in names if (column := getattr(params, name)) is not None]
        named += [(f"views.{name}", column) for name, column in params.views.items()]
        options = [(f"cohort.params.{name}", column) for name, column in named]
        if path.name.endswith(".jsonl"):
            return read_jsonl(path, options, REMEDY, not params.credentialed)
        wanted = [column for _, column in options]
        return read_table(path, wanted, REMEDY, not params.credentialed, options=options)

    def _refuse_conflicts(self, items: Sequence[Item], path: Path) -> None:
        """Raises CohortError if the questions about an image name different patients, parts or views. The message names
        the first row of such an image, and the first that differs from it."""
        params, firsts = self.params, {item.sample: item for item in reversed(items)}
        named = [("patients", params.patient, [item.patient for item in items])]
        named += [("parts", params.split, [item.split or "" for item in items])]
        named += [
            ("views", column, [item.views[position] for item in items])
            for position, column in enumerate(params.views.values())
        ]
        for what, column, cells in named:
            of_image = {item.sample: cell for item, cell in zip(reversed(items), reversed(cells), strict=True)}
            torn: dict[str, str] = {}
            for item, cell in zip(items, cells, strict=True):
                if cell != of_image[item.sample]:
                    torn.setdefault(item.sample, f"{firsts[item.sample].row} and {item.row}")
            if torn:
                problem = f"the questions about {len(torn)} image{'s' * (len(torn) > 1)} name different {what}"
                rows = ", ".join([*list(torn.values())[:NUM_SHOWN], *(["..."] if len(torn) > NUM_SHOWN else [])])
                where = f"(column {column!r}), in rows {rows}"
                raise CohortError(f"{path}: {problem} {where}; write the same in all rows")


def _task_of(question: str, answer: str) -> str:
    """Returns the task of a question by its form. Unlike in Med-GRIT-270k, an answer with words beside its boxes is no
    pure grounding (VG), whose words would not be scored.
    """
    task = likely_task(question, answer)
    return "MII" if task == "VG" and words(answer) else task


def _refuse_free_text(items: Sequence[Item], path: Path) -> None:
    """Raises CohortError if tasks or modalities are so many that their column may hold texts about patients. They are
    names of scores, which are printed, and sent to MLflow."""
    for key, what in (("task", "tasks"), ("modality", "modalities")):
        if (count := len({getattr(item, key) for item in items})) > MOST_NAMES:
            problem = (
                f"the column of {what} (cohort.params.{key}) holds {count} different names, of which scores are named"
            )
            raise CohortError(f"{path}: {problem}; write at most {MOST_NAMES}, and none that tells of a patient")


def _boxes_of(cell: str) -> list[Box] | None:
    """Returns the boxes of a cell, `[l, t, r, b]` or a list of such; None if it is of another form."""
    matches = BOX_LIST.findall(cell)
    rest = BOX_LIST.sub("", cell)
    if not matches or re.sub(r"[\s,\[\]]", "", rest):
        return None
    return [Box(*map(float, match.strip("[]").split(","))) for match in matches]
