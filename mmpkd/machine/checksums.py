"""Checksums of files and JSON objects, which reveal damage on disk, and fingerprints of contents.

A JSON object carries its checksum as its last key, `crc`: the CRC-32 of its text without that key. Other programs
can ignore the key. An object without the key (of an earlier version) is accepted unchecked.
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
LONGEST_ENDING: Final = 200  # bytes with which it may be surrounded by spaces; a search of the whole text takes long
BLOCK: Final = 1 << 22


class DamagedError(ValueError):
    """The content that was read differs from what was written."""


def sealed(content: Mapping[str, Any], indent: int | None = None) -> str:
    """Returns an object as JSON with its checksum, in one line unless `indent` is given."""
    bare = json.dumps(content, indent=indent)
    return json.dumps({**content, KEY: checksum(bare.encode())}, indent=indent)


def unsealed(text: bytes, previous: str = "") -> dict[str, Any]:
    """Returns the object that `sealed` wrote, without its checksum.

    Args:
        previous: checksum of the preceding text, if the checksum of this text continues it.

    Raises:
        DamagedError: the text is not a JSON object, or differs from what was written.
    """
    try:
        content = json.loads(text)
    except ValueError as error:  # not JSON, or not UTF-8
        raise DamagedError(_position(error)) from None
    if not isinstance(content, dict):
        raise DamagedError(f"holds a {type(content).__name__} where an object should be")
    if (written := content.pop(KEY, None)) is None:
        return content
    ending = ENDING.search(text, max(0, len(text) - LONGEST_ENDING))
    bare = text[: ending.start()] if ending else b""
    bare += b"}" if bare.strip() == b"{" or b"\n" not in text.strip() else b"\n}"
    if checksum(bare, previous) != written:
        raise DamagedError("does not match its checksum")
    return content


def objects_in(line: bytes) -> Iterator[bytes]:
    """Yields the texts of the JSON objects in a line; there are several where line ends were lost.

    Raises:
        DamagedError: the line holds something else than JSON objects.
    """
    try:
        text = line.decode()
        start = len(text) - len(text.lstrip())
        while start < len(text):
            _, end = json.JSONDecoder().raw_decode(text, start)
            yield text[start:end].encode()
            start = end + len(text[end:]) - len(text[end:].lstrip())
    except ValueError as error:
        raise DamagedError(_position(error)) from None


def fingerprint(content: object) -> str:
    """Returns a short content hash of any JSON value, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_file(path: Path) -> str:
    """Returns the checksum of all bytes of a file as eight hex digits. It reads about a gigabyte per second."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


def of_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the checksum of each of these files of a folder."""
    return {name: of_file(folder / name) for name in names}


def first_changed(folder: Path, checksums: Mapping[str, str], since: Path | None = None) -> str:
    """Returns the name of the first file of a folder that differs from its checksum or is missing, or an empty string.

    Args:
        since: a reference file. Files that are not newer than this file are skipped, so that large files are not read
            every time.
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
    """Checks the checksums of a file of `torch.save`. Torch 2.15 itself does not check them.

    Raises:
        DamagedError: the file holds other bytes than were written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        raise DamagedError(f"is not a complete archive ({type(error).__name__})") from None
    if broken:
        raise DamagedError(f"its part {broken} does not match its checksum")


def checksum(text: bytes, previous: str = "") -> str:
    """Returns the checksum of a text, or of a text that continues one with the checksum `previous`."""
    return f"{zlib.crc32(text, int(previous or '0', 16)):08x}"


def _position(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON at line {error.lineno}, column {error.colno}"
    return "is not text"
