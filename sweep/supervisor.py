"""Starts the driver of a sweep again when it dies: `restarts=N` of `sweep.run`.

The command that the user starts then is the supervisor, a small process. It runs the driver as a child, with the same
words; a sweep continues with the command that began it, so that a further start repeats nothing. The child is in a
session of its own. A signal to the process group of the command, as `timeout`, `make`, terminals and batch systems send
it, therefore reaches the supervisor alone, which passes it on. If the supervisor is killed, the kernel sends SIGTERM to
the driver, which ends in good order.

A driver that starts while the disk of its sweep is away ends with a message. So after a crash the supervisor first
waits until the sweep's folder can be written.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final

from sweep.interrupt import SIGNALS
from sweep.patience import shown_duration

STARTED_BY: Final = "SWEEP_SUPERVISOR"  # environment variable of the driver: the supervisor's process id
ORDERLY: Final = (0, 1, 2, 130)  # exit statuses of a driver that has ended by itself
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0  # seconds before the driver is started again
STEADY_SECONDS: Final = 600.0  # after so long a life of the driver, the pauses begin anew
LOOK_SECONDS: Final = 5.0  # time between two looks at the sweep's folder while the driver runs
PROBE_BYTES: Final = 2**20  # a driver writes more than this when it starts
PR_SET_PDEATHSIG: Final = 1  # see prctl(2)


def supervise(command: Sequence[str], restarts: int, folder: Path, patience: float) -> int:
    """Runs a driver, and starts it again after each crash. Returns the exit status of the command.

    Args:
        command: the driver's program and its arguments.
        restarts: how often the driver is started again, at most.
        folder: the folder of the sweep.
        patience: for how many seconds a restart waits until the folder can be written, at most.
    """
    pause = FIRST_PAUSE
    with _Signals(folder) as signals:
        for restarts_left in range(restarts, -1, -1):
            begun = time.monotonic()
            status = signals.run(command)
            if signals.number:
                return status if status in ORDERLY else 130
            if status in ORDERLY:
                return status
            if time.monotonic() - begun > STEADY_SECONDS:
                pause = FIRST_PAUSE
            cause = f"signal {-status}" if status < 0 else f"exit status {status}"
            if not restarts_left:
                break
            _print(
                f"the driver has died ({cause}) and is started again in {pause:g} s; {restarts_left - 1} restarts left"
            )
            if signals.wait(pause) or signals.wait_for_disk(patience):
                return 130
            pause = min(2 * pause, LONGEST_PAUSE)
    _print(f"the driver has died ({cause}), and no restarts are left; the same command continues the sweep")
    return status if status > 0 else 128 - status


class _Signals:
    """Passes the signals that ask a driver to end on to the child, while it is open.

    Attributes:
        number: the first signal that came, or 0.
        folder_was_there: whether the sweep's folder has been there since the first start. If it is missing later, its
            disk is away.
    """

    def __init__(self, folder: Path) -> None:
        self.number, self.folder_was_there = 0, folder.is_dir()
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def __enter__(self) -> _Signals:
        for number, handler in self._handlers.items():
            if handler != signal.SIG_IGN:  # as `nohup` wants it
                signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *ignored: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def run(self, command: Sequence[str]) -> int:
        """Runs the command to its end, and returns its exit status, which is negative if a signal has ended it."""
        environment = os.environ | {STARTED_BY: str(os.getpid())}
        with subprocess.Popen(command, env=environment, start_new_session=True) as self._child:
            if self.number:  # it came while the child was being started
                self._child.send_signal(self.number)
            while not self.folder_was_there:
                with suppress(subprocess.TimeoutExpired):
                    return self._child.wait(LOOK_SECONDS)
                self.folder_was_there = self._folder.is_dir()
            return self._child.wait()

    def wait(self, seconds: float) -> bool:
        """Waits, and returns whether a signal has ended the waiting."""
        end = time.monotonic() + seconds
        while not self.number and time.monotonic() < end:
            time.sleep(min(0.1, seconds))
        return bool(self.number)

    def wait_for_disk(self, patience: float) -> bool:
        """Waits until the sweep's folder can be written, and returns whether a signal has ended the waiting. After
        `patience` seconds the driver may say what is wrong.
        """
        end, is_shown = time.monotonic() + patience, False
        while self.folder_was_there and (problem := _write_problem(self._folder)) and time.monotonic() < end:
            if not is_shown:
                _print(f"paused: {problem}; the driver waits for its disk for at most {shown_duration(patience)}")
            is_shown = True
            if self.wait(LOOK_SECONDS):
                return True
        return bool(self.number)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        if self._child is not None:
            self._child.send_signal(number)  # does nothing if the child has ended


def follow_supervisor() -> bool:
    """Returns whether a supervisor has started this process. If so, this process ends when the supervisor dies."""
    supervisor = os.environ.pop(STARTED_BY, "")  # a command that this process starts has another parent
    if supervisor and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(supervisor):  # it died before this
            os.kill(os.getpid(), signal.SIGTERM)
    return bool(supervisor)


def _write_problem(folder: Path) -> str:
    """Returns why nothing can be written in a folder. The text is empty if a file can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"{folder}: cannot be written ({error.strerror})"
    return ""


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
