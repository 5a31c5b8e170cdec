"""Whose fault an error is: only those about the sweep's own places are told as such."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayError, WorkerCrashedError

from mmpkd.types import ConfigError, UserError
from sweep.options import read_run_options
from sweep.storage.failures import cause_of, message_of
from sweep.storage.layout import SweepFolder
from sweep.storage.lock import hold_driver_lock
from sweep.workers import pricing
from tests.sweep.fake import FAKE_TRAINING
from tests.sweep.swept import swept, untracked
from tests.sweep.workers.test_worker import job, worker_for

__all__ = ["untracked"]  # a fixture


def denied(path: str) -> OSError:
    return PermissionError(errno.EACCES, "Permission denied", path)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (denied("{folder}/checkpoints/0"), "storage"),
        (FileNotFoundError(errno.ENOENT, "No such file", "{cache}/store/images.npy"), "storage"),
        (OSError(errno.EROFS, "Read-only file system", "/scratch/x"), "storage"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "storage"),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected", "{folder}/checkpoints/0"), "storage"),  # sshfs
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out", "{cache}/store/images.npy"), "storage"),  # a soft mount
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "error"),  # of a socket
        (denied("/home/somebody/.netrc"), "error"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/usr/lib/libcuda.so"), "error"),
        (PermissionError(errno.EPERM, "Operation not permitted"), "error"),  # of a socket or a process
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "error"),
        (OSError("validate_socket_filename failed"), "error"),
        (KeyError("within a library"), "error"),
    ],
)
def test_only_errors_of_the_sweeps_own_places_are_its_storage(tmp_path: Path, error: Exception, cause: str) -> None:
    places = (tmp_path / "runs" / "fake", tmp_path / "cache")
    if isinstance(error, OSError) and error.filename:
        error.filename = error.filename.format(folder=places[0], cache=places[1])
    assert cause_of(error, places) == cause
    assert ("in a worker" in message_of(error, places)) == (cause == "storage")


def test_memory_that_ran_out_is_seen_behind_a_damaged_file(tmp_path: Path) -> None:
    """So that half as many trials are tried at a time, instead of a file deleted."""
    damaged = ConfigError.at("stage.pt", "is not a readable finished stage; delete it")
    damaged.__context__ = MemoryError()
    assert cause_of(damaged, (tmp_path,)) == "memory" and "delete nothing" in message_of(damaged, (tmp_path,))


@pytest.mark.parametrize(
    ("trouble", "passed_over"),
    [(ValueError("torn"), True), (denied("last.pt"), False), (OSError(errno.ESTALE, "Stale file handle"), False)],
)
def test_a_checkpoint_out_of_reach_is_not_passed_over(tmp_path: Path, trouble: Exception, passed_over: bool) -> None:
    """A torn one is: an older attempt's will do. One that may be whole would be trained again without a word."""

    def read_history(checkpoint: Path, owner: str = "") -> Any:
        if checkpoint.parent.name == "attempt-2":
            raise ConfigError.at(str(checkpoint), "is not readable") from trouble
        return []

    for attempt in (1, 2):
        folder = SweepFolder(tmp_path).checkpoints_of(0) / f"attempt-{attempt}"
        folder.mkdir(parents=True)
        (folder / "last.pt").write_text('["its owner", []]')
    worker = worker_for(job(tmp_path), replace(FAKE_TRAINING, read_history=read_history))
    result = worker.step()
    assert ("error" in result) == (not passed_over)
    if not passed_over:
        assert "is not readable" in result["error"]
    worker.cleanup()


@pytest.mark.usefixtures("untracked")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "{folder}/spool.jsonl"), "spool.jsonl: cannot be read or"),
        (OSError(errno.EFBIG, "File too large"), "nothing more can be written (File too large)"),  # ulimit -f
        (OSError(errno.EIO, "Input/output error"), "nothing more can be written"),
        (denied("{folder}/trials.parquet"), "trials.parquet: cannot be read or"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), None),
        (denied("/dev/shm/plasma"), None),
        (OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes"), None),
    ],
)
def test_the_driver_tells_its_own_trouble_from_others(tmp_path: Path, error: OSError, message: str | None) -> None:
    """An OSError of Ray or of a library once read: FOLDER cannot be written any more (None)."""
    if error.filename:
        error.filename = error.filename.format(folder=tmp_path / "runs" / "fake")

    def broken(search: Any) -> None:
        raise error

    with pytest.raises(UserError if message else type(error)) as raised:
        swept(tmp_path, play=broken)
    if message is None:
        assert raised.value is error
    else:
        assert message in str(raised.value) and os.strerror(error.errno or 0) in str(raised.value)
        assert "continue with:\n  python -m sweep.run" in str(raised.value) and raised.value.__cause__ is error


def test_a_worker_that_dies_while_it_is_timed_keeps_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def crashed(references: Any) -> None:
        raise WorkerCrashedError

    monkeypatch.setattr(pricing.ray, "wait", lambda references, num_returns: None)  # Ray would be started for it
    monkeypatch.setattr(pricing.ray, "get", crashed)
    with pytest.raises(UserError, match="could not be timed: WorkerCrashedError") as raised:
        pricing._get([])
    assert isinstance(raised.value.__cause__, RayError)


def test_a_name_that_no_folder_can_have_is_refused(tmp_path: Path) -> None:
    _, (mistake,) = read_run_options([f"storage={tmp_path}", f"name={'n' * 101}"])
    assert mistake.path == "name" and "at most 100" in mistake.problem
    with (
        pytest.raises(UserError, match=r"File name too long.*storage=DIR"),
        hold_driver_lock(SweepFolder(tmp_path / ("s" * 300) / "name")),
    ):
        pass
