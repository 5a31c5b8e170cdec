"""Names of the attempts at a trial. Each start of the trial in a worker is an attempt with a folder of its own."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from mmpkd.types import UserError
from sweep.storage.layout import ATTEMPT, STUDENT, VLM_STUDENT, SweepFolder
from sweep.transfer.addresses import Place
from sweep.transfer.refusals import in_words

NAME: Final = re.compile(rf"{ATTEMPT}(\d+)(-\w+)?")


def attempts_in_order(names: Iterable[str]) -> list[str]:
    """Returns those of the names that are names of attempts at a trial, oldest attempt first."""
    matches = [match for name in names if (match := NAME.fullmatch(name))]
    return [match[0] for match in sorted(matches, key=lambda match: (int(match[1]), match[0]))]


def attempts_in(trial: Path) -> list[Path]:
    """Returns the folders of all attempts at a trial below the folder of its checkpoints, oldest attempt first."""
    names = [path.name for path in trial.iterdir()] if trial.is_dir() else []
    return [trial / name for name in attempts_in_order(names)]


def next_attempt(names: Iterable[str], unique: bool = False) -> str:
    """Returns the name of the attempt that follows all attempts among the names.

    Args:
        unique: whether the name must differ from the name that another worker is given at the same time.
    """
    attempts = attempts_in_order(names)
    match = NAME.fullmatch(attempts[-1]) if attempts else None
    return f"{ATTEMPT}{int(match[1]) + 1 if match else 1}{f'-{uuid.uuid4().hex[:8]}' if unique else ''}"


class Kept(NamedTuple):
    """A student that a trial has left: the folder of its attempt, and the name of its file there."""

    attempt: Place
    name: str

    @property
    def file(self) -> Place:
        return self.attempt.child(self.name)


def kept_student(folder: SweepFolder, number: int) -> Kept | None:
    """Returns the student of the last attempt at a trial that has left one in the sweep's storage, or None.

    Raises:
        UserError: the storage cannot be read.
    """
    trial = folder.shared_checkpoints.child(str(number))
    try:
        files = trial.sizes()
    except OSError as error:
        raise UserError(in_words(error) if folder.address else f"{trial}: cannot be read ({error.strerror})") from error
    attempts = attempts_in_order({file.partition("/")[0] for file in files})
    places = ((attempt, name) for attempt in reversed(attempts) for name in (STUDENT, VLM_STUDENT))
    return next((Kept(trial.child(attempt), name) for attempt, name in places if f"{attempt}/{name}" in files), None)
