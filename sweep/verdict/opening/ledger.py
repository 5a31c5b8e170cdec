"""The ledger of openings: which confirmations have read the test part of a cohort.

A test part that was read twice with different questions is no longer sealed: the second question may have been chosen
after the answer to the first. So the ledger lies beside the prepared cohorts, where all sweeps find it, and every later
verdict shows it. Each confirmation also records in its own folder what it has opened, so that a ledger that was deleted
or cut is noticed and completed. An opening keeps hashes of the images that it has shown, so that the same patients are
recognised under another key (`sharing`), and the hash of its result, so that students that were trained again are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Self

from mmpkd.cohort.store import Store
from mmpkd.machine.checksums import DamagedError, sealed, unsealed
from mmpkd.types import ConfigError, UserError
from sweep.provenance import user_name
from sweep.storage.layout import Storage
from sweep.storage.lock import alone_in
from sweep.storage.whole_files import read_sealed, unreadable
from sweep.transfer.addresses import Place
from sweep.verdict.folder import ConfirmationFolder, confirmations, write_sealed_at
from sweep.verdict.opening.openings import SHOWN_DIGITS, Opening, distinct
from sweep.verdict.opening.sharing import Images

FOLDER: Final = "ledger"  # in the cache
ENDING: Final = ".jsonl"
TEST_PART: Final = "the test part of this cohort"


@dataclass(frozen=True)
class Ledger:
    """The ledger of a data set: a file in the cache, and what confirmations record in their own folders.

    Attributes:
        folder: the folder of all ledgers. The file of a data set has a line of sealed JSON for each opening.
        source: the hash that is equal for stores that may share patients (`student_file.source_of`), so that another
            image size of the same patients is no other cohort.
        storage: the folder of all sweeps.
        part: what is opened, in words.
        cohort: fingerprint of the store that is opened.
        images: its images. Openings of other data sets are compared with them.
    """

    folder: Place
    source: str
    storage: Storage
    part: str = TEST_PART
    cohort: str = ""
    images: Images = field(default_factory=Images)

    @classmethod
    def of(cls, cache: Place, source: str, storage: Storage, part: str = TEST_PART, store: Store | None = None) -> Self:
        """Returns the ledger of a data set in a cache; see `Ledger`.

        Args:
            store: what is opened: its test part if this is `part`, and else all of it.
        """
        images = Images.of(store, part != TEST_PART) if store else Images()
        return cls(cache.child(FOLDER), source, storage, part, store.fingerprint if store else "", images)

    @property
    def file(self) -> Place:
        return self._file(self.source)

    def _file(self, source: str) -> Place:
        return self.folder.child(f"{source}{ENDING}")

    def read(self) -> list[Opening]:
        """Returns all openings that have shown this data set, oldest first: those of its file, those that only
        confirmations record, and those of data sets that share most images with it (`Images.shared_with`).

        Raises:
            UserError: a file or a record is damaged, or cannot be read.
        """
        openings = self.everywhere()
        alike = [
            replace(opening, shares=shares)
            for source, of_source in openings.items()
            for opening in of_source
            if source != self.source and (shares := self.images.shared_with(opening.images))
        ]
        return distinct([*openings[self.source], *alike])

    def everywhere(self) -> dict[str, list[Opening]]:
        """Returns the openings of all data sets, by source."""
        names = [name for name in self.folder.names() if name.endswith(ENDING)]
        openings = {
            source: self._listed(source) for source in (self.source, *(name.removesuffix(ENDING) for name in names))
        }
        for source, recorded in self._recorded().items():
            openings[source] = [*openings.get(source, []), *recorded]
        return {source: distinct(of_source) for source, of_source in openings.items()}

    def lost(self) -> list[Opening]:
        """Returns the openings that confirmations in the storage record in their folders, and that the file lacks. It
        was deleted or cut, or they used another cache.

        Raises:
            UserError: the file or a record is damaged, or cannot be read.
        """
        listed = self._listed(self.source)
        recorded = distinct(self._recorded().get(self.source, []))
        return [opening for opening in recorded if not any(map(opening.is_same, listed))]

    def warnings(self) -> list[str]:
        """Returns a warning if the file lacks openings."""
        if not (lost := self.lost()):
            return []
        listed = "".join(f"\n    {opening}" for opening in lost)
        problem = f"{self.file} lacks openings, which confirmations record in their folders"
        return [f"{problem}; they count all the same, and the next opening writes them into it again:{listed}"]

    def _listed(self, source: str) -> list[Opening]:
        file = self._file(source)
        try:
            lines = file.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(unreadable(file, error)) from error
        try:
            return [Opening.of_json(unsealed(line)) for line in lines]
        except DamagedError as error:
            problem = f"{file}: the ledger of openings is damaged or was edited ({error})"
            remaining = f"what the confirmations under {self.storage} record in their folders still counts"
            raise UserError(
                f"{problem}; put a copy of it back, or move it away if there is none: {remaining}"
            ) from None

    def _recorded(self) -> dict[str, list[Opening]]:
        """Returns the openings that confirmations in the storage record in their folders, by source."""
        openings: dict[str, list[Opening]] = {}
        for folder in (folder for sweep in self.storage.sweeps() for folder in confirmations(sweep)):
            consequence = f"and {self.folder} alone says what that confirmation has opened"
            try:
                for source, recorded in read_sealed(folder.openings, consequence).items():
                    if not isinstance(recorded, list):
                        raise DamagedError("does not hold a list of openings")
                    openings.setdefault(source, []).extend(map(Opening.of_json, recorded))
            except DamagedError as error:
                raise UserError(f"{folder.openings}: {error}; delete it, {consequence}") from None
        return openings

    def refuse_second(self, protocol: str, again: bool) -> None:
        """Checks that no other confirmation has opened the part, before hours are spent. One that has opened it already
        may continue.

        Args:
            protocol: the hash of the protocol.
            again: whether a second opening is allowed.

        Raises:
            ConfigError: another one has.
        """
        openings = self.read()
        if openings and not again and protocol not in [opening.protocol for opening in openings]:
            listed = "\n".join(f"    {opening}" for opening in openings)
            problem = f"{self.part} was opened before:\n{listed}\n  A result on it now is no longer blind"
            raise ConfigError.at("again", f"{problem}; again=true opens it all the same, and the verdict will say so")

    def others(self, protocol: str) -> list[Opening]:
        """Returns the openings by other protocols."""
        return [opening for opening in self.read() if opening.protocol != protocol]

    def open(self, folder: ConfirmationFolder, protocol: str, command: str, again: bool) -> None:
        """Writes an opening into the folder of its confirmation and into the file. A confirmation that continues is
        written once. Of processes on one machine, each waits for the one before.

        Args:
            protocol: the hash of the protocol.
            again: whether it may be opened although another confirmation has opened it.

        Raises:
            ConfigError: another confirmation has opened it.
        """
        with self._alone():
            self.refuse_second(protocol, again)
            own = [opening for opening in self.everywhere()[self.source] if opening.protocol == protocol]
            new = Opening(protocol, folder.sweep.name, _now(), command, user_name(), self.cohort, "", self.images.text)
            self._write(folder, own or [new])

    def note_result(self, folder: ConfirmationFolder, protocol: str, result: str) -> list[str]:
        """Writes which result the opening of a confirmation has given. If the same protocol has given another one
        before, this is written as a further opening.

        Returns:
            A sentence for the verdict if the same protocol has given another result.
        """
        with self._alone():
            own = [opening for opening in self.everywhere()[self.source] if opening.protocol == protocol]
            if result not in [opening.result for opening in own]:
                time = _now() if own[-1].result else own[-1].time
                own.append(replace(own[-1], time=time, result=result))
                self._write(folder, own)
        before = [opening for opening in own if opening.result not in ("", result)]
        if not before:
            return []
        times = ", ".join(f"{opening.time} (result {opening.result[:SHOWN_DIGITS]})" for opening in before)
        problem = f"Under this protocol {self.part} has given another result before, at {times}; this one is"
        cause = "Since then students were trained again, or scored by other software or on another machine"
        return [f"{problem} {result[:SHOWN_DIGITS]}. {cause}."]

    def _write(self, folder: ConfirmationFolder, own: Sequence[Opening]) -> None:
        """Writes the openings of a confirmation into its folder, and all openings into the file."""
        record = read_sealed(folder.openings, "and the same command writes it anew")
        recorded = list(map(Opening.of_json, record.get(self.source, [])))
        if (kept := distinct([*recorded, *own])) != recorded:
            write_sealed_at(folder.openings, record | {self.source: [opening.json for opening in kept]})
        openings = distinct([*self.everywhere()[self.source], *own])
        if openings != self._listed(self.source):
            self.file.write_bytes("".join(f"{sealed(opening.json)}\n" for opening in openings).encode())

    def _alone(self) -> AbstractContextManager[None]:
        if not self.folder.is_local:  # an object store has no locks
            return nullcontext()
        folder = self.folder.local_path
        folder.mkdir(parents=True, exist_ok=True)
        return alone_in(folder / "lock", f"another process writes to {self.file}", waits=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
