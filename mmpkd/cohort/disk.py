"""Writing large arrays on disks that may be full."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from mmpkd.types import CohortError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MEGABYTE = 1e6


def allocate(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A writable uint8 .npy whose blocks are all reserved: a memory map on a full disk kills the process.

    An array of this shape that is there already is opened as it is.

    Raises:
        OSError: no room.
    """
    if path.exists():
        with suppress(ValueError):  # a header that is none
            found: np.memmap = np.load(path, mmap_mode="r+")
            if found.shape == shape and found.dtype == np.uint8:
                return found
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    with beside.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        reserve(file.fileno(), file.tell() + int(np.prod(shape)))
    os.replace(beside, path)
    mapped: np.memmap = np.load(path, mmap_mode="r+")
    return mapped


def reserve(descriptor: int, num_bytes: int) -> None:
    """Make a file this long, its blocks taken from the disk now.

    Raises:
        OSError: no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
        return
    written = os.fstat(descriptor).st_size  # macOS has no such call: write the zeros
    while written < num_bytes:
        written += os.pwrite(descriptor, bytes(min(1 << 24, num_bytes - written)), written)


@contextmanager
def explain_full_disk(partial: Path, needed_bytes: int) -> Iterator[None]:
    """Turn a full disk, now or while writing `partial`, into a CohortError; nothing half-written stays.

    Raises:
        CohortError: needed and free space, and how to use another disk.
    """
    have = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file()) if partial.exists() else 0
    try:
        if shutil.disk_usage(partial.parent).free + have < needed_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except OSError as error:
        elsewhere = isinstance(error.filename, str) and not Path(error.filename).absolute().is_relative_to(
            partial.parent.absolute()
        )
        if error.errno not in FULL or elsewhere:  # of another disk, such as that of temporary files
            raise
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(partial.parent).free
        raise CohortError(
            f"the prepared cohort does not fit on the disk of {partial.parent.absolute()}: {error.strerror}; "
            f"needed {needed_bytes / MEGABYTE:.1f} MB, free {free / MEGABYTE:.1f} MB. Nothing was left behind. "
            "Free some space (or raise the quota), or put the cache elsewhere with cache=DIR"
        ) from None
