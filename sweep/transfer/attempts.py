"""Names of the attempts at a trial. Each start of the trial in a worker is an attempt with a folder of its own."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sweep.storage.layout import ATTEMPT

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
