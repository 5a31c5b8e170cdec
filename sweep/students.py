"""Reads the students that a sweep has kept of its trials, from a disk or an object store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from mmpkd.export import student_file
from mmpkd.export.student_file import Exported
from mmpkd.types import UserError
from mmpkd.vlm import student as vlm_student
from mmpkd.vlm.student import VlmStudent
from sweep.storage.layout import SweepFolder
from sweep.transfer.attempts import Kept, kept_student

Student = TypeVar("Student")


def read_student(folder: SweepFolder, number: int) -> Exported:
    """Returns the classifying student of a trial.

    Raises:
        UserError: the sweep has kept none, or it is damaged.
        OSError: the storage cannot be read.
    """
    return read_student_of(_kept(folder, number))


def read_answering_student(folder: SweepFolder, number: int) -> VlmStudent:
    """Returns the student of a trial that answers questions; raises like `read_student`."""
    return _read(_kept(folder, number), vlm_student.read)


def read_student_of(kept: Kept) -> Exported:
    """Returns a classifying student that a trial has left; raises like `read_student`."""
    return _read(kept, student_file.read)


def _kept(folder: SweepFolder, number: int) -> Kept:
    if (kept := kept_student(folder, number)) is None:
        where = folder.shared_checkpoints.child(str(number))
        raise UserError(f"{where}: the student of trial {number} is gone; put a copy of it back")
    return kept


def _read(kept: Kept, read: Callable[[Path], Student]) -> Student:
    with TemporaryDirectory() as copies:
        copy = Path(copies) / kept.name
        kept.attempt.download(kept.name, copy)
        try:
            return read(copy)
        except UserError as error:  # it names the copy, which is deleted
            raise UserError(str(error).replace(str(copy), str(kept.file))) from error
