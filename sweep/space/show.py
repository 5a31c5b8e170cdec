"""Draws a search space as a tree for a console (`show=true`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from rich.markup import escape
from rich.text import Text
from rich.tree import Tree as Drawing

from sweep.space.draw import Branch, branches, count_branches
from sweep.space.grammar import Choice, Fixed, Maybe, Node, OneOf, Range, Same, Tree
from sweep.space.space import Space

_MOST_LISTED: Final = 12  # of an arm with more branches, only a selection is listed


def tree(space: Space) -> Drawing:
    """Returns a tree that shows what all arms share, what each arm changes, and the free dimensions of each arm's
    branches.
    """
    goals = ", ".join(space.search.maximize or ("every goal the cohort can score",))
    root = Drawing(f"[bold]{escape(space.name)}[/]  {space.search.trials} trials, maximise {goals}")
    _grow(root.add("[bold]every arm[/]"), space.base)
    for name, own in space.own.items():
        listed = list(branches(space.arms[name], name, _MOST_LISTED))
        count = count_branches(space.arms[name])
        below = root.add(f"[bold]arms.{escape(name)}[/]  {_counts(listed, count)}")
        _grow(below, own)
        _list(below, name, listed, count)
    _style(root)
    return root


def _style(drawing: Drawing) -> None:
    """Renders the markup of all lines in the tree now, so that the result does not depend on the settings of the
    console.
    """
    drawing.label = Text.from_markup(str(drawing.label), emoji=False)
    for below in drawing.children:
        _style(below)


def _counts(listed: Sequence[Branch], count: int) -> str:
    if count > len(listed):
        return f"{count} branches"
    each = [f"{'/'.join(branch.labels.values())} {len(branch.free)}".strip() for branch in listed]
    return f"free dimensions: {', '.join(each)}"


def _list(drawing: Drawing, arm: str, listed: Sequence[Branch], count: int) -> None:
    """Adds the names of the free dimensions: first the dimensions that every branch has, then the additional dimensions
    of each branch.
    """
    shared = [name for name in listed[0].free if all(name in branch.free for branch in listed)]
    note = f"  (a selection of the {count} branches that has each label at least once)" if count > len(listed) else ""
    below = drawing.add(f"[bold]free dimensions[/]{note}")
    if len(listed) == 1:
        below.add(_names(arm, shared) or "none")
        return
    if shared:
        below.add(f"every branch: {_names(arm, shared)}")
    for branch in listed:
        labels = [f"{_path(arm, name).removesuffix('.maybe')}={label}" for name, label in branch.labels.items()]
        own = [name for name in branch.free if name not in shared]
        below.add(f"{escape(', '.join(labels))}: {_names(arm, own) or 'no others'}")


def _names(arm: str, names: Sequence[str]) -> str:
    return f"[cyan]{escape(', '.join(_path(arm, name) for name in names))}[/]" if names else ""


def _path(arm: str, name: str) -> str:
    return name.removeprefix(f"{arm}/")


def _grow(drawing: Drawing, node: Node) -> None:
    """Adds the content of a node: all fixed values on one line, and each distribution and reference on its own line."""
    match node:
        case Tree(children=children):
            fixed = _flat(node)
            if fixed:
                drawing.add(f"[dim]{escape(', '.join(fixed))}[/]", guide_style="dim")
            for key, child in children.items():
                if not isinstance(child, Fixed) and not (isinstance(child, Tree) and not _varies(child)):
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
        case Same(target=target):
            return f"  same as [cyan]{escape(target)}[/]"
        case Fixed(value=value):
            return f"  {escape(_plain(value))}"
    return ""


def _varies(node: Node) -> bool:
    return not isinstance(node, Fixed) and (
        not isinstance(node, Tree) or any(_varies(child) for child in node.children.values())
    )


def _flat(node: Tree, prefix: str = "") -> list[str]:
    """Returns the fixed values directly below a node, and the values in mappings that contain only fixed values."""
    values = []
    for key, child in node.children.items():
        if isinstance(child, Fixed):
            values.append(f"{prefix}{key}={_plain(child.value)}")
        elif isinstance(child, Tree) and not _varies(child):
            values += _flat(child, f"{prefix}{key}.")
    return values


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
