"""Writes the folder of a picked trial: configuration, student and model card."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from mmpkd.config import TrialConfig
from mmpkd.export import student_file
from mmpkd.export.lookup import is_answering
from mmpkd.export.student_file import Exported
from mmpkd.machine.files import write_atomically
from mmpkd.types import ConfigError, UserError
from mmpkd.vlm import student as vlm_student
from mmpkd.vlm.config import VlmConfig
from mmpkd.vlm.student import VlmStudent
from sweep.storage.layout import CHECKPOINT, PICKED_CARD, PICKED_CONFIG, STUDENT, VLM_STUDENT


@dataclass(frozen=True)
class PickedFolder:
    """The folder of one picked trial, which a person takes away as a whole. `name` is that of the student's file."""

    path: Path
    name: str = STUDENT

    @classmethod
    def of(cls, path: Path, config: TrialConfig) -> Self:
        """Returns the folder of a trial with this configuration."""
        return cls(path, VLM_STUDENT if isinstance(config.student, VlmConfig) else STUDENT)

    @property
    def config(self) -> Path:
        """The configuration, which `mmpkd.train config=` reproduces."""
        return self.path / PICKED_CONFIG

    @property
    def student(self) -> Path:
        return self.path / self.name

    @property
    def card(self) -> Path:
        return self.path / PICKED_CARD

    def trained(self, config: TrialConfig) -> Path:
        """Returns the folder in which `mmpkd.train` with the command of `training_words` works."""
        return self.path / f"{self.config.stem}-{config.fingerprint()}"

    def training_words(self, cache: str) -> list[str]:
        """Returns the words of the `mmpkd.train` command that trains the student again."""
        return [f"config={self.config}", f"out={self.path}", *([f"cache={cache}"] if cache else [])]


def read_student(student: Path, config: TrialConfig, number: int, remedy: str) -> Exported | VlmStudent:
    """Returns the student in a file, and checks that it is whole and that of this configuration.

    Args:
        remedy: what follows if it is not, as the end of a sentence of the error.

    Raises:
        UserError: it is not.
    """
    try:
        exported = _read(student)
    except ConfigError as error:
        raise UserError(f"the student of trial {number} is damaged; {remedy}\n  {error.mistakes[0].problem}") from error
    trained = exported.card.trial
    if trained != config.fingerprint():
        problem = f"was trained with another configuration ({trained}, wanted {config.fingerprint()})"
        raise UserError(f"the student of trial {number} {problem}; {remedy}\n  {student}")
    return exported


def _read(file: Path) -> Exported | VlmStudent:
    return vlm_student.read(file) if is_answering(file) else student_file.read(file)


def adopt_trained(folder: PickedFolder, config: TrialConfig) -> None:
    """Moves up the student that a finished `mmpkd.train` has left in the folder, and deletes the checkpoint beside it.
    The metrics of the training stay where they are.
    """
    trained = folder.trained(config)
    if (trained / folder.name).is_file():
        os.replace(trained / folder.name, folder.student)
        (trained / CHECKPOINT).unlink(missing_ok=True)


def differing(folder: PickedFolder, config: str, student: Path | None) -> list[str]:
    """Returns the names of the files of a picked folder whose content is not the given one. A missing file does not
    differ.

    Args:
        student: the file of the student, or None if there is none to compare.
    """
    names = [PICKED_CONFIG] if folder.config.is_file() and folder.config.read_bytes() != config.encode() else []
    if student is not None and folder.student.is_file() and not _is_same(student, folder.student):
        names.append(folder.name)
    return names


def _is_same(student: Path, other: Path) -> bool:
    """Returns whether two files hold the same student. Their bytes may differ, because safetensors (0.8) writes the
    entries of its header in any order. A damaged student differs from every other.
    """
    try:
        first, second = _read(student), _read(other)
    except ConfigError:
        return False
    weights, others = (
        (each.vlm if isinstance(each, VlmStudent) else each.student).state_dict() for each in (first, second)
    )
    return first.card == second.card and all(torch.equal(weights[name], others[name]) for name in weights)


def publish(folder: PickedFolder, config: str, student: Path | None, card: str, replace: bool) -> None:
    """Writes the files of a picked folder. A reader sees the whole folder or none of it; if it exists already, each
    file is written atomically.

    Args:
        student: the file of the student, which is moved; None leaves a student that is there.
        replace: whether a student that is there is another one, which is deleted if there is no new one.
    """
    staging = PickedFolder(folder.path.with_name(f".{folder.path.name}.partial"), folder.name)
    shutil.rmtree(staging.path, ignore_errors=True)  # a kill may have left it
    target = folder if folder.path.exists() else staging
    try:
        target.path.mkdir(parents=True, exist_ok=True)
        if student is not None:
            os.replace(student, target.student)
        elif replace:
            target.student.unlink(missing_ok=True)
        write_atomically(target.config, config)
        write_atomically(target.card, card)
        if target is staging:
            os.replace(staging.path, folder.path)
    finally:
        shutil.rmtree(staging.path, ignore_errors=True)
