"""What kind of failure a trial's is, said once by its worker and acted on by the driver."""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from mmpkd.types import DivergedError, UserError

Cause = Literal["diverged", "goal", "memory", "storage", "error"]
DISK_TROUBLE: Final = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE)


def cause_of(error: Exception) -> Cause:
    """What kind of failure this is."""
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, GoalError):
        return "goal"
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return "memory"
    if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
        return "storage"
    return "error"


def message_of(error: Exception) -> str:
    """In a line or a few, for whoever reads the tables."""
    if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
        where = error.filename or "the sweep's folder or the cache"
        return f"{where}: a worker cannot write there ({error.strerror})"
    return (str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}").strip()


def told_error(folder: Path, number: int, result: Mapping[str, Any]) -> tuple[str, str]:
    """Cause and message of a trial's failure; two empty strings if its process died without a word."""
    if "error" in result:
        return result["cause"], result["error"]
    story = error_file(folder, number)
    cause, _, message = story.read_text().partition("\n\n")[0].partition(": ") if story.exists() else ("", "", "")
    return cause, message


class GoalError(UserError):
    """A goal of the search that trainings never report."""


def error_file(folder: Path, number: int) -> Path:
    return folder / "errors" / f"{number}.txt"
