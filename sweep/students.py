"""Reads the students that a sweep has kept of its trials, from a disk or an object store."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from mmpkd.export import student_file
from mmpkd.export.student_file import Exported
from mmpkd.types import UserError
from sweep.storage.layout import SweepFolder
from sweep.transfer.attempts import Kept, kept_student


def read_student(folder: SweepFolder, number: int) -> Exported:
    """Returns the student of a trial.

    Raises:
        UserError: the sweep has kept none, or it is damaged.
        OSError: the storage cannot be read.
    """
    if (kept := kept_student(folder, number)) is None:
        where = folder.shared_checkpoints.child(str(number))
        raise UserError(f"{where}: the student of trial {number} is gone; put a copy of it back")
    return read_student_of(kept)


def read_student_of(kept: Kept) -> Exported:
    """Returns a student that a trial has left; raises like `read_student`."""
    with TemporaryDirectory() as copies:
        copy = Path(copies) / kept.name
        kept.attempt.download(kept.name, copy)
        try:
            return student_file.read(copy)
        except UserError as error:  # it names the copy, which is deleted
            raise UserError(str(error).replace(str(copy), str(kept.file))) from error
