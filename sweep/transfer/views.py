"""Shows sweeps in an object store to commands, as they show sweeps in a folder."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mmpkd.types import UserError
from sweep.storage.layout import Storage, SweepFolder
from sweep.storage.reader import is_running
from sweep.transfer.addresses import Place, place
from sweep.transfer.refusals import in_words

OVERLAP: Final = 4096  # bytes at the end of the copy of a growing file that are compared with the file


def view_of(address: str, key: str = "storage") -> Storage:
    """Returns the folder of all sweeps at a path or an address, for a command that reads it. For an address it is a
    temporary folder of this process, into which `fetch` copies the files of a sweep.

    Args:
        key: the key of the command line or of the space with this address, for the message.

    Raises:
        ConfigError: the address cannot be served.
    """
    where = place(address, key)
    if where.is_local:
        return Storage(where.local_path)
    where.check(key)
    folder = tempfile.mkdtemp(prefix="mmpkd-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Storage(Path(folder), where)


def fetch(folder: SweepFolder, paths: Sequence[Path], growing: Path | None = None) -> bool:
    """Copies files of a sweep from its address to its folder on this machine, and returns whether there are any. Does
    nothing for a sweep in a folder.

    Args:
        growing: one of the files, to whose copy, if there is one, only what is new is added.

    Raises:
        UserError: the store does not answer, or refuses.
    """
    if not folder.address:
        return False
    try:
        names = set(folder.address.names())
        sizes = folder.address.child(folder.copies.name)
        content = json.loads(sizes.read_bytes()) if folder.copies.name in names else {}
        existing = [path for path in paths if path.name in names]
        for path in existing:
            if path != growing or not _extended(folder.address.child(path.name), path):
                folder.address.download(path.name, path)
            if path.name in content and content[path.name] < path.stat().st_size:
                os.truncate(path, content[path.name])
    except OSError as error:
        raise UserError(in_words(error)) from error
    return bool(existing)


def _extended(file: Place, copy: Path) -> bool:
    """Adds to the copy of a growing file what the file has more by now. Returns False if there is no copy, or if the
    end of the copy is not in the file, which then is another one.
    """
    if not copy.exists():
        return False
    begin = max(copy.stat().st_size - OVERLAP, 0)
    content = file.read_bytes(begin)
    with copy.open("r+b") as opened:
        opened.seek(begin)
        known = opened.read()
        if not content.startswith(known):
            return False
        opened.write(content[len(known) :])
    return True


def refresh(folder: SweepFolder) -> None:
    """Fetches the files from which `storage.reader` reads a sweep; raises like `fetch`. Of the spool it fetches what is
    new.
    """
    fetch(folder, (folder.status, folder.plan, folder.space, folder.spool), growing=folder.spool)


def is_running_there(folder: SweepFolder) -> bool:
    """Returns whether a driver runs the sweep, in a folder or at an address.

    Raises:
        UserError: it cannot be read.
    """
    fetch(folder, (folder.status,))
    return is_running(folder)
