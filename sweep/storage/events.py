"""The spool of a sweep's events.

The spool holds every event of a sweep with its time, one JSON line each; the tracking server is told from it, and
`epochs.parquet` is made of it. A trial's state lies in the Optuna storage (`studies.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mmpkd.machine.checksums import DamagedError, objects_in, sealed, unsealed
from sweep.storage.layout import SweepFolder

HOLDS: Final = {  # what an event of each kind says at least
    "sweep": ("id",),
    "start": ("number", "arm", "params", "tags"),
    "epoch": ("number", "arm", "epoch", "seconds", "metrics", "terms"),
    "end": ("number", "state", "error"),
    "files": ("paths",),
    "close": ("status",),
}


class Spool:
    """Events of a sweep, appended one JSON line at a time; survives a kill at any moment."""

    def __init__(self, folder: SweepFolder):
        self.folder, self.path = folder, folder.spool
        self.path.touch()
        cut_torn_line(self.path)

    def append(self, event: str, **content: Any) -> None:
        line = sealed({"event": event, "time": time.time(), **content})
        with self.path.open("ab") as file:
            file.write(line.encode() + b"\n")

    def read(self, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """As `read_events`."""
        return read_events(self.path, start)


def read_events(path: Path, start: int = 0, damaged: list[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Whole events from byte `start` on, each with the byte from where nothing need be read again.

    What is damaged is passed over, and so is a last line that is being written, or was torn by a kill.

    Args:
        damaged: is told where events are lost, as 'line 7 (byte 1234)', lines counted from `start`.
    """
    for number, (begin, end, events, whole) in enumerate(_lines_of(path, start), start=1):
        for index, event in enumerate(events, start=1):
            yield (end if index == len(events) else begin), event
        if not whole and damaged is not None:
            damaged.append(f"line {number} (byte {begin})")


def _lines_of(path: Path, start: int) -> Iterator[tuple[int, int, list[dict[str, Any]], bool]]:
    """Beginning and end of each line, its events (several, where two lines were joined), and whether that is all."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            events, whole = list[dict[str, Any]](), True
            try:
                for one in objects_in(line.strip(b"\0 \n")):
                    event = unsealed(one)
                    if not {"event", "time", *HOLDS.get(str(event.get("event")), ())} <= set(event):
                        raise DamagedError("is no event")
                    events.append(event)
            except DamagedError:
                whole = False
            yield start, start + len(line), events, whole
            start += len(line)


def cut_torn_line(path: Path) -> None:
    """Drops what a kill left of an unfinished last line; the next one would otherwise join it."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
