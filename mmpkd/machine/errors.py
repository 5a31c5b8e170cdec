"""Faults of the machine behind an error of ours: no memory, no file handles, no disk space, an unreachable disk.

Readers turn any error of a damaged file into an error that names the file. If the machine fails while a sound file is
read, the reader raises the same error. Unless the fault of the machine is recognised, the sound file is blamed, left
out or deleted.
"""

from __future__ import annotations

import errno
import math
import sys
from collections.abc import Iterator
from typing import Final

from mmpkd.machine.resources import memory

MACHINE_ERRNOS: Final = (
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOLCK),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN, errno.EREMOTEIO),
)


def machine_fault(error: BaseException) -> str:
    """Returns the fault of the machine that led to this error, in a few words; empty if there is none."""
    for link in error_chain(error):
        if isinstance(link, OSError) and link.errno in MACHINE_ERRNOS:
            return str(link.strerror)
        if is_out_of_memory(link):
            return "out of memory"
    return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the machine or a GPU ran out of memory.

    It is False if a damaged header requested an array that is larger than the whole memory.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(
        error
    ):  # how torch reports that the machine is out of memory
        return True
    if not isinstance(error, MemoryError):
        return False
    shape, dtype = getattr(error, "shape", None), getattr(error, "dtype", None)  # numpy states the requested array
    return shape is None or dtype is None or math.prod(shape) * dtype.itemsize <= memory().amount


def with_fault(error: BaseException) -> str:
    """Returns the text of an error, with a sentence on the fault of the machine that led to it, if there is one."""
    fault = machine_fault(error)
    if not fault:
        return str(error)
    return (
        f"{error}\n  the cause is a fault of the machine ({fault}), and the files may be sound: "
        "repair it, run the command again, and delete nothing before that"
    )


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and the errors that led to it, also those that `from None` hides from a traceback."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
