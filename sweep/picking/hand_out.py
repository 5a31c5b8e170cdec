"""Puts the student of a picked trial into its folder: copies the one that the sweep has kept, or trains it again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from shlex import join, quote
from typing import Final

from rich.console import Console

from mmpkd import train
from mmpkd.command import warn
from mmpkd.config import TrialConfig, dump_trial
from mmpkd.export.student_file import Exported
from mmpkd.types import UserError
from mmpkd.vlm.exported import limits_of_sharing
from mmpkd.vlm.student import VlmStudent
from sweep.picking.candidates import Candidates
from sweep.picking.card import card_of
from sweep.picking.folder import PickedFolder, adopt_trained, differing, publish, read_student
from sweep.picking.words import Pick
from sweep.reports.details import duration
from sweep.storage.layout import SweepFolder
from sweep.storage.lock import alone_in
from sweep.transfer.addresses import Place
from sweep.transfer.attempts import kept_student
from sweep.types import Record

NOT_KEPT: Final = "the sweep has not kept this student, because others seemed better while it ran"
WRITER: Final = "another sweep.pick writes to"  # before the folder, in a message


def hand_out(
    trials: Candidates, picked: Pick, target: PickedFolder, command: str, options: Mapping[str, str], console: Console
) -> Exported | VlmStudent | None:
    """Writes the folder of a picked trial, trains its student if that is wanted and needed, and says how to use it.

    Args:
        command: the command line of this process.

    Returns:
        The student, or None if it is not trained yet.

    Raises:
        UserError: the student is damaged, the folder holds something else, or another process writes there.
    """
    config, number = trials.config_of(picked.trial), picked.trial.number
    text, training = dump_trial(config), options["train"] == "true"
    replace = options["replace"] == "true" and target.path.exists()
    copy = target.path.with_name(f".{target.path.name}.copy.partial") / target.name
    target.path.parent.mkdir(parents=True, exist_ok=True)
    with alone_in(target.path.parent, f"{WRITER} {target.path.parent}"):
        try:
            exported = _copied(trials.sweep.folder, number, config, copy, training, console)
            student = copy if exported else None
            if (names := differing(target, text, student)) and not replace:
                problem = f"{target.path} holds another {' and another '.join(names)} than that of trial {number}"
                raise UserError(f"{problem}; this replaces it:\n  {command} replace=true")
            if not replace:
                adopt_trained(target, config)
            same = target.student.is_file() and not replace
            if same and not exported:
                exported = _read(target.student, target.student, config, number, training, console)
            publish(target, text, student, card_of(trials, picked, config, exported), replace)
        finally:
            shutil.rmtree(copy.parent, ignore_errors=True)
    if exported is None and training:
        target.path.mkdir(parents=True, exist_ok=True)
        with alone_in(target.path, f"{WRITER} {target.path}"):
            train.main(target.training_words(_cache_of(trials)))
            adopt_trained(target, config)
        console.print(f"the student is moved to {target.student}", soft_wrap=True)
        exported = read_student(target.student, config, number, "run the same command again")
        publish(target, text, None, card_of(trials, picked, config, exported), replace=False)
    elif same:
        console.print("it was picked before, with the same configuration and student; its card is written anew")
    _say_what_next(trials, picked.trial, target, exported, command, console)
    return exported


def _copied(
    folder: SweepFolder, number: int, config: TrialConfig, copy: Path, training: bool, console: Console
) -> Exported | VlmStudent | None:
    """Copies the student that the sweep has kept, and returns it, or None if it has kept none.

    Raises:
        UserError: the student cannot be read, or is damaged and not to be trained again.
    """
    if (kept := kept_student(folder, number)) is None:
        return None
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        kept.attempt.download(kept.name, copy)
    except FileNotFoundError:  # a driver has just deleted it
        return None
    except PermissionError as error:
        raise UserError(f"{kept.file}: cannot be read ({error.strerror}); ask its owner") from error
    return _read(copy, kept.file, config, number, training, console)


def _read(
    file: Path, original: Path | Place, config: TrialConfig, number: int, training: bool, console: Console
) -> Exported | VlmStudent | None:
    """Returns the student in a file. If it is damaged and is to be trained again, warns and returns None.

    Args:
        original: the file to be named in a message. The file that is read may be a copy, which is deleted then.

    Raises:
        UserError: the student is damaged, and is not to be trained again.
    """
    remedy = "it is trained again" if training else "add train=true, which trains exactly the same student again"
    try:
        return read_student(file, config, number, remedy)
    except UserError as error:
        problem = str(error).replace(str(file), str(original))
        if not training:
            raise UserError(problem) from error
        console.print(f"warning: {problem}", soft_wrap=True)
        return None


def _cache_of(trials: Candidates) -> str:
    """Returns the folder of the cache with which the sweep was run, or an empty text if there is none here."""
    caches = [word.partition("=")[2] for word in trials.sweep.words or () if word.startswith("cache=")]
    return caches[-1] if caches and Path(caches[-1]).is_dir() else ""


def _say_what_next(
    trials: Candidates,
    trial: Record,
    target: PickedFolder,
    exported: Exported | VlmStudent | None,
    command: str,
    console: Console,
) -> None:
    def line(text: str) -> None:
        console.print(text, soft_wrap=True)  # a command can be copied as one line

    names = ", ".join(path.name for path in (target.config, target.student, target.card) if path.is_file())
    line(f"\nfiles in {target.path}: {names}")
    if exported is None:
        took = f"training it took {duration(trial.seconds)} in the sweep"
        console.print(f"{NOT_KEPT}; {took}. This trains exactly the same one, and train=true does it here:")
        line(f"  {join(['python', '-m', 'mmpkd.train', *target.training_words(_cache_of(trials))])}")
        line("then this takes it over:")
        line(f"  {command}")
        return
    student = quote(str(target.student))
    if isinstance(exported, VlmStudent):
        if exported.card.credentialed:
            warn(limits_of_sharing(True, exported.vlm.processor.tokens), console)
        line(f"ask it about images:\n  python -m mmpkd.predict model={student} images=FOLDER question=TEXT")
        line(f"export it for transformers:\n  python -m mmpkd.export model={student} to=transformers")
        return
    line(f"apply it to images:\n  python -m mmpkd.predict model={student} images=FOLDER")
    line(f"export it to=timm, onnx, mlflow or hub:\n  python -m mmpkd.export model={student} to=onnx")
