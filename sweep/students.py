"""Reads the students that a sweep has kept of its trials, from a disk or an object store."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from mmpkd.export import student_file
from mmpkd.export.student_file import Exported
from mmpkd.types import UserError
from sweep.storage.layout import STUDENT, SweepFolder
from sweep.transfer.addresses import Place
from sweep.transfer.attempts import kept_student


def read_student(folder: SweepFolder, number: int) -> Exported:
    """Returns the student of a trial.

    Raises:
        UserError: the sweep has kept none, or it is damaged.
        OSError: the storage cannot be read.
    """
    if (attempt := kept_student(folder, number)) is None:
        where = folder.shared_checkpoints.child(str(number))
        raise UserError(f"{where}: the student of trial {number} is gone; put a copy of it back")
    return read_student_of(attempt)


def read_student_of(attempt: Place) -> Exported:
    """Returns the student in the folder of an attempt at a trial; raises like `read_student`."""
    with TemporaryDirectory() as copies:
        copy = Path(copies) / STUDENT
        attempt.download(STUDENT, copy)
        try:
            return student_file.read(copy)
        except UserError as error:  # it names the copy, which is deleted
            raise UserError(str(error).replace(str(copy), str(attempt.child(STUDENT)))) from error
