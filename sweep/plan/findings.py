"""Collects the mistakes that are found while a plan is made. Each mistake is kept once, with its path in the space
file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from mmpkd.types import Mistake
from sweep.space.draw import Drawn
from sweep.space.grammar import WORDS, Fixed, Maybe, Node, OneOf, Tree
from sweep.space.space import Space


class Findings:
    """A list of mistakes that accepts each mistake once, and ignores mistakes below a leaf that is already known to be
    broken.
    """

    def __init__(self, space: Space, mistakes: Sequence[Mistake]):
        self.mistakes = list(mistakes)
        self._broken = tuple(mistake.path for mistake in mistakes if mistake.path)
        nodes = (space.base, *space.own.values())
        self._meant_words = {path: word for node in nodes for path, word in _nearly_grammar_words(node)}
        self._known: set[tuple[str, str]] = set()

    def add(self, mistakes: Iterable[Mistake], drawn: Drawn, arm: str) -> None:
        """Adds the mistakes of a drawn configuration. Each is added under the path that the faulty part has in the
        space file.
        """
        for path, problem in mistakes:
            self.append(_path_in_file(path, drawn.origins) or f"arms.{arm}", problem)

    def append(self, path: str, problem: str) -> None:
        # The mistakes at the two bounds of one leaf differ only in their numbers; the first is enough.
        key = (path, re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", problem))
        if key in self._known or any(is_below(path, broken) for broken in self._broken):
            return
        self._known.add(key)
        words = [word for start, word in self._meant_words.items() if is_below(path, start)]
        self.mistakes.append(Mistake(path, problem + (f" (did you mean {words[0]!r}?)" if words else "")))


def is_below(path: str, start: str) -> bool:
    """Returns whether a dotted path is `start` or lies below `start`."""
    return path == start or path.startswith(f"{start}.")


def _path_in_file(path: str, origins: Mapping[str, str]) -> str:
    """Converts a path in a drawn configuration to the path of the same part in the space file."""
    parts = path.split(".") if path else []
    for length in range(len(parts), -1, -1):
        known = ".".join(parts[:length])
        if known and known in origins:
            return ".".join([origins[known], *parts[length:]])
    return path


def _nearly_grammar_words(node: Node) -> list[tuple[str, str]]:
    """Returns hints for error messages: the path of each mapping with a single key that is a misspelt grammar word such
    as `choise`, and the grammar word that was probably meant.
    """
    match node:
        case Tree(path=path, children=children):
            key, child = next(iter(children.items()), ("", None))
            close = get_close_matches(str(key), WORDS, n=1, cutoff=0.8) if len(children) == 1 else []
            # Ranges and choices hold lists; an objective that is called 'hint' is not a misspelt 'int'.
            holds_list = isinstance(child, Fixed) and isinstance(child.value, list)
            hints = [(path, word) for word in close if holds_list or word in ("one_of", "maybe")]
            return hints + [pair for child in children.values() for pair in _nearly_grammar_words(child)]
        case OneOf(branches=branches):
            return [pair for branch in branches.values() for pair in _nearly_grammar_words(branch)]
        case Maybe(child=child):
            return _nearly_grammar_words(child)
    return []
