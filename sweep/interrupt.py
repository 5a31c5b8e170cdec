"""Handles the signals that ask the driver to end: Ctrl-C, SIGTERM of a batch system, SIGHUP of a closed terminal.

At the first signal the driver shuts down cleanly within seconds: running trials keep their last checkpoints, tables and
report are written, and the tracking server receives the records that it accepts in that time. Signals that follow
within a second belong to the same request, because `timeout` and `make` send each signal twice. A later Ctrl-C ends
everything at once.
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

# Grid Engine and LSF announce the end of a job with SIGUSR2, a limit of processor time with SIGXCPU.
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
END_SECONDS: Final = 8.0  # time from the request to the end of the driver; batch systems kill after 10 to 30 seconds
ECHO_SECONDS: Final = 1.0  # a second signal within this time belongs to the first request


@dataclass
class _Request:
    name: str = ""  # name of the signal; empty as long as there is no request
    time: float = 0.0
    repeated: bool = False  # a person pressed Ctrl-C again, later
    deferrals: int = 0


_request = _Request()


@contextmanager
def requests_end_the_driver() -> Iterator[None]:
    """A context manager. While it is open, the first signal of SIGNALS raises KeyboardInterrupt in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only the main thread handle signals
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    install_handlers()
    try:
        yield
    except KeyboardInterrupt:
        if not repeated():
            raise
        print("interrupted; the same command continues", file=sys.stderr)
        exit_process(130)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        _request.name, _request.repeated = "", False


def install_handlers() -> None:
    """Replaces all other signal handlers, such as Ray's, with ours. A signal that is ignored stays ignored, as `nohup`
    requires.
    """
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_signal)


@contextmanager
def deferred() -> Iterator[None]:
    """A context manager. While it is open, a first request to end raises no KeyboardInterrupt and is only noted. The
    caller calls `requested` afterwards.
    """
    _request.deferrals += 1
    try:
        yield
    finally:
        _request.deferrals -= 1


def requested() -> str:
    """Returns the name of the signal that requested the end. The name is empty if there was no request."""
    return _request.name


def repeated() -> bool:
    """Returns whether the user pressed Ctrl-C a second time, which means that the user does not want to wait for the
    clean shutdown.
    """
    return _request.repeated


def record_request(name: str) -> None:
    """Records a request to end that did not come through our signal handler."""
    if not _request.name:
        _request.name, _request.time = name, time.monotonic()


def allowed_seconds(seconds: float) -> float:
    """Returns the number of seconds that a step may take.

    Before a request this is `seconds`. After a request it is the time that is left until the driver has to end, but at
    least one second.
    """
    if not _request.name:
        return seconds
    return max(min(seconds, END_SECONDS - (time.monotonic() - _request.time)), 1.0)


def exit_process(status: int) -> NoReturn:
    """Ends the process. After a request it ends without Python's usual teardown.

    Tearing down the imported libraries takes seconds (five seconds of processor time with Ray, torch and MLflow), and
    nothing is left to save.
    """
    if _request.name:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if not _request.name:
        record_request(signal.Signals(number).name)
        if not _request.deferrals:
            raise KeyboardInterrupt
    elif number == signal.SIGINT and time.monotonic() - _request.time > ECHO_SECONDS:
        _request.repeated = True
        raise KeyboardInterrupt
