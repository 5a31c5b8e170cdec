"""Copies the files of a running sweep to an object store, and has them fetched where the next driver runs.

A driver works in a folder on its own disk, because Optuna's journal and the spool grow line by line, and an object can
only be replaced as a whole. A thread copies what has changed. The copies are as a kill of the driver at one moment
would have left the files, even if the machine is lost while they are written:

- Journal and spool are cut where they ended at one moment. A small object, which is written after them, holds their
  sizes and says which driver wrote them. Whoever fetches them cuts what is longer.
- All other files were read before that moment, and are written after the sizes. They mention no trial that the journal
  lacks.
- MLflow receives only events that have been copied, and checkpoints are deleted only after the end of their trial has
  been copied.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from mmpkd.types import UserError
from sweep import interrupt
from sweep.storage.layout import SweepFolder
from sweep.transfer.lease import BEAT_SECONDS, Lease, LostLeaseError
from sweep.transfer.refusals import in_words
from sweep.transfer.views import fetch

COPY_SECONDS: Final = 30.0  # least time between the starts of two copies
COPY_SHARE: Final = 0.05  # largest share of the time in which files are copied; the interval grows with their size
LONGEST_PAUSE: Final = 20.0  # seconds between two attempts while the store is away
LAST_SECONDS: Final = 60.0  # for which a driver that ends tries to copy the files a last time

WRITER: Final = "by"  # key of the writer's token beside the sizes of the copies

Version = tuple[int, int, int]  # a file's number, size, and time of the last change


class Mirror:
    """Keeps copies of a sweep's files in an object store. It does nothing for a sweep in a folder.

    As a context manager it takes the sweep's lease and fetches the files on entry. On exit it copies them a last time,
    and gives the lease back.

    Args:
        folder: the folder of the sweep, which this process has locked.
        driver: the process and machine of this driver.
        show: prints a line for the user.
    """

    def __init__(self, folder: SweepFolder, driver: str, show: Callable[[str], None]):
        self._folder, self._show = folder, show
        self._lease = Lease(folder.shared.child(folder.driver_lock.name), driver)
        self._sizes: dict[str, int] = {}  # of the last copies of journal and spool, by name
        self._versions: dict[Path, Version | None] = {}  # of the other files when they were last copied
        self._begun, self._seconds = 0.0, 0.0  # when the last copy began, and how long it took
        self._has_begun = self._has_lost_lease = False
        self._troubles: set[str] = set()  # names of the threads that wait for the store
        self._copying, self._ending = threading.Lock(), threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(name, action, seconds), name=name, daemon=True)
            for name, action, seconds in [("beats", self._beat, BEAT_SECONDS), ("copies", self._copy_if_due, 1.0)]
        ]

    def __enter__(self) -> Self:
        folder = self._folder
        if not folder.address:
            return self
        try:
            note, token = folder.copies, self._lease.token
            # The drivers of these leases worked in this folder, and are dead, since this process holds its lock.
            leases = json.loads(note.read_text()) if note.exists() else []
            note.write_text(json.dumps([*leases, token]))
            self._lease.take(leases, self._show)
            if not self._are_newer_here(leases):
                note.unlink()
                for path in folder.files:
                    path.unlink(missing_ok=True)
                if fetch(folder, folder.files):
                    self._show(f"fetched the files of {folder}")
            note.write_text(json.dumps([token]))
            folder.address.child(folder.stop_request.name).delete()
        except OSError as error:
            raise UserError(in_words(error)) from error
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._folder.address:
            return
        self._ending.set()
        with suppress(OSError, LostLeaseError):
            if self._has_begun:
                self._copy_last(fails=error is None and not interrupt.requested())
                self._copy_status()
            self._lease.give_back()
            if set(self._folder.shared.sizes()) == {self._folder.driver_lock.name}:  # a start that failed
                self._folder.copies.unlink()
                self._folder.shared.delete()  # leaves no trace

    def _are_newer_here(self, tokens: Collection[str]) -> bool:
        """Returns whether the files in this folder continue the copies: the driver that wrote the copies worked here,
        and nothing has been removed here since. A driver elsewhere that has held the lease but copied nothing does not
        count.

        Args:
            tokens: tokens of the drivers that worked in this folder.
        """
        try:
            copies = json.loads(self._folder.shared.child(self._folder.copies.name).read_bytes())
        except FileNotFoundError:  # nothing was copied yet, or somebody has deleted the copies
            return bool(tokens)
        files = self._folder.journal, self._folder.spool
        are_whole = all(path.exists() and path.stat().st_size >= copies[path.name] for path in files)
        return are_whole and copies.get(WRITER) in tokens

    def begin(self) -> None:
        """Copies all files for the first time, and from then on at intervals. Must be called before the first trial.

        Raises:
            UserError: the store does not answer, or refuses.
        """
        if self._folder.address:
            try:
                self._copy()
            except OSError as error:
                raise UserError(in_words(error)) from error
            self._has_begun = True

    def copy_now(self) -> None:
        """Copies what has changed. If the store is away, it is tried again later."""
        if self._has_begun:
            with suppress(OSError, LostLeaseError):
                self._copy()

    @property
    def sendable(self) -> float:
        """The number of bytes of the spool that MLflow may receive."""
        return self._sizes.get(self._folder.spool.name, 0) if self._folder.address else math.inf

    # --- the threads ---

    def _repeat(self, name: str, action: Callable[[], None], seconds: float) -> None:
        """Does something again and again. While the store is away it waits longer between two attempts."""
        pause = seconds
        while not self._ending.wait(pause) and not self._has_lost_lease:
            try:
                action()
            except LostLeaseError as error:
                self._has_lost_lease = True
                self._show(f"{error}\n  this driver ends; what it has done since its last copy is not used")
                interrupt.record_request("another driver has taken over")
            except OSError as error:
                if not self._troubles:
                    problem = in_words(error)
                    self._show(f"paused copies: {problem}; the sweep goes on, and copying is tried again")
                self._troubles.add(name)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = seconds
                if name in self._troubles:
                    self._troubles.discard(name)
                    if not self._troubles:
                        self._show(f"continued copies: {self._folder} can be used again")

    def _beat(self) -> None:
        self._lease.renew()
        self._copy_status()
        request = self._folder.shared.child(self._folder.stop_request.name)
        if request.exists():
            self._folder.stop_request.touch()
            request.delete()

    def _copy_status(self) -> None:
        if (content := _read(self._folder.status)) is not None:
            self._folder.shared.child(self._folder.status.name).write_bytes(content)

    def _copy_if_due(self) -> None:
        interval = max(COPY_SECONDS, self._seconds / COPY_SHARE)
        if self._has_begun and time.monotonic() - self._begun >= interval:
            self._copy()

    def _copy_last(self, fails: bool) -> None:
        """Copies what has changed, after the last trial.

        Args:
            fails: whether the command fails if that is impossible. A batch system would otherwise take a sweep for
                complete whose results are on the disk of a machine that it is about to give away.
        """
        deadline = time.monotonic() + interrupt.allowed_seconds(LAST_SECONDS)
        while True:
            try:
                return self._copy()
            except OSError as error:
                if time.monotonic() > deadline:
                    advice = "the same command on this machine copies it"
                    problem = f"{in_words(error)}; what is not copied yet is in {self._folder.path}, and {advice}"
                    if fails:
                        raise UserError(problem) from error
                    self._show(f"warning: {problem}")
                    raise
            time.sleep(1.0)

    # --- one copy ---

    def _copy(self) -> None:
        """Copies the files that have changed since the last copy.

        Raises:
            OSError: the store does not answer, or refuses.
            LostLeaseError: another driver has taken the lease.
        """
        folder = self._folder
        with self._copying:
            self._lease.check()
            self._begun = time.monotonic()
            needless = list(folder.needless)  # the journal already has the ends of these trials
            others: dict[Path, tuple[bytes | None, Version | None]] = {}
            for path in folder.whole_files:
                version = _version(path)
                if version != self._versions.get(path):
                    others[path] = (_read(path), version)
            journal, spool = _read_together(folder.journal, folder.spool)
            if (sizes := {folder.journal.name: len(journal), folder.spool.name: len(spool)}) != self._sizes:
                folder.shared.child(folder.journal.name).write_bytes(journal)
                folder.shared.child(folder.spool.name).write_bytes(spool)
                folder.shared.child(folder.copies.name).write_bytes(
                    json.dumps({**sizes, WRITER: self._lease.token}).encode()
                )
                self._sizes = sizes
            for path, (content, version) in others.items():
                target = folder.shared.child(path.name)
                if content is not None:
                    target.write_bytes(content)
                elif path == folder.best:  # only this file is ever removed; others may have been cleaned from a disk
                    target.delete()
                self._versions[path] = version
            self._delete_checkpoints(needless)
            self._seconds = time.monotonic() - self._begun

    def _delete_checkpoints(self, numbers: Sequence[int]) -> None:
        place = self._folder.shared.child(self._folder.checkpoints.name)
        existing = set(place.names()) if numbers else set()
        for number in numbers:
            if str(number) in existing:
                place.child(str(number)).delete()
            self._folder.needless.popleft()


def _version(path: Path) -> Version | None:
    try:
        known = path.stat()
    except FileNotFoundError:
        return None
    return known.st_ino, known.st_size, known.st_mtime_ns


def _read(path: Path) -> bytes | None:
    """Returns the content of a file, or None if there is no file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _read_together(journal: Path, spool: Path) -> tuple[bytes, bytes]:
    """Returns the contents that the two growing files had at one moment, without unfinished last lines."""
    while True:
        before, journal_size = spool.stat().st_size, journal.stat().st_size
        if spool.stat().st_size == before:
            break
    contents = []
    for path, size in ((journal, journal_size), (spool, before)):
        with path.open("rb") as file:
            content = file.read(size)
        contents.append(content[: content.rfind(b"\n") + 1])
    return contents[0], contents[1]
