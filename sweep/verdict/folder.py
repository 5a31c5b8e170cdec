"""The files of a confirmation, in a folder of the sweep or at its address in an object store.

A second confirmation of the same sweep has a folder of its own, so that the first one stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from mmpkd.config import Model, validate
from mmpkd.machine.checksums import DamagedError, sealed
from mmpkd.types import ConfigError, UserError
from sweep.storage.layout import SweepFolder
from sweep.storage.whole_files import unreadable
from sweep.transfer.addresses import Place

FOLDER: Final = "confirm"  # followed by a number from the second confirmation on
PROTOCOL: Final = "protocol.yaml"
SCORES: Final = "scores"


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

    @property
    def crossed(self) -> Place:
        """Which cohort is divided into folds, so that the same command without it continues."""
        return self.place.child("cohort.yaml")

    @property
    def openings(self) -> Place:
        """What it has opened, as its own record beside the ledger: sealed JSON with openings by data set."""
        return self.place.child("openings.json")

    @property
    def failure(self) -> Place:
        """Why it has ended without a verdict. There is no such file before that."""
        return self.place.child("failure.txt")

    @property
    def has_ended(self) -> bool:
        return self.verdict.exists() or self.failure.exists()

    def space(self, phase: str) -> Place:
        """Returns the file with the search space of a phase."""
        return self.place.child(f"{phase}.yaml")

    def sweep_name(self, phase: str) -> str:
        """Returns the name of the sweep that trains a phase. It lies beside the sweep that is confirmed."""
        return f"{self.sweep.name}-{self.label}-{phase}"

    def scores(self, part: str, number: int) -> Place:
        """Returns the file with the scores of the student of a trial on `test`, on `external-` and a fingerprint, or of
        a student of the choice on validation patients (`choose`, in a fold `fold0-choose`); or with what it predicts
        for its fold, such as `fold0`.
        """
        return self.place.child(f"{SCORES}/{part}-{number}.json")

    @property
    def next(self) -> ConfirmationFolder:
        return ConfirmationFolder(self.sweep, self.turn + 1)

    def require_kinds(self) -> None:
        """Checks that a folder lies nowhere where a file is needed, and a file nowhere where a folder is.

        Raises:
            UserError: something else lies there.
        """
        if not self.place.is_local:  # an object store has no folders
            return
        for folder in (self.place, self.place.child(SCORES)):
            if folder.exists() and not folder.local_path.is_dir():
                raise UserError(f"{folder}: the confirmation needs a folder there, and this is none; move it away")
        for path in sorted(self.place.local_path.glob("*.*")):
            if path.is_dir():
                raise UserError(f"{path}: the confirmation needs a file there, and this is a folder; move it away")


def lock_of(sweep: SweepFolder) -> Path:
    """Returns the file that a confirmation of a sweep keeps locked while it runs."""
    return sweep.path / f"{FOLDER}.lock"


def confirmed_by(name: str) -> str:
    """Returns the name of the sweep that the sweep of this name confirms as a phase, and an empty text for others."""
    match = re.fullmatch(rf"(.+)-{FOLDER}\d*-(choose|train|fold\d+(-search|-choose)?)", name, re.ASCII)
    return match[1] if match else ""


def confirmations(sweep: SweepFolder) -> list[ConfirmationFolder]:
    """Returns the folders of all confirmations of a sweep, in their order. The last one may not have begun."""
    names = [name for name in sweep.shared.names() if re.fullmatch(rf"{FOLDER}([2-9]|[1-9]\d+)?", name, re.ASCII)]
    turns = sorted(int(name.removeprefix(FOLDER) or 1) for name in names)
    return [ConfirmationFolder(sweep, turn) for turn in turns]


def newest(sweep: SweepFolder) -> ConfirmationFolder:
    """Returns the folder of the last confirmation of a sweep that has a protocol, or of the first one if none has."""
    begun = [folder for folder in confirmations(sweep) if folder.protocol.exists()]
    return begun[-1] if begun else ConfirmationFolder(sweep)


def read_mapping(file: Place) -> dict[str, Any] | None:
    """Returns the content of a file of YAML, or None if there is no file.

    Raises:
        DamagedError: it does not hold a mapping.
        UserError: it cannot be read.
    """
    try:
        content = yaml.safe_load(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(unreadable(file, error)) from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise DamagedError(f"is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise DamagedError("is empty" if content is None else f"holds no mapping but a {type(content).__name__}")
    return content


def write_sealed_at(file: Place, content: Mapping[str, Any]) -> None:
    """Writes a file of JSON with a checksum, in one line: one with scores has thousands of numbers."""
    file.write_bytes((sealed(content) + "\n").encode())


def read_kept(file: Place, model: type[Model], option: str) -> Model | None:
    """Returns what a confirmation keeps of a file that the command line has named, or None if it keeps none.

    Args:
        option: the key of the command line.

    Raises:
        UserError: the kept file is damaged, or cannot be read.
    """
    try:
        content = read_mapping(file)
        return None if content is None else validate(model, content)
    except (DamagedError, ConfigError) as error:
        raise UserError(f"{file}: {error}; delete it, and give {option}=FILE again") from None
