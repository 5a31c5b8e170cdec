"""Defines the events of a sweep, and the spool: the file that holds all events in order.

The spool has one line of sealed JSON (JSON with a checksum) for each event. The tracking server and the table of epochs
are filled from the spool. The state of a trial is not taken from the spool, because the Optuna storage decides it
(`search/studies.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeAlias

from mmpkd.machine.checksums import DamagedError, objects_in, sealed, unsealed
from sweep.patience import GrowingFile
from sweep.storage.layout import SweepFolder

GROWTH: Final = 1.1  # a summary is written again when more than so many times as many trials have ended
DEVICE_HOURS: Final = "device_hours"  # the metric of a summary that states the cost, which grows all the time

# Every event has the time at which it was appended, in seconds since 1970. Fields with a default were not written by
# earlier versions.


@dataclass(frozen=True)
class SweepBegan:
    """A driver began or continued the sweep.

    Attributes:
        words: the words of its command line.
        cluster: the RAY_ADDRESS of its environment; empty if it ran on one machine.
        goals: the scores that the sweep maximises; None if an earlier version began it.
        user: the name of the user who started the driver.
        commit: the git commit of the code; empty if it is not known.
        data: the data set as `name` (its reader), `fingerprint` and `images` (their number). It names no path and holds
            nothing of a patient.
    """

    id: str
    words: list[str] | None = None
    cluster: str = ""
    goals: list[str] | None = None
    user: str = ""
    commit: str = ""
    data: Mapping[str, Any] | None = None
    time: float = field(default=0.0, kw_only=True)


@dataclass(frozen=True)
class TrialStarted:
    """A trial was given to a worker for the first time.

    Attributes:
        params: the drawn values by their path in the configuration, and fixed settings that people compare. Earlier
            versions wrote the drawn values by leaf name, too.
        tags: the tags of the trial's run in the tracking server.
        devices: the share of a GPU that the trial holds, or its number of cores if it holds no GPU.
        name: the name of the trial's run, which says what the trial is.
        colour: the colour of its arm.
        config: the TrialConfig as JSON.
    """

    number: int
    arm: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    devices: float | None = None
    name: str = ""
    colour: str = ""
    config: str = ""
    time: float = field(default=0.0, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class EpochEnded:
    """A trial reported an epoch. `terms` are the unweighted terms of the loss."""

    number: int
    arm: str
    devices: float | None = None
    epoch: int
    seconds: float
    metrics: Mapping[str, float]
    terms: Mapping[str, float]
    time: float = 0.0

    @property
    def measurements(self) -> dict[str, float]:
        """The metrics of the epoch and the terms of the loss in one mapping, the terms under the names
        `loss/<term>`.
        """
        return {**self.metrics, **{f"loss/{name}": value for name, value in self.terms.items()}}


@dataclass(frozen=True)
class TrialEnded:
    """A trial ended, with the state complete, pruned or failed.

    Attributes:
        scores: what is known of a trial only at its end: its cost in `device_hours`, and `<goal>_se`, the standard
            error of a goal. None if an earlier version ended it.
    """

    number: int
    state: str
    error: str
    cause: str = ""
    scores: Mapping[str, float] | None = None
    time: float = field(default=0.0, kw_only=True)


@dataclass(frozen=True)
class FilesWritten:
    """The driver wrote files in the sweep's folder that the tracking server shall receive."""

    paths: list[str]
    time: float = field(default=0.0, kw_only=True)


@dataclass(frozen=True)
class TrialFilesWritten:
    """The tracking server shall receive files of a trial. The paths are relative to the sweep's folder."""

    number: int
    paths: list[str]
    time: float = field(default=0.0, kw_only=True)


@dataclass(frozen=True)
class SweepSummarized:
    """A driver summarised the results of the sweep.

    Attributes:
        ended: the number of trials that had ended.
        description: what the sweep's run in the tracking server says, in Markdown.
        metrics: the best scores by goal and arm, and the cost.
        marks: the tags that a trial has because of its place among the others, by the number of the trial. A trial that
            is not named has none of these tags any more.
    """

    ended: int
    description: str
    metrics: Mapping[str, float]
    marks: Mapping[str, Mapping[str, str]]
    time: float = field(default=0.0, kw_only=True)

    def is_news(self, before: SweepSummarized | None) -> bool:
        """Returns whether this summary is worth its bytes in the spool, given the summary before it: other trials are
        the best or on the front, a best score has changed, or a tenth more trials have ended.
        """
        if before is None or self.ended > before.ended * GROWTH or self.marks != before.marks:
            return True
        return any(before.metrics.get(name) != value for name, value in self.metrics.items() if name != DEVICE_HOURS)


@dataclass(frozen=True)
class VerdictWritten:
    """A confirmation whose students this sweep has trained wrote its verdict.

    Attributes:
        description: what the sweep's run in the tracking server says from now on, in Markdown.
        metrics: the primary contrasts.
        tags: tags of the sweep's run.
        paths: the files that the tracking server shall receive, relative to the folder of all sweeps.
    """

    description: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    paths: list[str]
    time: float = field(default=0.0, kw_only=True)


@dataclass(frozen=True)
class SweepClosed:
    """A driver ended, with the status FINISHED, KILLED (trials are left to run) or FAILED."""

    status: str
    time: float = field(default=0.0, kw_only=True)


TrialEvent: TypeAlias = TrialStarted | EpochEnded | TrialEnded
Event: TypeAlias = (
    SweepBegan | TrialEvent | FilesWritten | TrialFilesWritten | SweepSummarized | VerdictWritten | SweepClosed
)
CLASSES: Final[Mapping[str, type[Event]]] = {  # event classes by their name in the spool
    "sweep": SweepBegan,
    "start": TrialStarted,
    "epoch": EpochEnded,
    "end": TrialEnded,
    "files": FilesWritten,
    "trial_files": TrialFilesWritten,
    "summary": SweepSummarized,
    "verdict": VerdictWritten,
    "close": SweepClosed,
}
NAMES: Final = {kind: name for name, kind in CLASSES.items()}


class Spool:
    """The spool of a sweep. One driver at a time appends to the spool, and a kill at any moment does not damage it."""

    def __init__(self, folder: SweepFolder):
        self.folder, self.path = folder, folder.spool
        self.path.touch()
        cut_torn_line(self.path)
        self._file = GrowingFile(self.path)

    def append(self, event: Event) -> None:
        """Appends an event, stamped with the present time."""
        content = {item.name: getattr(event, item.name) for item in fields(event) if item.name != "time"}
        known = {name: value for name, value in content.items() if value is not None}
        line = sealed({"event": NAMES[type(event)], "time": time.time(), **known})
        self._file.append(line.encode() + b"\n")

    def read(self, start: int = 0) -> Iterator[tuple[int, Event]]:
        """Yields the events from byte `start` on, as `read_events` does."""
        return read_events(self.path, start)


def read_events(path: Path, start: int = 0, damaged: list[str] | None = None) -> Iterator[tuple[int, Event]]:
    """Yields the events from byte `start` on, each with the byte offset from which a later call may continue.

    Damaged lines are skipped. A last line without a line end is skipped too, because it is still being written or a
    kill cut it off. Events of a kind that this version does not know are skipped as well.

    Args:
        damaged: list to which the places of lost events are appended, such as 'line 7 (byte 1234)'. Lines are counted
            from `start`.
    """
    for number, (begin, end, events, is_whole) in enumerate(_lines_of(path, start), start=1):
        for index, event in enumerate(events, start=1):
            yield (end if index == len(events) else begin), event
        if not is_whole and damaged is not None:
            damaged.append(f"line {number} (byte {begin})")


def _lines_of(path: Path, start: int) -> Iterator[tuple[int, int, list[Event], bool]]:
    """Yields four values for each line: the offset of its first byte, the offset of the first byte after the line, the
    events in the line, and whether the line is undamaged.

    A line holds several events if a damaged line end has joined two lines.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            events, is_whole = list[Event](), True
            try:
                for text in objects_in(line.strip(b"\0 \n")):
                    if (event := _parse(unsealed(text))) is not None:
                        events.append(event)
            except DamagedError:
                is_whole = False
            yield start, start + len(line), events, is_whole
            start += len(line)


def _parse(content: Mapping[str, Any]) -> Event | None:
    """Returns the event that a JSON object holds, or None if it is a kind of event that only later versions know.

    Raises:
        DamagedError: a field is missing.
    """
    if not {"event", "time"} <= set(content):
        raise DamagedError("is no event")
    if (kind := CLASSES.get(str(content["event"]))) is None:
        return None
    if any(item.default is MISSING and item.name not in content for item in fields(kind)):
        raise DamagedError("is no event")
    return kind(**{item.name: content[item.name] for item in fields(kind) if item.name in content})


def cut_torn_line(path: Path) -> None:
    """Removes an unfinished last line that a kill left. Otherwise the next line would be appended to the unfinished
    line.
    """
    content = path.read_bytes() if path.exists() else b""
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
