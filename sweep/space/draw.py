"""Configurations out of an arm: one drawn by a searcher, or every branch of it for the plan.

No ray, torch or optuna here: whoever decides stands behind the `Chooser` protocol.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final, Protocol

from sweep.space.grammar import Choice, Fixed, Maybe, Node, OneOf, Range, Same, Tree, join

PRESENCE: Final = ("absent", "present")
_ABSENT: Final = object()


class Chooser(Protocol):
    """Who decides: Optuna's trial behind an adapter, or the plan's walk along the bounds."""

    def uniform(self, name: str, low: float, high: float, log: bool) -> float: ...
    def integer(self, name: str, low: int, high: int, log: bool) -> int: ...
    def category(self, name: str, labels: Sequence[str]) -> str: ...


@dataclass(frozen=True)
class Drawn:
    """One configuration out of an arm.

    `values` holds what was chosen, by leaf name (`<arm>/` + path with branch labels): numbers, the
    values of a `choice` (its label where the value is a list or mapping), the label of a `one_of`,
    'absent' or 'present' of a `maybe` under the leaf's name + `.maybe`. `places` gives the path of
    each name in `config`; `origins` the path in the space file of each path in `config`.
    """

    config: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


def leaf_name(arm: str, path: str) -> str:
    """The name under which the searcher, the tables and MLflow know a leaf."""
    return f"{arm}/{path}" if path else arm


def draw(node: Node, chooser: Chooser, arm: str) -> Drawn:
    """One configuration of an arm; only leaves that exist in the drawn branches are asked for."""
    drawing = _Drawing(chooser, arm)
    config = drawing.node(node, "", "")
    assert isinstance(config, dict), "an arm is a mapping"
    drawing.settle()
    drawing.drawn.config.update(config)
    return drawing.drawn


@dataclass(frozen=True)
class _Later:
    """The same as what is drawn at `place`, which may come after."""

    place: str


class _Drawing:
    def __init__(self, chooser: Chooser, arm: str):
        self.drawn = Drawn({})
        self._chooser, self._arm = chooser, arm
        self._at: dict[str, Any] = {}  # what was drawn, by place
        self._later: list[tuple[dict[Any, Any], Any]] = []  # where a _Later is still to be answered

    def node(self, node: Node, path: str, place: str) -> Any:
        """`path` keeps the labels of branches, `place` leaves them out."""
        name = leaf_name(self._arm, path)
        self.drawn.origins[place] = node.path

        def record(name: str, value: object) -> None:
            self.drawn.values[name] = value
            self.drawn.places[name] = place

        match node:
            case Fixed(value=value):
                return copy.deepcopy(value)
            case Same(target=target):
                return _Later(target)
            case Range(low=low, high=high, log=log, integer=integer):
                if integer:
                    number: float = self._chooser.integer(name, int(low), int(high), log)
                else:
                    number = self._chooser.uniform(name, low, high, log)
                record(name, number)
                return number
            case Choice(values=values):
                label = self._chooser.category(name, tuple(values))
                record(name, label if isinstance(values[label], list | dict) else values[label])
                return copy.deepcopy(values[label])
            case OneOf(branches=branches):
                label = self._chooser.category(name, tuple(branches))
                record(name, label)
                return self.node(branches[label], join(path, label), place)
            case Maybe(child=child):
                presence = self._chooser.category(f"{name}.maybe", PRESENCE)
                record(f"{name}.maybe", presence)
                return self.node(child, path, place) if presence == "present" else _ABSENT
            case Tree(children=children):
                result: dict[Any, Any] = {}
                for key, child in children.items():
                    value = self.node(child, join(path, key), join(place, key))
                    if value is not _ABSENT:
                        result[key] = self._at[join(place, key)] = value
                    if isinstance(value, _Later):
                        self._later.append((result, key))
                return result

    def settle(self) -> None:
        """Answers what refers to other leaves; `same.bind` has seen to it that they are drawn."""
        for mapping, key in self._later:
            value = mapping[key]
            while isinstance(value, _Later):
                value = self._at[value.place]
            mapping[key] = copy.deepcopy(value)


@dataclass(frozen=True)
class Branch:
    """One way through the one_ofs and maybes of an arm, its free leaves walked along their bounds."""

    labels: Mapping[str, str]  # the decisions, by leaf name
    free: tuple[str, ...]  # leaves with more than one possible value
    drawn: tuple[Drawn, ...]  # all low; all high; then each further value of a choice


def count_branches(node: Node) -> int:
    """How many ways lead through the one_ofs and maybes below a node."""
    match node:
        case OneOf(branches=branches):
            return sum(count_branches(branch) for branch in branches.values())
        case Maybe(child=child):
            return 1 + count_branches(child)
        case Tree(children=children):
            return math.prod(count_branches(child) for child in children.values())
    return 1


def count_configurations(node: Node) -> int | None:
    """How many different configurations can be drawn; None: endlessly many, some number is continuous."""
    below: list[int | None]
    match node:
        case Range(low=low, high=high, integer=integer):
            return int(high - low) + 1 if integer else 1 if low == high else None
        case Choice(values=values):
            return len(values)
        case OneOf(branches=branches):
            below = [count_configurations(branch) for branch in branches.values()]
        case Maybe(child=child):
            below = [1, count_configurations(child)]
        case Tree(children=children):
            below = [count_configurations(child) for child in children.values()]
        case _:
            return 1
    finite = [count for count in below if count is not None]
    if len(finite) < len(below):
        return None
    return math.prod(finite) if isinstance(node, Tree) else sum(finite)


def branches(node: Node, arm: str, most: int) -> Iterator[Branch]:
    """Every branch of an arm, or, where that is more than `most`, a cover: each label at least once."""
    every = count_branches(node) <= most
    for labels in _decisions(node, arm, "", every):
        walk = Walk(labels)
        first = draw(node, walk, arm)
        rest = [draw(node, Walk(labels, step), arm) for step in range(1, max(walk.sizes.values(), default=1))]
        free = tuple(name for name, size in walk.sizes.items() if size > 1)
        yield Branch(labels, free, (first, *rest))


def _decisions(node: Node, arm: str, path: str, every: bool) -> list[dict[str, str]]:
    name = leaf_name(arm, path)
    match node:
        case OneOf(branches=branches):
            below = {label: _decisions(branch, arm, join(path, label), every) for label, branch in branches.items()}
            return [{name: label, **rest} for label, found in below.items() for rest in found]
        case Maybe(child=child):
            present = [{f"{name}.maybe": "present", **rest} for rest in _decisions(child, arm, path, every)]
            return [{f"{name}.maybe": "absent"}, *present]
        case Tree(children=children):
            parts = [_decisions(child, arm, join(path, key), every) for key, child in children.items()]
            if every:
                return [_merged(combination) for combination in product(*parts)]
            longest = max(map(len, parts), default=1)
            return [_merged([part[turn % len(part)] for part in parts]) for turn in range(longest)]
    return [{}]


def _merged(parts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {name: label for part in parts for name, label in part.items()}


class Walk:
    """Chooses given branches, and of every free leaf the bound or value whose turn it is."""

    def __init__(self, labels: Mapping[str, str], step: int = 0):
        self.labels = labels
        self.step = step
        self.sizes: dict[str, int] = {}  # how many steps each leaf needs

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        self.sizes[name] = 1 if low == high else 2
        return (low, high)[self.step % 2]

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        self.sizes[name] = 1 if low == high else 2
        return (low, high)[self.step % 2]

    def category(self, name: str, labels: Sequence[str]) -> str:
        if name in self.labels:
            return self.labels[name]
        self.sizes[name] = len(labels)
        return labels[self.step % len(labels)]
