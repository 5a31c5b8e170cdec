"""A search space as a person reads it: `show=true`."""

from __future__ import annotations

import json
from typing import Final

from rich.markup import escape
from rich.tree import Tree as Drawing

from sweep.draw import branches, count_branches
from sweep.grammar import Choice, Fixed, Maybe, Node, OneOf, Range, Tree
from sweep.space import Space

_LISTED: Final = 12  # branches of an arm whose free dimensions are counted one by one


def tree(space: Space) -> Drawing:
    """What all arms share, then what each arm lays over it, with the free dimensions of its branches."""
    goals = ", ".join(space.search.maximize or ("every goal the cohort can score",))
    root = Drawing(f"[bold]{escape(space.name)}[/]  {space.search.trials} trials, maximise {goals}")
    _grow(root.add("[bold]every arm[/]"), space.base)
    for name, own in space.own.items():
        below = root.add(f"[bold]arms.{escape(name)}[/]  {_dimensions(name, space.arms[name])}")
        _grow(below, own)
    return root


def _dimensions(arm: str, node: Node) -> str:
    """Free dimensions, branch by branch."""
    count = count_branches(node)
    if count > _LISTED:
        return f"{count} branches"
    found = [(branch.labels.values(), len(branch.free)) for branch in branches(node, arm, _LISTED)]
    each = [f"{'/'.join(labels)} {free}".strip() for labels, free in found]
    return f"free dimensions: {', '.join(each)}"


def _grow(drawing: Drawing, node: Node) -> None:
    """Adds what stands below a node: fixed values on one line, distributions each on their own."""
    match node:
        case Tree(children=children):
            fixed = _flat(node)
            if fixed:
                drawing.add(f"[dim]{escape(', '.join(fixed))}[/]", guide_style="dim")
            for key, child in children.items():
                if not isinstance(child, Fixed) and not (isinstance(child, Tree) and not _free(child)):
                    _grow(drawing.add(f"{escape(str(key))}{_title(child)}"), child)
        case OneOf(branches=branches):
            for label, branch in branches.items():
                _grow(drawing.add(f"[magenta]{escape(label)}[/]{_title(branch)}"), branch)
        case Maybe(child=child):
            _grow(drawing, child)


def _title(node: Node) -> str:
    match node:
        case Range(low=low, high=high, log=log, integer=integer):
            word = f"{'log_' if log else ''}{'int' if integer else 'uniform'}"
            return f"  [cyan]{word}[/] {low:g} to {high:g}"
        case Choice(values=values):
            return f"  [cyan]choice[/] {escape(' | '.join(values))}"
        case OneOf():
            return "  [cyan]one_of[/]"
        case Maybe(child=child):
            return f"  [cyan]maybe[/]{_title(child)}"
        case Fixed(value=value):
            return f"  {escape(_plain(value))}"
    return ""


def _free(node: Node) -> bool:
    return not isinstance(node, Fixed) and (
        not isinstance(node, Tree) or any(_free(child) for child in node.children.values())
    )


def _flat(node: Tree, prefix: str = "") -> list[str]:
    """The fixed values directly below a node, and those of mappings that hold nothing else."""
    found = []
    for key, child in node.children.items():
        if isinstance(child, Fixed):
            found.append(f"{prefix}{key}={_plain(child.value)}")
        elif isinstance(child, Tree) and not _free(child):
            found += _flat(child, f"{prefix}{key}.")
    return found


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
