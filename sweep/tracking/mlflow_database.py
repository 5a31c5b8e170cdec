"""Makes the SQLite file of MLflow atomically, and corrects the artifact paths in it after file and artifacts were
moved.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from sweep.options import sqlite_uri
from sweep.storage.layout import Storage
from sweep.tracking.links import VIEW_TAG

# Tables and columns with addresses of artifacts below that of their experiment.
LOCATIONS: Final = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def make_database(path: Path, name: str, connect: Callable[[str], object]) -> None:
    """Makes the file atomically, unless it exists: the file is filled under a temporary name and then moved to `path`.

    MLflow (3.17) makes its tables in dozens of steps. If a kill comes between two steps, MLflow can never open the file
    again.

    Args:
        name: the name of the sweep. It is part of the temporary name, so that two sweeps that begin at the same time do
            not fill the same temporary file.
        connect: function that makes MLflow's tables in the file at a given address.
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
    """Returns the address of a sweep's artifact folder, which lies beside the SQLite file that tracks the sweep."""
    return (Storage(path.parent).mlflow_artifacts / name).absolute().as_uri()


def sweep_run(path: Path, name: str) -> tuple[str, str] | None:
    """Returns the ids of a sweep's experiment and of its newest own run, as the SQLite file of MLflow names them.
    Returns None if they are not in the file, or if the experiment has no saved views.

    Raises:
        sqlite3.Error: the file is damaged.
    """
    with closing(sqlite3.connect(path, timeout=20)) as connection:
        rows = connection.execute(
            "SELECT experiments.experiment_id, runs.run_uuid FROM experiments JOIN runs USING (experiment_id) "
            "WHERE experiments.name = ? AND runs.lifecycle_stage = 'active' "
            "AND EXISTS (SELECT 1 FROM experiment_tags WHERE experiment_tags.experiment_id = runs.experiment_id "
            "AND experiment_tags.key LIKE ? || substr(runs.run_uuid, 1, 8) || '-%') ORDER BY runs.start_time DESC",
            (name, VIEW_TAG),
        ).fetchall()
    return (str(rows[0][0]), rows[0][1]) if rows else None


def repoint_artifacts(path: Path) -> None:
    """Corrects the artifact addresses in a SQLite file of MLflow, if the file and the artifacts beside it were moved or
    copied.

    MLflow (3.17) stores absolute addresses and offers no call that changes them. Experiments with artifacts that were
    not moved, and are still at their old place, are left unchanged.

    Raises:
        sqlite3.Error: the file is damaged, or cannot be written.
    """
    if not path.exists():
        return
    with closing(sqlite3.connect(path, timeout=20)) as connection, connection:
        if not connection.execute("SELECT name FROM sqlite_master WHERE name = 'experiments'").fetchall():
            return  # an empty file, in which MLflow has not made its tables yet
        experiments = connection.execute("SELECT experiment_id, name, artifact_location FROM experiments").fetchall()
        for number, name, stored_uri in experiments:
            uri = artifacts_uri(path, name)
            if not stored_uri or stored_uri == uri or stored_uri.split("/")[-2:] != uri.split("/")[-2:]:
                continue  # the address is right already, or this is no experiment of a sweep
            stored, beside = Path(unquote(urlsplit(stored_uri).path)), Storage(path.parent).mlflow_artifacts / name
            if stored.is_dir() and (not beside.is_dir() or stored.samefile(beside)):
                continue
            connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (uri, number))
            for table, column in LOCATIONS:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (uri, len(stored_uri) + 1, len(stored_uri) + 1, f"{stored_uri}/"),
                )
