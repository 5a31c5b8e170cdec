"""CPU-seconds of a process and all that it starts, which stay comparable while other work shares the machine."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right

from benchmarks.trivial import cpu_seconds
from benchmarks.witness import descendants

INTERVAL = 0.2  # seconds between two samples


class CpuMeter(threading.Thread):
    """Samples the CPU-seconds of a process and its descendants until `end` is called.

    What a process uses after it was last sampled is not counted, nor are the two agents of Ray, which train nothing.
    Ray ignores the end of its workers, so that no parent knows what they used: each process is sampled for itself.
    """

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self._pid, self._ended = pid, threading.Event()
        self._seconds: dict[int, float] = {}  # by process id
        self._times, self._totals = [time.time()], [0.0]

    def run(self) -> None:
        while not self._ended.wait(INTERVAL):
            for pid in (self._pid, *(pid for pid, _ in descendants(self._pid))):
                self._seconds[pid] = max(self._seconds.get(pid, 0.0), cpu_seconds(pid))
            self._times.append(time.time())
            self._totals.append(sum(self._seconds.values()))

    def end(self) -> float:
        """Ends the sampling and returns the sum."""
        self._ended.set()
        self.join()
        return self._totals[-1]

    def until(self, moment: float) -> float:
        """Returns the sum at the last sample before a moment, which is a time in seconds since the epoch."""
        return self._totals[max(bisect_right(self._times, moment) - 1, 0)]
