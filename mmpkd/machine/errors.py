"""Faults of the machine that stand behind an error of ours: no memory, no handles, no room, a disk out of reach.

Readers turn whatever a damaged file leads to into an error that names the file. A machine that gives way in that
moment leads to the same error, and the file would be blamed, left out or deleted, though nothing is wrong with it.
"""

from __future__ import annotations

import errno
import math
import sys
from collections.abc import Iterator
from typing import Final

from mmpkd.machine.resources import memory

GIVEN_WAY: Final = (
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOLCK),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN, errno.EREMOTEIO),
)


def machine_fault(error: BaseException) -> str:
    """What the machine lacked, in a few words, if that led to this error; empty if it did not."""
    for one in behind(error):
        if isinstance(one, OSError) and one.errno in GIVEN_WAY:
            return str(one.strerror)
        if is_out_of_memory(one):
            return "out of memory"
    return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a GPU; not where a damaged header asked for more than there is."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # torch, of the machine's memory
        return True
    if not isinstance(error, MemoryError):
        return False
    shape, dtype = getattr(error, "shape", None), getattr(error, "dtype", None)  # numpy says what was asked for
    return shape is None or dtype is None or math.prod(shape) * dtype.itemsize <= memory().amount


def with_fault(error: BaseException) -> str:
    """An error's text; where a fault of the machine stands behind it, with a word that takes the blame from files."""
    fault = machine_fault(error)
    if not fault:
        return str(error)
    return (
        f"{error}\n  behind this is a fault of the machine ({fault}), which may be all that is wrong: "
        "mend that first, and delete nothing before the command has been tried again"
    )


def behind(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it, also where `from None` keeps them out of a traceback."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
