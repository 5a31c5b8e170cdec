"""The ledger of openings: which confirmations have read the test part of a cohort.

A test part that was read twice with different questions is no longer sealed: the second question may have been chosen
after the answer to the first. So the ledger lies beside the prepared cohorts, where all sweeps find it, and every later
verdict shows it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

from mmpkd.machine.checksums import DamagedError, sealed, unsealed
from mmpkd.types import ConfigError, UserError
from sweep.storage.whole_files import unreadable
from sweep.transfer.addresses import Place

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


@dataclass(frozen=True)
class Ledger:
    """The ledger of a cohort.

    Attributes:
        file: a line of sealed JSON for each opening.
        part: what is opened, in words.
    """

    file: Place
    part: str = TEST_PART

    @classmethod
    def of(cls, cache: Place, source: str, part: str = TEST_PART) -> Ledger:
        """Returns the ledger of a data set.

        Args:
            source: the hash that is equal for stores that may share patients (`student_file.source_of`), so that
                another image size of the same patients is no other cohort.
            part: what is opened, in words.
        """
        return cls(cache.child(f"{FOLDER}/{source}.jsonl"), part)

    def read(self) -> list[Opening]:
        """Returns all openings, oldest first.

        Raises:
            UserError: the ledger is damaged, or cannot be read.
        """
        try:
            lines = self.file.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(unreadable(self.file, error)) from error
        try:
            return [Opening(**unsealed(line)) for line in lines]
        except (DamagedError, TypeError, ValueError) as error:
            problem = f"{self.file}: the ledger of openings is damaged or was edited ({error})"
            raise UserError(f"{problem}; put a copy of it back") from None

    def others(self, protocol: str) -> list[Opening]:
        """Returns the openings by other protocols."""
        return [opening for opening in self.read() if opening.protocol != protocol]

    def open(self, protocol: str, sweep: str, command: str, user: str, again: bool) -> None:
        """Notes an opening. A confirmation that continues is noted once.

        Args:
            again: whether it may be opened although another confirmation has opened it.

        Raises:
            ConfigError: another confirmation has opened the test part.
        """
        openings = self.read()
        if any(opening.protocol == protocol for opening in openings):
            return
        refuse_second_opening(openings, again, self.part)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        lines = [*openings, Opening(protocol, sweep, time, command, user)]
        self.file.write_bytes("".join(f"{sealed(asdict(line))}\n" for line in lines).encode())


def refuse_second_opening(openings: Sequence[Opening], again: bool, part: str = TEST_PART) -> None:
    """Checks that no other confirmation has opened what is sealed, before hours are spent.

    Raises:
        ConfigError: another one has, and `again` is not set.
    """
    if openings and not again:
        listed = "\n".join(f"    {opening}" for opening in openings)
        problem = f"{part} was opened before:\n{listed}\n  A result on it now is no longer blind"
        raise ConfigError.at("again", f"{problem}; again=true opens it all the same, and the verdict will say so")


def as_json(openings: Sequence[Opening]) -> list[dict[str, str]]:
    """Returns openings for a verdict."""
    content: list[dict[str, str]] = json.loads(json.dumps([asdict(opening) for opening in openings]))
    return content
