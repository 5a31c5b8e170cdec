"""The SQLite file of MLflow: made atomically, and pointed to its artifacts again after both were moved."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sweep.options import sqlite_uri
from sweep.storage.layout import Storage


def make_database(path: Path, name: str, connect: Callable[[str], object]) -> None:
    """Makes the file atomically, unless it exists: it is filled under another name and then moved to its place.

    MLflow needs dozens of steps to make its tables, and never opens a file that a kill left between them (3.17).

    Args:
        name: the sweep's, so that two sweeps that begin together do not fill the same temporary file.
        connect: makes the tables in the file at an address.
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
        pass  # another sweep has made it meanwhile
    except OSError:  # a file system without links
        os.replace(beside, path)
    beside.unlink(missing_ok=True)


def artifacts_uri(path: Path, name: str) -> str:
    """Returns the address of a sweep's artifacts, which lie beside the SQLite file that tracks the sweep."""
    return (Storage(path.parent).mlflow_artifacts / name).absolute().as_uri()


def repoint_artifacts(path: Path) -> None:
    """Points the experiments and runs of a SQLite file to the artifacts beside it, if both were moved or copied.

    MLflow stores absolute addresses and offers no call that changes them (3.17). Experiments whose artifacts were not
    moved, and are still at their old place, are left as they are.

    Raises:
        sqlite3.Error: the file is damaged, or cannot be written.
    """
    if not path.exists():
        return
    with closing(sqlite3.connect(path, timeout=20)) as connection, connection:
        if not connection.execute("SELECT name FROM sqlite_master WHERE name = 'experiments'").fetchall():
            return  # an empty file, in which MLflow will make its tables
        experiments = connection.execute("SELECT experiment_id, name, artifact_location FROM experiments").fetchall()
        for number, name, stored_uri in experiments:
            uri = artifacts_uri(path, name)
            if not stored_uri or stored_uri == uri or stored_uri.split("/")[-2:] != uri.split("/")[-2:]:
                continue  # it is right already, or not an experiment of a sweep
            stored, beside = Path(unquote(urlsplit(stored_uri).path)), Storage(path.parent).mlflow_artifacts / name
            if stored.is_dir() and (not beside.is_dir() or stored.samefile(beside)):
                continue
            connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (uri, number))
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (uri, len(stored_uri) + 1, number, len(stored_uri) + 1, f"{stored_uri}/"),
            )
