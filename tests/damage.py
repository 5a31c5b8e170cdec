"""Kinds of damage to a file between two commands, for tests of every kind of file that we write."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final


def _flipped(content: bytes, share: float) -> bytes:
    at = int(len(content) * share)
    return content[:at] + bytes([content[at] ^ 0x04]) + content[at + 1 :]


def _joined(content: bytes) -> bytes:
    """Removes a line end in the middle."""
    at = content.index(b"\n", len(content) // 2)
    return content[:at] + content[at + 1 :]


def _blank(content: bytes) -> bytes:
    at = content.index(b"\n", len(content) // 2)
    return content[:at] + b"\n" + content[at:]


BYTES: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "NUL bytes": lambda content: content[: len(content) // 2] + bytes(64) + content[len(content) // 2 + 64 :],
    "a byte near its beginning": lambda content: _flipped(content, 0.2),
    "a byte in the middle": lambda content: _flipped(content, 0.5),
    "a byte near its end": lambda content: _flipped(content, 0.9),
    "emptied": lambda content: b"",
}
LINES: Final[Mapping[str, Callable[[bytes], bytes]]] = {"joined lines": _joined, "a blank line": _blank}
FOLDER: Final = "a folder in its place"
BINARY: Final = (*BYTES, FOLDER)
TEXT: Final = (*BINARY, *LINES)


def harm(path: Path, kind: str) -> None:
    """Damages a file."""
    content = path.read_bytes()
    path.unlink()
    if kind == FOLDER:
        path.mkdir()
        (path / "something").write_text("else")
    else:
        path.write_bytes({**BYTES, **LINES}[kind](content))


def mended(path: Path, saved: Path) -> None:
    """Restores a file from a copy of its folder."""
    if path.is_dir():
        shutil.rmtree(path)
    shutil.copy2(saved, path)
