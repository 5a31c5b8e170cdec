"""What happened in a sweep: the spool of events in their order, and the tables made from it.

A trial's state lies in the Optuna storage (`search.py`). The spool holds every event with its
time, one JSON line each; the tracking server is told from it, and `epochs.parquet` is made of it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

State = Literal["running", "complete", "pruned", "failed"]


@dataclass(frozen=True)
class Record:
    """A trial as the storage knows it. `metrics` are those of its last epoch, `seconds` of all."""

    number: int
    arm: str
    state: State
    epochs: int
    seconds: float  # training and validation; starting workers and fitting teachers are not in it
    sampled: Mapping[str, Any]  # by leaf name
    metrics: Mapping[str, float]
    config: str  # TrialConfig as JSON; empty if the driver died before it was drawn
    error: str = ""

    def values(self, goals: Sequence[str]) -> tuple[float, ...]:
        return tuple(self.metrics[goal] for goal in goals)


class Spool:
    """Events of a sweep, appended one JSON line at a time; survives a kill at any moment."""

    def __init__(self, path: Path):
        self.path = path
        path.touch()
        cut_torn_line(path)
        self._file = path.open("ab")

    def append(self, event: str, **content: Any) -> None:
        line = json.dumps({"event": event, "time": time.time(), **content})
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def read(self, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """Whole events from byte `start` on, each with the byte where the next one begins."""
        with self.path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                yield start, json.loads(line)


def cut_torn_line(path: Path) -> None:
    """Drops what a kill left of an unfinished last line; the next one would otherwise join it."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes beside and renames, so that nobody ever reads half a file."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(beside, path)


def write_json(path: Path, content: object) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n")


def admit(front: dict[int, Sequence[float]], number: int, values: Sequence[float]) -> list[int]:
    """Adds a trial to a front if none there dominates it (as good everywhere, better somewhere).

    Returns:
        Whoever is not on the front after all: trials that it dominates, or itself.
    """

    def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
        return all(mine >= theirs for mine, theirs in zip(one, other, strict=True)) and tuple(one) != tuple(other)

    if any(dominates(other, values) for other in front.values()):
        return [number]
    leaving = [other for other in front if dominates(values, front[other])]
    for other in leaving:
        del front[other]
    front[number] = values
    return leaving


def front_of(records: Sequence[Record], goals: Sequence[str]) -> list[Record]:
    """The front among complete trials (only equal budgets are compared), best by the first goal first."""
    front: dict[int, Sequence[float]] = {}
    for record in records:
        if record.state == "complete":
            admit(front, record.number, record.values(goals))
    on_it = [record for record in records if record.number in front]
    return sorted(on_it, key=lambda record: record.values(goals), reverse=True)


def best_of(records: Sequence[Record], goal: str, goals: Sequence[str]) -> Record | None:
    """The complete trial that is best by one goal; the others decide a tie, so it is on the front."""
    order = [goal, *(other for other in goals if other != goal)]
    complete = [record for record in records if record.state == "complete"]
    return max(complete, key=lambda record: record.values(order), default=None)


def trials_table(records: Sequence[Record]) -> pd.DataFrame:
    """One row a finished trial: number, arm, state, epochs, seconds, every sampled value, every metric."""
    rows = [
        {
            **{"number": one.number, "arm": one.arm, "state": one.state, "epochs": one.epochs, "seconds": one.seconds},
            **one.sampled,
            **one.metrics,
            "error": one.error,
        }
        for one in records
        if one.state != "running"
    ]
    table = pd.DataFrame(rows, columns=None if rows else ["number", "arm", "state", "epochs", "seconds", "error"])
    return _one_type_per_column(table)


def epochs_table(spool: Spool) -> pd.DataFrame:
    """One row per trial and epoch: number, arm, epoch, seconds, metrics, and terms as `loss/<term>`."""
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for _, event in spool.read():
        if event["event"] != "epoch":
            continue
        terms = {f"loss/{name}": value for name, value in event["terms"].items()}
        row = {name: event[name] for name in ("number", "arm", "epoch", "seconds")}
        rows.setdefault((event["number"], event["epoch"]), {**row, **event["metrics"], **terms})
    ordered = [rows[key] for key in sorted(rows)]
    return pd.DataFrame(ordered, columns=None if rows else ["number", "arm", "epoch", "seconds"])


def _one_type_per_column(table: pd.DataFrame) -> pd.DataFrame:
    """A choice may mix numbers and words, a parquet column may not: then all of it is text."""
    for name in filter(lambda name: pd.api.types.is_object_dtype(table[name]), table.columns):
        if len({type(value) for value in table[name].dropna()}) > 1:
            table[name] = [None if pd.isna(value) else str(value) for value in table[name]]
    return table


def write_tables(folder: Path, records: Sequence[Record], spool: Spool) -> None:
    write_whole(folder / "trials.parquet", trials_table(records).to_parquet(index=False))
    write_whole(folder / "epochs.parquet", epochs_table(spool).to_parquet(index=False))
