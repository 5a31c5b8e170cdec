"""Names as a tracking server takes them: no two become the same, and whatever may stay as it is does."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final

LONGEST: Final = 250  # characters that MLflow takes
REFUSED: Final = re.compile(r"[^\w\-. :/]")  # by MLflow, whose `\w` is Unicode's as well
WORDS: Final = {"<": "lt", ">": "gt", "≤": "le", "≥": "ge", "=": "eq", "%": "percent", "+": "plus", "&": "and"}


class ServerNames:
    """Gives each name one of its own, told apart without regard to case, as some databases compare them.

    A name that the server would take is given as it is. Any other is made readable, and ends in six digits of
    a hash of what it was. Of two that differ in case alone, the one that is seen first stays as it is: show them
    in the same order, and they are given the same names.
    """

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}  # by given name in lower case

    def of(self, name: str) -> str:
        """The name under which the server is told of `name`."""
        given = name if _may_stay(name) else _marked(name)
        if self._owners.setdefault(given.casefold(), name) != name:
            given = _marked(name)
            self._owners.setdefault(given.casefold(), name)
        return given


def _may_stay(name: str) -> bool:
    clean = bool(name) and len(name) <= LONGEST and name == name.strip() and not REFUSED.search(name)
    return clean and not {"", ".", ".."} & set(name.split("/"))  # MLflow reads a name as a path


def _marked(name: str) -> str:
    ending = f"-{sha256(name.encode(errors='surrogatepass')).hexdigest()[:6]}"
    readable = REFUSED.sub(lambda found: WORDS.get(found[0], "_"), name)
    steps = [step if step not in ("", ".", "..") else "_" for step in readable.strip().split("/")]
    return "/".join(steps)[: LONGEST - len(ending)] + ending
