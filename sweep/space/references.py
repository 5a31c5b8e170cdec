"""Binds references: values that equal the value drawn at another leaf, as in `warmup: ${schedule.final}`.

A reference names a leaf by its path in the space file, without grammar words. References are bound separately for each
arm, because an arm may replace the leaf or put a `one_of` in its place. This is done once, when the space is read, and
ensures that no trial refers to a leaf that its branches do not contain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mmpkd.near_names import near
from mmpkd.types import Mistake
from sweep.space.grammar import Fixed, Maybe, Node, OneOf, Same, Spot, Tree, join, spots


def bind(node: Node, arm: str, mistakes: list[Mistake]) -> Node:
    """Returns the arm with each reference converted to the leaf's path in a drawn configuration. Broken references are
    left out.

    Args:
        mistakes: list to which a mistake is appended for each broken reference.
    """
    every = list(spots(node))
    places: dict[str, str | None] = {}  # place of the leaf by path of the reference; None if there is no such leaf
    problems: dict[str, str] = {}  # references by path in the file
    broken = {mistake.path for mistake in mistakes}  # a leaf with a mistake of its own may be missing for that reason
    for spot in every:
        if isinstance(spot.node, Same):
            place, problem = _target_of(spot, spot.node.target, every, node, arm)
            places[spot.path] = place
            if problem and spot.node.target not in broken:
                problems.setdefault(spot.node.path, problem)
    leads = {spot.place: places[spot.path] for spot in every if spot.path in places and isinstance(spot.node, Same)}
    for spot in every:
        if isinstance(spot.node, Same) and (circle := _circle(spot.place, leads)):
            places[spot.path] = None
            problems.setdefault(spot.node.path, f"refers to itself: {' -> '.join(circle)}")
    new_mistakes = [Mistake(path, problem) for path, problem in problems.items()]
    mistakes += [mistake for mistake in new_mistakes if mistake not in mistakes]  # arms share parts, and so mistakes
    return _bound(node, "", places) or Tree(node.path, {})


def _target_of(spot: Spot, target: str, every: list[Spot], root: Node, arm: str) -> tuple[str | None, str]:
    """Returns a pair: the place of the leaf that a reference names, and an empty text. For a broken reference the pair
    is None and a text with the reason.
    """
    named = [other for other in every if target in (other.node.path, other.place) and not isinstance(other.node, Maybe)]
    leaves = {other.path: other.place for other in named if _is_leaf(other.node)}
    if not leaves:
        if named:
            return None, f"refers to {target}, which is a mapping; a reference leads to a single leaf"
        if target.startswith("arms."):
            return None, f"refers to {target}, which is not in arm {arm}; an arm cannot see another's leaves"
        known = {other.place for other in every if _is_leaf(other.node)}
        return None, f"refers to {target}, which is not in arm {arm}{near(target, known)}"
    if not _certain(root, "", leaves, spot.decisions):
        decisions = next(other.decisions for other in named if other.path in leaves)
        step, label = next((step, label) for step, label in decisions.items() if spot.decisions.get(step) != label)
        condition = f"where {step.removesuffix('.maybe') or arm} is {label}"
        return None, f"refers to {target}, which is drawn only {condition}; put the reference into the same branch"
    return next(iter(leaves.values())), ""


def _is_leaf(node: Node) -> bool:
    if isinstance(node, OneOf):
        return all(_is_leaf(branch) for branch in node.branches.values())
    return not isinstance(node, Tree | Maybe)


def _certain(node: Node, path: str, leaves: Iterable[str], known: Mapping[str, str]) -> bool:
    """Returns whether every configuration that agrees with the decisions `known` contains one of the leaves."""
    match node:
        case OneOf(branches=branches) if path not in leaves:
            labels = [known[path]] if path in known else branches
            return all(_certain(branches[label], join(path, label), leaves, known) for label in labels)
        case Maybe(child=child):
            return f"{path}.maybe" in known and _certain(child, path, leaves, known)
        case Tree(children=children):
            return any(_certain(child, join(path, key), leaves, known) for key, child in children.items())
    return path in leaves


def _circle(start: str, leads: Mapping[str, str | None]) -> list[str]:
    """Returns the places that a circle of references passes, from `start` back to `start`. The result is empty if the
    references from `start` form no circle.
    """
    chain = [start]
    while (place := leads.get(chain[-1])) is not None:
        chain.append(place)
        if place == start:
            return chain
        if place in chain[:-1]:
            return []  # a circle of other references, which is reported with them
    return []


def _bound(node: Node, path: str, places: Mapping[str, str | None]) -> Node | None:
    match node:
        case Same():
            place = places[path]
            return None if place is None else Same(node.path, place)
        case OneOf(branches=branches):
            inner = {label: _bound(branch, join(path, label), places) for label, branch in branches.items()}
            return OneOf(node.path, {label: branch or Fixed(node.path, None) for label, branch in inner.items()})
        case Maybe(child=child):
            below = _bound(child, path, places)
            return below and Maybe(node.path, below)
        case Tree(children=children):
            below_each = {key: _bound(child, join(path, key), places) for key, child in children.items()}
            return Tree(node.path, {key: child for key, child in below_each.items() if child is not None})
    return node
