"""Reads a user's own data: a CSV, Parquet or .xlsx table, and options that say what each column holds.

docs/formats.md lists the image formats. An example of the options:

```yaml
cohort:
  reader: table
  root: /data/my-study                    # everything below is relative to it
  params:
    file: cases.csv
    image: image_file                     # column: path of each image, under image_root
    image_root: images
    patient: patient_id                   # column; splits go by patient
    split: part                           # optional column: train, val, test; or folds by name
    # groups: site                        # optional column: a fold for each of its values (leave one site out)
    # test_fold: C                        # the fold that is sealed; by default the one called test, or the last by name
    tasks:
      malignant: {kind: binary, column: pathology, labels: [benign, malignant]}     # the second label is positive
      findings: {kind: multilabel, labels: [edema, effusion]}                       # columns of 0, 1 or missing
    masks: {lesion: mask_file}            # ROI label: column of mask paths; empty cells have no mask
    mask_value: {lesion: 2}               # value of the region if masks hold several; [1, 2]: both; 0: black
    boxes: {node: [x, y, w, h]}           # ROI label: columns of left, top, width and height, pixels of the image;
                                          # or one column of "[x, y, w, h]" or "[[x, y, w, h], ...]"
    polygons: {duct: outline}             # ROI label: column of polygons "[[x, y], ...]", or of lists of polygons
    slices: [0.5]                         # slices of NIfTI volumes, as shares of the height; three if channels is 3
    views: {mri: mri_file}                # name of a further image (a better scan for a teacher): column of its paths
    text: {findings: report}              # section of the reports: column of its text
    columns:                              # privileged columns; a column without a role is not stored
      shape: {role: descriptor}
      signs: {role: descriptor, separator: "|"}
      age: {role: context, kind: numeric}
      slide_*: {role: descriptor, kind: numeric}    # every matching column that no other option names
      birads: {role: near_label}
      biopsy: {role: forbidden}
    missing: ["n/a"]                      # cells that count as missing, in addition to blank cells
```
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from mmpkd.cohort.decode import read_image
from mmpkd.cohort.facts import ADMITTED, BadSample, Column, RawImage, Reader, Scan, comparable_name
from mmpkd.cohort.formats.dicom import is_dicom, unit_of
from mmpkd.cohort.formats.masks import read_mask
from mmpkd.cohort.formats.nifti import SlicePosition, is_nifti, read_slice_mask, read_slices
from mmpkd.cohort.formats.other_formats import recognise_format
from mmpkd.cohort.formats.tables import FIRST_ROW, NUM_SHOWN, missing_columns, read_table
from mmpkd.cohort.readers.table.cells import (
    ABSOLUTE,
    OUTSIDE,
    DrawRegion,
    check_cells,
    drawn_regions,
    labels_of,
    notes_of_cells,
)
from mmpkd.cohort.readers.table.folds import read_split
from mmpkd.cohort.readers.table.params import TableParams
from mmpkd.config import IMAGE
from mmpkd.types import CohortError, ConfigError, Mistake, lay_out

PARAMS = "cohort.params"
REMEDY = "wanted a table under cohort.root: CSV (commas, UTF-8), Parquet or .xlsx"


class Table(Reader):
    """Reads a user's table, in which each row is a sample with one image."""

    Params = TableParams
    VERSION: ClassVar[int] = 4
    needs_root: ClassVar[bool] = True

    def __init__(self, root: Path | None, params: TableParams) -> None:
        assert root is not None
        self.root = root
        self.params = params
        self._rows: dict[str, dict[str, str]] = {}  # paths by sample and column, as the last scan read them
        self._drawn: dict[str, list[tuple[str, DrawRegion]]] = {}  # (ROI label, drawing function) by sample

    @property
    def credentialed(self) -> bool:
        return self.params.credentialed

    def scan(self) -> Scan:
        table = self._read_table()
        self.params = params = self.params.expand_patterns(
            list(table.columns)
        )  # the meaning of a pattern depends on the columns of the table
        columns = self._columns()
        self._check_header(table, columns)
        tasks = lay_out([(name, task.kind, task.names) for name, task in params.tasks.items()])
        cells = table.mask(table.isin(["", *params.missing]))
        mistakes = check_cells(params, cells, tasks, self.allow_outside)
        given = read_split(cells, params)
        if mistakes or given.mistakes:
            raise ConfigError([*mistakes, *given.mistakes])
        admitted = [column.name for column in columns.values() if column.role in (*ADMITTED, "near_label")]
        notes = [*given.notes, *notes_of_cells(params, cells, admitted)]
        cells = cells.set_index(cells[params.image].rename("sample"))
        samples = pd.DataFrame({"patient": cells[params.patient], "row": range(FIRST_ROW, len(cells) + FIRST_ROW)})
        if given.split is not None:
            samples["split"] = given.split.to_numpy()
        privileged = cells[admitted]
        for name in admitted:
            if (separator := columns[name].separator) is not None:
                privileged[name] = _trim_values(cells[name], separator)
            elif columns[name].kind == "numeric":
                privileged[name] = pd.to_numeric(cells[name]).astype(float)
        self._drawn = drawn_regions(params, cells)
        self._rows = {str(sample): {} for sample in cells.index}
        for column, folder in params.paths.items():
            for sample, cell in cells[column].dropna().items():
                self._rows[str(sample)][column] = (Path(folder) / cell).as_posix()
        notes += self._duplicate_file_notes()
        return Scan(
            tasks=tasks,
            samples=samples,
            labels=pd.concat([labels_of(task, params, cells) for task in tasks], axis=1),
            privileged=privileged,
            columns=columns,
            unlisted=tuple(name for name in table.columns if name not in columns and name not in params.text.values()),
            channels=params.channels,
            roi_labels=tuple(dict.fromkeys((*params.masks, *params.boxes, *params.polygons))),
            views=tuple(params.views),
            text=pd.DataFrame({name: cells[column] for name, column in params.text.items()}) if params.text else None,
            files={sample: list(files.values()) for sample, files in self._rows.items()},
            tables=[params.file],
            notes=tuple(notes),
        )

    def column_of(self, sample_id: str, file: str) -> str | None:
        columns = [column for column, path in self._rows.get(sample_id, {}).items() if path == file]
        return None if not columns or self.params.image in columns else columns[0]

    def load(self, sample_id: str) -> RawImage:
        if not self._rows:
            self.scan()
        files = self._rows[sample_id]
        params, file = self.params, files[self.params.image]
        image, place = self._read_pixels(file)
        masks = [(label, files[column]) for label, column in params.masks.items() if column in files]
        rois = [(label, self._read_mask(mask, image.shape, place, params.mask_values(label))) for label, mask in masks]
        rois += [(label, draw(image.shape, file)) for label, draw in self._drawn.get(sample_id, ())]
        views = {name: self._read_pixels(files[column])[0] for name, column in params.views.items()}
        named = {IMAGE: file} | {name: files[column] for name, column in params.views.items()}
        units = {name: unit_of(self.root, path) for name, path in named.items() if is_dicom(self.root, path)}
        return RawImage(image, views, rois, is_stretched=is_nifti(file), units=units)

    def _duplicate_file_notes(self) -> list[str]:
        """Returns a warning if two rows have the same image file under different paths.

        Links cause this, and so do paths that differ in case on a disk that ignores case.
        """
        first: dict[tuple[int, int], int] = {}
        rows = []
        for row, files in enumerate(self._rows.values(), FIRST_ROW):
            with suppress(OSError, ValueError):  # `missing_files` reports a file that does not exist
                status = (self.root / files[self.params.image]).stat()
                if first.setdefault((status.st_dev, status.st_ino), row) != row:
                    rows.append(str(row))
        if not rows:
            return []
        shown = ", ".join(rows[:NUM_SHOWN]) + (f" and {len(rows) - NUM_SHOWN} more" if len(rows) > NUM_SHOWN else "")
        what = f"{len(rows)} rows lead to the same file as a row before them, by another path: row {shown}"
        return [f"warning: {what}; one row, one image is wanted"]

    def _read_pixels(self, file: str) -> tuple[np.ndarray, SlicePosition | None]:
        """Returns the pixels of an image and the position of its slices, which is None unless the file is a volume."""
        if is_nifti(file):
            return read_slices(self.root, file, self.params.slices)
        return read_image(self.root, file), None

    def _read_mask(
        self, file: str, shape: tuple[int, ...], place: SlicePosition | None, values: tuple[int, ...]
    ) -> np.ndarray:
        if not is_nifti(file):
            return read_mask(self.root, file, shape, values)
        if place is None:
            raise BadSample(file, "the mask is a volume, its image is none")
        return read_slice_mask(self.root, file, place, shape, values)

    def _read_table(self) -> pd.DataFrame:
        """Returns the table. All cells are text without surrounding blanks, and missing cells are empty."""
        where, file = f"{PARAMS}.file", self.params.file
        if ABSOLUTE.match(file) and not self.allow_outside:
            raise ConfigError.at(where, f"must be relative to cohort.root unless {OUTSIDE}, got {file}")
        try:
            return read_table(self.root / file, (), REMEDY, is_public=not self.credentialed)
        except CohortError as error:
            raise ConfigError.at(where, str(error)) from None

    def _columns(self) -> dict[str, Column]:
        """Returns every column with a role, by name: columns with a role in the options, label columns, and columns of
        files or patients."""
        params = self.params
        named = [
            column for where, column in params.requested_columns if not where.startswith(("tasks", "columns", "text"))
        ]
        labels = [name for task in params.tasks.values() for name in ([task.column] if task.column else task.names)]
        columns = {name: options.to_column(name) for name, options in params.columns.items()}
        columns |= {name: Column(name, "id") for name in named}
        return columns | {name: Column(name, "forbidden") for name in labels}

    def _check_header(self, table: pd.DataFrame, columns: dict[str, Column]) -> None:
        params = self.params
        headers = list(table.columns)
        # If no expected name is present, the header may be missing. Then the first row holds cells, which stay private.
        shown = (
            headers if {name for _, name in params.requested_columns} & set(headers) or not self.credentialed else []
        )
        mistakes = missing_columns(
            params.file,
            [(f"{PARAMS}.{where}", name) for where, name in params.requested_columns],
            headers,
            not self.credentialed,
        )
        if mistakes and (other_format := recognise_format(self.root / params.file)):
            raise ConfigError.at(f"{PARAMS}.file", f"{params.file} {other_format}")
        mistakes += [
            Mistake(
                f"{PARAMS}.columns.{name}", f"a task, path or patient is read from it: its role is {columns[name].role}"
            )
            for name, column in params.columns.items()
            if column.role != columns[name].role
        ]
        mistakes += [
            Mistake(f"{PARAMS}.text.{section}", f"column {name!r} has role {columns[name].role}, so it is not a report")
            for section, name in params.text.items()
            if name in columns and columns[name].role in ("forbidden", "id", "near_label")
        ]
        if not params.tasks:
            mistakes.append(Mistake(f"{PARAMS}.tasks", "at least one task is needed"))
        same = {comparable_name(name): name for name in shown}
        mistakes += [
            Mistake(
                f"{PARAMS}.file", f"columns {name!r} and {same[comparable_name(name)]!r} differ in case or spaces only"
            )
            for name in shown
            if same[comparable_name(name)] != name
        ]
        if mistakes:
            raise ConfigError(mistakes)


def _trim_values(cells: pd.Series, separator: str) -> pd.Series:
    """Removes blanks around the values of multivalued cells. 'a | b|' becomes 'a|b', and '|' becomes a missing cell."""
    joined = cells.dropna().map(lambda cell: separator.join(filter(None, map(str.strip, cell.split(separator)))))
    return joined[joined != ""].reindex(cells.index)
