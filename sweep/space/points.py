"""Reads `search.points`: configurations that are tried before any is sampled, such as the defaults of a paper.

    points: [{arm: tabular, objectives.logits.logits.weight: 4, optimizer.lr: 3e-4}]

A point names a leaf in one of two ways: as on the command line (with the labels of branches, without grammar words), or
by its path in the TrialConfig. Naming a leaf chooses the branches around it. Leaves that a point does not name are
sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmpkd.near_names import near
from mmpkd.types import Mistake
from sweep.space.grammar import Choice, Fixed, Maybe, Node, OneOf, Range, Spot, Tree, spots


def values_of_point(point: Mapping[str, Any], node: Node, where: str, mistakes: list[Mistake]) -> dict[str, Any]:
    """Returns the values and labels that a point fixes, by path in the arm.

    Args:
        node: the arm of the point.
        where: the path of the point itself, under which mistakes are reported.
        mistakes: list to which a mistake is appended for each leaf that does not exist, for each value that the space
            does not contain, and for leaves in two branches that exclude each other.
    """
    drawn = [spot for spot in spots(node) if not isinstance(spot.node, Fixed | Tree)]
    chosen: dict[str, Any] = {}
    for key, value in point.items():
        if key == "arm":
            continue
        named = [spot for spot in drawn if key in (spot.path, spot.place) and not isinstance(spot.node, Maybe)]
        fitting = [(spot, label) for spot in named if (label := _label_of(spot.node, value)) is not None]
        if not named:
            known = {spot.path for spot in drawn}
            mistakes.append(Mistake(f"{where}.{key}", f"nothing is sampled there{near(key, known)}"))
        elif not fitting:
            mistakes.append(Mistake(f"{where}.{key}", f"{value!r} is not in {_range(named[0].node)}"))
        else:
            agreeing = [(spot, label) for spot, label in fitting if not _conflict(spot, chosen)]
            spot, label = (agreeing or fitting)[0]
            if clash := _conflict(spot, chosen):
                wanted, given = spot.decisions.get(clash, label), chosen[clash]
                problem = f"is drawn only where {clash.removesuffix('.maybe')} is {wanted}, but the point sets {given}"
                mistakes.append(Mistake(f"{where}.{key}", problem))
            chosen |= {**spot.decisions, spot.path: label}
    return chosen


def _conflict(spot: Spot, chosen: Mapping[str, Any]) -> str | None:
    """Returns the path of a decision for which `chosen` has a different label than the label that the leaf needs.
    Returns None if there is no such decision.
    """
    return next((step for step, label in spot.decisions.items() if chosen.get(step, label) != label), None)


def _label_of(node: Node, value: Any) -> Any:
    """Returns a value in the form that the Optuna studies store: a number or a label. Returns None if the node does not
    allow the value.
    """
    match node:
        case Range(low=low, high=high, integer=integer):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not low <= value <= high or (integer and value != int(value)):
                return None
            return int(value) if integer else float(value)
        case Choice(values=values):
            return next(
                (label for label, known in values.items() if known == value and type(known) is type(value)), None
            )
        case OneOf(branches=branches):
            return value if isinstance(value, str) and value in branches else None
    return None


def _range(node: Node) -> str:
    match node:
        case Range(low=low, high=high):
            return f"[{low:g}, {high:g}]"
        case Choice(values=values):
            return f"the choice of {', '.join(values)}"
        case OneOf(branches=branches):
            return f"the branches {', '.join(branches)}"
    return "the space"
