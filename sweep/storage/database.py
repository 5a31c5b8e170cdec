"""MLflow's SQLite file: made whole, and its artifacts found again after it was moved together with them."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sweep.options import sqlite_uri
from sweep.storage.layout import Storage


def make_whole(path: Path, name: str, connect: Callable[[str], object]) -> None:
    """Makes a new file beside and puts it there whole, unless there is one.

    MLflow makes one in dozens of steps, and one that a kill left halfway it never opens again (3.17).

    Args:
        name: of the sweep, so that two that begin at once do not make the same file beside.
        connect: what makes the tables at an address.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{name}.partial")
    beside.unlink(missing_ok=True)
    connect(sqlite_uri(beside))
    try:
        os.link(beside, path)
    except FileExistsError:
        pass  # another sweep was quicker
    except OSError:  # a file system without links
        os.replace(beside, path)
    beside.unlink(missing_ok=True)


def artifacts_of(path: Path, name: str) -> str:
    """Where the artifacts of a sweep lie that is tracked in this file: beside it."""
    return (Storage(path.parent).mlflow_artifacts / name).absolute().as_uri()


def follow_move(path: Path) -> None:
    """Points a file's experiments and runs to the artifacts beside it, if it was moved or copied together with them.

    MLflow writes absolute places, and has no call that changes them (3.17). Artifacts that were not moved along,
    and are still where they were, stay.

    Raises:
        sqlite3.Error: the file is damaged, or cannot be written.
    """
    if not path.exists():
        return
    with closing(sqlite3.connect(path, timeout=20)) as connection, connection:
        known = "SELECT name FROM sqlite_master WHERE name = 'experiments'"
        if not connection.execute(known).fetchall():
            return  # an empty file, in which MLflow will make its tables
        experiments = connection.execute("SELECT experiment_id, name, artifact_location FROM experiments").fetchall()
        for number, name, place in experiments:
            here = artifacts_of(path, name)
            if not place or place == here or place.split("/")[-2:] != here.split("/")[-2:]:
                continue  # right as it is, or none of ours
            there = Path(unquote(urlsplit(place).path))
            beside = Storage(path.parent).mlflow_artifacts / name
            if there.is_dir() and (not beside.is_dir() or there.samefile(beside)):
                continue
            connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (here, number))
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (here, len(place) + 1, number, len(place) + 1, f"{place}/"),
            )
