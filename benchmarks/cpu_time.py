"""CPU-seconds of a process and all that it started, which stay comparable while other work shares the machine."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from benchmarks.witness import descendants


def tree_cpu_seconds(pid: int) -> float:
    """Returns the CPU-seconds of a process and its living descendants, including the children that have ended and for
    which one of them has waited.
    """
    ticks = 0
    for member in (pid, *(child for child, _ in descendants(pid))):
        with suppress(FileNotFoundError, ProcessLookupError):
            ticks += sum(map(int, Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


class CpuMeter(threading.Thread):
    """Measures the CPU-seconds of a process and all that it started until the process ends. What is used after the last
    sample is not counted.
    """

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self._pid, self._ended, self._seconds = pid, threading.Event(), 0.0

    def run(self) -> None:
        while not self._ended.wait(0.25):
            self._seconds = max(self._seconds, tree_cpu_seconds(self._pid))

    def end(self) -> float:
        """Ends the sampling and returns the largest sum."""
        self._ended.set()
        self.join()
        return self._seconds
