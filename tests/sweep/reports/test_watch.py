"""What a driver shows of its sweep while it runs: the status file, and tables and report at intervals."""

from __future__ import annotations

import io
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml

from mmpkd.config import CohortConfig
from sweep import driver, patience
from sweep.driver_status import MAX_TRIALS, DriverStatus, read_status, this_driver
from sweep.interim import main
from sweep.reports import watch as watching
from sweep.reports.progress import TimeLeft
from sweep.reports.results import snapshot_of, write_results
from sweep.reports.watch import ResultsWriter, Watch
from sweep.search.searcher import Search
from sweep.storage.events import EpochEnded, Spool, SweepBegan, SweepSummarized
from sweep.storage.layout import SweepFolder
from sweep.tracking.mlflow import COUNTED_BYTES, Tracker
from sweep.types import Placement
from tests.sweep.fake import play, report
from tests.sweep.swept import events, swept

COHORT = CohortConfig(reader="synthetic")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent to MLflow, and nothing waits for an interval."""
    monkeypatch.setattr(Tracker, "start", lambda self: None)
    monkeypatch.setattr(Tracker, "close", lambda self, seconds: 0)
    monkeypatch.setattr(watching, "STATUS_SECONDS", 0.0)
    monkeypatch.setattr(watching, "RESULTS_SECONDS", 0.0)
    monkeypatch.setattr(watching, "RESULTS_SHARE", 1.0)


def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drive: Callable[[Search, Watch], None]) -> SweepFolder:
    """Runs a driver whose trials are run by `drive`, without Ray."""

    def run_trials(search: Search, *rest: Any) -> None:
        search.max_running, search._wait = 3, True
        (watch,) = (argument for argument in rest if isinstance(argument, Watch))
        drive(search, watch)

    monkeypatch.setattr(driver, "run_trials", run_trials)
    swept(tmp_path, play=None)
    return SweepFolder(tmp_path / "runs" / "fake")


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (seen := what()):
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.05)
    return seen


def begin(search: Search, trial_id: str, epochs: int = 0) -> None:
    """Hands out a trial, which reports some epochs."""
    job = search.suggest(trial_id)
    for epoch in range(1, epochs + 1):
        search.on_trial_result(trial_id, {"reports": [report(job, epoch)]})


# --- tables, best.yaml and report ---


def test_tables_and_report_appear_while_a_sweep_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SweepFolder(tmp_path / "runs" / "fake")

    def drive(search: Search, watch: Watch) -> None:
        for trial_id in "abc":
            play(search, trial_id, search.suggest(trial_id))
        begin(search, "d", epochs=2)
        watch.tick()
        wait_for(folder.report.exists)
        assert "still running: 3 of 8 trials have ended, as of 20" in folder.report.read_text()
        assert pd.read_parquet(folder.trials)["number"].tolist() == [0, 1, 2]
        assert len(pd.read_parquet(folder.epochs)) == 3 * 4 + 2
        assert "optimizer" in yaml.safe_load(folder.best.read_text())
        status = wait_for(lambda: (seen := read_status(folder)) and seen.results and seen)
        watch.tick()
        (summary,) = events(folder.path, SweepSummarized)
        assert summary.ended == 3 and "3 trials have ended (3 complete, 5 to go)" in summary.description
        assert "python -m sweep.run" in summary.description and summary.metrics["best/val/auroc"] and summary.marks
        assert not status.trouble and status.ended == 3 and status.remaining == 5
        search.release_running()

    watched(tmp_path, monkeypatch, drive)
    assert "still running" not in folder.report.read_text(), "the driver writes the results when it ends"
    assert len(events(folder.path, SweepSummarized)) == 2


def test_a_summary_is_recorded_where_the_best_or_a_tenth_of_the_trials_is_new() -> None:
    before = SweepSummarized(20, "20", {"best/val/auroc": 0.9, "device_hours": 1.0}, {"3": {"front": "yes"}})
    assert before.is_news(None)
    assert not SweepSummarized(22, "22", {**before.metrics, "device_hours": 2.0}, before.marks).is_news(before)
    assert SweepSummarized(23, "23", before.metrics, before.marks).is_news(before)
    assert SweepSummarized(21, "21", {**before.metrics, "best/val/auroc": 0.91}, before.marks).is_news(before)
    assert SweepSummarized(21, "21", before.metrics, {"20": {"front": "yes"}}).is_news(before)


def test_nothing_is_written_again_where_nothing_has_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[Any] = []

    def drive(search: Search, watch: Watch) -> None:
        monkeypatch.setattr(watch._writer, "write", copies.append)
        watch.tick()
        assert not copies, "no trial has reported"
        play(search, "a", search.suggest("a"))
        watch.tick()
        watch.tick()
        assert len(copies) == 1
        watch._writer.trouble = "the disk is full"
        watch.tick()

    watched(tmp_path, monkeypatch, drive)
    assert [len(copy.records) for copy in copies] == [1, 1], "what failed is tried again"


def test_a_reader_never_sees_a_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drive(search: Search, watch: Watch) -> None:
        for trial_id in "abc":
            play(search, trial_id, search.suggest(trial_id))
        snapshot = snapshot_of(search, search.goals, folder, COHORT)
        write_results(snapshot)
        writing = threading.Thread(target=lambda: [write_results(snapshot, running=True) for _ in range(4)])
        writing.start()
        reads = 0
        while writing.is_alive():
            assert len(pd.read_parquet(folder.trials)) == 3 and len(pd.read_parquet(folder.epochs)) == 12
            assert folder.report.read_text().endswith("</html>\n") and yaml.safe_load(folder.best.read_text())
            reads += 1
        assert reads > 3

    folder = SweepFolder(tmp_path / "runs" / "fake")
    watched(tmp_path, monkeypatch, drive)


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A copy of the records of a sweep with one complete trial, and none of its results."""
    copies: list[Any] = []

    def drive(search: Search, watch: Watch) -> None:
        monkeypatch.setattr(watch._writer, "write", copies.append)
        play(search, "a", search.suggest("a"))
        watch.tick()

    folder = watched(tmp_path, monkeypatch, drive)
    for path in (folder.trials, folder.epochs, folder.report, folder.best):
        path.unlink()
    return copies[0]


def test_a_failed_write_is_a_line_and_is_tried_again(copied: Any) -> None:
    folder, writer = copied.folder, ResultsWriter()
    folder.trials.mkdir()  # nobody can replace a folder by a file
    writer.write(copied)
    writer.step()
    wait_for(lambda: writer.step() or writer.trouble)
    assert writer.trouble == f"{folder.trials} cannot be written (Is a directory)" and writer.written is None
    folder.trials.rmdir()
    wait_for(lambda: writer.is_due)
    writer.write(copied)
    wait_for(lambda: writer.step() or writer.written)
    assert writer.written == copied.time and writer._cpu_seconds > 0 and not writer.trouble and folder.report.exists()


def test_the_warning_is_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []

    def drive(search: Search, watch: Watch) -> None:
        for trouble in ("the disk is full", "the disk is full", ""):
            watch._writer.trouble = trouble
            watch.tick()
            warnings.extend(search.take_warnings())

    watched(tmp_path, monkeypatch, drive)
    assert warnings == ["tables and report were not written: the disk is full; tried again every 0 min"]


def test_the_interval_grows_with_the_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "RESULTS_SECONDS", 600.0)
    monkeypatch.setattr(watching, "RESULTS_SHARE", 0.02)
    writer = ResultsWriter()
    assert writer.interval == 600 and not writer.is_due
    writer._cpu_seconds = 60.0  # 2 % of 50 minutes
    assert writer.interval == pytest.approx(3000)


def write_in_this_process(driver_process: int, content: Any, patch: pytest.MonkeyPatch) -> None:
    """Runs the command of the process that writes results, without starting Python once more."""
    patch.setattr(os, "nice", lambda increment: 0)
    patch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pickle.dumps(content))))
    main(driver_process)


def test_a_process_without_its_driver_writes_nothing(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"^the driver has ended$"):
        write_in_this_process(1, copied, monkeypatch)
    assert not copied.folder.trials.exists()
    write_in_this_process(os.getppid(), copied, monkeypatch)
    assert copied.folder.trials.exists()


def test_the_text_of_a_bug_is_not_shown_to_all_who_see_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"^AttributeError, a bug in this program$"):
        write_in_this_process(os.getppid(), "row of a patient", monkeypatch)


# --- the status file ---


def test_the_status_while_trials_run_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SweepFolder(tmp_path / "runs" / "fake")
    seen: list[DriverStatus] = []

    def drive(search: Search, watch: Watch) -> None:
        search.devices = 0.5
        play(search, "a", search.suggest("a"))
        begin(search, "b", epochs=1)
        begin(search, "c")
        search.running["b"].last_sign -= 100
        search.placement = Placement(running=1, starting=1, waiting=3)
        watch.tick()
        seen.append(wait_for(lambda: (status := read_status(folder)) and status.trials and status))
        search.release_running()

    began = time.time()
    watched(tmp_path, monkeypatch, drive)
    (status,), end = seen, read_status(folder)
    assert end is not None
    assert status.driver == this_driver() and began <= status.began <= status.time <= time.time()
    assert (status.phase, status.ended, status.remaining) == ("training", 1, 7)
    assert (status.running, status.starting, status.waiting) == (1, 1, 3), "as Tune's loop has placed them"
    assert [(trial.number, trial.epoch, trial.epochs) for trial in status.trials] == [(1, 1, 4), (2, 0, 4)]
    assert 99 < status.time - status.trials[0].last_sign < 130
    assert status.device_hours == pytest.approx(5 * 0.5 * 0.5 / 3600) == pytest.approx(sum(status.arms.values()))
    assert set(status.arms) == {"none", "tabular"} and status.unsent > 0
    assert (end.phase, end.running, list(end.trials)) == ("ended", 0, []) and not end.is_alive


def test_only_the_oldest_of_many_trials_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drive(search: Search, watch: Watch) -> None:
        begin(search, "a")
        search.running |= {str(index): search.running["a"] for index in range(MAX_TRIALS)}
        watch.tick()
        assert len(watch._status.trials) == MAX_TRIALS
        search.running.clear()

    watched(tmp_path, monkeypatch, drive)


def test_the_end_is_expected_by_pace_budget_or_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drive(search: Search, watch: Watch) -> None:
        now = watch._status.began + 100
        assert watch._expectation(now) == {"expected_end": None, "expected_by": ""}
        watch._time_left = lambda: TimeLeft(900.0, 600.0, 1200.0, "by the price")
        assert watch._expectation(now) == {"expected_end": now + 900, "expected_by": "by the price"}
        search.state.ledger.spend("none", 360.0)  # in 100 s
        search.space.search.__dict__["budget_device_hours"] = 0.2  # 720 s, of which half is spent
        expected = watch._expectation(now)
        assert expected == {"expected_end": pytest.approx(now + 100), "expected_by": "when its budget is spent"}

    watched(tmp_path, monkeypatch, drive)


def test_a_status_that_cannot_be_written_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SweepFolder(tmp_path / "runs" / "fake")

    def drive(search: Search, watch: Watch) -> None:
        folder.status.mkdir()
        watch._write()
        assert watch._written_status is None
        folder.status.rmdir()
        wait_for(folder.status.is_file)

    monkeypatch.setattr(watching, "STATUS_SECONDS", 0.5)
    watched(tmp_path, monkeypatch, drive)


def test_what_is_waited_for_is_in_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SweepFolder(tmp_path / "runs" / "fake")

    def drive(search: Search, watch: Watch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(patience._patience, "problem", "the disk is away")
            watch._tracker.trouble = "ConnectionError: refused"
            watch._write()
        status = read_status(folder)
        assert status is not None
        assert status.trouble == {"storage": "the disk is away", "tracking": "ConnectionError: refused"}

    watched(tmp_path, monkeypatch, drive)


def test_a_status_from_elsewhere_is_read_or_ignored(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    assert read_status(folder) is None
    folder.status.write_text('{"driver": "process 7 on x", "began": 1, "time": 2, "later": "unknown"}')
    assert read_status(folder) == DriverStatus("process 7 on x", 1, 2)
    for text in ("{", '{"driver": "process 7 on x"}', '{"driver": "x", "began": 1, "time": "soon"}', "[]"):
        folder.status.write_text(text)
        assert read_status(folder) is None


def test_the_lag_of_tracking(tmp_path: Path) -> None:
    spool = Spool(SweepFolder(tmp_path))
    tracker = Tracker("http://127.0.0.1:1", "away", "x", spool, tmp_path)
    assert tracker.lag() == (0, None)
    spool.append(SweepBegan(id="x"))
    first, event = next(spool.read())
    tracker._sent = first
    for number in range(3):
        spool.append(EpochEnded(number=number, arm="none", epoch=1, seconds=1.0, metrics={}, terms={}))
    count, oldest = tracker.lag()
    assert count == 3 and oldest is not None and event.time <= oldest <= time.time()
    with spool.path.open("ab") as file:
        file.write(spool.path.read_bytes()[first:] * (2 * COUNTED_BYTES // (spool.path.stat().st_size - first)))
    size = spool.path.stat().st_size - first
    assert tracker.lag()[0] == pytest.approx(spool.path.read_bytes()[first:].count(b"\n"), rel=0.01)
    assert size > COUNTED_BYTES, "or all lines were counted"
