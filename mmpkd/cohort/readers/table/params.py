"""The column map of the `table` reader: what a configuration's `cohort.params` may say."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from mmpkd.cohort.facts import Column, ColumnKind, Role, matching_names
from mmpkd.cohort.spelling import DIFFERENCE, group_spellings
from mmpkd.config import IMAGE, Strict
from mmpkd.near_names import near
from mmpkd.types import TaskKind

Share = Annotated[float, Field(ge=0, le=1)]


def _word(value: Any) -> Any:
    """A value of the YAML as a name or a cell; numbers as they are written."""
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
    """`column` holds one of `labels` per cell; of a multilabel task, `labels` are themselves columns of 0 and 1."""

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
    separator: str | None = None  # joins the values of a multivalued cell

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
    split: OptionalWord = None  # column of train, val and test; or of folds by name
    groups: OptionalWord = None  # column: a fold each of its values
    test_fold: OptionalWord = None  # the fold that is sealed; else the last
    views: Columns = Field({})  # further images of each sample: name, column of paths
    masks: Columns = Field({})  # ROI label, column of paths
    # Which value of a mask is the region, where it holds several or is dark on bright: of all labels, or by label
    mask_value: MaskValues | dict[Word, MaskValues] | None = None
    # ROI label, columns of left, top, width, height; or one column of "[left, top, width, height]" or a list of several
    boxes: dict[Word, BoxColumns] = Field({})
    polygons: Columns = Field({})  # ROI label, column of [[x, y], ...] or a list of several
    text: Columns = Field({})  # section of a report, column
    columns: dict[Word, ColumnParams] = Field({})  # by name, or by a pattern with `*`
    missing: tuple[Word, ...] = ()  # besides blank cells
    # of volumes (NIfTI), at which shares of the height that is not background: one axial slice, or one a channel
    slices: Annotated[tuple[Share, ...], Field(min_length=1, max_length=3)] = (0.5,)
    channels: Literal[1, 3] = 1
    # True: messages name rows, not files, and pictures stay in the store; False for public data
    credentialed: bool = True

    def mask_values(self, label: str) -> tuple[int, ...]:
        """The values that are the region in the masks of a label; empty where it is what is bright."""
        by_label = self.mask_value if isinstance(self.mask_value, dict) else dict.fromkeys(self.masks, self.mask_value)
        values = by_label.get(label)
        return () if values is None else (values,) if isinstance(values, int) else values

    @property
    def paths(self) -> dict[str, str]:
        """Columns of files, each with the folder that they are relative to."""
        return {self.image: self.image_root} | dict.fromkeys([*self.views.values(), *self.masks.values()], ".")

    @property
    def requested_columns(self) -> list[tuple[str, str]]:
        """Every column that is asked for, with the dotted path that asks."""
        asked = [("image", self.image), ("patient", self.patient)]
        asked += [(key, column) for key, column in (("split", self.split), ("groups", self.groups)) if column]
        for key, columns in (("views", self.views), ("masks", self.masks), ("polygons", self.polygons)):
            asked += [(f"{key}.{name}", column) for name, column in columns.items()]
        for label, box in self.boxes.items():
            asked += [(f"boxes.{label}", column) for column in ([box] if isinstance(box, str) else box)]
        asked += [(f"text.{name}", column) for name, column in self.text.items()]
        for name, task in self.tasks.items():
            asked += [(f"tasks.{name}.column", task.column)] if task.column else []
            asked += [] if task.column else [(f"tasks.{name}.labels", label) for label in task.names]
        return [*asked, *((f"columns.{name}", name) for name in self.columns)]

    def expand_patterns(self, headers: Sequence[str]) -> Self:
        """With each pattern of `columns` spelt out: a key with `*` stands for the columns that nothing else asks for.

        A column that several patterns fit has the strictest of their roles; a pattern that fits none stays, for `read`
        to be held against the table.
        """
        taken = {column for _, column in self.requested_columns}
        spelt: dict[str, ColumnParams] = {}
        for name, one in sorted(self.columns.items(), key=lambda item: STRICTEST.index(item[1].role)):
            free = [header for header in headers if header == name or header not in taken | spelt.keys()]
            spelt |= dict.fromkeys(matching_names(name, free) or [name], one)
        return self.model_copy(update={"columns": spelt})

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
            if not name.isidentifier() or name == "sample":  # they name files and columns of the store
                raise ValueError(f"views and sections have names of letters, digits and underscores, got {name!r}")
        if len(self.slices) not in (1, self.channels):
            raise ValueError(f"slices: one, or one for each of the {self.channels} channels, got {len(self.slices)}")
        if IMAGE in self.views:
            raise ValueError(f"{IMAGE!r} is each sample's own image; call this view otherwise")
        return self
