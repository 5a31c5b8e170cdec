"""Defines what a reader provides: first the facts of a cohort from its tables, and then the decoded images.

To add a reader, write a file with a subclass of `Reader` and its pydantic `Params`, and add a line to `READERS`
(`mmpkd/cohort/__init__.py`). `prepare` does everything else: geometry, bit depth, splits, storage, unreadable files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmpkd.cohort.questions import QuestionFacts
from mmpkd.cohort.spelling import normalise_name
from mmpkd.types import Strict, Task

Role = Literal["descriptor", "context", "near_label", "forbidden", "id"]
ColumnKind = Literal["categorical", "multivalued", "numeric"]
ADMITTED: tuple[Role, ...] = ("descriptor", "context")


@dataclass(frozen=True)
class Column:
    """A column of the source table, and its role.

    Teachers may use columns with the role `descriptor` (what was seen in the image) or `context` (what was known about
    the patient). They may use a `near_label` column only if the configuration names it. A `forbidden` column states the
    label and is never stored. An `id` column identifies a patient, an image or a file. A cell of a `multivalued` column
    holds several values, joined by `separator`.
    """

    name: str
    role: Role
    kind: ColumnKind = "categorical"
    separator: str | None = None


@dataclass(frozen=True)
class Section:
    """A section of the reports."""

    near_label: bool  # labels were read from this section, so teachers use it only if the configuration names it
    share: float  # share of training samples with this section; before patients are dealt into folds, of all samples
    # Classes (such as `task/ill` or `not task/ill`) that occur in training samples, but in none that has this section
    lost: Sequence[str] = ()


@dataclass(frozen=True)
class Facts:
    """The facts about a cohort that planning a sweep needs. They are known from the cohort's tables alone."""

    tasks: tuple[Task, ...]
    columns: Mapping[str, Column]  # every column with a role, forbidden ones included, by name
    unlisted: tuple[str, ...]  # columns of the source without a role: not stored
    channels: int  # 1 or 3
    image_size: int  # side of the stored square in pixels
    roi_labels: tuple[str, ...]  # empty: the cohort has no ROI
    views: tuple[str, ...]  # names of the further images of each sample
    sections: Mapping[str, Section]  # sections of the reports, by name; empty: the cohort has no text
    credentialed: bool  # file names and pictures must not leave the store
    num_samples: int
    external: bool = False  # the cohort has no training part; models trained on another cohort are scored on it
    several_images: bool = False  # some patient has several images, so that scores by patient are of use
    questions: QuestionFacts | None = None  # None: the cohort has no questions


@dataclass(frozen=True)
class Scan:
    """The samples of a cohort as its reader lists them, from tables alone. All frames have the sample ids as index.

    samples: index `sample` (unique strings, in an order that never changes). The column `patient` is a string. The
        optional column `split` holds train, val and test (an official split, which may lack train), or fold0, fold1
        ... and test (given folds). Without `split`, patients are dealt into folds. The optional column `row` is the row
        of the source table, for messages about credentialed cohorts; the header is row 1.
    labels: one float column per logit, in the order of the tasks, named by `label_columns(tasks)`: 1, 0, or NaN for
        unknown. A multi-class task is one-hot, or NaN in all its columns if the class is unknown. `encode_labels` makes
        such columns from class names.
    privileged: the columns with the roles descriptor, context and near_label; NaN where missing. Categorical columns
        are text, numeric ones floats. A multivalued cell is text without blanks around the separator.
    text: one string column per section of the reports, NaN where missing. None if the cohort has no text.
    near_label_sections: names of the columns of `text` from which the labels were read.
    files: the files of each sample, relative to the root (POSIX) or absolute. Empty for a generated cohort.
    questions: the questions about the images and their answers, a table with the columns of `questions.COLUMNS`, and
        perhaps `place`; see there. Such a cohort has no classification tasks and no labels. None: the cohort has no
        questions.
    tables: paths of the source tables, relative to the root. Their contents are hashed into the fingerprint.
    notes: sentences that state what was left out and why. `prepare` prints them and keeps them in the manifest.
    share_left_out: share of the source's questions that cannot be used; notes count them by reason.
    """

    tasks: tuple[Task, ...]
    samples: pd.DataFrame
    labels: pd.DataFrame
    privileged: pd.DataFrame
    columns: Mapping[str, Column] = field(default_factory=dict)
    unlisted: tuple[str, ...] = ()
    channels: int = 1
    roi_labels: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    text: pd.DataFrame | None = None
    questions: pd.DataFrame | None = None
    near_label_sections: tuple[str, ...] = ()
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    tables: Sequence[str] = ()
    notes: tuple[str, ...] = ()
    share_left_out: float = 0.0

    def facts(self, image_size: int, credentialed: bool) -> Facts:
        """Returns the Facts of this cohort. Its images are stored as squares of `image_size` pixels a side."""
        parts = set(self.samples["split"]) if "split" in self.samples else set()
        external = bool(parts) and parts <= {"val", "test"}
        train_N = np.ones(len(self.samples), bool)
        if parts and not external:  # each given fold counts as training, because any fold but test may train
            train_N = ~self.samples["split"].isin(("val", "test")).to_numpy()
        text = pd.DataFrame() if self.text is None else self.text[train_N]
        labels = self.labels[train_N]

        def section(has_text_N: NDArray[np.bool_], near_label: bool) -> Section:
            lost: list[str] = []
            for name in map(str, labels):
                for side, value in ((name, 1), (f"not {name}", 0)):
                    has_class_N = (labels[name] == value).to_numpy()
                    lost += [side] if has_class_N.any() and not (has_class_N & has_text_N).any() else []
            return Section(near_label, float(has_text_N.mean()), tuple(lost))

        return Facts(
            tasks=self.tasks,
            columns=dict(self.columns),
            unlisted=self.unlisted,
            channels=self.channels,
            image_size=image_size,
            roi_labels=self.roi_labels,
            views=self.views,
            sections={
                str(name): section(text[name].notna().to_numpy(), name in self.near_label_sections) for name in text
            },
            credentialed=credentialed,
            num_samples=len(self.samples),
            external=external,
            several_images=bool(self.samples["patient"].duplicated().any()),
            questions=None if self.questions is None else QuestionFacts.of(self.questions),
        )


@dataclass(frozen=True)
class RawImage:
    """A decoded sample at its original size.

    image: H x W or H x W x 3, uint8, uint16 or int16. All images of a cohort have the same depth.
    views: further images by name, each of its own size. The names are exactly those of `Scan.views`.
    rois: (label, mask) pairs. A mask is H x W bool, of the same size as `image`. Several masks may have the same label;
        their union is scored. A mask that is False everywhere counts as no ROI.
    is_stretched: whether the reader scaled the values by the image's own range. Then no window can be applied to them.
    units: modality and unit of the pixel values if the file states them, by "image" or the name of a view.
    """

    image: np.ndarray
    views: Mapping[str, np.ndarray] = field(default_factory=dict)
    rois: Sequence[tuple[str, np.ndarray]] = ()
    is_stretched: bool = False
    units: Mapping[str, tuple[str, str]] = field(default_factory=dict)


class BadSample(Exception):
    """Is raised for a sample that cannot be used.

    `file` is a path relative to the root, which messages show unless the cohort is credentialed. `reason` names no file
    and no patient, so that messages may always show it.
    """

    def __init__(self, file: str, reason: str):
        self.file = file
        self.reason = reason
        super().__init__(file, reason)


class Reader(ABC):
    """The base class of readers, which read a raw data set. A reader's options are its pydantic model `Params`.

    `load` is called by several threads at once. It must always return the same pixels for the same sample id.
    """

    Params: ClassVar[type[Strict]]
    VERSION: ClassVar[int]  # must be raised when the reader reads the same files and options differently than before
    needs_root: ClassVar[bool]  # False: the data are generated, and `cohort.root` must be left out
    allow_outside: bool = False  # whether files may lie outside the root; `reader_for` sets this attribute
    windowed: ClassVar[bool] = False  # True: 8-bit images get a window from the data; 16-bit images always get one

    @abstractmethod
    def __init__(self, root: Path | None, params: Any) -> None:
        """Keeps the root and the options, and reads no file. The root is an existing folder if `needs_root` is True."""

    @property
    @abstractmethod
    def credentialed(self) -> bool:
        """Whether file names carry patient identities. A subclass may define a class attribute instead."""

    @abstractmethod
    def scan(self) -> Scan:
        """Lists the samples from tables alone, without decoding an image.

        Raises:
            ConfigError: options do not fit the tables. The error lists all such mistakes at once.
            CohortError: tables are missing or not as published.
        """

    def deviations(self, scan: Scan) -> list[str]:
        """Describes how this copy differs from the published data set, for `python -m mmpkd.cohort check`."""
        return []

    def column_of(self, sample_id: str, file: str) -> str | None:
        """Returns the column of the user's table, as last scanned, that holds the path of a further file of a sample,
        such as a view or a mask, for messages that must not show the path. None: it is the sample's image, or there is
        no such column."""
        return None

    @abstractmethod
    def load(self, sample_id: str) -> RawImage:
        """Decodes a sample.

        Raises:
            BadSample: a file is missing, cannot be decoded, or does not fit its image.
        """


def label_columns(tasks: Sequence[Task]) -> list[str]:
    """Returns the names of the K label columns, one per logit, in the form 'task/label'."""
    return [f"{task.name}/{label}" for task in tasks for label in task.logit_names]


def encode_labels(task: Task, names: pd.Series) -> pd.DataFrame:
    """Converts the class names of a binary or multi-class task to label columns. NaN or None means unknown.

    Raises:
        KeyError: a class name is not one of `task.labels`.
    """
    assert task.kind != "multilabel", "a multi-label task has its columns already"
    unknown = names.isna().to_numpy()
    index = {label: position for position, label in enumerate(task.labels)}
    class_N = np.array([0 if missing else index[name] for name, missing in zip(names, unknown, strict=True)])
    one_hot_NK = np.eye(len(task.labels))[class_N.astype(int)]
    one_hot_NK[unknown] = np.nan
    kept_NK = one_hot_NK[:, 1:] if task.kind == "binary" else one_hot_NK
    return pd.DataFrame(kept_NK, index=names.index, columns=label_columns([task]))


def comparable_name(name: str) -> str:
    """Normalises a column name for comparisons. For example, 'Assessment ' becomes 'assessment'."""
    return normalise_name(name)


def matching_names(pattern: str, names: Iterable[str]) -> list[str]:
    """Returns the names that match a pattern with `*`, case-sensitive. A name as the pattern matches only itself."""
    names = list(names)
    return [pattern] if pattern in names else [name for name in names if "*" in pattern and fnmatchcase(name, pattern)]


def admitted_columns(facts: Facts) -> list[str]:
    """Returns the names of the columns that teachers use by default, which have the role descriptor or context."""
    return [column.name for column in facts.columns.values() if column.role in ADMITTED]
