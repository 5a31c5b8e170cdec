"""Converts names to names that a tracking server accepts. Different names stay different; a valid name is not
changed.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final

MAX_LENGTH: Final = 250  # characters that MLflow accepts
INVALID: Final = re.compile(r"[^\w\-. :/]")  # characters that MLflow refuses; `\w` includes Unicode letters, too
WORDS: Final = {"<": "lt", ">": "gt", "≤": "le", "≥": "ge", "=": "eq", "%": "percent", "+": "plus", "&": "and"}


class ServerNames:
    """Maps each name to a valid and unique name. Names that differ only in case count as equal, as in some databases.

    A valid name is not changed. In an invalid name the invalid characters are replaced, and six digits of a hash of the
    original name are appended. If two valid names differ only in case, the name that comes first is not changed. The
    results therefore depend only on the names and their order.
    """

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}  # original name by valid name in lower case

    def of(self, name: str) -> str:
        """Returns the valid and unique name for `name`."""
        valid = name if _is_valid(name) else _with_hash(name)
        if self._owners.setdefault(valid.casefold(), name) != name:
            valid = _with_hash(name)
            self._owners.setdefault(valid.casefold(), name)
        return valid


def _is_valid(name: str) -> bool:
    clean = bool(name) and len(name) <= MAX_LENGTH and name == name.strip() and not INVALID.search(name)
    return clean and not {"", ".", ".."} & set(name.split("/"))  # MLflow interprets a name as a path


def _with_hash(name: str) -> str:
    ending = f"-{sha256(name.encode(errors='surrogatepass')).hexdigest()[:6]}"
    readable = INVALID.sub(lambda match: WORDS.get(match[0], "_"), name)
    steps = [step if step not in ("", ".", "..") else "_" for step in readable.strip().split("/")]
    return "/".join(steps)[: MAX_LENGTH - len(ending)] + ending
