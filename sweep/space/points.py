"""Configurations to try before any is sampled: `search.points`, known-good ones such as a paper's defaults.

    points: [{arm: tabular, objectives.logits.logits.weight: 4, optimizer.lr: 3e-4}]

A leaf is named as on the command line (labels of branches in, grammar words out) or by its path in
the TrialConfig. The branches that it lies in are implied; what a point leaves out is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmpkd.near_names import near
from mmpkd.types import Mistake
from sweep.space.grammar import Choice, Fixed, Maybe, Node, OneOf, Range, Spot, Tree, spots


def enqueued(point: Mapping[str, Any], node: Node, where: str, mistakes: list[Mistake]) -> dict[str, Any]:
    """What a point fixes, as the searcher knows it, by path in the arm.

    Args:
        node: of the point's arm.
        where: the point's own path, for `mistakes`: no such leaf, a value that the space does not
            hold, leaves of two branches of which only one can be drawn.
    """
    drawn = [spot for spot in spots(node) if not isinstance(spot.node, Fixed | Tree)]
    chosen: dict[str, Any] = {}
    for key, value in point.items():
        if key == "arm":
            continue
        there = [spot for spot in drawn if key in (spot.path, spot.place) and not isinstance(spot.node, Maybe)]
        fitting = [(spot, asked) for spot in there if (asked := _asked(spot.node, value)) is not None]
        if not there:
            known = {spot.path for spot in drawn}
            mistakes.append(Mistake(f"{where}.{key}", f"nothing is sampled there{near(key, known)}"))
        elif not fitting:
            mistakes.append(Mistake(f"{where}.{key}", f"{value!r} is not in {_range(there[0].node)}"))
        else:
            agreeing = [one for one in fitting if not _conflict(one[0], chosen)]
            spot, asked = (agreeing or fitting)[0]
            if clash := _conflict(spot, chosen):
                label, other = spot.decisions.get(clash, asked), chosen[clash]
                problem = f"is drawn only where {clash.removesuffix('.maybe')} is {label}, and the point has it {other}"
                mistakes.append(Mistake(f"{where}.{key}", problem))
            chosen |= {**spot.decisions, spot.path: asked}
    return chosen


def _conflict(spot: Spot, chosen: Mapping[str, Any]) -> str | None:
    """A decision that leads to a leaf and was taken otherwise."""
    return next((step for step, label in spot.decisions.items() if chosen.get(step, label) != label), None)


def _asked(node: Node, value: Any) -> Any:
    """A value as the searcher knows it; None if the node does not hold it."""
    match node:
        case Range(low=low, high=high, integer=integer):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not low <= value <= high or (integer and value != int(value)):
                return None
            return int(value) if integer else float(value)
        case Choice(values=values):
            return next((label for label, one in values.items() if one == value and type(one) is type(value)), None)
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
