"""MLflow's SQLite file: made whole, and its artifacts found again after it was moved together with them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote


def address_of(path: Path) -> str:
    """The address of a SQLite file, quoted, lest a `?` in its path begin a query and `%20` be a blank."""
    return f"sqlite:///{quote(os.fsencode(path.absolute()))}"


def file_of(uri: str) -> Path:
    """The file that a SQLite address names."""
    return Path(unquote(uri.partition("://")[2].removeprefix("/"), errors="surrogateescape"))


def make_whole(path: Path, name: str, connect: Callable[[str], object]) -> None:
    """Makes a new file beside and puts it there whole, unless there is one.

    MLflow makes one in dozens of steps, and one that a kill left halfway it never opens again (3.17).

    Args:
        name: of the sweep, so that two that begin at once do not make the same file beside.
        connect: what makes the tables at an address.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{name}.partial")
    beside.unlink(missing_ok=True)
    connect(address_of(beside))
    try:
        os.link(beside, path)
    except FileExistsError:
        pass  # another sweep was quicker
    except OSError:  # a file system without links
        os.replace(beside, path)
    beside.unlink(missing_ok=True)
