"""Values that are the same as what is drawn elsewhere: `warmup: ${schedule.final}`.

A reference names a leaf by its path in the space file, words left out. What it says is settled arm by
arm, because an arm may replace the leaf, or lay a one_of over it: here it is found, once, when the
space is read, so that no trial can meet a leaf that its branches do not hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mmpkd.near_names import near
from mmpkd.types import Mistake
from sweep.space.grammar import Fixed, Maybe, Node, OneOf, Same, Spot, Tree, join, spots


def bind(node: Node, arm: str, mistakes: list[Mistake]) -> Node:
    """An arm whose references lead to places in its configurations. One that leads nowhere is left out."""
    every = list(spots(node))
    found: dict[str, str | None] = {}  # path of a reference -> the place it refers to; None: nowhere
    problems: dict[str, str] = {}  # by path in the file
    for spot in every:
        if isinstance(spot.node, Same):
            place, problem = _meant(spot, spot.node.target, every, node, arm)
            found[spot.path] = place
            if problem:
                problems.setdefault(spot.node.path, problem)
    leads = {spot.place: found[spot.path] for spot in every if spot.path in found and isinstance(spot.node, Same)}
    for spot in every:
        if isinstance(spot.node, Same) and (circle := _circle(spot.place, leads)):
            found[spot.path] = None
            problems.setdefault(spot.node.path, f"refers to itself: {' -> '.join(circle)}")
    said = [Mistake(path, problem) for path, problem in problems.items()]
    mistakes += [mistake for mistake in said if mistake not in mistakes]  # of what arms share, once
    return _bound(node, "", found) or Tree(node.path, {})


def _meant(spot: Spot, target: str, every: list[Spot], root: Node, arm: str) -> tuple[str | None, str]:
    """The place that a reference leads to, or None and what is wrong."""
    there = [one for one in every if target in (one.node.path, one.place) and not isinstance(one.node, Maybe)]
    leaves = {one.path: one.place for one in there if _is_leaf(one.node)}
    if not leaves:
        if there:
            return None, f"refers to {target}, which is a mapping; a reference leads to a single leaf"
        if target.startswith("arms."):
            return None, f"refers to {target}, which is not in arm {arm}; an arm cannot see another's leaves"
        known = {one.place for one in every if _is_leaf(one.node)}
        return None, f"refers to {target}, which is not in arm {arm}{near(target, known)}"
    if not _certain(root, "", leaves, spot.decisions):
        decisions = next(one.decisions for one in there if one.path in leaves)
        step, label = next((step, label) for step, label in decisions.items() if spot.decisions.get(step) != label)
        where = f"where {step.removesuffix('.maybe') or arm} is {label}"
        return None, f"refers to {target}, which is drawn only {where}; put the reference into the same branch"
    return next(iter(leaves.values())), ""


def _is_leaf(node: Node) -> bool:
    if isinstance(node, OneOf):
        return all(_is_leaf(branch) for branch in node.branches.values())
    return not isinstance(node, Tree | Maybe)


def _certain(node: Node, path: str, leaves: Iterable[str], known: Mapping[str, str]) -> bool:
    """Whether every configuration with these decisions holds one of the leaves."""
    match node:
        case OneOf(branches=branches) if path not in leaves:
            taken = [known[path]] if path in known else branches
            return all(_certain(branches[label], join(path, label), leaves, known) for label in taken)
        case Maybe(child=child):
            return f"{path}.maybe" in known and _certain(child, path, leaves, known)
        case Tree(children=children):
            return any(_certain(child, join(path, key), leaves, known) for key, child in children.items())
    return path in leaves


def _circle(start: str, leads: Mapping[str, str | None]) -> list[str]:
    """The way from a place back to itself; empty if there is none."""
    way = [start]
    while (place := leads.get(way[-1])) is not None:
        way.append(place)
        if place == start:
            return way
        if place in way[:-1]:
            return []  # another's circle, which says so itself
    return []


def _bound(node: Node, path: str, found: Mapping[str, str | None]) -> Node | None:
    match node:
        case Same():
            place = found[path]
            return None if place is None else Same(node.path, place)
        case OneOf(branches=branches):
            inner = {label: _bound(branch, join(path, label), found) for label, branch in branches.items()}
            return OneOf(node.path, {label: branch or Fixed(node.path, None) for label, branch in inner.items()})
        case Maybe(child=child):
            below = _bound(child, path, found)
            return below and Maybe(node.path, below)
        case Tree(children=children):
            below_each = {key: _bound(child, join(path, key), found) for key, child in children.items()}
            return Tree(node.path, {key: child for key, child in below_each.items() if child is not None})
    return node
