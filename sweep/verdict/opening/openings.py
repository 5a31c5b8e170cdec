"""One opening of a test part, as the ledger and the records of confirmations hold it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from mmpkd.machine.checksums import DamagedError

SHOWN_DIGITS: Final = 12  # of a hash
REQUIRED: Final = frozenset({"protocol", "sweep", "time", "command", "user"})  # keys of an opening in a file
OPTIONAL: Final = frozenset({"cohort", "result", "images"})


@dataclass(frozen=True)
class Opening:
    """One opening of a test part.

    Attributes:
        protocol: the hash of the protocol of the confirmation.
        sweep: the name of the sweep.
        time: when it was opened, as ISO 8601 in UTC.
        command: the command line.
        user: who ran it.
        cohort: fingerprint of the opened store. It is empty in openings of earlier versions, as are the next two.
        result: hash of the scores that came out, see `scores.result_of`; empty until the students are scored.
        images: perceptual hashes of the opened images, see `Images.text`.
        shares: how these images are those of the cohort at hand, if it is another data set; not in files of the ledger.
    """

    protocol: str
    sweep: str
    time: str
    command: str
    user: str
    cohort: str = ""
    result: str = ""
    images: str = ""
    shares: str = ""

    def __str__(self) -> str:
        result = f", result {self.result[:SHOWN_DIGITS]}" if self.result else ""
        shares = f" ({self.shares})" if self.shares else ""
        return (
            f"{self.time}, sweep {self.sweep}, protocol {self.protocol[:SHOWN_DIGITS]}{result}: {self.command}{shares}"
        )

    @classmethod
    def of_json(cls, content: Any) -> Self:
        """Returns the opening in a value of JSON.

        Raises:
            DamagedError: it is none.
        """
        is_opening = isinstance(content, Mapping) and REQUIRED <= set(content) <= REQUIRED | OPTIONAL
        if not is_opening or not all(isinstance(value, str) for value in content.values()):
            raise DamagedError("does not describe an opening")
        if not re.fullmatch(r"([0-9a-f]{16})*", content.get("images", "")):
            raise DamagedError("does not hold hashes of images")
        return cls(**content)

    @property
    def json(self) -> dict[str, str]:
        """The opening as files of the ledger hold it."""
        return {key: value for key, value in asdict(self).items() if key in REQUIRED or (key in OPTIONAL and value)}

    def is_same(self, other: Opening) -> bool:
        """Whether both are one opening, of which one may lack the result."""
        return (self.protocol, self.sweep, self.time) == (other.protocol, other.sweep, other.time)


def distinct(openings: Iterable[Opening]) -> list[Opening]:
    """Returns the openings, oldest first. Of those that are the same, one that states its result remains."""
    each = list(dict.fromkeys(openings))
    kept = [
        opening
        for opening in each
        if opening.result or not any(opening.is_same(other) and other.result for other in each)
    ]
    return sorted(kept, key=lambda opening: opening.time)


def as_json(openings: Sequence[Opening]) -> list[dict[str, str]]:
    """Returns openings for a verdict. The hashes of images stay in the ledger."""
    return [{key: value for key, value in asdict(opening).items() if key != "images"} for opening in openings]
