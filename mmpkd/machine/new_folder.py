"""Writes results as a new folder, which appears as a whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from mmpkd.machine.errors import error_chain
from mmpkd.types import ConfigError, UserError


@contextmanager
def new_folder(out: Path, command: Sequence[str]) -> Iterator[Path]:
    """A context that yields an empty folder beside `out`, and renames it to `out` when the context ends.

    After an error or an interrupt, the folder is deleted. If the process is killed, the hidden folder
    `.NAME.<8 digits>.partial` stays, and the next context for the same name deletes it. Several processes may write to
    the same `out` at once; the first one that ends gets the name.

    Args:
        out: the new folder; it may exist if it is empty.
        command: the words of the user's command, which a message repeats with another `out=`.

    Raises:
        ConfigError: `out` has files in it, is a file, or is a link that leads nowhere; or its parent cannot be made.
        UserError: the disk refuses to write a file.
    """
    refuse_taken(out, command)
    target = Path(os.path.realpath(out))  # what a link to an empty folder leads to, since a link cannot be replaced
    partial = target.with_name(f".{target.name}.{uuid4().hex[:8]}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _delete_left_over(target)
        partial.mkdir()
    except OSError as error:
        problem = f"the folder {target} cannot be made: {error.strerror}"
        raise ConfigError.at("out", f"{problem}; name another one") from error
    lock = os.open(partial, os.O_RDONLY)
    problem = ""
    try:
        with suppress(OSError):  # a disk without locks; then nothing deletes this folder after a kill
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
        os.replace(partial, target)
    except UserError:
        raise
    except Exception as error:
        cause = next((link for link in error_chain(error) if isinstance(link, OSError)), None)
        if cause is None:
            raise
        if cause.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            refuse_taken(out, command)  # another process was faster
        problem = f"{out} cannot be written: {_reason(cause)}"
    finally:
        os.close(lock)
        shutil.rmtree(partial, ignore_errors=True)
    if problem:  # raised without its cause, on which the command line would give advice about damaged files
        raise UserError(f"{problem}\n  nothing was left there; repair this, then run the same command again")


def _reason(error: OSError) -> str:
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # one entry for each file of a folder
        return str(error.args[0][0][-1]).partition(": ")[0]
    return error.strerror or str(error).partition("\n")[0]


def refuse_taken(out: Path, command: Sequence[str]) -> None:
    """Checks that nothing is at `out`, or an empty folder.

    Args:
        command: see `new_folder`.

    Raises:
        ConfigError: something else is there.
    """
    if out.is_symlink() and not out.exists():
        problem = f"{out} is a link to {os.path.realpath(out)}, where nothing is"
        raise ConfigError.at("out", f"{problem}; make that folder, delete the link, or name another folder")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    names = (out.with_name(f"{out.name}-{count}") for count in itertools.count(2))
    free = next(path for path in names if not os.path.lexists(path))
    what = "a folder with files in it" if out.is_dir() else "a file"
    again = shlex.join([*(word for word in command if not word.startswith("out=")), f"out={free}"])
    raise ConfigError.at("out", f"{out} is {what}, and results get a new folder; write them to another:\n  {again}")


def _delete_left_over(target: Path) -> None:
    """Deletes the folders beside `target` that killed processes have left. A process that is alive has a lock."""
    for path in target.parent.iterdir():
        if not re.fullmatch(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.partial", path.name):
            continue
        with suppress(OSError):
            lock = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
