"""A trial's checkpoints: written to the disk of the node first, and copied to the sweep's storage from time to time.

On one machine, a training writes straight into the sweep's folder, and nothing is copied.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from sweep.storage.layout import CHECKPOINT
from sweep.transfer.addresses import Place
from sweep.transfer.attempts import attempts_in, attempts_in_order, next_attempt

# Seconds between two copies of a trial's checkpoint. A lost node takes with it what its trials have trained since their
# last copy: at most these seconds, the seconds between two checkpoints on its disk, an epoch, and the time of a copy.
COPY_SECONDS: Final = 300.0
CHECK_SECONDS: Final = 1.0  # seconds between two looks at the disk of the node
LONGEST_PAUSE: Final = 60.0  # seconds between two tries while the storage is away
FINISH_SECONDS: Final = 120.0  # time for which the last copy of a complete trial is tried
STOP_SECONDS: Final = 8.0  # time in which a trial that is stopped may send its last checkpoint
FETCHED: Final = "fetched"  # folder of the copies from an object store, beside the attempts on this machine
CLAIM: Final = "claim"  # an object that shows that an attempt has begun


class Checkpoints:
    """The checkpoints of the trials of a sweep, as a worker reads and writes them.

    Args:
        storage: the folder with the checkpoints of all trials in the sweep's storage.
        nearby: the folder for them on the disk of this machine. If None, trainings write to `storage`, which then is on
            a disk.
    """

    def __init__(self, storage: Place, nearby: Path | None = None):
        assert nearby is not None or storage.is_local, "a training cannot write to an object store"
        self._storage, self._nearby = storage, nearby

    def saved(self, number: int) -> list[Path]:
        """Returns the last checkpoint of each attempt at a trial, oldest attempt first: the copy in the storage, then
        the file on the disk of this machine. A copy in an object store is first copied to the disk.

        Raises:
            OSError: the storage cannot be read.
        """
        trial, paths = self._storage.child(str(number)), []
        for attempt in attempts_in_order(trial.names()):
            copy = trial.child(attempt)
            if copy.is_local:
                paths.append(copy.local_path / CHECKPOINT)
            elif self._nearby and CHECKPOINT in copy.names():
                paths.append(self._nearby / str(number) / FETCHED / attempt / CHECKPOINT)
                copy.download(CHECKPOINT, paths[-1])
            if self._nearby:
                paths.append(self._nearby / str(number) / attempt / CHECKPOINT)
        return [path for path in paths if path.exists()]

    def begin(self, number: int) -> Attempt:
        """Begins an attempt at a trial, in a new folder of its own.

        Only this attempt writes there, and folders of earlier attempts are only read. The orphaned worker of a dead
        driver therefore cannot overwrite checkpoints of the worker that took over its trial.

        Raises:
            OSError: the storage cannot be written.
        """
        trial = self._storage.child(str(number))
        copy = _claim_folder(trial.local_path) if trial.is_local else _claim_object(trial)
        if self._nearby is None:
            return Attempt(copy.local_path)
        self._remove_ended(number)
        folder = self._nearby / str(number) / copy.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return Attempt(folder, copy)

    def _remove_ended(self, number: int) -> None:
        """Removes the checkpoints on this machine of trials that have none in the storage, because they have ended."""
        assert self._nearby is not None
        for path in self._nearby.iterdir() if self._nearby.is_dir() else ():
            if path.name != str(number) and not self._storage.child(path.name).exists():
                shutil.rmtree(path, ignore_errors=True)


def _claim_folder(trial: Path) -> Place:
    """Makes the folder of a new attempt. Only one worker can make a folder of this name."""
    trial.parent.mkdir(exist_ok=True)  # without its parents, which are missing if the disk is not mounted
    trial.mkdir(exist_ok=True)
    while True:
        folder = trial / next_attempt([path.name for path in trial.iterdir()])
        with suppress(FileExistsError):
            folder.mkdir()
            return Place("", str(folder))


def _claim_object(trial: Place) -> Place:
    """Claims a new attempt in an object store, where two workers may write the same name: its name is unique."""
    attempt = trial.child(next_attempt(trial.names(), unique=True))
    attempt.child(CLAIM).write_bytes(b"")
    return attempt


class Attempt:
    """One attempt at a trial. A training writes its files to `folder`, and a thread copies them.

    Args:
        target: where the files are copied; None if `folder` itself is in the storage.
    """

    def __init__(self, folder: Path, target: Place | None = None):
        self.folder, self._target = folder, target
        self._sent: dict[str, tuple[int, int]] = {}  # time of change and size of each file when it was copied
        self._sent_at = time.monotonic() - COPY_SECONDS  # the first checkpoint is copied at once
        self._wanted, self._closed = threading.Event(), threading.Event()
        self._is_over = False  # the driver has removed the checkpoints of the trial
        self._sending = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="copies of checkpoints", daemon=True)
        self.trouble = ""  # why the last copy failed
        if target is not None:
            self._thread.start()

    def send(self) -> None:
        """Asks for a copy of the newest checkpoint, and returns at once."""
        self._wanted.set()

    def finish(self, seconds: float = FINISH_SECONDS) -> None:
        """Waits until all files have been copied.

        Raises:
            OSError: they could not be copied within `seconds`.
        """
        deadline, pause = time.monotonic() + seconds, CHECK_SECONDS
        while True:
            try:
                return self._send()
            except OSError:
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def close(self, ended: bool) -> None:
        """Ends the copying.

        Args:
            ended: whether the trial has ended. Its files on this machine are then removed. Otherwise the newest
                checkpoint is copied, for STOP_SECONDS at most, and stays here as well, for a worker of this machine
                that continues the trial.
        """
        if self._target is None:
            return
        self._closed.set()
        if ended:
            self._thread.join(STOP_SECONDS)  # a copy that is under way
            trial = self.folder.parent
            attempts = attempts_in(trial)
            earlier = attempts[: attempts.index(self.folder)] if self.folder in attempts else []
            for path in (trial / FETCHED, *earlier, self.folder):
                shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                self.finish(STOP_SECONDS)

    def _work(self) -> None:
        pause = CHECK_SECONDS
        while not self._closed.wait(pause) and not self._is_over:
            if not self._wanted.is_set() and time.monotonic() < self._sent_at + COPY_SECONDS:
                continue
            try:
                self._send()
                self._wanted.clear()
                pause = CHECK_SECONDS
            except OSError as error:  # it is tried again for as long as the trial runs
                self.trouble = error.strerror or str(error)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _send(self) -> None:
        """Copies the files that have changed since they were copied last.

        Raises:
            OSError: the storage cannot be written.
        """
        if self._target is None:
            return
        with self._sending:
            for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
                if path.suffix == ".partial" or path.name.startswith(".") or self._sent.get(path.name) == _stamp(path):
                    continue
                if self._target.is_local and not self._target.exists():
                    # Otherwise the whole storage is away. If it has just come back, the attempt is there again.
                    is_there = self._target.local_path.parents[1].exists()
                    self._is_over = is_there and not self._target.exists()
                    if self._is_over:
                        return
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._target))
                # The training may replace the file at any time; the link keeps its present content.
                link = path.with_name(f".{path.name}.sent")
                link.unlink(missing_ok=True)
                try:
                    os.link(path, link)
                except OSError:  # a disk without links
                    shutil.copy2(path, link)
                stamp = _stamp(link)
                self._target.upload(link, path.name)
                link.unlink()
                self._sent[path.name], self._sent_at = stamp, time.monotonic()


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
