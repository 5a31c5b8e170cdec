"""Locks the folder of a sweep, so that the sweep has only one driver at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmpkd.types import UserError
from sweep.driver_status import driver_elsewhere, this_driver
from sweep.patience import patiently
from sweep.storage.layout import SweepFolder


@contextmanager
def hold_driver_lock(folder: SweepFolder) -> Iterator[None]:
    """Holds the lock that makes this process the only driver of a sweep. The sweep's folder is made if it does not
    exist.

    The kernel releases the lock when the process ends, even after a kill. On some file systems locks do not travel
    between machines. Therefore a driver on another machine that gives signs of life is refused too. If nothing was
    written to a new folder, the folder is removed again, so that a failed start leaves no trace.

    Raises:
        UserError: another driver holds the lock, or the folder cannot be written.
    """
    lock = folder.driver_lock
    try:
        if lock.is_dir():
            raise UserError(f"{lock}: the sweep needs a file there, and this is none; move it away")
        folder.path.mkdir(parents=True, exist_ok=True)
        file = patiently(lambda: lock.open("a+", errors="replace"), lock)
    except OSError as error:
        raise _unwritable(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _second_driver(folder, file.read().strip() or "another process") from None
        except OSError as error:  # a file system without locks
            raise _unwritable(folder, error) from error
        if not folder.address and (driver := driver_elsewhere(folder)):  # with an address, its lease decides
            raise _second_driver(folder, driver)
        try:
            try:
                file.truncate(0)
                file.write(f"{this_driver()}\n")
                file.flush()
            except OSError as error:
                raise _unwritable(folder, error) from error
            yield
        finally:
            with suppress(OSError):  # the disk may be away
                if set(folder.path.iterdir()) == {lock}:
                    shutil.rmtree(folder.path)


@contextmanager
def alone_in(lock: Path, problem: str, waits: bool = False) -> Iterator[None]:
    """A context in which no other process is in the context of the same lock. A disk without locks gives no such
    protection.

    Args:
        lock: a folder, or a file, which is made if it does not exist.
        problem: what another process does, as the beginning of the error.
        waits: whether this process waits for the other one instead of raising an error.

    Raises:
        UserError: another process is in it now.
    """
    opened = None
    try:
        opened = os.open(lock, os.O_RDONLY if lock.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(opened, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        assert opened is not None
        os.close(opened)
        line = f"{problem} at this moment; wait until it has ended, then run the same command again"
        raise UserError(line) from error
    except OSError:
        pass  # the disk has no locks, or the file belongs to another user
    try:
        yield
    finally:
        if opened is not None:
            os.close(opened)


def is_locked(lock: Path) -> bool:
    """Returns whether a process holds a lock file.

    The check takes a shared lock for a moment. Nothing is written, and two processes that check at the same time do not
    disturb each other.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise UserError(f"{lock}: it cannot be checked whether a process holds this lock ({error.strerror})") from error
    return False


def driver_of(folder: SweepFolder) -> str:
    """Returns the process and the machine that the sweep's driver has noted in the lock file. The text is empty if
    nothing is noted.
    """
    try:
        return folder.driver_lock.read_text(errors="replace").strip()
    except OSError:
        return ""


def _second_driver(folder: SweepFolder, driver: str) -> UserError:
    return UserError(
        f"{folder}: another driver runs this sweep ({driver})\n"
        "  wait for it, stop it there with Ctrl-C, or start another sweep with name=..."
    )


def _unwritable(folder: SweepFolder, error: OSError) -> UserError:
    return UserError(
        f"{folder}: a sweep cannot be written there ({error.strerror}); name another folder with storage=DIR"
    )
