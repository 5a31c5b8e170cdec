"""Creates large files on disks that may become full, so that a full disk causes an error message and not a crash."""

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
    """Creates a uint8 .npy file and returns it as a writable memory map. An existing file of this shape is reused.

    The space for the whole file is reserved on the disk first, because writing to a memory map on a full disk kills the
    process.

    Raises:
        OSError: the disk has too little space.
    """
    if path.exists():
        with suppress(ValueError):  # the header is damaged
            existing: np.memmap = np.load(path, mmap_mode="r+")
            if existing.shape == shape and existing.dtype == np.uint8:
                return existing
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        reserve(file.fileno(), file.tell() + int(np.prod(shape)))
    os.replace(temporary, path)
    mapped: np.memmap = np.load(path, mmap_mode="r+")
    return mapped


def reserve(descriptor: int, num_bytes: int) -> None:
    """Makes a file `num_bytes` long and reserves its blocks on the disk.

    Raises:
        OSError: the disk has too little space.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
        return
    written = os.fstat(descriptor).st_size  # macOS lacks posix_fallocate, so zeros are written
    while written < num_bytes:
        written += os.pwrite(descriptor, bytes(min(1 << 24, num_bytes - written)), written)


@contextmanager
def explain_full_disk(partial: Path, needed_bytes: int) -> Iterator[None]:
    """Context manager that replaces the OSError of a full disk by a CohortError and removes the folder `partial`.

    It does so whether the space is missing at the start or runs out while `partial` is written.

    Raises:
        CohortError: the disk is full. The message states the needed and the free space, and how to use another disk.
    """
    existing_bytes = (
        sum(file.stat().st_size for file in partial.rglob("*") if file.is_file()) if partial.exists() else 0
    )
    try:
        if shutil.disk_usage(partial.parent).free + existing_bytes < needed_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except OSError as error:
        is_elsewhere = isinstance(error.filename, str) and not Path(error.filename).absolute().is_relative_to(
            partial.parent.absolute()
        )
        if error.errno not in FULL or is_elsewhere:  # a different disk may be full, such as the one of temporary files
            raise
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(partial.parent).free
        raise CohortError(
            f"the prepared cohort does not fit on the disk of {partial.parent.absolute()}: {error.strerror}; "
            f"needed {needed_bytes / MEGABYTE:.1f} MB, free {free / MEGABYTE:.1f} MB. Nothing was left behind. "
            "Free some space (or raise the quota), or put the cache elsewhere with cache=DIR"
        ) from None


def keep_rows(path: Path, array: np.memmap, rows: np.ndarray) -> None:
    """Replaces the array file `path` by one that holds only the given rows of `array`, in this order."""
    kept = allocate(path.with_name(f"kept-{path.name}"), (len(rows), *array.shape[1:]))
    for new, old in enumerate(rows):
        kept[new] = array[old]
    kept.flush()
    os.replace(path.with_name(f"kept-{path.name}"), path)
