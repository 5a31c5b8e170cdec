"""Waits while the disk of a sweep's folder is full, read-only or away, and then tries again what has failed.

Whatever a driver reads or writes in the sweep's folder goes through `patiently` or a `GrowingFile`. While `waiting_out`
is open, a failure that may pass by itself does not end the driver: it waits, prints a line, tries again at growing
intervals, and prints another line when the disk is back. Without an open `waiting_out`, for example when a sweep is
started for the first time and in workers, every error is raised at once.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from mmpkd.types import UserError
from sweep import interrupt

# A disk that is full or read-only, a server that does not answer, a file system that is not mounted, a ticket that has
# expired. EFBIG is missing, because the limit of a file's size (`ulimit -f`) stays as it is for this process.
AWAY: Final = (
    *(errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOLCK, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENOTCONN, errno.EREMOTEIO, errno.ENODEV),
)
PASSING: Final = (*(*AWAY, errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EKEYEXPIRED),)
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 15.0  # seconds between two attempts
POLL_SECONDS: Final = 0.1  # how soon a waiting driver reacts to a signal

Result = TypeVar("Result")


@dataclass
class _Patience:
    """How long the driver waits for the disk. It belongs to the process, like a request to end it (`interrupt.py`).

    Attributes:
        seconds: the longest time to wait at a stretch.
        show: function that prints a line. None if nothing is waited for.
        problem: why the driver waits at the moment; empty if it does not.
    """

    seconds: float = 0.0
    show: Callable[[str], None] | None = None
    problem: str = ""


_patience = _Patience()


def current_problem() -> str:
    """Returns why the driver waits for the disk at the moment. The text is empty if it does not wait."""
    return _patience.problem


@contextmanager
def waiting_out(seconds: float, show: Callable[[str], None]) -> Iterator[None]:
    """A context manager. While it is open, `patiently` and files that grow wait for the disk in the main thread.

    Args:
        seconds: the longest time to wait at a stretch. After it the error of the disk is raised.
        show: function that prints a line for the user.
    """
    _patience.seconds, _patience.show = seconds, show if seconds > 0 else None
    try:
        yield
    finally:
        _patience.show, _patience.problem = None, ""


def patiently(action: Callable[[], Result], path: Path) -> Result:
    """Runs an action on the files of a sweep, and returns its result.

    If the action fails because the disk is full, read-only or away, it is run again until it succeeds. It must
    therefore be an action that can be repeated after a failure in its middle.

    Args:
        path: the file or folder that the action reads or writes, for the messages.

    Raises:
        OSError: the disk stayed away for longer than `waiting_out` allows, or the error is of another kind, or the
            driver has been asked to end. `filename` is set.
        KeyboardInterrupt: the driver was asked to end while it waited.
    """
    begun, pause = None, FIRST_PAUSE
    while True:
        try:
            result = action()
        except OSError as error:
            error.filename = error.filename or str(path)  # Python leaves it out where an open file is written
            if _patience.show is None or not _may_pass(error):
                raise
            if begun is None:
                begun = time.monotonic()
                _patience.problem = f"{error.filename}: cannot be read or written ({_reason(error)})"
                longest = shown_duration(_patience.seconds)
                _patience.show(
                    f"paused: {_patience.problem}; it is tried again for at most {longest}, and nothing is lost "
                    "meanwhile"
                )
            if time.monotonic() - begun >= _patience.seconds:
                _patience.show = None  # what fails later is not waited for, such as the tables at the end
                raise
        else:
            if begun is not None and _patience.show is not None:
                _patience.problem = ""
                seconds = shown_duration(time.monotonic() - begun)
                _patience.show(f"continued: {path.parent} can be used again, after {seconds}")
            return result
        _wait(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


class GrowingFile:
    """A file of the sweep to which this process alone appends.

    The file must exist: where a file system is not mounted, a new file would be begun on the disk below.
    """

    def __init__(self, path: Path):
        self._path, self._end = path, path.stat().st_size
        self._failed = b""  # content of the last append, if it failed

    def append(self, content: bytes, sync: bool = False) -> None:
        """Appends as a whole or not at all; waits for the disk as `patiently` does. What a failed attempt has left is
        cut off before the next one.

        Args:
            sync: whether the content must have reached the disk when this function returns.

        Raises:
            UserError: another process has appended. While this driver waited for a server, its lock may have expired,
                and another driver may have gone on. Nothing of the other driver is cut off.
        """

        def attempt() -> None:
            file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            try:
                if (size := os.fstat(file).st_size) != self._end:
                    if size < self._end or not self._failed.startswith(os.pread(file, size - self._end, self._end)):
                        raise UserError(
                            f"{self._path}: another process has written to this file, so this driver has ended\n"
                            "  python -m sweep.status shows whether another driver runs this sweep; if there is none, "
                            "the same command continues it"
                        )
                    os.ftruncate(file, self._end)
                self._failed, written = content, 0
                while written < len(content):  # a disk that becomes full takes a part
                    written += os.write(file, content[written:])
                if sync:
                    os.fsync(file)
            finally:
                os.close(file)  # a server on the network may refuse the content only here

        patiently(attempt, self._path)
        self._end, self._failed = self._end + len(content), b""


def delete_folder(folder: Path) -> None:
    """Deletes a folder with everything in it; waits for the disk as `patiently` does.

    What cannot be deleted for another reason, for example because a worker is writing there, is left without an error.
    """

    def attempt() -> None:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            if error.errno in AWAY:
                raise
            shutil.rmtree(folder, ignore_errors=True)

    patiently(attempt, folder)


def is_of_store(error: OSError) -> bool:
    """Returns whether an object store refuses or does not answer (see `transfer/refusals.py`)."""
    return "://" in str(error.filename) and not isinstance(error, FileNotFoundError)


def _may_pass(error: OSError) -> bool:
    """Returns whether an error is worth waiting for: in the main thread, and while nobody asks the driver to end."""
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and error.errno in PASSING and not interrupt.requested()


def _reason(error: OSError) -> str:
    return error.strerror or str(error).partition("\n")[0]


def _wait(seconds: float) -> None:
    end = time.monotonic() + seconds
    while (remaining := end - time.monotonic()) > 0:
        time.sleep(min(remaining, POLL_SECONDS))
        if interrupt.requested():  # where signals are deferred, nothing else ends the waiting
            raise KeyboardInterrupt


def shown_duration(seconds: float) -> str:
    """Returns a duration in its largest fitting unit, such as `40 s`, `5 min` or `12 h`."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{math.floor(seconds / length + 0.5)} {unit}"
    return f"{math.floor(seconds + 0.5)} s"
