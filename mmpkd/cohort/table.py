"""Any CSV, Parquet or .xlsx table with a column map: how to bring your own data. Images: see docs/formats.md.

```yaml
cohort:
  reader: table
  root: /data/my-study                    # everything below is relative to it
  params:
    file: cases.csv
    image: image_file                     # column: path of each image, under image_root
    image_root: images
    patient: patient_id                   # column; splits go by patient
    split: part                           # optional column: train, val, test
    tasks:
      malignant: {kind: binary, column: pathology, labels: [benign, malignant]}     # the second is positive
      findings: {kind: multilabel, labels: [edema, effusion]}                       # columns of 0, 1 or missing
    masks: {lesion: mask_file}            # ROI label: column of mask paths, empty where there is none
    mask_value: {lesion: 2}               # which value is the region, where masks hold several; [1, 2]: both; 0: black
    boxes: {node: [x, y, w, h]}           # ROI label: columns of left, top, width and height, pixels of the image
    polygons: {duct: outline}             # ROI label: column of corners, "[[x, y], ...]"
    views: {mri: mri_file}                # further images of each sample: a better scan that a teacher may see
    text: {findings: report}              # section of a report: column of its text
    columns:                              # privileged columns; a column without a role is not stored
      shape: {role: descriptor}
      signs: {role: descriptor, separator: "|"}
      age: {role: context, kind: numeric}
      slide_*: {role: descriptor, kind: numeric}    # every such column that nothing else asks for
      birads: {role: near_label}
      biopsy: {role: forbidden}
    missing: ["n/a"]                      # besides blank cells
```
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from mmpkd.cohort.decode import read_image
from mmpkd.cohort.facts import ADMITTED, Column, RawImage, Reader, Scan, encode, label_columns, same_name
from mmpkd.cohort.masks import read_mask
from mmpkd.cohort.regions import box_mask, polygon_mask, read_polygons
from mmpkd.cohort.table_params import TableParams
from mmpkd.cohort.tables import FIRST_ROW, read_table, tell_rows
from mmpkd.config import near
from mmpkd.types import CohortError, ConfigError, Mistake, Task, lay_out

PARAMS = "cohort.params"
MEND = "wanted a table under cohort.root: CSV (commas, UTF-8), Parquet or .xlsx"
Drawn = Callable[[tuple[int, ...], str], np.ndarray]  # a mask of this shape; the file is for a message


class Table(Reader):
    """One row a sample, one image a row."""

    Params = TableParams
    VERSION: ClassVar[int] = 5
    needs_root: ClassVar[bool] = True

    def __init__(self, root: Path | None, params: TableParams) -> None:
        assert root is not None
        self.root = root
        self.params = params
        self._rows: dict[str, dict[str, str]] = {}  # from the last scan, by sample: paths by column
        self._drawn: dict[str, list[tuple[str, Drawn]]] = {}  # and regions that are numbers, by label

    @property
    def credentialed(self) -> bool:
        return self.params.credentialed

    def scan(self) -> Scan:
        table = self._read()
        self.params = params = self.params.over(list(table.columns))  # a pattern is what this table makes of it
        columns = self._columns()
        self._check_header(table, columns)
        tasks = lay_out([(name, task.kind, task.names) for name, task in params.tasks.items()])
        cells = table.mask(table.isin(["", *params.missing]))
        mistakes = self._check_cells(cells, tasks)
        numeric = {name: pd.to_numeric(cells[name], errors="coerce").astype(float) for name in self._numeric()}
        for name, numbers in numeric.items():
            wrong = ~np.isfinite(numbers) & cells[name].notna()
            mistakes += self._told(f"columns.{name}", "not a finite number", cells[name], wrong)
        if mistakes:
            raise ConfigError(mistakes)
        cells = cells.set_index(cells[params.image].rename("sample"))
        samples = pd.DataFrame({"patient": cells[params.patient], "row": range(FIRST_ROW, len(cells) + FIRST_ROW)})
        if params.split is not None:
            samples["split"] = cells[params.split]
        admitted = [one.name for one in columns.values() if one.role in (*ADMITTED, "near_label")]
        privileged = cells[admitted].assign(**{name: one.to_numpy() for name, one in numeric.items()})
        for name in admitted:
            if (separator := columns[name].separator) is not None:
                privileged[name] = _tidy(cells[name], separator)
        self._drawn = self._regions(cells)
        self._rows = {str(sample): {} for sample in cells.index}
        for column, folder in params.paths.items():
            for sample, cell in cells[column].dropna().items():
                self._rows[str(sample)][column] = (Path(folder) / cell).as_posix()
        return Scan(
            tasks=tasks,
            samples=samples,
            labels=pd.concat([self._labels(task, cells) for task in tasks], axis=1),
            privileged=privileged,
            columns=columns,
            unlisted=tuple(name for name in table.columns if name not in columns and name not in params.text.values()),
            channels=params.channels,
            roi_labels=tuple(dict.fromkeys((*params.masks, *params.boxes, *params.polygons))),
            views=tuple(params.views),
            text=pd.DataFrame({name: cells[column] for name, column in params.text.items()}) if params.text else None,
            files={sample: list(files.values()) for sample, files in self._rows.items()},
            tables=[params.file],
        )

    def load(self, sample_id: str) -> RawImage:
        if not self._rows:
            self.scan()
        files = self._rows[sample_id]
        params, file = self.params, files[self.params.image]
        image = read_image(self.root, file)
        masks = [(label, files[column]) for label, column in params.masks.items() if column in files]
        rois = [(label, read_mask(self.root, mask, image.shape, params.mask_values(label))) for label, mask in masks]
        rois += [(label, drawn(image.shape, file)) for label, drawn in self._drawn.get(sample_id, ())]
        views = {name: read_image(self.root, files[column]) for name, column in params.views.items()}
        return RawImage(image, views, rois)

    def _read(self) -> pd.DataFrame:
        """All cells as stripped text; empty where missing."""
        where, file = f"{PARAMS}.file", self.params.file
        if Path(file).is_absolute():
            raise ConfigError.one(where, f"must be relative to cohort.root, got {file}")
        try:
            return read_table(self.root / file, (), MEND, is_public=not self.credentialed)
        except CohortError as error:
            raise ConfigError.one(where, str(error)) from None

    def _columns(self) -> dict[str, Column]:
        """Every column with a role: those given one, and those that are labels or name things."""
        params = self.params
        named = [column for where, column in params.read if not where.startswith(("tasks", "columns", "text"))]
        labels = [name for task in params.tasks.values() for name in ([task.column] if task.column else task.names)]
        columns = {name: one.named(name) for name, one in params.columns.items()}
        columns |= {name: Column(name, "id") for name in named}
        return columns | {name: Column(name, "forbidden") for name in labels}

    def _numeric(self) -> list[str]:
        admitted = (*ADMITTED, "near_label")
        return [name for name, one in self.params.columns.items() if one.kind == "numeric" and one.role in admitted]

    def _check_header(self, table: pd.DataFrame, columns: dict[str, Column]) -> None:
        params = self.params
        headers = list(table.columns)
        # Where not one name is found there may be no header: what stands in its place are cells, and stays untold.
        told = headers if {name for _, name in params.read} & set(headers) or not self.credentialed else []
        mistakes = [
            Mistake(f"{PARAMS}.{where}", f"{params.file} has no column {name!r}{near(name, told)}")
            for where, name in params.read
            if name not in headers
        ]
        mistakes += [
            Mistake(
                f"{PARAMS}.columns.{name}", f"a task, path or patient is read from it: its role is {columns[name].role}"
            )
            for name, one in params.columns.items()
            if one.role != columns[name].role
        ]
        mistakes += [
            Mistake(f"{PARAMS}.text.{section}", f"column {name!r} has role {columns[name].role}; it is no report")
            for section, name in params.text.items()
            if name in columns and columns[name].role in ("forbidden", "id", "near_label")
        ]
        if not params.tasks:
            mistakes.append(Mistake(f"{PARAMS}.tasks", "at least one task is needed"))
        same = {same_name(name): name for name in told}
        mistakes += [
            Mistake(f"{PARAMS}.file", f"columns {name!r} and {same[same_name(name)]!r} differ in case or spaces only")
            for name in told
            if same[same_name(name)] != name
        ]
        if mistakes:
            raise ConfigError(mistakes)

    def _check_cells(self, cells: pd.DataFrame, tasks: Sequence[Task]) -> list[Mistake]:
        params = self.params
        mistakes = self._told("image", "missing", cells[params.image], cells[params.image].isna())
        twice = cells[params.image].dropna().map(posixpath.normpath).duplicated()  # ./a.png is a.png
        mistakes += self._told("image", "listed before (one row, one image)", cells[params.image], twice)
        mistakes += self._told("patient", "missing", cells[params.patient], cells[params.patient].isna())
        for name, column in params.views.items():
            mistakes += self._told(f"views.{name}", "missing", cells[column], cells[column].isna())
        for where, column in params.read:
            if column in params.paths:
                absolute = cells[column].str.startswith("/").fillna(False)
                mistakes += self._told(where, "absolute; paths are relative to cohort.root", cells[column], absolute)
        mistakes += self._check_regions(cells)
        if params.split is not None:
            parts = cells[params.split]
            mistakes += self._told("split", "not train, val or test", parts, ~parts.isin(("train", "val", "test")))
        for task in tasks:
            source = params.tasks[task.name].column
            allowed = task.labels if source else ("0", "1", "0.0", "1.0")  # pandas writes gaps beside numbers as 1.0
            for name in [source] if source else task.labels:
                wrong = cells[name].notna() & ~cells[name].isin(allowed)
                words = ", ".join(allowed[: len(task.labels) if source else 2])
                wanted = f"neither one of {words} nor listed under `missing`, in column {name!r}"
                mistakes += self._told(f"tasks.{task.name}", wanted, cells[name], wrong)
        return mistakes

    def _check_regions(self, cells: pd.DataFrame) -> list[Mistake]:
        mistakes = []
        for label, names in self.params.boxes.items():
            numbers = cells[list(names)].apply(pd.to_numeric, errors="coerce").astype(float)
            wrong = ~np.isfinite(numbers).all(axis=1) | (numbers[[names[2], names[3]]] <= 0).any(axis=1)
            wrong &= cells[list(names)].notna().any(axis=1)
            wanted = "no box: four numbers are wanted, of which width and height above 0, or four blanks"
            mistakes += self._told(f"boxes.{label}", wanted, cells[names[0]], wrong)
        for label, name in self.params.polygons.items():
            wrong = cells[name].dropna().map(_is_no_polygon).astype(bool)
            mistakes += self._told(f"polygons.{label}", "no polygon; [[x, y], ...] is wanted", cells[name], wrong)
        return mistakes

    def _regions(self, cells: pd.DataFrame) -> dict[str, list[tuple[str, Drawn]]]:
        """Boxes and polygons by sample, ready to be drawn into a mask of the image's shape."""
        found: dict[str, list[tuple[str, Drawn]]] = {}
        for label, names in self.params.boxes.items():
            for sample, *box in cells[list(names)].dropna().astype(float).itertuples():
                found.setdefault(str(sample), []).append((label, partial(box_mask, tuple(box))))
        for label, name in self.params.polygons.items():
            for sample, cell in cells[name].dropna().items():
                found.setdefault(str(sample), []).append((label, partial(polygon_mask, read_polygons(cell))))
        return found

    def _told(self, where: str, problem: str, column: pd.Series, wrong: Any) -> list[Mistake]:
        """One mistake for all wrong cells of a column: their rows, and for public data their values."""
        wrong = wrong.reindex(column.index, fill_value=False).to_numpy(bool)
        if not wrong.any():
            return []
        cells = "1 cell is" if wrong.sum() == 1 else f"{wrong.sum()} cells are"
        told = tell_rows(wrong, None if self.credentialed else column)
        return [Mistake(f"{PARAMS}.{where}", f"{cells} {problem}: {self.params.file} {told}")]

    def _labels(self, task: Task, cells: pd.DataFrame) -> pd.DataFrame:
        source = self.params.tasks[task.name].column
        if source is not None:
            return encode(task, cells[source])
        return cells[list(task.labels)].astype(float).set_axis(label_columns([task]), axis=1)


def _tidy(cells: pd.Series, separator: str) -> pd.Series:
    """Multivalued cells without blanks around their values: 'a | b|' is 'a|b', and '|' is missing."""
    joined = cells.dropna().map(lambda cell: separator.join(filter(None, map(str.strip, cell.split(separator)))))
    return joined[joined != ""].reindex(cells.index)


def _is_no_polygon(cell: str) -> bool:
    try:
        read_polygons(cell)
    except (ValueError, TypeError, IndexError, RecursionError, OverflowError):
        return True
    return False
