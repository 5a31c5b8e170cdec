"""Where a worker reads the data of its trials, and where it writes their checkpoints.

On one machine, that is the cache and the sweep's folder. In a cluster, it is the disk of the worker's node.
A worker whose disk is full, read-only or away waits before it tries the next trial.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Final, cast

from mmpkd.types import ConfigError, UserError
from sweep.storage.layout import SweepFolder
from sweep.transfer.addresses import Place, place
from sweep.transfer.checkpoints import Checkpoints
from sweep.transfer.scratch import scratch_folder
from sweep.transfer.staging import NodeCache
from sweep.types import Job, PlacedJob, Places, Scratch

STORES: Final = "stores"  # folder of the cache, as in mmpkd.cohort.store, whose import takes a second
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a worker tries the next trial
PROBE_BYTES: Final = 2**20  # so that a disk with only a few blocks left counts as full


class NodeDisk:
    """The folders of one worker on the disk of its node. They are chosen once, with the first trial.

    Attributes:
        cache: the copies of the shared cache; None if nothing is copied.
        checkpoints: the checkpoints of the sweep's trials.
        places: the paths of the shared cache and of the folder on the disk of the node, by which errors are recognised.
    """

    def __init__(self, places: Places):
        self._folder, self._shared = SweepFolder.at(places["folder"]), place(places["cache"])
        self._notes = list[str]()
        settings = places.get("scratch")
        scratch, self.cache, nearby = self._open(settings), None, None
        if settings and scratch:
            self.cache = NodeCache(self._shared, scratch / "cache", settings["gigabytes"])
            nearby = scratch / self._folder.checkpoints.name / settings["sweep"]
        self.places = [Path(self._shared.path), *([scratch] if scratch else [])]
        self.checkpoints = Checkpoints(self._folder.shared_checkpoints, nearby)

    def _open(self, scratch: Scratch | None) -> Path | None:
        """Returns this user's folder on the disk of the node, or None if nothing is copied to it.

        Raises:
            UserError: the disk cannot be used, and without it the worker cannot read or write what lies in an object
                store.
        """
        if scratch is None:
            return None
        try:
            folder = scratch_folder(scratch["folder"])
            if os.access(folder, os.W_OK):
                return folder
            raise ConfigError.at("scratch", f"{folder} cannot be written")
        except ConfigError as error:
            if self._folder.address or not self._shared.is_local:
                raise UserError(f"{socket.gethostname()}: {error}") from error
            node = socket.gethostname()
            self._notes.append(f"{node}: {error}; until that is done, this node uses the shared folders directly")
            return None

    def placed(self, job: Job) -> PlacedJob:
        """Returns the job with the folders that the worker's training reads. The prepared cohort is copied first, if it
        is not on the node.

        Raises:
            UserError: the prepared cohort is not in the shared cache.
            OSError: the shared cache cannot be read.
        """
        if self.cache is None:
            return cast(PlacedJob, {**job, "shared": None})
        entry = f"{STORES}/{Path(job['store']).name}"
        store = self.cache.fetch(entry)
        if store is None and not self._shared.is_local:
            raise UserError(f"{self._shared.child(entry)}: the prepared cohort is not there; start the sweep again")
        placed = {"store": str(store or job["store"]), "cache": str(self.cache.folder), "shared": self.cache}
        return cast(PlacedJob, {**job, **placed})

    def take_notes(self) -> list[str]:
        """Returns new lines for the user."""
        notes, self._notes = self._notes + (self.cache.take_notes() if self.cache else []), []
        return notes


class WorkerDisks:
    """Remembers whether the last trial of this worker failed because of a disk.

    A worker hands such a trial back, so that another node can continue it. Ray Tune (2.60) then gives the worker the
    next trial, because Tune cannot avoid a node. The worker holds its place for a pause that grows with each failure,
    writes a file to see whether the disk is back, and hands the trial back if it is not.
    """

    def __init__(self) -> None:
        self._pause = 0.0  # seconds before the next trial

    def wait(self, folder: Place) -> None:
        """Waits if the last trial failed because of a disk, and then writes a file in the sweep's folder.

        Raises:
            OSError: the folder still cannot be written.
        """
        self.pause()
        if self.has_failed and folder.is_local:  # in an object store, a trial begins with a write anyhow
            with tempfile.TemporaryFile(dir=folder.local_path) as file:
                file.write(bytes(PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())

    @property
    def has_failed(self) -> bool:
        """Whether the last trial was handed back."""
        return self._pause > 0

    def pause(self) -> None:
        """Waits if the last trial was handed back, twice as long as before that one."""
        if self.has_failed:
            time.sleep(self._pause)

    def note_failure(self) -> None:
        self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)

    def note_report(self) -> None:
        self._pause = 0.0
