"""Requests to end: Ctrl-C, the SIGTERM of a batch system, the SIGHUP of a closed terminal.

The first request ends the driver's part in good order within seconds: what trains is left to its last
checkpoint, tables and report are written, tracking is sent what it takes. Further ones that follow at once are
the same request (`timeout` and `make` send each signal twice); a Ctrl-C after that ends whatever is going on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final, NoReturn

# Grid Engine and LSF announce the end of a job by SIGUSR2, a limit of processor time does by SIGXCPU.
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
SECONDS: Final = 8.0  # from the request to the end; batch systems kill after 10 to 30
SAME_REQUEST: Final = 1.0  # seconds within which a second signal is the first one's echo


@dataclass
class _Request:
    name: str = ""  # of the signal; empty as long as nobody asked
    at: float = 0.0
    insisted: bool = False  # a person pressed Ctrl-C again, later
    deferrals: int = 0


_request = _Request()


@contextmanager
def requests_end_the_driver() -> Iterator[None]:
    """While this is open, every one of SIGNALS raises KeyboardInterrupt in the main thread, the first time."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only the main thread handle signals
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    take_signals()
    try:
        yield
    except KeyboardInterrupt:
        if not insisted():
            raise
        print("interrupted; the same command continues", file=sys.stderr)
        leave(130)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        _request.name, _request.insisted = "", False


def take_signals() -> None:
    """Puts our handler in the place of any other, such as Ray's; what is ignored stays so: `nohup` asks for that."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_signal)


@contextmanager
def deferred() -> Iterator[None]:
    """What is done in here is not cut off by a first request; who opens this asks `requested` afterwards."""
    _request.deferrals += 1
    try:
        yield
    finally:
        _request.deferrals -= 1


def requested() -> str:
    """The name of the signal that asked for the end; empty if none did."""
    return _request.name


def insisted() -> bool:
    """Whether somebody will not even wait for the end in good order."""
    return _request.insisted


def record(name: str) -> None:
    """Notes a request that came another way than by our handler."""
    if not _request.name:
        _request.name, _request.at = name, time.monotonic()


def patience(seconds: float) -> float:
    """So many seconds, or what a request has left of them, but not less than one."""
    return max(min(seconds, SECONDS - (time.monotonic() - _request.at)), 1.0) if _request.name else seconds


def leave(status: int) -> NoReturn:
    """Ends the process; at once if that was requested, since taking down all that was imported takes seconds (five of
    processor time with Ray, torch and MLflow), and there is nothing left that it would save."""
    if _request.name:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if not _request.name:
        record(signal.Signals(number).name)
        if not _request.deferrals:
            raise KeyboardInterrupt
    elif number == signal.SIGINT and time.monotonic() - _request.at > SAME_REQUEST:
        _request.insisted = True
        raise KeyboardInterrupt
