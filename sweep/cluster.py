"""Ray itself: the cluster at RAY_ADDRESS, or one of this machine's cores for as long as a driver runs."""

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
from typing import Any, Final

import grpc
import ray
from ray._private.services import canonicalize_bootstrap_address_or_die

from mmpkd.machine.resources import cores, memory
from mmpkd.types import UserError
from sweep import interrupt

MOST_STORE: Final = 128 * 2**20  # bytes: trials share nothing through Ray's object store
LEAST_STORE: Final = 80 * 2**20  # Ray refuses less than 75 MiB (2.60)
ANSWER_SECONDS: Final = 5.0  # that a cluster has to answer
# What Ray adds to its temporary folder, at its longest (2.60); a socket's path may have 107 bytes on Linux.
LONGEST_SOCKET: Final = "session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
FURTHER_FOLDERS: Final = ("/tmp", "/var/tmp", "/dev/shm")  # where TMPDIR will not do


def address() -> str:
    """Of the cluster that runs already, or empty where Ray is to be started for this driver alone."""
    given = os.environ.get("RAY_ADDRESS", "").strip()
    return "" if given == "local" else given


@contextmanager
def cluster() -> Iterator[None]:
    """Ray, from start to end.

    Raises:
        UserError: the cluster at RAY_ADDRESS does not answer, or Ray cannot be started here.
        KeyboardInterrupt: the driver was asked to end while Ray was being started.
    """
    if ray.is_initialized():  # the tests share one
        yield
        return
    folder = None if address() else folder_for_sockets()
    try:
        try:
            if folder is None:
                _join()
            else:
                _start(folder)
        except SystemExit:  # from the handler that Ray has for SIGTERM until ours is back
            interrupt.record("SIGTERM")
            raise KeyboardInterrupt from None
        finally:
            interrupt.take_signals()
        yield
    finally:
        with interrupt.deferred():
            ray.shutdown()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path) -> None:
    allowed, room = cores().amount, memory().amount
    store = max(min(MOST_STORE, room // 20), LEAST_STORE)
    try:
        with _sessions_of_their_own():
            ray.init(
                address="local",  # not one that someone else has started on this machine
                num_cpus=allowed,
                include_dashboard=False,
                object_store_memory=store,
                logging_level=logging.ERROR,
                log_to_driver=False,
                _memory=max(room - store, LEAST_STORE),
                _temp_dir=str(folder),
            )
    except Exception as error:
        raise UserError(
            f"Ray could not be started on this machine, in {folder} ({_in_a_line(error)}).\n"
            "  See that there is room in that folder and in /dev/shm and that processes may open ports; "
            "RAY_TMPDIR=DIR names another folder."
        ) from error
    with suppress(OSError):  # Ray leaves it readable by everyone on the machine (2.60)
        (Path.home() / ".ray" / "auth_token").chmod(0o600)


def _join() -> None:
    refuse_silent_cluster()
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:
        raise UserError(
            f"RAY_ADDRESS={address()}: the Ray cluster there cannot be used ({_in_a_line(error)}).\n"
            "  Both sides need the same versions of Ray and Python and the same token (~/.ray/auth_token); "
            "without RAY_ADDRESS the sweep runs on this machine alone."
        ) from error


def refuse_silent_cluster() -> None:
    """Asks the cluster at RAY_ADDRESS for a sign of life, since Ray would wait for minutes, and then end the process.

    Raises:
        UserError: it gives none within seconds, or the address is none of a cluster.
    """
    given = address()
    if not given:
        return
    mend = "Give the head's HOST:PORT (ray start prints it; 6379 is the usual port), or unset RAY_ADDRESS"
    if "://" in given:
        kind = "Ray client" if given.startswith("ray://") else "web"
        raise UserError(
            f"RAY_ADDRESS={given}: a sweep's driver cannot work through a {kind} address. "
            f"{mend}, or send the command to the cluster: ray job submit -- python -m sweep.run ..."
        )
    try:
        where = canonicalize_bootstrap_address_or_die(given)  # 'auto' is the cluster last started on this machine
        host, _, port = where.rpartition(":")
        socket.getaddrinfo(host.strip("[]"), int(port))
    except socket.gaierror as error:
        raise UserError(f"RAY_ADDRESS={given}: no machine has that name ({error.strerror}). {mend}") from error
    except (ConnectionError, ValueError, OverflowError) as error:
        raise UserError(f"RAY_ADDRESS={given}: {_in_a_line(error)}. {mend}") from error
    if os.environ.get("RAY_USE_TLS", "0") in ("0", ""):
        _refuse_silence(given, where, mend)


def _refuse_silence(given: str, where: str, mend: str) -> None:
    with grpc.insecure_channel(where) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=ANSWER_SECONDS)
        except grpc.FutureTimeoutError as error:
            silence = f"nothing at {where} answered as a Ray cluster does within {ANSWER_SECONDS:g} s"
            raise UserError(f"RAY_ADDRESS={given}: {silence}. {mend}") from error
        except grpc.RpcError as error:
            code = error.code()
            if code == grpc.StatusCode.UNAUTHENTICATED:
                return  # it lives; about the token Ray says more
            raise UserError(
                f"RAY_ADDRESS={given}: what answers at {where} is not the head of a Ray cluster ({code.name}). {mend}"
            ) from error


@contextmanager
def _sessions_of_their_own() -> Iterator[None]:
    """Processes that Ray starts meanwhile lead sessions of their own, so that a signal to the driver's process
    group, which batch systems and terminals send, does not take Ray from under it. They still end with the driver.
    """
    global _leading
    _leading = True
    try:
        yield
    finally:
        _leading = False


_leading = False


def _lead_a_session() -> None:
    if _leading:
        os.setsid()


# Runs in children that execute Python before they become another program, as Ray's daemons do (2.60).
os.register_at_fork(after_in_child=_lead_a_session)


def folder_for_sockets() -> Path:
    """A new temporary folder for Ray, readable by this user only, in which its sockets can be opened.

    Raises:
        UserError: there is no place for one; which were tried, and what is wrong with each.
    """
    named = os.environ.get("RAY_TMPDIR")
    candidates = [named] if named else [*filter(None, [os.environ.get("TMPDIR")]), *FURTHER_FOLDERS]
    troubles = []
    for candidate in dict.fromkeys(candidates):
        if not re.fullmatch(r"/[\w./+@-]*", candidate, re.ASCII):
            troubles.append(f"{candidate}: Ray wants an absolute path of plain letters and digits")
            continue
        try:
            folder = Path(tempfile.mkdtemp(prefix="ray-", dir=candidate))
        except OSError as error:
            troubles.append(f"{candidate}: {error.strerror}")
            continue
        try:
            _try_socket(folder / LONGEST_SOCKET)
            return folder
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            troubles.append(f"{candidate}: no socket can be opened below it ({error.strerror or error})")
    tried = "\n".join(f"  {trouble}" for trouble in troubles)
    raise UserError(
        "Ray needs a temporary folder for its sockets, with a short path, and none of these will do:\n"
        f"{tried}\n  RAY_TMPDIR=DIR names one; it must exist, be yours to write, and have at most 25 characters"
    )


def _try_socket(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as attempt:
        attempt.bind(str(path))
    shutil.rmtree(path.parents[1])


def _in_a_line(error: Exception) -> str:
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
