"""Defines the options of the `table` reader (`cohort.params` of a configuration), which say what each column holds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from mmpkd.cohort.facts import Column, ColumnKind, Role, matching_names
from mmpkd.cohort.spelling import DIFFERENCE, group_spellings
from mmpkd.config import IMAGE
from mmpkd.near_names import near
from mmpkd.types import Strict, TaskKind

Share = Annotated[float, Field(ge=0, le=1)]


def _word(value: Any) -> Any:
    """Converts a value of the YAML file to text, so that it can be compared with the names and cells of a table."""
    if isinstance(value, bool):
        read, quoted = ("yes, on and true", "'yes'") if value else ("no, off and false", "'no'")
        raise ValueError(f"YAML takes {read} for {value} where there are no quotes; put it in quotes, such as {quoted}")
    if value is None or isinstance(value, date):
        read = "null, ~ and nothing for no value" if value is None else "a date for more than a word"
        raise ValueError(f"YAML takes {read} where there are no quotes; put it in quotes, such as '{value or 'null'}'")
    return str(value) if isinstance(value, int | float) else value


def _label(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else _word(value)


def _box_columns(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) != 4:
        raise ValueError("a box has four columns, of left, top, width and height; or one column of all four numbers")
    if isinstance(value, list | tuple) and len({str(name) for name in value}) != 4:
        raise ValueError("a box has four different columns, of left, top, width and height")
    return [_word(name) for name in value] if isinstance(value, list | tuple) else _word(value)


Word = Annotated[str, BeforeValidator(_word)]
OptionalWord = Annotated[str | None, BeforeValidator(lambda value: None if value is None else _word(value))]
Label = Annotated[str | int, BeforeValidator(_label)]
BoxColumns = Annotated[str | tuple[str, str, str, str], BeforeValidator(_box_columns)]
Columns = dict[Word, Word]


class TaskParams(Strict):
    """A task. For a binary or multiclass task, each cell of `column` holds one of `labels`. For a multilabel task, each
    of `labels` is the name of a column with the values 0 and 1."""

    kind: TaskKind
    column: OptionalWord = None
    labels: tuple[Label, ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.kind == "multilabel") == (self.column is not None):
            raise ValueError("a binary or multiclass task has a `column`; the labels of a multilabel task are columns")
        least = {"binary": 2, "multiclass": 3, "multilabel": 1}[self.kind]
        if len(set(self.names)) != len(self.labels) or len(self.labels) < least:
            raise ValueError(f"a {self.kind} task has at least {least} different labels")
        if group_spellings(self.names):
            raise ValueError(f"labels are spelt in several ways, which {DIFFERENCE}; name each class once")
        if self.kind == "binary" and len(self.labels) > 2:
            raise ValueError("a binary task has two labels, the second is positive")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(str(label) for label in self.labels)


class ColumnParams(Strict):
    role: Role
    kind: Literal["categorical", "numeric"] = "categorical"
    separator: str | None = None  # text between the values of a multivalued cell; None: a cell has one value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.separator is not None and (self.kind == "numeric" or not self.separator):
            raise ValueError("a separator splits categorical cells, and is at least one character")
        return self

    def to_column(self, name: str) -> Column:
        kind: ColumnKind = "multivalued" if self.separator else self.kind
        return Column(name, self.role, kind, self.separator)


STRICTEST: tuple[Role, ...] = ("forbidden", "id", "near_label", "context", "descriptor")


MaskValue = Annotated[int, Field(ge=0, le=65535)]
MaskValues = MaskValue | Annotated[tuple[MaskValue, ...], Field(min_length=1)]


class TableParams(Strict):
    LATER = ("groups", "test_fold", "slices", "mask_value")

    file: str
    image: Word
    patient: Word
    tasks: dict[Word, TaskParams]
    image_root: str = "."
    split: OptionalWord = None  # column with the values train, val and test, or with the names of folds
    groups: OptionalWord = None  # column; each of its values is a fold
    test_fold: OptionalWord = None  # the fold that is sealed as test; None: the one called test, else the last by name
    views: Columns = Field({})  # for the name of each view (a further image of each sample): column of its paths
    masks: Columns = Field({})  # for each ROI label: column of paths of mask files
    # Value or values of the region in the mask files, for all labels or by label. Needed if masks hold several values,
    # or if regions are dark on a bright background
    mask_value: MaskValues | dict[Word, MaskValues] | None = None
    # For each ROI label: four columns with left, top, width and height; or one column whose cells hold one box
    # "[left, top, width, height]" or a list of boxes
    boxes: dict[Word, BoxColumns] = Field({})
    polygons: Columns = Field({})  # for each ROI label: column of polygons [[x, y], ...], or of lists of polygons
    text: Columns = Field({})  # for each section of the reports: column of its text
    columns: dict[Word, ColumnParams] = Field({})  # roles of columns by the column's name, or by a pattern with `*`
    missing: tuple[Word, ...] = ()  # cells that count as missing, in addition to blank cells
    # Heights of the axial slices of a NIfTI volume, as shares of its foreground's height: one slice, or one per channel
    slices: Annotated[tuple[Share, ...], Field(min_length=1, max_length=3)] = (0.5,)
    channels: Literal[1, 3] = 1
    # True: messages name rows instead of files, and pictures stay in the store's folder. False: the data are public
    credentialed: bool = True

    def mask_values(self, label: str) -> tuple[int, ...]:
        """Returns the values of the region in a label's mask files. No values means that the bright part is the
        region."""
        by_label = self.mask_value if isinstance(self.mask_value, dict) else dict.fromkeys(self.masks, self.mask_value)
        values = by_label.get(label)
        return () if values is None else (values,) if isinstance(values, int) else values

    @property
    def paths(self) -> dict[str, str]:
        """The columns that hold file paths. Each is mapped to the folder to which its paths are relative."""
        return {self.image: self.image_root} | dict.fromkeys([*self.views.values(), *self.masks.values()], ".")

    @property
    def requested_columns(self) -> list[tuple[str, str]]:
        """The columns that the options name, as pairs of the option's dotted path and the column's name."""
        requests = [("image", self.image), ("patient", self.patient)]
        requests += [(key, column) for key, column in (("split", self.split), ("groups", self.groups)) if column]
        for key, columns in (("views", self.views), ("masks", self.masks), ("polygons", self.polygons)):
            requests += [(f"{key}.{name}", column) for name, column in columns.items()]
        for label, box in self.boxes.items():
            requests += [(f"boxes.{label}", column) for column in ([box] if isinstance(box, str) else box)]
        requests += [(f"text.{name}", column) for name, column in self.text.items()]
        for name, task in self.tasks.items():
            requests += [(f"tasks.{name}.column", task.column)] if task.column else []
            requests += [] if task.column else [(f"tasks.{name}.labels", label) for label in task.names]
        return [*requests, *((f"columns.{name}", name) for name in self.columns)]

    def expand_patterns(self, headers: Sequence[str]) -> Self:
        """Returns these options with each pattern of `columns` replaced by the columns that match it.

        A key of `columns` with `*` is a pattern. It matches only columns that no other option names. A column that
        matches several patterns gets the strictest of their roles. A pattern without a match is kept, so that
        `requested_columns` contains it and it is reported as a missing column.

        Args:
            headers: names of all columns of the table.
        """
        requested = {column for _, column in self.requested_columns}
        expanded: dict[str, ColumnParams] = {}
        for pattern, column in sorted(self.columns.items(), key=lambda item: STRICTEST.index(item[1].role)):
            free = [header for header in headers if header == pattern or header not in requested | expanded.keys()]
            expanded |= dict.fromkeys(matching_names(pattern, free) or [pattern], column)
        return self.model_copy(update={"columns": expanded})

    @model_validator(mode="after")
    def _of_masks(self) -> Self:
        for label in self.mask_value if isinstance(self.mask_value, dict) else ():
            if label not in self.masks:
                raise ValueError(f"mask_value names {label!r}, which is none of the masks{near(label, self.masks)}")
        if self.mask_value is not None and not self.masks:
            raise ValueError("mask_value is of masks, of which there are none")
        return self

    @model_validator(mode="after")
    def _plain_names(self) -> Self:
        for name in (*self.views, *self.text):
            if not name.isidentifier() or name == "sample":  # they become names of files and columns of the store
                raise ValueError(f"views and sections have names of letters, digits and underscores, got {name!r}")
        if len(self.slices) not in (1, self.channels):
            raise ValueError(f"slices: one, or one for each of the {self.channels} channels, got {len(self.slices)}")
        if IMAGE in self.views:
            raise ValueError(f"{IMAGE!r} is each sample's own image; call this view otherwise")
        return self
