"""Names that a tracking server accepts. Different names stay different, and a valid name is not changed."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final

MAX_LENGTH: Final = 250  # characters that MLflow accepts
INVALID: Final = re.compile(r"[^\w\-. :/]")  # characters that MLflow refuses; its `\w` is that of Unicode as well
WORDS: Final = {"<": "lt", ">": "gt", "≤": "le", "≥": "ge", "=": "eq", "%": "percent", "+": "plus", "&": "and"}


class ServerNames:
    """Maps each name to a valid and unique one. Uniqueness ignores case, because some databases do.

    A valid name is not changed. Invalid characters of any other are replaced, and six digits of a hash of the original
    are appended. Of two names that differ only in case the first is not changed. The same names in the same order
    therefore always get the same results.
    """

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}  # original name by valid name in lower case

    def of(self, name: str) -> str:
        """Returns the valid name for `name`."""
        valid = name if _is_valid(name) else _with_hash(name)
        if self._owners.setdefault(valid.casefold(), name) != name:
            valid = _with_hash(name)
            self._owners.setdefault(valid.casefold(), name)
        return valid


def _is_valid(name: str) -> bool:
    clean = bool(name) and len(name) <= MAX_LENGTH and name == name.strip() and not INVALID.search(name)
    return clean and not {"", ".", ".."} & set(name.split("/"))  # MLflow reads a name as a path


def _with_hash(name: str) -> str:
    ending = f"-{sha256(name.encode(errors='surrogatepass')).hexdigest()[:6]}"
    readable = INVALID.sub(lambda match: WORDS.get(match[0], "_"), name)
    steps = [step if step not in ("", ".", "..") else "_" for step in readable.strip().split("/")]
    return "/".join(steps)[: MAX_LENGTH - len(ending)] + ending
