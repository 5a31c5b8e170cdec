"""The ledger of openings: which confirmations have read the test part of a cohort.

A test part that was read twice with different questions is no longer sealed: the second question may have been chosen
after the answer to the first. So the ledger lies beside the prepared cohorts, where all sweeps find it, and every later
verdict shows it. Each confirmation also records in its own folder what it has opened, so that a ledger that was deleted
or cut is noticed and completed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Final, Self

from mmpkd.machine.checksums import DamagedError, sealed, unsealed
from mmpkd.types import ConfigError, UserError
from sweep.provenance import user_name
from sweep.storage.layout import Storage
from sweep.storage.lock import alone_in
from sweep.storage.whole_files import read_sealed, unreadable
from sweep.transfer.addresses import Place
from sweep.verdict.folder import ConfirmationFolder, confirmations, write_sealed_at

FOLDER: Final = "ledger"  # in the cache
SHOWN_DIGITS: Final = 12  # of a hash
TEST_PART: Final = "the test part of this cohort"


@dataclass(frozen=True)
class Opening:
    """One opening of a test part.

    Attributes:
        protocol: the hash of the protocol of the confirmation.
        sweep: the name of the sweep.
        time: when it was opened, as ISO 8601 in UTC.
        command: the command line.
        user: who ran it.
    """

    protocol: str
    sweep: str
    time: str
    command: str
    user: str

    def __str__(self) -> str:
        return f"{self.time}, sweep {self.sweep}, protocol {self.protocol[:SHOWN_DIGITS]}: {self.command}"

    @classmethod
    def of_json(cls, content: Any) -> Self:
        """Returns the opening in a value of JSON.

        Raises:
            DamagedError: it is none.
        """
        names = {each.name for each in fields(cls)}
        if not isinstance(content, Mapping) or set(content) != names or not all(map(_is_text, content.values())):
            raise DamagedError("does not describe an opening")
        return cls(**content)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


@dataclass(frozen=True)
class Ledger:
    """The ledger of a data set: a file in the cache, and what confirmations record in their own folders.

    Attributes:
        file: a line of sealed JSON for each opening.
        source: the hash that is equal for stores that may share patients (`student_file.source_of`), so that another
            image size of the same patients is no other cohort.
        storage: the folder of all sweeps.
        part: what is opened, in words.
    """

    file: Place
    source: str
    storage: Storage
    part: str = TEST_PART

    @classmethod
    def of(cls, cache: Place, source: str, storage: Storage, part: str = TEST_PART) -> Self:
        """Returns the ledger of a data set in a cache; see `Ledger`."""
        return cls(cache.child(f"{FOLDER}/{source}.jsonl"), source, storage, part)

    def read(self) -> list[Opening]:
        """Returns all openings, oldest first: those of the file, and those that only confirmations record.

        Raises:
            UserError: the file or a record is damaged, or cannot be read.
        """
        return sorted([*self._listed(), *self.lost()], key=lambda opening: opening.time)

    def lost(self) -> list[Opening]:
        """Returns the openings that confirmations in the storage record in their folders, and that the file lacks. It
        was deleted or cut, or they used another cache.

        Raises:
            UserError: the file or a record is damaged, or cannot be read.
        """
        listed = self._listed()
        folders = [folder for sweep in self.storage.sweeps() for folder in confirmations(sweep)]
        recorded = [opening for folder in folders for opening in self._recorded(folder)]
        return [opening for opening in dict.fromkeys(recorded) if opening not in listed]

    def warnings(self) -> list[str]:
        """Returns a warning if the file lacks openings."""
        if not (lost := self.lost()):
            return []
        listed = "".join(f"\n    {opening}" for opening in lost)
        problem = f"{self.file} lacks openings, which confirmations record in their folders"
        return [f"{problem}; they count all the same, and the next opening writes them into it again:{listed}"]

    def _listed(self) -> list[Opening]:
        try:
            lines = self.file.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(unreadable(self.file, error)) from error
        try:
            return [Opening.of_json(unsealed(line)) for line in lines]
        except DamagedError as error:
            problem = f"{self.file}: the ledger of openings is damaged or was edited ({error})"
            remaining = f"what the confirmations under {self.storage} record in their folders still counts"
            raise UserError(
                f"{problem}; put a copy of it back, or move it away if there is none: {remaining}"
            ) from None

    def _recorded(self, folder: ConfirmationFolder) -> list[Opening]:
        consequence = f"and {self.file} alone says what that confirmation has opened"
        content = read_sealed(folder.openings, consequence).get(self.source, [])
        try:
            if not isinstance(content, list):
                raise DamagedError("does not hold a list of openings")
            return [Opening.of_json(each) for each in content]
        except DamagedError as error:
            raise UserError(f"{folder.openings}: {error}; delete it, {consequence}") from None

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
            openings = self.read()
            own = next((opening for opening in openings if opening.protocol == protocol), None)
            if own is None:
                time = datetime.now(UTC).isoformat(timespec="seconds")
                own = Opening(protocol, folder.sweep.name, time, command, user_name())
                openings.append(own)
            record = read_sealed(folder.openings, "and the same command writes it anew")
            recorded = record.get(self.source, [])
            if asdict(own) not in recorded:
                write_sealed_at(folder.openings, record | {self.source: [*recorded, asdict(own)]})
            if openings != self._listed():
                self.file.write_bytes("".join(f"{sealed(asdict(line))}\n" for line in openings).encode())

    def _alone(self) -> AbstractContextManager[None]:
        if not self.file.is_local:  # an object store has no locks
            return nullcontext()
        folder = self.file.local_path.parent
        folder.mkdir(parents=True, exist_ok=True)
        return alone_in(folder / "lock", f"another process writes to {self.file}", waits=True)


def as_json(openings: Sequence[Opening]) -> list[dict[str, str]]:
    """Returns openings for a verdict."""
    content: list[dict[str, str]] = json.loads(json.dumps([asdict(opening) for opening in openings]))
    return content
