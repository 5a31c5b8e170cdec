"""Draws configurations from an arm: a single one for a sampler, or configurations of every branch for the plan.

This module imports no ray, torch or optuna. A `Chooser` makes each decision.
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
    """Interface that decides every value that is drawn. Examples are the adapter of an Optuna trial and the plan's
    `BoundsChooser`.
    """

    def uniform(self, name: str, low: float, high: float, log: bool) -> float: ...
    def integer(self, name: str, low: int, high: int, log: bool) -> int: ...
    def category(self, name: str, labels: Sequence[str]) -> str: ...


@dataclass(frozen=True)
class Drawn:
    """One configuration that was drawn from an arm.

    Attributes:
        config: the configuration as plain values.
        values: the drawn values by leaf name. A leaf name is `<arm>/` and the path with the labels of branches. A value
            is a number, the value of a `choice` (or its label, if the value is a list or a mapping), or the label of a
            `one_of`. A `maybe` has the value 'absent' or 'present', and `.maybe` is appended to its leaf name.
        places: maps each leaf name to the path in `config`.
        origins: maps each path in `config` to the path in the space file.
    """

    config: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


def leaf_name(arm: str, path: str) -> str:
    """Returns the name that a leaf has in the Optuna studies, the tables and MLflow."""
    return f"{arm}/{path}" if path else arm


def value_at(config: Any, path: str) -> Any:
    """Returns the value at a dotted path in nested mappings, or None if the path does not exist."""
    for key in path.split(".") if path else ():
        config = config.get(key) if isinstance(config, dict) else None
    return config


def draw(node: Node, chooser: Chooser, arm: str) -> Drawn:
    """Draws one configuration of an arm. The chooser decides only the leaves that exist in the drawn branches."""
    drawing = _Drawing(chooser, arm)
    config = drawing.node(node, "", "")
    assert isinstance(config, dict), "an arm is a mapping"
    drawing.resolve_references()
    drawing.drawn.config.update(config)
    return drawing.drawn


@dataclass(frozen=True)
class _Reference:
    """Placeholder in a drawn configuration for a copy of the value at `place`, which may be drawn later."""

    place: str


class _Drawing:
    def __init__(self, chooser: Chooser, arm: str):
        self.drawn = Drawn({})
        self._chooser, self._arm = chooser, arm
        self._value_at: dict[str, Any] = {}  # drawn values by place
        self._references: list[tuple[dict[Any, Any], Any]] = []  # mapping and key that hold a _Reference

    def node(self, node: Node, path: str, place: str) -> Any:
        """Returns the value of a node. `path` contains the labels of branches; `place` is the same path without these
        labels.
        """
        name = leaf_name(self._arm, path)
        self.drawn.origins[place] = node.path

        def record(name: str, value: object) -> None:
            self.drawn.values[name] = value
            self.drawn.places[name] = place

        match node:
            case Fixed(value=value):
                return copy.deepcopy(value)
            case Same(target=target):
                return _Reference(target)
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
                        result[key] = self._value_at[join(place, key)] = value
                    if isinstance(value, _Reference):
                        self._references.append((result, key))
                return result

    def resolve_references(self) -> None:
        """Replaces each reference by the value drawn at the leaf it names. `references.bind` has checked that this leaf
        is drawn.
        """
        for mapping, key in self._references:
            value = mapping[key]
            while isinstance(value, _Reference):
                value = self._value_at[value.place]
            mapping[key] = copy.deepcopy(value)


@dataclass(frozen=True)
class Branch:
    """One combination of decisions at the `one_of` and `maybe` nodes of an arm.

    Attributes:
        labels: the label chosen at each decision, by leaf name.
        free: names of the leaves that have more than one possible value.
        drawn: configurations of the branch: one with all leaves at their lower bound, one with all at their upper
            bound, then one for each further value of a choice.
    """

    labels: Mapping[str, str]
    free: tuple[str, ...]
    drawn: tuple[Drawn, ...]


def count_branches(node: Node) -> int:
    """Returns the number of branches at and below a node."""
    match node:
        case OneOf(branches=branches):
            return sum(count_branches(branch) for branch in branches.values())
        case Maybe(child=child):
            return 1 + count_branches(child)
        case Tree(children=children):
            return math.prod(count_branches(child) for child in children.values())
    return 1


def count_configurations(node: Node) -> int | None:
    """Returns the number of different configurations that can be drawn, or None if a continuous range makes it
    infinite.
    """
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
    """Yields every branch of an arm.

    If the arm has more than `most` branches, only a selection is yielded, in which each label occurs at least once.
    """
    every = count_branches(node) <= most
    for labels in _decisions(node, arm, "", every):
        chooser = BoundsChooser(labels)
        first = draw(node, chooser, arm)
        num_steps = max(chooser.num_values.values(), default=1)
        others = [draw(node, BoundsChooser(labels, step), arm) for step in range(1, num_steps)]
        free = tuple(name for name, size in chooser.num_values.items() if size > 1)
        yield Branch(labels, free, (first, *others))


def _decisions(node: Node, arm: str, path: str, every: bool) -> list[dict[str, str]]:
    """Returns a list of branches, each as a mapping of the leaf names of its decisions to the chosen labels. If `every`
    is False, returns only a selection of branches in which each label occurs at least once.
    """
    name = leaf_name(arm, path)
    match node:
        case OneOf(branches=branches):
            below = {label: _decisions(branch, arm, join(path, label), every) for label, branch in branches.items()}
            return [{name: label, **inner} for label, decisions in below.items() for inner in decisions]
        case Maybe(child=child):
            present = [{f"{name}.maybe": "present", **inner} for inner in _decisions(child, arm, path, every)]
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


class BoundsChooser:
    """Chooses the given branches, and sets every free leaf to one of its bounds or values, selected by the given step.

    Attributes:
        num_values: number of values at which each free leaf has to be tried, by leaf name. It is filled while the
            chooser is used.
    """

    def __init__(self, labels: Mapping[str, str], step: int = 0):
        self.labels = labels
        self.step = step
        self.num_values: dict[str, int] = {}

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        self.num_values[name] = 1 if low == high else 2
        return (low, high)[self.step % 2]

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        self.num_values[name] = 1 if low == high else 2
        return (low, high)[self.step % 2]

    def category(self, name: str, labels: Sequence[str]) -> str:
        if name in self.labels:
            return self.labels[name]
        self.num_values[name] = len(labels)
        return labels[self.step % len(labels)]
