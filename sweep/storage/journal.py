"""The file of the Optuna storage: lines that vouch for each other, and what to do with one that is damaged.

Optuna's own reader dies at the first line that is not JSON, and takes a changed or missing one for the truth.
Here every line ends in a checksum that continues the line's before it (Optuna passes over the key), so that a
line that was changed, lost or put elsewhere is seen. Lines without one, of an earlier version, are taken as they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from mmpkd.machine.checksums import KEY, DamagedError, checksum, objects_in, unsealed

BELONGS: Final = "belongs"  # user attribute of a study: the identity of its `sweep`, the fingerprint of its `store`


def study_name(arm: str, generation: int) -> str:
    """Returns the name of an arm's study: the arm's, and behind it how often the space was extended, if it was."""
    return f"{arm} {generation}" if generation else arm


def arm_and_generation(study: str) -> tuple[str, int]:
    """Returns the arm and the generation that a study's name holds."""
    arm, _, generation = study.partition(" ")
    return arm, int(generation or 0)


class Journal(JournalFileBackend):
    """Optuna's journal file with a checksum in each line; one process at a time writes it."""

    def __init__(self, path: Path):
        self._last = last_checksum(path)
        super().__init__(str(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        sealed = []
        for log in logs:
            self._last = checksum(json.dumps(log, separators=(",", ":")).encode(), self._last)
            sealed.append(log | {KEY: self._last})
        super().append_logs(sealed)


@dataclass(frozen=True)
class Damage:
    """The first thing wrong in a journal.

    Attributes:
        line: its number, from 1; `offset` is the byte where it begins.
        lost: lines that cannot be used any more: none where only ends of lines were hurt.
        kept: the content of the file up to there, or mended.
    """

    line: int
    offset: int
    problem: str
    lost: int
    kept: bytes

    def __str__(self) -> str:
        return f"line {self.line} (byte {self.offset}) {self.problem}"


def damage_of(path: Path) -> Damage | None:
    """What is wrong in a journal; a last line without an end is not, a kill leaves such."""
    content = path.read_bytes() if path.exists() else b""
    content = content[: content.rfind(b"\n") + 1]
    first: tuple[int, int, str] | None = None
    kept: list[bytes] = []
    last, offset = "", 0
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        text = line.strip(b"\0 \t\r")
        problem = "is empty" if not text else "has NUL bytes around it" if b"\0" in line else ""
        try:
            objects = list(objects_in(text))
            for one in objects:
                log = unsealed(one, last)
                if "op_code" not in log:
                    raise DamagedError("is no record of Optuna's")
                last = json.loads(one).get(KEY, last)
        except DamagedError as error:
            problem = str(error).replace(" at line 1, column", " from character")
            if "checksum" in problem:
                problem = "is not what was written there, or a line before it is missing"
            return Damage(number, offset, problem, content.count(b"\n") - number + 1, b"".join(kept))
        if len(objects) > 1:
            problem = f"holds {len(objects)} lines in one"
        if problem and first is None:
            first = number, offset, problem
        kept += [one + b"\n" for one in objects]
        offset += len(line) + 1
    return None if first is None else Damage(*first, 0, b"".join(kept))


def last_checksum(path: Path) -> str:
    """Of the last line that has one; empty where none has."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    for line in reversed(lines):
        written: str | None = json.loads(line).get(KEY)
        if written is not None:
            return written
    return ""


def stored_studies(path: Path) -> Sequence[optuna.Study]:
    """The studies in a journal; nothing is written."""
    if not path.exists():
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(path)))  # which asks for its lock to write only
    return [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
