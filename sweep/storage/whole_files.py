"""Reads and writes whole files of a sweep: sealed JSON (JSON with a checksum), and the search space as YAML."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from mmpkd.machine.checksums import DamagedError, sealed, unsealed
from mmpkd.machine.files import write_atomically
from mmpkd.types import UserError
from sweep.patience import patiently
from sweep.transfer.addresses import Place
from sweep.transfer.refusals import in_words


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    patiently(lambda: write_atomically(path, sealed(content, indent=2) + "\n"), path)


def add_sealed(path: Path, entries: Mapping[str, Any]) -> None:
    """Adds entries to a file of sealed JSON, which must exist."""

    def add() -> None:  # reads at each attempt, because a disk that is away may hide the file
        write_atomically(path, sealed({**unsealed(path.read_bytes()), **entries}, indent=2) + "\n")

    patiently(add, path)


def read_sealed(path: Path | Place, consequence: str) -> dict[str, Any]:
    """Returns the content of a file of sealed JSON. It is empty if there is no file.

    Args:
        consequence: what happens once the user has deleted the damaged file, as the end of a sentence of the error.

    Raises:
        UserError: the file is damaged, or cannot be read.
    """
    file = path if isinstance(path, Place) else Place("", str(path))
    try:
        return unsealed(file.read_bytes())
    except FileNotFoundError:
        return {}
    except DamagedError as error:
        delete = f"delete it (rm {file})" if file.is_local else "delete it"
        raise UserError(f"{file}: {error}; {delete}, {consequence}") from None
    except OSError as error:
        raise UserError(unreadable(file, error)) from error


def unreadable(file: Place, error: OSError) -> str:
    """Returns the message that a file on a disk or in an object store cannot be read."""
    return f"{file}: cannot be read ({error.strerror})" if file.is_local else in_words(error)


@lru_cache(maxsize=8)
def _parsed(text: str) -> Any:
    """Returns the content of YAML. Callers copy it. A command reads the same space again and again, and parsing takes
    most of the time; the quicker parser of `parse_own_yaml` is not for a file that may be damaged.
    """
    return yaml.safe_load(text)


def read_resolved_space(path: Path) -> dict[str, Any]:
    """Returns a resolved search space. It is empty if there is no file.

    Raises:
        UserError: the file is damaged, or cannot be read.
    """
    remedy = f"delete it (rm {path}), and the command that began the sweep writes it anew"
    try:
        content = deepcopy(_parsed(path.read_text()))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: is not YAML ({' '.join(str(error).split())}); {remedy}") from None
    search = content.get("search") or {} if isinstance(content, dict) else None
    counts = [search.get(name, 1) for name in ("trials", "repeats")] if isinstance(search, dict) else [""]
    if not all(isinstance(count, int) for count in counts):
        raise UserError(f"{path}: does not contain a search space; {remedy}")
    return dict(content)
