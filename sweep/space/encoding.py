"""Encodes configurations of an arm as vectors, from which a model can learn."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweep.space.draw import PRESENCE, leaf_name
from sweep.space.grammar import Choice, Maybe, Node, OneOf, Range, spots

ABSENT = 0.5  # the coordinate of a number that the drawn branch does not have


def encode(node: Node, arm: str, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Returns the coordinates of N configurations of an arm, shape (N, D).

    A number has one coordinate: 0 at the low end of its range, 1 at the high end, on a logarithmic scale if it is drawn
    on one. In branches without this leaf the coordinate is 0.5. A `choice` or a `one_of` has a coordinate for each
    label, which is 1 for the drawn label and 0 otherwise. A `maybe` has a coordinate that is 1 if it is present.
    Leaves with a single possible value have no coordinate.

    Args:
        node: the arm.
        rows: the drawn values of each configuration by leaf name. A choice is given by its value or by its label, so
            both `Drawn.values` and the parameters of an Optuna trial fit.
    """
    columns = [column for name, leaf in _leaves(node, arm) for column in _columns(name, leaf, rows)]
    return np.array(columns, dtype=float).reshape(len(columns), len(rows)).T


def _leaves(node: Node, arm: str) -> Iterator[tuple[str, Node]]:
    for spot in spots(node):
        name = leaf_name(arm, spot.path)
        yield f"{name}.maybe" if isinstance(spot.node, Maybe) else name, spot.node


def _columns(name: str, leaf: Node, rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Returns the columns of one leaf, each with a coordinate for each row."""
    match leaf:
        case Range(low=low, high=high) if low < high:
            return [[_position(leaf, row[name]) if name in row else ABSENT for row in rows]]
        case Choice(values=labels) | OneOf(branches=labels) if len(labels) > 1:
            drawn = [_label(row.get(name)) if name in row else None for row in rows]
            return [[float(label == other) for other in drawn] for label in labels]
        case Maybe():
            return [[float(row.get(name) == PRESENCE[1]) for row in rows]]
    return []


def _position(leaf: Range, value: float) -> float:
    low, high, value = (math.log(number) if leaf.log else number for number in (leaf.low, leaf.high, value))
    return (value - low) / (high - low)


def _label(value: Any) -> str:
    """Returns the label of a value of a choice, as `grammar` forms it."""
    return value if isinstance(value, str) else json.dumps(value)
