"""Copies of cache entries on the disk of this machine: their locks, their damage, and the room that they take.

Two locks lie beside each copy. One is held while the copy is made or removed. The other is shared by all processes that
use the copy, and while it is held the copy is not removed. The kernel releases the locks of a process that dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mmpkd.machine.checksums import DamagedError, first_changed, require_whole_archive, unsealed

MANIFEST: Final = "manifest.json"  # written by mmpkd after all other files of a store or of a teacher
OPTIONAL: Final = "views/"  # further images of a store, which a user may have deleted
CAPACITY: Final = 0.5  # share of the disk that copies take at most, unless the user sets a number of gigabytes
MARGIN_BYTES: Final = 10**9  # bytes that copies leave free on the disk, for checkpoints and others
GIGABYTE: Final = 10**9


# --- room ---


def make_room(folder: Path, needed: int, gigabytes: float) -> None:
    """Removes what processes have left that were killed while they copied, and then the copies in a folder that were
    used least recently, until there is room for `needed` bytes.

    Args:
        folder: the folder of all copies. It has one folder for each kind of entry.
        gigabytes: most gigabytes that all copies may take; 0: half of the disk.

    Raises:
        OSError: there is not enough room even without the copies that no process uses.
    """
    for kind in folder.iterdir():
        for path in [*kind.glob(".*.partial"), *kind.glob(".*.removed")]:
            with locked(beside(kind / path.stem[1:], "copying"), wait=False) as is_left:
                if is_left:
                    remove(path)
    capacity = gigabytes * GIGABYTE or CAPACITY * shutil.disk_usage(folder).total
    paths = [path for kind in folder.iterdir() for path in kind.iterdir() if not path.name.startswith(".")]
    sizes = {path: _size(path) for path in paths if path.suffix not in (".lock", ".partial")}
    removable = sorted(sizes, key=_last_use)
    while True:
        free = shutil.disk_usage(folder).free
        if sum(sizes.values()) + needed <= capacity and needed + MARGIN_BYTES <= free:
            return
        if not removable or needed > capacity:
            limits = f"{free / GIGABYTE:.1f} GB are free, and copies may take {capacity / GIGABYTE:.1f} GB"
            problem = f"no room for a copy of {needed / GIGABYTE:.1f} GB ({limits})"
            raise OSError(errno.ENOSPC, problem, str(folder))
        if _remove_unused(path := removable.pop(0)):
            del sizes[path]


def _remove_unused(copy: Path) -> bool:
    """Removes a copy, and returns True, unless a process uses or makes it."""
    removed = beside(copy, "removed")
    with locked(beside(copy, "copying"), wait=False) as not_made, locked(beside(copy, "used"), wait=False) as not_used:
        if not (not_made and not_used):
            return False
        remove(removed)
        os.replace(copy, removed)
    remove(removed)
    return True


def _last_use(copy: Path) -> float:
    used = beside(copy, "used")
    return (used if used.exists() else copy).stat().st_mtime


def _size(copy: Path) -> int:
    files = [path for path in copy.rglob("*") if path.is_file()] if copy.is_dir() else [copy]
    return sum(path.stat().st_size for path in files)


# --- damage ---


def is_whole(copy: Path) -> bool:
    """Whether a copy is complete. Files that have changed since the copy was made are compared with their checksums."""
    return copy.exists() and not damage_of(copy, only_changed=True)


def damage_of(copy: Path, only_changed: bool = False) -> str:
    """Returns what is wrong with the files of a copy, or an empty text.

    Args:
        only_changed: only files that are newer than the manifest are read.
    """
    try:
        if copy.is_file():
            require_whole_archive(copy)
            return ""
        manifest = unsealed((copy / MANIFEST).read_bytes())
    except (DamagedError, FileNotFoundError) as error:
        return str(error) if isinstance(error, DamagedError) else f"{MANIFEST} is missing"
    for name, size in manifest.get("files", {}).items():
        if (path := copy / name).is_file() and path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, and the manifest says {size}"
    expected: Mapping[str, str] = manifest.get("checksums", {})
    expected = {
        name: each for name, each in expected.items() if not name.startswith(OPTIONAL) or (copy / name).exists()
    }
    changed = first_changed(copy, expected, since=copy / MANIFEST if only_changed else None)
    return f"{changed} is missing or does not match its checksum" if changed else ""


# --- files and locks ---


def remove(path: Path) -> None:
    """Removes a file or a folder, if it exists."""
    path.unlink(missing_ok=True) if not path.is_dir() else shutil.rmtree(path)


def beside(copy: Path, ending: str) -> Path:
    """Returns the path of a file that belongs to a copy and lies beside it."""
    return copy.with_name(f".{copy.name}.{ending}")


def sync(path: Path) -> None:
    """Waits until the content of a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def shared_lock(path: Path) -> int:
    """Takes a share of a lock, which also notes the time, and returns the open file. Closing it releases the share."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_SH)
    os.utime(lock)
    return lock


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Context manager that holds a lock alone, and yields True. Yields False if another process holds the lock and
    `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    is_held = True
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            is_held = False
        yield is_held
    finally:
        os.close(lock)
