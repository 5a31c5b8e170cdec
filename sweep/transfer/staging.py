"""Copies entries of the shared cache to the disk of each node, so that trainings read from a disk nearby.

An entry is a prepared cohort, a teacher's outputs or a finished training stage. Its name contains a hash of everything
that determines its content, so that a copy is never outdated. It is copied once to each node, and all workers of the
node map the same copy into their memory.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from sweep.transfer.addresses import Place
from sweep.transfer.copies import (
    GIGABYTE,
    MANIFEST,
    beside,
    damage_of,
    is_whole,
    locked,
    make_room,
    remove,
    shared_lock,
    sync,
)

STAGE: Final = ".pt"  # ending of the file of a finished stage
LOCAL_FAULTS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
NOTED_BYTES: Final = GIGABYTE  # size from which the user is told of a copy


class NodeCache:
    """The copies of a shared cache on the disk of this machine. It implements `mmpkd.types.SharedCache`.

    Where an entry cannot be copied, because the disk is full or broken, it is read from the shared cache if that is a
    folder.

    Args:
        shared: the shared cache.
        folder: folder of the copies.
        gigabytes: most gigabytes (10^9 bytes) that all copies may take; 0: half of the disk.

    Attributes:
        notes: new lines for the user, each of which begins with the name of the machine.
    """

    def __init__(self, shared: Place, folder: Path, gigabytes: float = 0.0):
        self.folder, self.notes = folder, list[str]()
        self._shared, self._gigabytes = shared, gigabytes
        self._used: dict[str, int] = {}  # entry -> open file with the lock of its users
        self._uncopied: set[str] = set()  # entries that are read from the shared cache
        self._refused: set[str] = set()  # shared entries that are damaged

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ignored: Any) -> None:
        self.release()

    def fetch(self, entry: str) -> Path | None:
        """Returns a complete copy of an entry: the copy on this machine, or else a new copy of the shared entry.
        Returns None if neither exists. The copy stays until `release` is called.

        Raises:
            OSError: the shared cache cannot be read; or the entry cannot be copied to this machine, and the shared
                cache is no folder from which it could be read.
        """
        if entry in self._uncopied:
            return self._shared.child(entry).local_path
        try:
            return self._copied(entry)
        except OSError as error:
            if not self.is_local_fault(error):
                raise
            return self._read_in_place(entry, error)

    def publish(self, entry: str) -> None:
        """Copies an entry that was made on this machine to the shared cache, unless it is there already.

        The manifest is copied last, and a folder without manifest is never used. An entry that cannot be published
        serves this machine alone, with a note.
        """
        try:
            self.send(entry)
        except OSError as error:
            problem = f"{self._shared.child(entry)} cannot be written ({error.strerror or error})"
            self._note(f"{problem}; what was fitted serves this machine alone, and other machines fit it again")

    def send(self, entry: str) -> None:
        """Does the same as `publish`, but raises an error if the entry cannot be published.

        Raises:
            OSError: the shared cache cannot be written.
        """
        self._use(entry)
        if entry in self._refused:
            self._shared.child(entry).delete()
            self._refused.discard(entry)
        if not self._shared_sizes(entry):
            self._upload(entry)

    def release(self) -> None:
        """Allows the copies to be removed. Processes that still read a removed copy keep its content in memory."""
        for lock in self._used.values():
            os.close(lock)
        self._used.clear()

    def take_notes(self) -> list[str]:
        """Returns the new lines for the user."""
        notes, self.notes = self.notes, []
        return notes

    # --- copying ---

    def _copied(self, entry: str) -> Path | None:
        copy = self.folder / entry
        self._use(entry)
        if is_whole(copy):
            return copy
        with locked(beside(copy, "copying")):
            if is_whole(copy):  # another process has copied it meanwhile
                return copy
            sizes = self._shared_sizes(entry)
            if not sizes:
                return None
            make_room(self.folder, sum(sizes.values()), self._gigabytes)
            started = time.monotonic()
            if not self._download(entry, sizes):
                return None
        amount, seconds = sum(sizes.values()), time.monotonic() - started
        if amount >= NOTED_BYTES:
            self._note(f"copied {entry} ({amount / GIGABYTE:.1f} GB) to {self.folder} in {seconds:.0f} s")
        return copy

    def _shared_sizes(self, entry: str) -> dict[str, int]:
        """Returns the sizes of the files of a shared entry, by name. It is empty if the entry does not exist or is not
        complete. A finished stage is a single file, whose name here is empty.
        """
        if entry.endswith(STAGE):
            folder, _, name = entry.rpartition("/")
            sizes = self._shared.child(folder).sizes()
            return {"": sizes[name]} if name in sizes else {}
        sizes = self._shared.child(entry).sizes()
        return sizes if MANIFEST in sizes else {}

    def _download(self, entry: str, sizes: Mapping[str, int]) -> bool:
        """Copies the files of an entry under a temporary name, checks them, and renames the copy. Returns False if the
        shared files are damaged; `fetch` treats them like a missing entry.
        """
        copy, problem = self.folder / entry, ""
        partial = beside(copy, "partial")
        for _ in range(2):  # the first copy may have been damaged on its way
            remove(partial)
            for name in sorted(sizes, key=lambda name: name == MANIFEST):  # the manifest must be the newest file
                self._shared.download(f"{entry}/{name}".rstrip("/"), partial / name)
                sync(partial / name)  # otherwise a crash of the machine could leave the name without the content
            if not (problem := damage_of(partial)):
                remove(copy)
                os.replace(partial, copy)
                return True
        remove(partial)
        self._refused.add(entry)
        self._note(f"{self._shared.child(entry)} is damaged ({problem}), and is not used")
        return False

    def _upload(self, entry: str) -> None:
        copy, target = self.folder / entry, self._shared.child(entry)
        if copy.is_file():
            self._shared.upload(copy, entry)
        elif target.is_local:  # other programs expect that a folder in the cache is complete
            partial = target.local_path.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
            shutil.copytree(copy, partial)
            try:
                os.replace(partial, target.local_path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                remove(partial)  # another machine has just published it
        else:
            names = [path.relative_to(copy).as_posix() for path in sorted(copy.rglob("*")) if path.is_file()]
            for name in sorted(names, key=lambda name: name == MANIFEST):
                target.upload(copy / name, name)

    # --- locks, notes and trouble ---

    def _use(self, entry: str) -> None:
        """Takes a share of the lock of those that use an entry, which also records the time of use."""
        if entry not in self._used:
            self._used[entry] = shared_lock(beside(self.folder / entry, "used"))

    def is_local_fault(self, error: OSError) -> bool:
        """Whether the disk of this machine caused an error, and not the shared cache."""
        name = error.filename2 or error.filename
        if isinstance(name, str | bytes):
            return Path(os.fsdecode(name)).is_relative_to(self.folder)
        return error.errno in LOCAL_FAULTS

    def _read_in_place(self, entry: str, error: OSError) -> Path | None:
        """Returns the shared entry itself, after the disk of this machine has caused an error."""
        if not self._shared.is_local:
            remedy = "name another disk of every node with scratch=DIR"
            raise OSError(error.errno, f"{error.strerror or error}; {remedy}", str(self.folder)) from error
        problem = f"{self.folder}: {error.strerror or error}"
        if not self._shared_sizes(entry):
            return None
        self._note(f"{problem}; {entry} is read from {self._shared}, which is slower. scratch=DIR names another disk")
        self._uncopied.add(entry)
        return self._shared.child(entry).local_path

    def _note(self, line: str) -> None:
        self.notes.append(f"{socket.gethostname()}: {line}")
