"""A worker whose disks are full, read-only or away: how long it waits before it tries a trial again."""

from __future__ import annotations

import os
import tempfile
import time
from typing import Final

from sweep.transfer.addresses import Place

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a worker tries the next trial
PROBE_BYTES: Final = 2**20  # so that a disk with only a few blocks left counts as full


class WorkerDisks:
    """Remembers whether the last trial of this worker failed because of a disk.

    A worker hands such a trial back, so that another node can continue it. Ray Tune (2.60) then gives the worker the
    next trial, because Tune cannot avoid a node. The worker holds its place for a pause that grows with each failure,
    writes a file to see whether the disk is back, and hands the trial back if it is not.
    """

    def __init__(self) -> None:
        self._failures = 0

    def wait(self, folder: Place) -> None:
        """Waits if the last trial failed because of a disk, and then writes a file in the sweep's folder.

        Raises:
            OSError: the folder still cannot be written.
        """
        if self._failures:
            time.sleep(min(FIRST_PAUSE * 2 ** (self._failures - 1), LONGEST_PAUSE))
            if folder.is_local:  # in an object store, a trial begins with a write anyhow
                with tempfile.TemporaryFile(dir=folder.local_path) as file:
                    file.write(bytes(PROBE_BYTES))
                    file.flush()
                    os.fsync(file.fileno())

    def note_failure(self) -> None:
        self._failures += 1

    def note_report(self) -> None:
        self._failures = 0
