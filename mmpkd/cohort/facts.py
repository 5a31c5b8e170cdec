"""What a reader says of a cohort before an image is decoded, and what it hands over when one is.

A reader is one file with a subclass of `Reader`, its pydantic `Params` beside it, and one line
in `READERS` (`mmpkd/cohort/__init__.py`). `prepare` does the rest: geometry, bit depth, splits,
storage, and what to do with a file that cannot be read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmpkd.cohort.spelling import folded
from mmpkd.config import Strict
from mmpkd.near_names import near
from mmpkd.types import Mistake, Task

Role = Literal["descriptor", "context", "near_label", "forbidden", "id"]
ColumnKind = Literal["categorical", "multivalued", "numeric"]
ADMITTED: tuple[Role, ...] = ("descriptor", "context")


@dataclass(frozen=True)
class Column:
    """A column of the source whose role is known.

    `descriptor` (what was seen in the image) and `context` (what was known of the patient) may be
    taught from; `near_label` only when asked for by name; `forbidden` states the label and is never
    stored; `id` names things. A `multivalued` cell joins its values with `separator`.
    """

    name: str
    role: Role
    kind: ColumnKind = "categorical"
    separator: str | None = None


@dataclass(frozen=True)
class Section:
    """A section of the reports. The labels were read from one that is `near_label`: it is taught from
    only when asked for by name."""

    near_label: bool
    share: float  # of the training samples, as far as they are known before patients are dealt, that have it
    # Sides of labels, such as `task/ill` and `not task/ill`, that training samples are on, but none with it.
    lost: Sequence[str] = ()


@dataclass(frozen=True)
class Facts:
    """A cohort in outline: what the plan needs, known from its tables alone."""

    tasks: tuple[Task, ...]
    columns: Mapping[str, Column]  # every column with a role, forbidden ones included, by name
    unlisted: tuple[str, ...]  # columns of the source without a role: not stored
    channels: int  # 1 or 3
    image_size: int  # side of the stored square, pixels
    roi_labels: tuple[str, ...]  # empty: the cohort has no ROI
    views: tuple[str, ...]  # names of further images of each sample
    sections: Mapping[str, Section]  # of reports, by name; empty: the cohort has no text
    credentialed: bool  # file names and pictures must not leave the store
    num_samples: int
    external: bool = False  # without a training part: models that learnt elsewhere are scored on it
    several_images: bool = False  # of some patient, so that patients can be scored beside images


@dataclass(frozen=True)
class Scan:
    """A cohort as its reader lists it, from tables alone. All frames share one index: the sample ids.

    samples: index `sample` (unique strings, in an order that never changes) with the columns
        `patient` (string), optionally `split` (train, val or test: an official split, which may lack train; or fold0,
        fold1 ... and test: given folds; else leave it out and patients are dealt into folds), optionally `row`
        (where in the source table, for messages of credentialed cohorts; header is row 1).
    labels: one float column per logit, in the order of the tasks, named by `label_columns(tasks)`:
        1, 0, or NaN for unknown. One-hot for a multi-class task, all NaN where its class is unknown.
        `encode` makes these columns from class names.
    privileged: the columns of role descriptor, context and near_label, as text (categorical,
        multivalued: joined, no blanks around the separator) or floats (numeric); missing is NaN. Never a forbidden one.
    text: one string column per section of a report, NaN where missing; or None.
    near_label_sections: those columns of `text` that the labels were read from.
    files: per sample, its files relative to the root (POSIX), or absolute. Empty for a generated cohort.
    tables: source tables relative to the root; their contents are hashed into the fingerprint.
    notes: what was left out and why, one sentence each; shown at prepare and kept in the manifest.
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
    near_label_sections: tuple[str, ...] = ()
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    tables: Sequence[str] = ()
    notes: tuple[str, ...] = ()

    def facts(self, image_size: int, credentialed: bool) -> Facts:
        """The outline of this scan, for stored squares of `image_size` pixels a side."""
        parts = set(self.samples["split"]) if "split" in self.samples else set()
        external = bool(parts) and parts <= {"val", "test"}
        train_N = np.ones(len(self.samples), bool)
        if parts and not external:  # of folds that are given, all that may train
            train_N = ~self.samples["split"].isin(("val", "test")).to_numpy()
        text = pd.DataFrame() if self.text is None else self.text[train_N]
        labels = self.labels[train_N]

        def section(told_N: NDArray[np.bool_], near_label: bool) -> Section:
            lost: list[str] = []
            for name in map(str, labels):
                for side, value in ((name, 1), (f"not {name}", 0)):
                    on_N = (labels[name] == value).to_numpy()
                    lost += [side] if on_N.any() and not (on_N & told_N).any() else []
            return Section(near_label, float(told_N.mean()), tuple(lost))

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
        )


@dataclass(frozen=True)
class RawImage:
    """One sample as decoded, at its original size.

    image: H x W or H x W x 3, uint8, uint16 or int16 (one depth per cohort).
    views: further images by name, each of its own size; exactly those the scan declares.
    is_stretched: whether the reader spread the image's values by its own range, so that no window can be of them.
    units: what the values of the image (under "image") and of views are: modality and unit, where files state them.
    rois: (label, mask) pairs, mask H x W bool of the image's own size; several may share a label
        (their union is scored). An all-False mask counts as no ROI.
    """

    image: np.ndarray
    views: Mapping[str, np.ndarray] = field(default_factory=dict)
    rois: Sequence[tuple[str, np.ndarray]] = ()
    is_stretched: bool = False
    units: Mapping[str, tuple[str, str]] = field(default_factory=dict)


class BadSample(Exception):
    """One sample cannot be used. `file` is relative to the root and shown unless the cohort is credentialed.

    `reason` names no file and no patient, so it may always be shown.
    """

    def __init__(self, file: str, reason: str):
        self.file = file
        self.reason = reason
        super().__init__(file, reason)


class Reader(ABC):
    """A raw data set. Its options are a pydantic model beside it, named by `Params`.

    `load` is called from several threads at once and gives the same pixels every time it is called
    with the same sample id, whatever was loaded before.
    """

    Params: ClassVar[type[Strict]]
    VERSION: ClassVar[int]  # raise it when the same files and options come to be read differently
    needs_root: ClassVar[bool]  # False: generated, `cohort.root` must be left out
    allow_outside: bool = False  # files may lie outside the root; `reader_for` sets it
    windowed: ClassVar[bool] = False  # 8-bit images get a window from the data, as 16-bit ones always do

    @abstractmethod
    def __init__(self, root: Path | None, params: Any) -> None:
        """`params` is a `Params` of this reader; `root` exists where `needs_root`. Reads nothing yet."""

    @property
    @abstractmethod
    def credentialed(self) -> bool:
        """Whether file names carry patient identities (a class attribute will do)."""

    @abstractmethod
    def scan(self) -> Scan:
        """List the samples from tables alone, decoding nothing.

        Raises:
            ConfigError: options that do not fit the tables, all of them at once.
            CohortError: tables that are missing or not as published.
        """

    def deviations(self, scan: Scan) -> list[str]:
        """How this copy differs from the data set as published, a sentence each; for `python -m mmpkd.cohort check`."""
        return []

    @abstractmethod
    def load(self, sample_id: str) -> RawImage:
        """Decode one sample.

        Raises:
            BadSample: a file is missing, does not decode, or does not fit its image.
        """


def label_columns(tasks: Sequence[Task]) -> list[str]:
    """Names of the K label columns: 'task/label' per logit."""
    return [f"{task.name}/{label}" for task in tasks for label in task.logit_names]


def encode(task: Task, names: pd.Series) -> pd.DataFrame:
    """Label columns of a binary or multi-class task from class names; NaN (or None) is unknown.

    Raises:
        KeyError: a name that is not one of `task.labels`.
    """
    assert task.kind != "multilabel", "a multi-label task has its columns already"
    unknown = names.isna().to_numpy()
    index = {label: position for position, label in enumerate(task.labels)}
    class_N = np.array([0 if missing else index[name] for name, missing in zip(names, unknown, strict=True)])
    one_hot_NK = np.eye(len(task.labels))[class_N.astype(int)]
    one_hot_NK[unknown] = np.nan
    kept_NK = one_hot_NK[:, 1:] if task.kind == "binary" else one_hot_NK
    return pd.DataFrame(kept_NK, index=names.index, columns=label_columns([task]))


def same_name(name: str) -> str:
    """What column names are compared by: 'Assessment ' is `assessment`."""
    return folded(name)


def matching(name: str, known: Iterable[str]) -> list[str]:
    """The names that one stands for, in the order of `known`: itself, or with a `*` all that fit it; case counts."""
    names = list(known)
    return [name] if name in names else [one for one in names if "*" in name and fnmatchcase(one, name)]


def admitted(facts: Facts) -> list[str]:
    """The columns that may be taught from unasked: descriptors and context."""
    return [one.name for one in facts.columns.values() if one.role in ADMITTED]


def check_columns(columns: Sequence[str], near_label: Sequence[str], facts: Facts) -> list[Mistake]:
    """What is wrong with teaching from these columns, under the path `columns` or `near_label`; empty if nothing is.

    `columns` are descriptors and context, by name or by a pattern (`matching`) that fits at least one of them; a
    near-label column is listed in `near_label` instead, by name.
    """
    counts = Counter((*columns, *near_label))
    problems = [(name, _problem(name, near_label, facts)) for name in counts]
    problems += [(name, f"column {name!r} is listed twice") for name, count in counts.items() if count > 1]
    return [
        Mistake("near_label" if name in near_label else "columns", problem) for name, problem in problems if problem
    ]


def _problem(name: str, near_label: Sequence[str], facts: Facts) -> str:
    usable = admitted(facts)
    if "*" in name and name not in near_label and matching(name, usable):
        return ""
    wanted = f" (columns to teach from: {', '.join(usable)})" if usable else " (this cohort has none to teach from)"
    meant = {same_name(known): known for known in (*facts.unlisted, *facts.columns)}.get(same_name(name))
    if meant is None:
        return f"no column {name!r}{near(name, [*usable, *near_label_columns(facts)])}"
    if meant in facts.unlisted:
        return f"column {meant!r} has no role in this cohort, so it is not stored{wanted}"
    role = facts.columns[meant].role
    if role == "forbidden":
        return f"column {meant!r} is forbidden: it states the label and is never stored{wanted}"
    if role == "id":
        return f"column {meant!r} only names things (role id){wanted}"
    if meant != name:
        return f"no column {name!r}; write it as the source does: {meant!r}"
    if role == "near_label" and name not in near_label:
        mend = "to teach from it all the same, list it under `near_label:` instead"
        return f"column {name!r} nearly states the label (role near_label); {mend}"
    if role != "near_label" and name in near_label:
        return f"column {name!r} has role {role}, not near_label; list it under `columns:`"
    return ""


def near_label_columns(facts: Facts) -> list[str]:
    """The columns that must be asked for by name."""
    return [one.name for one in facts.columns.values() if one.role == "near_label"]
