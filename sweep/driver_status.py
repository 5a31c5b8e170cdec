"""Defines the status file, in which a driver shows every few seconds that it lives and what it does.

Anyone who sees the sweep's folder can read the file, also where the driver's lock cannot be seen: `flock` does not
travel between machines on every file system. The file holds numbers, names of arms and messages without passwords. It
holds nothing of the cohort. Nothing is restored from it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

from pydantic import TypeAdapter, ValidationError

from mmpkd.command import warn
from mmpkd.machine.checksums import DamagedError, unsealed
from sweep.storage.layout import SweepFolder
from sweep.storage.whole_files import write_sealed

HEARTBEAT_SECONDS: Final = 15.0  # longest time between two writes of a driver
SILENT_SECONDS: Final = 60.0  # a driver that has not written for so long is silent: dead, stopped, or without storage
WATCHED_SECONDS: Final = 2 * HEARTBEAT_SECONDS  # time in which a living driver writes at least once
MAX_SKEW: Final = 3600.0  # seconds by which the clocks of two machines are expected to differ at most
POLL_SECONDS: Final = 0.5
MAX_TRIALS: Final = 500  # running trials that are listed; those with the oldest reports come first


@dataclass(frozen=True)
class TrialStatus:
    """A running trial.

    Attributes:
        epoch: number of epochs that it has reported, of `epochs` in all.
        last_sign: when it last reported or, if it has not, when it was handed out; in seconds since 1970.
    """

    number: int
    arm: str
    epoch: int
    epochs: int
    last_sign: float


@dataclass(frozen=True)
class DriverStatus:
    """What a driver shows of itself. All times are in seconds since 1970.

    Attributes:
        driver: the driver's process and machine, as in its lock file.
        began: when the driver began.
        time: when the file was written.
        phase: what the driver does: starting, training, ending or ended.
        observed: when Ray Tune's loop last gave the numbers of this status. It is older than `time` while the loop
            waits for something.
        nodes: number of machines of the Ray cluster that are alive, with `cpus` cores and `gpus` GPUs.
        running: number of trials that have a worker.
        starting: number of trials whose worker is starting.
        waiting: number of trials that wait for a place.
        trials: trials that were handed out, at most `MAX_TRIALS`, those with the oldest reports first.
        ended: number of trials that have ended.
        remaining: number of trials that have not ended.
        device_hours: device-hours spent by all trials.
        arms: device-hours spent by the trials of each arm.
        expected_end: when the sweep will end at its present pace or by its limits, or None if that is unknown.
        expected_by: what `expected_end` rests on, in words, such as "by the pace so far".
        unsent: number of events that the tracking server has not received.
        oldest_unsent: when the oldest of them happened, or None.
        trouble: what the driver waits for, by place, such as "tracking", "storage" or "results".
        results: when tables and report were last written during this driver, or None.
    """

    driver: str
    began: float
    time: float
    phase: str = "starting"
    observed: float | None = None
    nodes: int = 0
    cpus: float = 0.0
    gpus: float = 0.0
    running: int = 0
    starting: int = 0
    waiting: int = 0
    trials: Sequence[TrialStatus] = ()
    ended: int = 0
    remaining: int = 0
    device_hours: float = 0.0
    arms: Mapping[str, float] = field(default_factory=dict)
    expected_end: float | None = None
    expected_by: str = ""
    unsent: int = 0
    oldest_unsent: float | None = None
    trouble: Mapping[str, str] = field(default_factory=dict)
    results: float | None = None

    @property
    def age(self) -> float:
        """Seconds since the driver last gave a sign of life. It is 0 if the clock of the driver's machine is ahead."""
        return max(time.time() - self.time, 0.0)

    @property
    def is_alive(self) -> bool:
        return self.phase != "ended" and self.age < SILENT_SECONDS

    @property
    def is_of_this_machine(self) -> bool:
        """Whether the driver runs, or ran, on this machine."""
        return self.driver.endswith(f" on {socket.gethostname()}")


READER: Final = TypeAdapter(DriverStatus)  # ignores what a later version has added


def this_driver() -> str:
    """Returns how this process is named in its lock file and in its status file."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def write_status(folder: SweepFolder, status: DriverStatus) -> None:
    """Writes the status file atomically.

    Raises:
        OSError: the file cannot be written.
    """
    write_sealed(folder.status, asdict(status))


def read_status(folder: SweepFolder) -> DriverStatus | None:
    """Returns the status that the sweep's last driver has written. Returns None if there is none: the sweep has not
    begun to run, a version without this file ran it, or the file is damaged.
    """
    try:
        return READER.validate_python(unsealed(folder.status.read_bytes()))
    except (OSError, DamagedError, ValidationError):
        return None


def driver_elsewhere(folder: SweepFolder) -> str:
    """Returns the driver on another machine that runs a sweep, by its signs of life. Returns an empty text if there is
    none.

    If the last sign is fresh, its driver may have died a moment ago. If it is old, the clock of its machine may lag.
    Both are seen by waiting for the next sign, for `WATCHED_SECONDS` at most.
    """
    last = read_status(folder)
    if last is None or last.is_of_this_machine or last.phase == "ended" or last.age > MAX_SKEW:
        return ""
    about = f"{last.driver} gave a sign of life {last.age:.0f} s ago"
    warn([f"{folder}: {about}; this start waits for up to {WATCHED_SECONDS:.0f} s to see whether it still runs"])
    deadline = time.monotonic() + WATCHED_SECONDS
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        status = read_status(folder)
        if status is not None and status.time != last.time:
            return status.driver if status.phase != "ended" else ""
    return ""
