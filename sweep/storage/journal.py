"""Writes the journal of the Optuna storage with checksums that chain its lines, and finds damaged lines.

Optuna's own reader stops at the first line that is not JSON, and does not notice a line that was changed or is missing.
In this journal every line ends in a checksum that continues the checksum of the previous line. A line that was changed,
lost or moved is therefore detected. Optuna ignores the key of the checksum. Lines of an earlier version have no
checksum and are accepted unchecked.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from mmpkd.machine.checksums import KEY, DamagedError, checksum, objects_in, unsealed
from sweep.patience import GrowingFile, patiently

# User attribute of a study: a mapping of `sweep` to the sweep's identity, and of `store` to the cohort's fingerprint.
BELONGS: Final = "belongs"


class Journal(JournalFileBackend):
    """Optuna's journal file with a checksum added to each line.

    Only one process at a time writes the file. It holds the lock of the sweep, so Optuna's own lock is not used.
    """

    def __init__(self, path: Path):
        self._path, self._last = path, last_checksum(path)
        super().__init__(str(path))
        self._file = GrowingFile(path)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        last, lines = self._last, b""
        for log in logs:
            last = checksum(_compact(log), last)
            lines += _compact(log | {KEY: last}) + b"\n"
        self._file.append(lines, sync=True)
        self._last = last  # only now, so that after a failure the memory still agrees with the file

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        read = super().read_logs
        yield from patiently(lambda: list(read(log_number_from)), self._path)


def _compact(log: Mapping[str, Any]) -> bytes:
    return json.dumps(log, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Damage:
    """The first damage in a journal.

    Attributes:
        line: the number of the damaged line, counted from 1.
        offset: the byte offset at which this line begins.
        lost: the number of lines that cannot be used any more. It is 0 if only line ends were damaged.
        kept: the content of the file that can be kept. It is the content before the damage or, if no line is lost, the
            whole content with mended line ends.
    """

    line: int
    offset: int
    problem: str
    lost: int
    kept: bytes

    def __str__(self) -> str:
        return f"line {self.line} (byte {self.offset}) {self.problem}"


def find_damage(path: Path) -> Damage | None:
    """Returns the first damage in a journal, or None. A last line without a line end is no damage, because a kill may
    leave it.
    """
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
            for json_text in objects:
                log = unsealed(json_text, last)
                if "op_code" not in log:
                    raise DamagedError("is not a record that Optuna writes")
                last = json.loads(json_text).get(KEY, last)
        except DamagedError as error:
            problem = str(error).replace(" at line 1, column", " from character")
            if "checksum" in problem:
                problem = "is not what was written there, or a line before it is missing"
            return Damage(number, offset, problem, content.count(b"\n") - number + 1, b"".join(kept))
        if len(objects) > 1:
            problem = f"holds {len(objects)} lines in one"
        if problem and first is None:
            first = number, offset, problem
        kept += [json_text + b"\n" for json_text in objects]
        offset += len(line) + 1
    return None if first is None else Damage(*first, 0, b"".join(kept))


def last_checksum(path: Path) -> str:
    """Returns the checksum of the last line that has a checksum. It is empty if no line has one."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    for line in reversed(lines):
        written: str | None = json.loads(line).get(KEY)
        if written is not None:
            return written
    return ""


def load_studies(path: Path) -> Sequence[optuna.Study]:
    """Returns the Optuna studies in a journal, without writing anything."""
    if not path.exists():
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(path)))  # Optuna takes its lock only to write
    return [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]


def study_name(arm: str, generation: int) -> str:
    """Returns the name of the study of an arm in a generation. Each extension of the space begins a new generation of
    studies.
    """
    return f"{arm} {generation}" if generation else arm


def arm_and_generation(study: str) -> tuple[str, int]:
    """Returns the arm and the generation from a study's name, which `study_name` made."""
    arm, _, generation = study.partition(" ")
    return arm, int(generation or 0)
