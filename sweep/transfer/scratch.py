"""The folder on a machine's own disk in which the processes of a sweep keep their copies."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from mmpkd.types import ConfigError


def default_scratch() -> Path:
    """Makes, unless it exists, and returns a folder below the temporary folder that only this user can enter.

    Raises:
        ConfigError: it cannot be made, or another user has made a file or a folder of this name.
    """
    return private_folder(Path(tempfile.gettempdir()))


def scratch_folder(scratch: str) -> Path:
    """Returns this user's folder below the folder that `scratch=` names, or else below the temporary folder.

    Raises:
        ConfigError: see `private_folder`.
    """
    return private_folder(Path(scratch).absolute()) if scratch else default_scratch()


def private_folder(parent: Path) -> Path:
    """Makes, unless it exists, and returns a folder below `parent` that only this user can enter, because copies hold
    images of patients.

    Raises:
        ConfigError: it cannot be made, or another user has made a file or a folder of this name.
    """
    folder = parent / f"mmpkd-{os.getuid()}"
    advice = "name a folder on the disk of every machine with scratch=DIR"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        known = folder.lstat()
    except OSError as error:
        raise ConfigError.at("scratch", f"{folder} cannot be made ({error.strerror}); {advice}") from error
    if not stat.S_ISDIR(known.st_mode) or known.st_uid != os.getuid() or known.st_mode & 0o077:
        raise ConfigError.at("scratch", f"{folder} is not a folder that only you can enter; {advice}")
    return folder
