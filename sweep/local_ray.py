"""Starts Ray on this machine alone, for one driver. Ray ends together with the driver."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import ray

from mmpkd.machine.resources import cores, memory
from mmpkd.types import UserError

MAX_OBJECT_STORE: Final = 128 * 2**20  # bytes; trials share nothing through Ray's object store
MIN_OBJECT_STORE: Final = 80 * 2**20  # bytes; Ray refuses less than 75 MiB (2.60)
# The longest path that Ray adds to its temporary folder (2.60); a socket's path may have 107 bytes on Linux.
LONGEST_SOCKET: Final = "session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
FURTHER_FOLDERS: Final = ("/tmp", "/var/tmp", "/dev/shm")  # folders that are tried after TMPDIR


def start_ray(folder: Path) -> None:
    """Starts Ray with the cores and the memory that this process may use.

    Args:
        folder: folder for Ray's sockets and session, made by `make_socket_folder`.

    Raises:
        UserError: Ray cannot be started.
    """
    memory_bytes = memory().amount
    object_store = max(min(MAX_OBJECT_STORE, memory_bytes // 20), MIN_OBJECT_STORE)
    try:
        with _sessions_of_their_own():
            ray.init(
                address="local",  # not a cluster that someone else has started on this machine
                num_cpus=cores().amount,
                include_dashboard=False,
                object_store_memory=object_store,
                logging_level=logging.ERROR,
                log_to_driver=False,
                _memory=max(memory_bytes - object_store, MIN_OBJECT_STORE),
                _temp_dir=str(folder),
            )
    except Exception as error:
        raise UserError(
            f"Ray could not be started on this machine, in {folder} ({one_line(error)}).\n"
            "  See that there is room in that folder and in /dev/shm and that processes may open ports; "
            "RAY_TMPDIR=DIR names another folder."
        ) from error
    with suppress(OSError):  # Ray leaves the token readable by every user of the machine (2.60)
        (Path.home() / ".ray" / "auth_token").chmod(0o600)


@contextmanager
def _sessions_of_their_own() -> Iterator[None]:
    """Starts each of Ray's processes in a session of its own (`setsid`) while this context is open.

    Batch systems and terminals send a signal to a whole process group. Such a signal must not end Ray while the driver
    still needs it. Ray's processes still end together with the driver.
    """
    global _new_sessions
    _new_sessions = True
    try:
        yield
    finally:
        _new_sessions = False


_new_sessions = False


def _start_session() -> None:
    if _new_sessions:
        os.setsid()


# Runs in children that execute Python before they become another program, as Ray's daemons do (2.60).
os.register_at_fork(after_in_child=_start_session)


def make_socket_folder() -> Path:
    """Makes a new temporary folder for Ray in which Ray's sockets can be opened. Only this user can read the folder.

    Raises:
        UserError: no place allows such a folder. The message lists the places tried and what is wrong with each.
    """
    named = os.environ.get("RAY_TMPDIR")
    candidates = [named] if named else [*filter(None, [os.environ.get("TMPDIR")]), *FURTHER_FOLDERS]
    problems = []
    for candidate in dict.fromkeys(candidates):
        if not re.fullmatch(r"/[\w./+@-]*", candidate, re.ASCII):
            problems.append(f"  {candidate}: Ray wants an absolute path of plain letters and digits")
            continue
        try:
            folder = Path(tempfile.mkdtemp(prefix="ray-", dir=candidate))
        except OSError as error:
            problems.append(f"  {candidate}: {error.strerror}")
            continue
        try:
            _open_socket(folder / LONGEST_SOCKET)
            return folder
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            problems.append(f"  {candidate}: no socket can be opened below it ({error.strerror or error})")
    raise UserError(
        "Ray needs a temporary folder for its sockets, with a short path, and none of these will do:\n"
        + "\n".join(problems)
        + "\n  RAY_TMPDIR=DIR names one; it must exist, be yours to write, and have at most 25 characters"
    )


def _open_socket(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as attempt:
        attempt.bind(str(path))
    shutil.rmtree(path.parents[1])


def one_line(error: Exception) -> str:
    """Returns the class name of an exception and the first line of its message."""
    lines: list[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
