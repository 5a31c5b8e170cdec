"""A picked student in MLflow: logged to its trial's run, registered once, and found where the folder was moved."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient

from mmpkd.config import TrialConfig
from mmpkd.types import UserError
from sweep.options import sqlite_uri
from sweep.storage.events import Spool, SweepBegan, TrialEnded, TrialStarted
from sweep.storage.layout import Storage, SweepFolder
from sweep.tracking.mlflow import Tracker
from sweep.tracking.mlflow_database import repoint_artifacts
from sweep.tracking.registry import register, tracking_uri
from tests.sweep.picked_sweep import write_student

CONFIG = TrialConfig.model_validate({"cohort": {"reader": "synthetic"}})


def test_a_student_is_registered_once_and_moves_with_the_folder(tmp_path: Path) -> None:
    runs = Storage(tmp_path / "runs")
    uri = sqlite_uri(runs.mlflow_database)
    (tmp_path / "runs" / "fake").mkdir(parents=True)
    spool = Spool(SweepFolder(tmp_path / "runs" / "fake"))
    spool.append(SweepBegan(id="x"))
    spool.append(TrialStarted(number=4, arm="none", params={}, tags={}))
    spool.append(TrialEnded(number=4, state="complete", error=""))
    tracker = Tracker(uri, "fake", "the id", spool, runs.mlflow_artifacts)
    tracker.start()
    assert tracker.close(60) == 0
    write_student(tmp_path / "picked", CONFIG)
    student = tmp_path / "picked" / "student.safetensors"

    assert register(uri, "fake", "the id", 4, student, "# A card") == ("1", True)
    assert register(uri, "fake", "the id", 4, student, "# A card") == ("1", False)
    with pytest.raises(UserError, match=r"has no run of trial 7; the same sweep\.run command sends it"):
        register(uri, "fake", "the id", 7, student, "")
    with pytest.raises(UserError, match=r"there is no file .*absent\.db; name the sweep's server"):
        register(sqlite_uri(tmp_path / "absent.db"), "fake", "the id", 4, student, "")
    with pytest.raises(UserError, match="has no experiment 'other'"):
        register(uri, "other", "the id", 4, student, "")

    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = Storage(tmp_path / "moved")
    repoint_artifacts(moved.mlflow_database)
    client = MlflowClient(sqlite_uri(moved.mlflow_database))
    version = client.get_model_version("fake", "1")
    assert (version.tags["trial"], version.description) == ("4", "# A card")
    assert version.run_id and client.get_run(version.run_id).data.tags["sweep.number"] == "4"
    folder = Path(urlsplit(client.get_model_version_download_uri("fake", "1")).path)
    assert folder.is_relative_to(tmp_path / "moved") and list(folder.rglob("student.safetensors"))


def test_the_server_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    storage = Storage(tmp_path)
    beside = sqlite_uri(tmp_path / "mlflow.db")
    assert tracking_uri([], storage) == beside
    assert tracking_uri(["tracking=sqlite:////gone/mlflow.db"], storage) == beside, "the folder was moved"
    assert tracking_uri(["tracking=http://host:5000"], storage) == "http://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@host:5000")
    assert tracking_uri(["tracking=http://user:***@host:5000"], storage) == "http://user:secret@host:5000"
    assert tracking_uri(["tracking=http://other:5000"], storage) == "http://other:5000"
