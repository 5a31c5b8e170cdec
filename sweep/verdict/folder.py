"""The files of a confirmation, in a folder of the sweep or at its address in an object store.

A second confirmation of the same sweep has a folder of its own, so that the first one stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mmpkd.machine.checksums import sealed
from sweep.storage.layout import SweepFolder
from sweep.transfer.addresses import Place

FOLDER: Final = "confirm"  # followed by a number from the second confirmation on
PROTOCOL: Final = "protocol.yaml"


@dataclass(frozen=True)
class ConfirmationFolder:
    """The folder of one confirmation.

    Attributes:
        sweep: the folder of the sweep that is confirmed.
        turn: which confirmation of the sweep it is, counted from 1.
    """

    sweep: SweepFolder
    turn: int = 1

    def __str__(self) -> str:
        return str(self.place)

    @property
    def place(self) -> Place:
        return self.sweep.shared.child(self.label)

    @property
    def label(self) -> str:
        """The folder's name, such as `confirm` or `confirm2`."""
        return FOLDER if self.turn == 1 else f"{FOLDER}{self.turn}"

    @property
    def protocol(self) -> Place:
        """What the confirmation does, as it was frozen before it began."""
        return self.place.child(PROTOCOL)

    @property
    def verdict_page(self) -> Place:
        """The verdict for people."""
        return self.place.child("verdict.html")

    @property
    def verdict(self) -> Place:
        """The verdict for programs."""
        return self.place.child("verdict.json")

    @property
    def external(self) -> Place:
        """Which external cohort is scored, so that the same command without it continues."""
        return self.place.child("external.yaml")

    def space(self, phase: str) -> Place:
        """Returns the file with the search space of a phase."""
        return self.place.child(f"{phase}.yaml")

    def sweep_name(self, phase: str) -> str:
        """Returns the name of the sweep that trains a phase. It lies beside the sweep that is confirmed."""
        return f"{self.sweep.name}-{self.label}-{phase}"

    def scores(self, part: str, number: int) -> Place:
        """Returns the file with the scores of the student of a trial on `test`, or on `external-` and a fingerprint."""
        return self.place.child(f"scores/{part}-{number}.json")

    @property
    def next(self) -> ConfirmationFolder:
        return ConfirmationFolder(self.sweep, self.turn + 1)


def newest(sweep: SweepFolder) -> ConfirmationFolder:
    """Returns the folder of the last confirmation of a sweep that has a protocol, or of the first one if none has."""
    folder = ConfirmationFolder(sweep)
    while folder.next.protocol.exists():
        folder = folder.next
    return folder


def write_sealed_at(file: Place, content: Mapping[str, Any]) -> None:
    """Writes a file of JSON with a checksum."""
    file.write_bytes((sealed(content, indent=1) + "\n").encode())
