"""The files of a sweep's folder, written whole and read with care: what is damaged is told, with its place.

The spool holds every event of a sweep with its time, one JSON line each; the tracking server is told from it, and
`epochs.parquet` is made of it. A trial's state lies in the Optuna storage (`studies.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from mmpkd.machine.checksums import DamagedError, objects_in, sealed, unsealed
from mmpkd.types import UserError

SPOOL: Final = "spool.jsonl"
HOLDS: Final = {  # what an event of each kind says at least
    "sweep": ("id",),
    "start": ("number", "arm", "params", "tags"),
    "epoch": ("number", "arm", "epoch", "seconds", "metrics", "terms"),
    "end": ("number", "state", "error"),
    "files": ("paths",),
    "close": ("status",),
}


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes beside and renames, so that nobody ever reads half a file."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(beside, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, sealed(content, indent=2) + "\n")


def read_json(path: Path, mend: str) -> dict[str, Any]:
    """An object that `write_json` wrote; empty where there is none.

    Args:
        mend: what deleting it leads to.

    Raises:
        UserError: it is damaged, or cannot be read.
    """
    try:
        return unsealed(path.read_bytes())
    except FileNotFoundError:
        return {}
    except DamagedError as error:
        raise UserError(f"{path}: {error}; delete it (rm {path}), {mend}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_plan(folder: Path) -> dict[str, Any]:
    """What plan.json says: by which space and store a sweep goes, and its generation. Empty before its first start.

    Raises:
        UserError: it is damaged.
    """
    return read_json(folder / "plan.json", "and the command that began the sweep makes it anew")


def read_space(folder: Path) -> dict[str, Any]:
    """What space.yaml says; empty before a sweep's first start.

    Raises:
        UserError: it is damaged.
    """
    path = folder / "space.yaml"
    mend = f"delete it (rm {path}), and the command that began the sweep writes it anew"
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: is not YAML ({' '.join(str(error).split())}); {mend}") from None
    search = content.get("search") or {} if isinstance(content, dict) else None
    counts = [search.get(name, 1) for name in ("trials", "repeats")] if isinstance(search, dict) else [""]
    if not all(isinstance(count, int) for count in counts):
        raise UserError(f"{path}: holds no space; {mend}")
    return dict(content)


class Spool:
    """Events of a sweep, appended one JSON line at a time; survives a kill at any moment."""

    def __init__(self, path: Path):
        self.path = path
        path.touch()
        cut_torn_line(path)

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
