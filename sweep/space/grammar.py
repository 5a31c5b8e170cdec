"""The grammar of a search space: a trial's configuration whose leaves may be distributions.

    {uniform: [low, high]}    {log_uniform: [low, high]}    a number, high included
    {int: [low, high]}        {log_int: [low, high]}        a whole number, high included
    {choice: [a, b, ...]}                                   one of these values
    {one_of: {label: subtree, ...}}                         one of these branches takes the node's place
    {maybe: value or subtree}                               the value, or the key is absent
    ${path of a leaf}                                       the value that is drawn there (`references.py`)

A mapping with a grammar word as its only key is a distribution. A grammar word with other keys beside it is a mistake.
Paths leave the words out and keep the labels of branches: in `objectives: {one_of: {soft: {logits: {weight: {uniform:
[0, 1]}}}}}` the weight is at `objectives.soft.logits.weight`, and in a drawn configuration at
`objectives.logits.weight`. `draw.py` draws from the nodes that this file makes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from mmpkd.types import Mistake

RANGES: Final = {"uniform": (False, False), "log_uniform": (True, False), "int": (False, True), "log_int": (True, True)}
WORDS: Final = (*RANGES, "choice", "one_of", "maybe")
REFERENCE: Final = re.compile(r"\$\{\s*([^\s{}:\[\]]+)\s*\}")  # a text that is one reference and nothing else
_LABEL = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Fixed:
    path: str  # path in the space file, without grammar words; in every node
    value: Any


@dataclass(frozen=True)
class Range:
    path: str
    low: float
    high: float  # high is included
    log: bool
    integer: bool


@dataclass(frozen=True)
class Choice:
    path: str
    values: Mapping[str, Any]  # values by the label that the sampler sees


@dataclass(frozen=True)
class OneOf:
    path: str
    branches: Mapping[str, Node]


@dataclass(frozen=True)
class Maybe:
    path: str
    child: Node


@dataclass(frozen=True)
class Same:
    path: str
    target: str  # a path in the space file; after `references.bind` a path in a drawn configuration


@dataclass(frozen=True)
class Tree:
    path: str
    children: Mapping[Any, Node]


Node: TypeAlias = Fixed | Range | Choice | OneOf | Maybe | Same | Tree


def join(path: str, key: object) -> str:
    """Returns a dotted path with a key added."""
    return f"{path}.{key}" if path else str(key)


def lone_word(value: object) -> str | None:
    """Returns the grammar word of a value that is a distribution, and None for any other value."""
    if isinstance(value, dict) and len(value) == 1:
        (key,) = value
        return key if key in WORDS else None
    return None


def has_word(value: object) -> bool:
    """Returns whether a value contains a grammar word at any depth."""
    if isinstance(value, dict):
        return any(key in WORDS or has_word(inner) for key, inner in value.items())
    return isinstance(value, list) and any(has_word(inner) for inner in value)


def parse(value: Any, path: str, mistakes: list[Mistake]) -> Node | None:
    """Parses a YAML value into a node. Each mistake is appended to `mistakes`, and a valid value (a stand-in) replaces
    the broken part.

    Returns:
        The node. It is None if there is no sensible stand-in, and the caller then leaves out the key.
    """
    if isinstance(value, list):
        inside = [index for index, item in enumerate(value) if has_word(item)]
        if inside:
            mistakes.append(Mistake(path, "a distribution cannot stand inside a list; use a choice of whole lists"))
            return None
        return Fixed(path, value)
    if not isinstance(value, dict):
        reference = REFERENCE.fullmatch(value) if isinstance(value, str) else None
        return Same(path, reference[1]) if reference else Fixed(path, value)
    word = lone_word(value)
    if word in RANGES:
        return _parse_range(word, value[word], path, mistakes)
    if word == "choice":
        return _parse_choice(value[word], path, mistakes)
    if word == "one_of":
        return _parse_one_of(value[word], path, mistakes)
    if word == "maybe":
        if lone_word(value[word]) == "maybe":
            mistakes.append(Mistake(path, "a maybe directly inside a maybe adds nothing; remove one of them"))
            return parse(value[word], path, mistakes)
        child = parse(value[word], path, mistakes)
        return child and Maybe(path, child)
    for key in value:
        if key in WORDS:
            others = ", ".join(repr(str(other)) for other in value if other != key)
            mistakes.append(Mistake(join(path, key), f"a grammar word must stand alone, here it is beside {others}"))
    parsed = {key: parse(inner, join(path, key), mistakes) for key, inner in value.items() if key not in WORDS}
    return Tree(path, {key: node for key, node in parsed.items() if node is not None})


def _parse_range(word: str, bounds: Any, path: str, mistakes: list[Mistake]) -> Node | None:
    log, integer = RANGES[word]
    given = bounds if isinstance(bounds, list) else [bounds]
    numbers = [bound for bound in given if _is_number(bound)]
    problem = ""
    if not isinstance(bounds, list) or len(bounds) != 2:
        problem = f"{word} wants two bounds, [low, high], got {bounds!r}"
    elif len(numbers) < 2:
        no_number = next(bound for bound in given if not _is_number(bound))
        problem = f"the bounds of {word} must be finite numbers, got {no_number!r}"
    elif integer and any(number != int(number) for number in numbers):
        problem = f"the bounds of {word} must be whole numbers, got {bounds!r}"
    elif log and min(numbers) <= 0:
        plain = word.removeprefix("log_")
        problem = f"the low end of {word} must be above 0, got {min(numbers)!r}; raise it, or use {plain}"
    elif bounds[0] > bounds[1]:
        problem = f"low {bounds[0]!r} is above high {bounds[1]!r}; write {{{word}: [{bounds[1]!r}, {bounds[0]!r}]}}"
    if problem:
        mistakes.append(Mistake(path, problem))
        return Fixed(path, max(numbers)) if numbers else None
    kind = int if integer else float
    return Range(path, kind(bounds[0]), kind(bounds[1]), log, integer)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _parse_choice(values: Any, path: str, mistakes: list[Mistake]) -> Node | None:
    if not isinstance(values, list) or not values:
        mistakes.append(Mistake(path, f"choice wants a list of at least one value, got {values!r}"))
        return None
    if any(has_word(value) for value in values):
        mistakes.append(Mistake(path, "a choice takes plain values; for distributions inside use one_of"))
        return None
    labelled: dict[str, Any] = {}
    for value in values:
        label = value if isinstance(value, str) else json.dumps(value)
        if label in labelled:
            mistakes.append(Mistake(path, f"choice has the value {label} twice"))
        labelled[label] = value
    return Choice(path, labelled)


def _parse_one_of(branches: Any, path: str, mistakes: list[Mistake]) -> Node | None:
    if not isinstance(branches, dict) or not branches:
        hint = "; for plain values use choice" if isinstance(branches, list) else ""
        mistakes.append(Mistake(path, f"one_of wants a mapping of labels to branches, got {branches!r}{hint}"))
        return None
    parsed: dict[str, Node] = {}
    texts: dict[str, str] = {}
    for label, branch in branches.items():
        if label in WORDS or not _LABEL.fullmatch(str(label)):
            problem = "a label is letters, digits, - and _, and no grammar word"
            mistakes.append(Mistake(join(path, label), problem))
        if str(label) in parsed:
            mistakes.append(Mistake(join(path, label), "two branches have this label"))
        twin = texts.setdefault(json.dumps(branch, sort_keys=True, default=str), str(label))
        if twin != str(label):
            problem = f"equals branch {twin}, so that one configuration would have two labels; remove one of them"
            mistakes.append(Mistake(join(path, label), problem))
        node = parse(branch, join(path, label), mistakes)
        if node is not None:
            parsed[str(label)] = node
    return OneOf(path, parsed) if parsed else None


def lay_over(base: Node, over: Node) -> Node:
    """Merges `over` deep over `base`. Drawing from the merged nodes gives the same configuration as drawing from both
    nodes and merging the results.

    Mappings merge key by key. This also holds below a one_of or a maybe of `over`, so that each branch adds to the
    base. Everything else in the base, including lists and distributions, is replaced.
    """
    if not isinstance(base, Tree):
        return over
    if isinstance(over, OneOf):
        return OneOf(over.path, {label: lay_over(base, branch) for label, branch in over.branches.items()})
    if isinstance(over, Maybe):
        return Maybe(over.path, lay_over(base, over.child))
    if not isinstance(over, Tree):
        return over
    children = dict(base.children)
    for key, child in over.children.items():
        children[key] = lay_over(children[key], child) if key in children else child
    return Tree(over.path, children)


def distributions(node: Node) -> Iterator[Range | Choice | OneOf | Maybe]:
    """Yields the outermost distributions at or below a node, not the distributions inside another distribution."""
    if isinstance(node, Tree):
        for child in node.children.values():
            yield from distributions(child)
    elif not isinstance(node, Fixed | Same):
        yield node


@dataclass(frozen=True)
class Spot:
    """A node and its position in an arm.

    Attributes:
        path: the path of the node with the labels of branches.
        place: the path without these labels, which is the path in a drawn configuration.
        decisions: the decisions under which the node is drawn. Each one_of above the node maps its path to the chosen
            label; each maybe above the node maps its path with `.maybe` appended to 'present'.
    """

    path: str
    place: str
    node: Node
    decisions: Mapping[str, str]


def spots(node: Node, path: str = "", place: str = "", decisions: Mapping[str, str] | None = None) -> Iterator[Spot]:
    """Yields every node at and below the given node, each with its position."""
    decisions = decisions or {}
    yield Spot(path, place, node, decisions)
    match node:
        case Tree(children=children):
            for key, child in children.items():
                yield from spots(child, join(path, key), join(place, key), decisions)
        case OneOf(branches=branches):
            for label, branch in branches.items():
                yield from spots(branch, join(path, label), place, {**decisions, path: label})
        case Maybe(child=child):
            yield from spots(child, path, place, {**decisions, f"{path}.maybe": "present"})
