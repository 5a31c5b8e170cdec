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

from mmpkd.cohort.decode import read_image
from mmpkd.cohort.facts import RawImage, Reader, Scan
from mmpkd.cohort.formats.tables import FIRST_ROW, read_table, refuse_rows
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

REMEDY = "wanted a table or a .jsonl file with columns for image, question and answer; cohort.params names them"
NUMBER = r"\s*-?\d+(?:\.\d+)?\s*"
BOX_LIST = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]")


class VqaParams(Strict):
    file: str
    image: str = "image"  # column of paths under `image_root`
    question: str = "question"
    answer: str = "answer"  # a blank cell is an unanswered question, which only the part train may have
    boxes: str | None = (
        None  # column of boxes, [left, top, right, bottom] on the grid of 0 to 1000, put after the answer
    )
    patient: str | None = None  # None: each image is a patient
    task: str | None = None  # None: told from the form of the question
    modality: str | None = None
    split: str | None = None  # None: patients are dealt into five folds
    image_root: str = "."
    channels: Literal[1, 3] = 1
    credentialed: bool = True


class Vqa(Reader):
    """Reads a user's table of questions, in which each row is a question about one image."""

    Params = VqaParams
    VERSION: ClassVar[int] = 1
    needs_root: ClassVar[bool] = True

    def __init__(self, root: Path | None, params: VqaParams) -> None:
        assert root is not None
        self.root = root
        self.params = params

    @property
    def credentialed(self) -> bool:
        return self.params.credentialed

    def scan(self) -> Scan:
        params, path = self.params, self.root / self.params.file
        refuse_outside("file", params.file, self.allow_outside)
        refuse_outside("image_root", params.image_root, self.allow_outside)
        table = self._read_table(path)
        if params.patient is not None:
            refuse_rows(path, table[params.patient] == "", "a question without a patient")
        if params.split is not None:
            table[params.split] = table[params.split].map(normalise_name)
            refuse_rows(path, ~table[params.split].isin(PARTS), "a part that is not train, val or test")
        exclusions = Exclusions("questions")
        items = []
        for row, cells in enumerate(table.to_dict("records"), self._first_row):
            exclusions.num_seen += 1
            item, problem = self._item({str(name): str(cell) for name, cell in cells.items()}, row)
            if item is None:
                exclusions.counts[problem] += 1
            else:
                items.append(item)
        _refuse_conflicts(items, path)
        items = without_repeats(items, exclusions)
        return scan_of(items, channels=params.channels, tables=[params.file], notes=exclusions.notes(), where=str(path))

    def load(self, sample_id: str) -> RawImage:
        return RawImage(read_image(self.root, self._file(sample_id)))

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
                return None, "boxes that are not of the form [left, top, right, bottom], or a list of these"
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
                task=(cells[params.task] if params.task else "") or likely_task(question, answer),
                modality=(cells[params.modality] if params.modality else "") or "image",
                patient=cells[params.patient] if params.patient else sample,
                split=cells[params.split] if params.split else None,
                row=str(row),
            ),
            "",
        )

    def _read_table(self, path: Path) -> pd.DataFrame:
        """Returns the table as text without surrounding blanks; missing cells are empty."""
        params = self.params
        names = (params.image, params.question, params.answer)
        named = (params.boxes, params.patient, params.task, params.modality, params.split)
        wanted = [*names, *(name for name in named if name is not None)]
        if not path.name.endswith(".jsonl"):
            return read_table(path, wanted, REMEDY, is_public=not params.credentialed)
        return read_jsonl(path, wanted, REMEDY)


def _refuse_conflicts(items: Sequence[Item], path: Path) -> None:
    """Raises CohortError if the questions about an image name different patients or parts."""
    of_image = {item.sample: item for item in items}
    for name, what in (("patient", "patients"), ("split", "parts")):
        torn = {item.sample for item in items if getattr(item, name) != getattr(of_image[item.sample], name)}
        if torn:
            images = f"{len(torn)} image{'s' * (len(torn) > 1)}"
            raise CohortError(f"{path}: the questions about {images} name different {what}; write the same in all rows")


def _boxes_of(cell: str) -> list[Box] | None:
    """Returns the boxes of a cell, `[l, t, r, b]` or a list of such; None if it is of another form."""
    matches = BOX_LIST.findall(cell)
    rest = BOX_LIST.sub("", cell)
    if not matches or re.sub(r"[\s,\[\]]", "", rest):
        return None
    return [Box(*map(float, match.strip("[]").split(","))) for match in matches]
