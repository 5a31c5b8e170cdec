"""Sweeps and cache, moved or copied elsewhere: nothing is lost, and nothing goes to the old place."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.tracking._tracking_service import utils

from mmpkd.machine.checksums import fingerprint
from sweep import status
from sweep.reports import results
from sweep.storage.events import FilesWritten, Spool, SweepBegan, SweepClosed, TrialEnded, TrialStarted
from sweep.storage.layout import SweepFolder
from sweep.storage.reader import continue_command, read_sweep
from sweep.tracking.mlflow import Tracker
from sweep.tracking.mlflow_database import repoint_artifacts
from tests.sweep.folders import make
from tests.sweep.swept import numbers, swept
from tests.sweep.tracking.test_mlflow import drain, runs


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes half of each sweep; a page stands for it."""
    monkeypatch.setattr(results, "write_report", lambda folder, *args: folder.report.write_text("a report"))
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An MLflow file without a run: to make one takes seconds."""
    spool = Spool(SweepFolder(tmp_path_factory.mktemp("tables")))
    spool.append(SweepClosed(status="FINISHED"))
    drain(f"sqlite:///{spool.path.parent / 'mlflow.db'}", "none", spool)
    return (spool.path.parent / "mlflow.db").read_bytes()


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forgets where MLflow writes the artifacts of a run: it keeps that until its process ends."""
    return utils._artifact_repos_cache.clear


def begun(folder: Path, tables: bytes) -> Spool:
    """Makes the folder of a sweep that has begun, beside an MLflow file. Returns its spool."""
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(tables)
    spool = Spool(SweepFolder(folder))
    spool.append(SweepBegan(id="x"))
    return spool


def artifacts(database: Path, name: str, number: int = -1) -> dict[str, bytes]:
    """What a person sees of a sweep's run, or of a trial's, by the file's own address."""
    client = MlflowClient(f"sqlite:///{database}")
    run = runs(f"sqlite:///{database}", name)[number].info.run_id
    row = [file.path for file in client.list_artifacts(run)]
    return {path: Path(client.download_artifacts(run, path)).read_bytes() for path in row}


def test_a_moved_sweep_is_seen_and_goes_on_where_it_lies_now(
    tmp_path: Path, tables: bytes, another_process: Callable[[], None]
) -> None:
    old, new = tmp_path / "cluster", tmp_path / "lap top"
    (old / "runs").mkdir(parents=True)
    (old / "runs" / "mlflow.db").write_bytes(tables)
    swept(old, "trials=3", f"cache={old / 'cache'}")
    before = artifacts(old / "runs" / "mlflow.db", "fake")
    assert {"best.yaml", "space.yaml", "plan.json"} <= set(before)
    shutil.copytree(old, new)
    there = {path: path.stat().st_mtime_ns for path in old.rglob("*")}

    another_process()
    status.main(["fake", f"storage={new / 'runs'}"])  # only looks
    assert artifacts(new / "runs" / "mlflow.db", "fake") == before
    swept(new, "trials=5", f"cache={new / 'cache'}")
    after = artifacts(new / "runs" / "mlflow.db", "fake")
    assert set(after) == set(before) and after["plan.json"] != before["plan.json"]
    assert numbers(new / "runs" / "fake") == [0, 1, 2, 3, 4]
    assert sorted(runs(f"sqlite:///{new / 'runs' / 'mlflow.db'}", "fake")) == [-1, 0, 1, 2, 3, 4]
    assert {path: path.stat().st_mtime_ns for path in old.rglob("*")} == there, "nothing goes to the old place"

    shutil.rmtree(old)
    newest = new.rename(tmp_path / "newest")
    another_process()
    status.main(["fake", f"storage={newest / 'runs'}"])
    assert artifacts(newest / "runs" / "mlflow.db", "fake") == after
    assert not old.exists() and not new.exists()


def test_going_on_after_a_move_needs_no_look_before(
    tmp_path: Path, tables: bytes, another_process: Callable[[], None]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    spool = begun(old, tables)
    (old / "report.html").write_text("first")
    spool.append(FilesWritten(paths=[str(old / "report.html")]))  # as earlier versions wrote it
    spool.append(TrialStarted(number=0, arm="none", params={}, tags={}, config='{"epochs": 4}'))
    drain(f"sqlite:///{old / 'mlflow.db'}", "again", spool)
    old.rename(new)
    another_process()
    (new / "report.html").write_text("second")
    spool = Spool(SweepFolder(new))
    spool.append(FilesWritten(paths=["report.html"]))
    drain(f"sqlite:///{new / 'mlflow.db'}", "again", spool)
    assert artifacts(new / "mlflow.db", "again") == {"report.html": b"second"}
    assert artifacts(new / "mlflow.db", "again", 0) == {"config.yaml": b"epochs: 4\n"}, "sent before the move"
    assert not old.exists()


def test_a_copied_database_shows_the_artifacts_that_are_there(
    tmp_path: Path, tables: bytes, another_process: Callable[[], None]
) -> None:
    """Alone it shows those at the old place. Beside a copy of the artifacts it shows the copy."""
    old, new = tmp_path / "old", tmp_path / "new"
    spool = begun(old, tables)
    spool.append(TrialStarted(number=0, arm="none", params={}, tags={}, config='{"epochs": 4}'))
    drain(f"sqlite:///{old / 'mlflow.db'}", "copied-file", spool)
    new.mkdir()
    shutil.copy(old / "mlflow.db", new)
    repoint_artifacts(new / "mlflow.db")
    assert artifacts(new / "mlflow.db", "copied-file", 0) == {"config.yaml": b"epochs: 4\n"}

    shutil.copytree(old / "mlartifacts", new / "mlartifacts")
    repoint_artifacts(new / "mlflow.db")
    shutil.rmtree(old)
    another_process()
    assert artifacts(new / "mlflow.db", "copied-file", 0) == {"config.yaml": b"epochs: 4\n"}


def test_the_command_that_continues_leads_to_the_new_place(tmp_path: Path) -> None:
    cache, old = f"cache={tmp_path}", tmp_path / "old" / "runs"
    make(old / "fake", words=[f"space={tmp_path}/fake.yaml", f"storage={old}", cache, "tracking=http://h"])
    (tmp_path / "old").rename(tmp_path / "new")
    folder = tmp_path / "new" / "runs" / "fake"
    resolved = f"space={folder}/space.yaml name=fake storage={folder.parent} cache={tmp_path} tracking=http://h"
    assert continue_command(read_sweep(SweepFolder(folder))) == f"python -m sweep.run {resolved}"


# --- the file alone ---


def made(path: Path, place: str, name: str = "fake") -> Path:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT, artifact_location TEXT)")
        connection.execute("CREATE TABLE runs (run_uuid TEXT, experiment_id INTEGER, artifact_uri TEXT)")
        connection.execute("INSERT INTO experiments VALUES (1, ?, ?)", (name, place))
        connection.execute("INSERT INTO runs VALUES ('a', 1, ?)", (f"{place}/a/artifacts",))
    connection.close()
    return path


def places(path: Path) -> tuple[str, str]:
    with sqlite3.connect(path) as connection:
        joined = "SELECT artifact_location, artifact_uri FROM experiments JOIN runs USING (experiment_id)"
        (row,) = connection.execute(joined).fetchall()
    connection.close()
    return row[0], row[1]


def test_what_is_elsewhere_on_purpose_stays_there(tmp_path: Path) -> None:
    for index, place in enumerate(["s3://bucket/mlartifacts/other", f"file://{tmp_path}/mine", "mlflow-artifacts:/x"]):
        file = made(tmp_path / f"{index}.db", place)
        repoint_artifacts(file)
        assert places(file) == (place, f"{place}/a/artifacts")
    (tmp_path / "far" / "mlartifacts" / "fake").mkdir(parents=True)  # the file alone was copied
    place = (tmp_path / "far" / "mlartifacts" / "fake").as_uri()
    repoint_artifacts(file := made(tmp_path / "alone.db", place))
    assert places(file) == (place, f"{place}/a/artifacts")


def test_a_storage_reached_by_a_link_has_not_moved(tmp_path: Path) -> None:
    (tmp_path / "real" / "mlartifacts" / "fake").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    place = (tmp_path / "link" / "mlartifacts" / "fake").as_uri()
    made(tmp_path / "real" / "mlflow.db", place)
    repoint_artifacts(tmp_path / "real" / "mlflow.db")
    assert places(tmp_path / "real" / "mlflow.db")[0] == place


def test_an_older_file_is_told_what_it_lacks(tmp_path: Path, tables: bytes) -> None:
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x"))
    spool.append(TrialStarted(number=0, arm="none", params={}, tags={}))
    spool.append(TrialEnded(number=0, state="complete", error=""))
    (tmp_path / "mlflow.db").write_bytes(tables)
    address, size = f"sqlite:///{tmp_path / 'mlflow.db'}", spool.path.stat().st_size
    (tmp_path / "spool.sent").write_text(f"{size} {fingerprint([address, size])}\n")  # as of the newer file
    drain(address, "older", spool)
    assert runs(address, "older")[0].info.status == "FINISHED"


@pytest.mark.parametrize("offset", ["7", "999999", "-1", "x", ""])
def test_an_offset_that_cannot_be_is_none(tmp_path: Path, offset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tracker, "_work", lambda self: None)
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x"))
    number = int(offset) if offset.lstrip("-").isdecimal() else 0
    (tmp_path / "spool.sent").write_text(f"{offset} {fingerprint(['http://h', number])}\n")
    tracker = Tracker("http://h", "name", "x", spool, tmp_path)
    tracker.start()
    assert tracker.close(1) == 1
