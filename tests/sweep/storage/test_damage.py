"""Damages every file in a sweep's folder in every way: a message names it with a remedy, or it is written anew."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from mmpkd.types import UserError
from sweep import status
from sweep.clean import waste_of
from sweep.options import read_run_options
from sweep.reports import results
from sweep.reports.details import as_json
from sweep.reports.final import print_tracking
from sweep.storage.events import Spool, SweepBegan, TrialEnded, read_events
from sweep.storage.failures import failure_of
from sweep.storage.layout import SweepFolder
from sweep.storage.reader import read_sweep
from sweep.tracking.mlflow import Tracker
from tests.damage import BINARY, FOLDER, TEXT, harm
from tests.sweep.swept import Killed, dead, dies, left, swept, untracked
from tests.sweep.workers.test_worker import epochs_of, job, worker_for

__all__ = ["dead", "left", "untracked"]  # fixtures

WORDS = ("trials=8", "search.warm_start=taught")
LINES = ("journal.log", "spool.jsonl", "space.yaml", "plan.json", "warm.json", "spool.sent", "driver.lock")
RESULTS = ("best.yaml", "trials.parquet", "epochs.parquet", "report.html")
RECORDS = (*RESULTS, "errors/0.txt", "stop", "journal.log.lock", "status.json")
ACTIONS = ("delete it", "move it away", "repair=true", "name another folder")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep below `runs`, with every kind of file that a sweep can leave."""
    tmp_path = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "write_report", lambda folder, *args: folder.report.write_text("<p>report</p>\n" * 9))
        patch.setattr(Tracker, "start", lambda self: None)
        patch.setattr(Tracker, "close", lambda self, seconds: 0)
        swept(tmp_path, "trials=3", "name=taught")
        with pytest.raises(Killed):
            swept(tmp_path, *WORDS, play=dies)
        swept(tmp_path, *WORDS)
    folder = tmp_path / "runs" / "fake"
    (folder / "errors").mkdir()
    (folder / "errors" / "0.txt").write_text("error: ValueError: a bug\n\nTraceback\n" * 4)
    (folder / "spool.sent").write_text("99 0123456789abcdef\n")
    (folder / "stop").write_text("x\n" * 40)
    (folder / "journal.log.lock").write_text("x\n" * 40)
    return tmp_path / "runs"


def unharmed(folder: Path) -> dict[str, Any]:
    """Returns what no damage may change silently."""
    trials = pd.read_parquet(folder / "trials.parquet").to_json()
    epochs = pd.read_parquet(folder / "epochs.parquet").to_json()
    return {"trials": trials, "epochs": epochs, "best": (folder / "best.yaml").read_text()}


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.parametrize("name", [*LINES, *RECORDS])
def test_a_damaged_file_is_named_or_written_anew(done: Path, tmp_path: Path, name: str, kind: str) -> None:
    if name in RECORDS and kind not in ("a byte in the middle", "emptied", FOLDER):
        pytest.skip("nothing of it is read")
    shutil.copytree(done, tmp_path / "runs")
    folder = tmp_path / "runs" / "fake"
    before = unharmed(folder)
    harm(folder / name, kind)

    try:  # seen from outside
        seen = as_json(read_sweep(SweepFolder(folder)))
        waste_of(read_sweep(SweepFolder(folder)))
        assert seen["complete"] == 8 or name in str(read_sweep(SweepFolder(folder)).damaged) or name == "spool.jsonl"
    except UserError as error:
        assert f"{folder / name}: " in str(error)
    try:
        _, text = swept(tmp_path, *WORDS)
    except UserError as error:
        assert f"{folder / name}" in str(error) and any(action in str(error) for action in ACTIONS)
        assert name not in RECORDS or kind == FOLDER, "a file that is only a record stops no sweep"
        return
    after = unharmed(folder)
    if f"{folder / name}: line" in text and "lost" in text:
        after["epochs"] = before["epochs"] = ""  # an epoch that the spool has lost
    assert after == before


def test_the_command_in_the_message_continues_the_sweep(done: Path, tmp_path: Path) -> None:
    """It continues without what is lost, if anything is lost."""
    for index, kind in enumerate(TEXT):
        if kind == FOLDER:
            continue
        place = tmp_path / str(index)
        shutil.copytree(done, place / "runs")
        folder = place / "runs" / "fake"
        before = unharmed(folder)
        harm(folder / "journal.log", kind)
        with pytest.raises(UserError) as error:
            swept(place, *WORDS)
        output = str(error.value)
        assert f"{folder / 'journal.log'}: line " in output or "journal.log is older" in output, (kind, output)
        _, text = swept(place, *WORDS, "repair=true")
        if kind in ("joined lines", "a blank line"):
            assert "nothing is lost" in text and unharmed(folder) == before
        else:
            assert (folder / "before-repair-1" / "journal.log").exists()
            assert "lost" in text or "it does not know trials" in text
            assert len(pd.read_parquet(folder / "trials.parquet")) == 8, "as many as trials= asks for"
        lines = [line for line in swept(place, *WORDS)[1].splitlines() if "warning" in line]
        assert not [line for line in lines if "standard error" not in line], "the warning appears once"


@pytest.mark.parametrize("change", ["removed", "doubled", "swapped"])
def test_a_missing_or_moved_line_is_detected(done: Path, tmp_path: Path, change: str) -> None:
    shutil.copytree(done, tmp_path / "runs")
    journal = tmp_path / "runs" / "fake" / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    at = len(lines) // 2
    line, other = lines[at : at + 2]
    part = {"removed": [], "doubled": [line, line], "swapped": [other, line]}[change]
    journal.write_bytes(b"".join([*lines[:at], *part, *lines[at + 1 + (change == "swapped") :]]))
    with pytest.raises(
        UserError, match=rf"journal.log: line {at + 1 + (change == 'doubled')} \(byte \d+\) is not what"
    ):
        swept(tmp_path, *WORDS)


# --- readers that have no sweep ---


def test_whole_events_are_read_although_lines_of_the_spool_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "spool.jsonl"
    spool = Spool(SweepFolder(tmp_path))
    for number in range(5):
        spool.append(TrialEnded(number=number, state="complete", error=""))
    lines = path.read_bytes().splitlines(keepends=True)
    other = lines[1].replace(b'"number": 1', b'"number": 7')
    path.write_bytes(lines[0].rstrip() + other + b"\0\0" + lines[2] + b"\n" + b"{}\n" + lines[3][:9] + b"\n" + lines[4])
    damaged: list[str] = []
    events = list(read_events(path, damaged=damaged))
    assert [event.number for _, event in events if isinstance(event, TrialEnded)] == [0, 2, 4]
    assert [where.partition(" (")[0] for where in damaged] == ["line 1", "line 4", "line 5"]
    assert [event.number for _, event in read_events(path, events[1][0]) if isinstance(event, TrialEnded)] == [4]


@pytest.mark.parametrize("kind", BINARY)
def test_a_damaged_checkpoint_is_reported_and_its_epochs_are_trained_again(tmp_path: Path, kind: str) -> None:
    first = worker_for(job(tmp_path))
    first.step()
    first.cleanup()
    checkpoint = tmp_path / "checkpoints/0/attempt-1/last.pt"
    if kind.startswith("a byte") or kind == "NUL bytes":
        pytest.skip("of torch's files, see tests/mmpkd/machine/test_damaged_files.py")
    harm(checkpoint, kind)
    worker = worker_for(job(tmp_path))
    result = worker.step()
    assert epochs_of(result) == [1] and f"{checkpoint}: is damaged" in result["notes"][0]
    worker.cleanup()


def test_an_error_file_with_invalid_bytes_is_read_anyway(tmp_path: Path) -> None:
    SweepFolder(tmp_path).error(0).parent.mkdir()
    SweepFolder(tmp_path).error(0).write_bytes(b"error: Val\xffueError: a bug\n\nTraceback")
    assert failure_of(SweepFolder(tmp_path), 0, {}) == ("error", "Val�ueError: a bug")


def test_status_reports_skipped_lines(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(done / "fake", tmp_path / "runs" / "fake")
    harm(tmp_path / "runs" / "fake" / "spool.jsonl", "NUL bytes")
    status.main(["fake", f"storage={tmp_path / 'runs'}"])
    output = capsys.readouterr().out
    assert f"warning: {tmp_path}/runs/fake/spool.jsonl: line " in output and "is damaged and skipped" in output


@pytest.mark.parametrize("kind", ["a byte near its beginning", "NUL bytes", FOLDER])
def test_a_damaged_mlflow_file_stops_no_sweep(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()  # the trackers of this test do send
    database = tmp_path / "mlflow.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE experiments (x)")
    connection.close()
    database.write_bytes(database.read_bytes()[:100])
    harm(database, kind)
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x"))
    tracker = Tracker(f"sqlite:///{database}", "damaged", "x", spool, tmp_path)
    tracker.start()
    for _ in range(600):
        if tracker.trouble:
            break
        time.sleep(0.1)
    assert tracker.close(0.1) == 1 and tracker.trouble
    options, _ = read_run_options([f"tracking=sqlite:///{database}", f"storage={tmp_path}"])
    console = Console(file=io.StringIO(), width=200)
    print_tracking(1, tracker, options, console)
    assert f"mv {database} {database}.damaged" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_plan_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """It carries no checksum."""
    SweepFolder(tmp_path).write_plan({"space": "a", "goals": ["val/auroc"]})
    content = json.loads((tmp_path / "plan.json").read_text())
    del content["crc"]
    (tmp_path / "plan.json").write_text(json.dumps(content))
    assert read_sweep(SweepFolder(tmp_path)).plan == content
