"""Checksums of what is kept on disk, so that a byte that changed there is not taken for a result.

A JSON object carries its own as its last key, `crc`: the CRC-32 of its text without that key. Whoever reads the
object for what it says need not know of it, and one without it (of an earlier version) is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

KEY: Final = "crc"
ENDING: Final = re.compile(rb',?\s*"crc":\s*"([0-9a-f]{8})"\s*\}\s*$')
BLOCK: Final = 1 << 22


class DamagedError(ValueError):
    """What was read is not what was written."""


def sealed(content: Mapping[str, Any], indent: int | None = None) -> str:
    """The object as JSON with its checksum; in one line, unless it is to be indented."""
    bare = json.dumps(content, indent=indent)
    return json.dumps({**content, KEY: checksum(bare.encode())}, indent=indent)


def unsealed(text: bytes, previous: str = "") -> dict[str, Any]:
    """The object that `sealed` wrote, without its checksum.

    Args:
        previous: the checksum that was continued.

    Raises:
        DamagedError: it is another one now, or none at all.
    """
    try:
        content = json.loads(text)
    except ValueError as error:  # not JSON, or not UTF-8
        raise DamagedError(_position(error)) from None
    if not isinstance(content, dict):
        raise DamagedError(f"holds a {type(content).__name__} where an object should be")
    if (written := content.pop(KEY, None)) is None:
        return content
    found = ENDING.search(text)
    bare = text[: found.start()] if found else b""
    bare += b"}" if bare.strip() == b"{" or b"\n" not in text.strip() else b"\n}"
    if checksum(bare, previous) != written:
        raise DamagedError("is not what its checksum says")
    return content


def objects_in(line: bytes) -> Iterator[bytes]:
    """The texts of the JSON objects in a line; several, where the ends of lines were lost.

    Raises:
        DamagedError: between them, or in one, is something else.
    """
    try:
        text = line.decode()
        at = len(text) - len(text.lstrip())
        while at < len(text):
            _, end = json.JSONDecoder().raw_decode(text, at)
            yield text[at:end].encode()
            at = end + len(text[end:]) - len(text[end:].lstrip())
    except ValueError as error:
        raise DamagedError(_position(error)) from None


def fingerprint(content: object) -> str:
    """Returns a short content hash of any JSON value, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_file(path: Path) -> str:
    """Of all bytes of a file, eight hex digits; about a gigabyte a second."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


def of_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Of each of these files of a folder."""
    return {name: of_file(folder / name) for name in names}


def first_changed(folder: Path, checksums: Mapping[str, str], since: Path | None = None) -> str:
    """The first of a folder's files that is not what its checksum says, or is gone; empty where there is none.

    Args:
        since: only those that were written to after this file was are read: large ones need not be read each time.
    """
    for name, checksum in checksums.items():
        path = folder / name
        if not path.is_file():
            return name
        if since and path.stat().st_mtime_ns <= since.stat().st_mtime_ns:
            continue
        if of_file(path) != checksum:
            return name
    return ""


def require_whole_archive(path: Path) -> None:
    """
    Raises:
        DamagedError: a file of `torch.save` holds other bytes than were written (torch reads them unchecked, 2.15).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        raise DamagedError(f"is no whole archive ({type(error).__name__})") from None
    if broken:
        raise DamagedError(f"its part {broken} is not what its checksum says")


def checksum(text: bytes, previous: str = "") -> str:
    """Of a text, or of one that continues another whose checksum this was."""
    return f"{zlib.crc32(text, int(previous or '0', 16)):08x}"


def _position(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON at line {error.lineno}, column {error.colno}"
    return "is not text"
