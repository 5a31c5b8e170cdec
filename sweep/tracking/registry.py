"""Logs the student of a picked trial to the trial's run in MLflow, and registers it under the name of the sweep.

Everything else in MLflow comes from the spool. A picked student does not, because a person picks it, perhaps while a
driver runs the sweep, and only the driver writes the spool. A tracking database that is made anew from the spool
therefore lacks the registered students; picking them again registers them again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from os import environ
from pathlib import Path
from typing import Final

from safetensors import safe_open

from mmpkd.export import to_mlflow
from mmpkd.types import UserError
from sweep.options import check_tracking_uri, redact_passwords, sqlite_file, sqlite_uri
from sweep.storage.layout import Storage
from sweep.tracking.mlflow_database import repoint_artifacts
from sweep.tracking.mlflow_runs import MAX_TAG_LENGTH

CHECKSUM: Final = "student"  # tag of a version with the checksum of the student's weights
TRIAL: Final = "trial"  # tag of a version with the number of the trial


def tracking_uri(words: Sequence[str], storage: Storage) -> str:
    """Returns the address of the tracking server of a sweep.

    Args:
        words: the command line with which the sweep was last started. Passwords in it are redacted, so that a server
            with a password must be named by MLFLOW_TRACKING_URI.
        storage: the folder of all sweeps, which may have been moved since; its SQLite file is used by default.
    """
    named = [word.partition("=")[2] for word in words if word.startswith("tracking=")]
    is_usable = named and "***" not in named[-1] and not (is_local(named[-1]) and not sqlite_file(named[-1]).exists())
    if is_usable:
        return check_tracking_uri(named[-1])
    return check_tracking_uri(environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(storage.mlflow_database))


def is_local(uri: str) -> bool:
    """Whether a tracking address names a file, which only users of its disk see."""
    return uri.startswith("sqlite")


def register(uri: str, name: str, sweep_id: str, number: int, student: Path, description: str) -> tuple[str, bool]:
    """Logs the student of a trial to its run, and registers it under the name of the sweep.

    Args:
        uri: address of the tracking server.
        name: name of the sweep, of its experiment and of the registered model.
        sweep_id: the sweep's identity.
        student: the file of the student.
        description: Markdown that the registered version shows.

    Returns:
        The number of the registered version, and whether it is new. The same student is registered once.

    Raises:
        UserError: the server cannot be reached or refuses, or has no run of the trial.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    shown = redact_passwords(uri)
    try:
        if is_local(uri):
            if not sqlite_file(uri).is_file():  # MLflow would make one
                raise UserError(
                    f"there is no file {sqlite_file(uri)}; name the sweep's server with MLFLOW_TRACKING_URI"
                )
            repoint_artifacts(sqlite_file(uri))
        client = MlflowClient(tracking_uri=uri)
        if (experiment := client.get_experiment_by_name(name)) is None:
            raise UserError(f"{shown} has no experiment {name!r}; the same sweep.run command sends it")
        of_trial = f"tags.`sweep.id` = '{sweep_id}' and tags.`sweep.number` = '{number}'"
        runs = client.search_runs([experiment.experiment_id], of_trial)
        if not runs:
            raise UserError(f"{shown} has no run of trial {number}; the same sweep.run command sends it")
        run, checksum = runs[0].info.run_id, _checksum_of(student)
        for version in client.search_model_versions(f"name = '{name}'"):
            if version.tags.get(CHECKSUM) == checksum and version.run_id == run:
                return str(version.version), False
        mlflow.set_tracking_uri(uri)
        with redirect_stderr(StringIO()):  # MLflow (3.17) prints what the command prints in its own words
            to_mlflow.log(student, run, registered_as=name)
        version = max(client.search_model_versions(f"run_id = '{run}'"), key=lambda version: int(version.version))
        for key, value in ((CHECKSUM, checksum), (TRIAL, str(number))):
            client.set_model_version_tag(name, version.version, key, value)
        client.update_model_version(name, version.version, description[:MAX_TAG_LENGTH])
        return str(version.version), True
    except (MlflowException, sqlite3.Error, OSError) as error:
        reason = redact_passwords(str(error).partition("\n")[0])
        raise UserError(f"the student cannot be registered in MLflow at {shown}: {reason}") from error


def _checksum_of(student: Path) -> str:
    with safe_open(student, "pt") as opened:
        return str((opened.metadata() or {}).get("crc", ""))
