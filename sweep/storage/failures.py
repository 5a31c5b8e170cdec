"""What kind of failure a trial's is, said once by its worker and acted on by the driver."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from mmpkd.machine.errors import error_chain, is_out_of_memory, with_fault
from mmpkd.types import DivergedError, UserError
from sweep.storage.layout import SweepFolder

Cause = Literal["diverged", "goal", "memory", "storage", "error"]
FULL: Final = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
)  # nothing can be written, whatever the path
AWAY: Final = (errno.EIO, errno.ESTALE)
REFUSED: Final = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR)  # of one path


def cause_of(error: Exception, places: Sequence[Path]) -> Cause:
    """What kind of failure this is.

    Args:
        places: the sweep's folder and the cache, which every trial needs.
    """
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, GoalError):
        return "goal"
    if any(map(is_out_of_memory, error_chain(error))):
        return "memory"
    return "storage" if disk_trouble(error, places) else "error"


def message_of(error: Exception, places: Sequence[Path]) -> str:
    """In a line or a few, for whoever reads the tables."""
    if trouble := disk_trouble(error, places):
        return f"{trouble}, in a worker"
    return (with_fault(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}").strip()


def disk_trouble(error: Exception, places: Sequence[Path]) -> str:
    """Which path is of no use any more and why, if a disk is full or away, or if the path lies in one of `places`;
    empty for any other error, such as of a socket or of a library's own file.
    """
    if not isinstance(error, OSError) or error.errno not in (*FULL, *AWAY, *REFUSED):
        return ""
    if not isinstance(error.filename, str):
        where = ", ".join(map(str, places))
        nameless = (
            f"nothing more can be written ({error.strerror}); see the disks of {where}, temporary files and the output"
        )
        return "" if error.errno in REFUSED else nameless
    inside = any(Path(error.filename).absolute().is_relative_to(place.absolute()) for place in places)
    return f"{error.filename}: cannot be read or written any more ({error.strerror})" * (inside or error.errno in FULL)


def told_error(folder: SweepFolder, number: int, result: Mapping[str, Any]) -> tuple[str, str]:
    """Cause and message of a trial's failure; two empty strings if its process died without a word."""
    if "error" in result:
        return result["cause"], result["error"]
    story = folder.error(number)
    cause, _, message = (
        story.read_text(errors="replace").partition("\n\n")[0].partition(": ") if story.exists() else ("", "", "")
    )
    return cause, message


class GoalError(UserError):
    """A goal of the search that trainings never report."""
