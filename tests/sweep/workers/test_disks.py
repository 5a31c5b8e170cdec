"""Workers whose disks are away: trials are handed back, workers pause and look whether the disk is back."""

from __future__ import annotations

import errno
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmpkd.types import UserError
from sweep.storage import failures
from sweep.storage.failures import StorageTrouble
from sweep.workers import node_disk
from tests.patched import patch_within
from tests.sweep.fake import FAKE_TRAINING
from tests.sweep.workers.test_worker import epochs_of, job, training_threads, worker_for


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of workers, which take no time."""
    seconds: list[float] = []
    patch_within(monkeypatch, node_disk, time, sleep=seconds.append)
    return seconds


def failing(*attempts: str) -> Any:
    """Returns trainings that find a full disk in some attempts."""

    def run(job: Any, folder: Path, *more: Any) -> None:
        if folder.name in attempts:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "last.pt"))
        FAKE_TRAINING.run(job, folder, *more)

    return replace(FAKE_TRAINING, run=run)


def test_a_trial_is_handed_back_and_the_next_one_waits_for_the_disk(tmp_path: Path, pauses: list[float]) -> None:
    worker = worker_for(job(tmp_path), failing("attempt-1", "attempt-2"))
    for _ in range(2):
        result = worker.step()
        assert result["done"] and result["cause"] == "storage" and "No space left" in result["error"]
        assert training_threads() == 0
    assert epochs_of(worker.step()) == [1]
    assert pauses == [1, 2], "before the second and the third attempt"
    assert epochs_of(worker.step()) == [2] and len(pauses) == 2, "within a training nothing is waited for"
    worker.cleanup()


def test_a_worker_takes_no_trial_before_it_can_write(
    tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(options["dir"]))

    worker = worker_for(job(tmp_path), failing("attempt-1"))
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", refuse)
        results = [worker.step() for _ in range(9)]
    assert {result["cause"] for result in results} == {"storage"}
    assert "Read-only file system" in results[-1]["error"]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert [path.name for path in (tmp_path / "checkpoints" / "0").iterdir()] == ["attempt-1"]
    assert epochs_of(worker.step()) == [1]
    worker.cleanup()


def test_a_pause_has_an_end_after_days(pauses: list[float]) -> None:
    disks = node_disk.WorkerDisks()
    for _ in range(2000):
        disks.note_failure()
        disks.pause()
    assert pauses[-1] == 60


def test_a_folder_whose_disk_is_not_mounted_is_not_begun_on_the_disk_below(tmp_path: Path) -> None:
    worker = worker_for(job(tmp_path / "shared" / "runs" / "fake"))
    result = worker.step()
    assert result["cause"] == "storage" and "No such file or directory" in result["error"]
    assert list(tmp_path.iterdir()) == []


# --- what the driver makes of it ---


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 1000.0
        patch_within(monkeypatch, failures, time, monotonic=lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_each_node_is_named_when_its_trouble_begins_and_ends(clock: Clock) -> None:
    trouble = StorageTrouble(math.inf)
    assert trouble.note_report("a") == []
    assert trouble.add("b", "last.pt: full, in a worker") == [
        "last.pt: full, in a worker on b; its trials are continued elsewhere, or there once it can be used again"
    ]
    clock.now += 60
    assert trouble.add("b", "last.pt: full, in a worker") == trouble.note_report("a") == []
    clock.now += 120
    assert trouble.note_report("b") == ["b trains again, after 3 min"]
    assert len(trouble.add("b", "full")) == 1


@pytest.mark.parametrize("has_reported", [False, True])
def test_trouble_of_all_workers_ends_after_the_patience(has_reported: bool, clock: Clock) -> None:
    """Before any report the folder is probably not shared, which is noticed sooner."""
    trouble, allowed = StorageTrouble(7200), 7200 if has_reported else failures.START_SECONDS
    if has_reported:
        trouble.note_report("a")
    trouble.add("a", "away")
    clock.now += allowed - 1
    trouble.add("b", "away")
    clock.now += 1
    with pytest.raises(UserError, match="away"):
        trouble.add("a", "away")


def test_a_long_first_epoch_elsewhere_outlasts_a_node_without_the_folder(clock: Clock) -> None:
    """The first epoch of a healthy node waits for teachers. Trials without a worker are silent for as long."""
    trouble, begun = StorageTrouble(7200), time.time() - failures.START_SECONDS
    trouble.add("b", "away", [begun, begun], num_waiting=1)
    clock.now += failures.START_SECONDS
    assert trouble.add("b", "away", [begun, begun], num_waiting=1) == []
    for last_signs in ([begun], [begun, time.time()]):  # only the waiting one, or a trial that a worker has just got
        with pytest.raises(UserError, match="away"):
            trouble.add("b", "away", last_signs, num_waiting=1)
    clock.now += 7200
    with pytest.raises(UserError, match="away"):
        trouble.add("b", "away", [begun, begun], num_waiting=1)


def test_as_long_as_one_worker_reports_the_others_may_wait_for_ever(clock: Clock) -> None:
    trouble = StorageTrouble(100)
    for _ in range(10):
        trouble.add("a", "away")
        clock.now += 60
        trouble.note_report("b")
