"""A search space as a person reads it, `show=true`, and its plan, `plan=true`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree as Drawing

from sweep.space.draw import Branch, branches, count_branches
from sweep.space.grammar import Choice, Fixed, Maybe, Node, OneOf, Range, Same, Tree
from sweep.space.space import Space

if TYPE_CHECKING:  # showing a space loads no torch
    from mmpkd.cohort.facts import Facts
    from sweep.plan.plan import Plan

_LISTED: Final = 12  # branches of an arm that are listed one by one; a cover of them beyond


def tree(space: Space) -> Drawing:
    """What all arms share, then what each arm lays over it, with the free dimensions of its branches."""
    goals = ", ".join(space.search.maximize or ("every goal the cohort can score",))
    root = Drawing(f"[bold]{escape(space.name)}[/]  {space.search.trials} trials, maximise {goals}")
    _grow(root.add("[bold]every arm[/]"), space.base)
    for name, own in space.own.items():
        found = list(branches(space.arms[name], name, _LISTED))
        count = count_branches(space.arms[name])
        below = root.add(f"[bold]arms.{escape(name)}[/]  {_counts(found, count)}")
        _grow(below, own)
        _list(below, name, found, count)
    _style(root)
    return root


def _style(drawing: Drawing) -> None:
    """Reads the markup of all lines, whatever the console that prints them makes of it."""
    drawing.label = Text.from_markup(str(drawing.label), emoji=False)
    for below in drawing.children:
        _style(below)


def _counts(found: Sequence[Branch], count: int) -> str:
    if count > len(found):
        return f"{count} branches"
    each = [f"{'/'.join(branch.labels.values())} {len(branch.free)}".strip() for branch in found]
    return f"free dimensions: {', '.join(each)}"


def _list(drawing: Drawing, arm: str, found: Sequence[Branch], count: int) -> None:
    """Adds the free dimensions by name: those that every branch has, then what each has besides."""
    shared = [name for name in found[0].free if all(name in branch.free for branch in found)]
    some = f"  (of {count} branches these, which have each label at least once)" if count > len(found) else ""
    below = drawing.add(f"[bold]free dimensions[/]{some}")
    if len(found) == 1:
        below.add(_names(arm, shared) or "none")
        return
    if shared:
        below.add(f"every branch: {_names(arm, shared)}")
    for branch in found:
        labels = [f"{_path(arm, name).removesuffix('.maybe')}={label}" for name, label in branch.labels.items()]
        own = [name for name in branch.free if name not in shared]
        below.add(f"{escape(', '.join(labels))}: {_names(arm, own) or 'no others'}")


def _names(arm: str, names: Sequence[str]) -> str:
    return f"[cyan]{escape(', '.join(_path(arm, name) for name in names))}[/]" if names else ""


def _path(arm: str, name: str) -> str:
    return name.removeprefix(f"{arm}/")


def _grow(drawing: Drawing, node: Node) -> None:
    """Adds what stands below a node: fixed values on one line, distributions and references each on their own."""
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
    """The fixed values directly below a node, and those of mappings that hold nothing else."""
    found = []
    for key, child in node.children.items():
        if isinstance(child, Fixed):
            found.append(f"{prefix}{key}={_plain(child.value)}")
        elif isinstance(child, Tree) and not _varies(child):
            found += _flat(child, f"{prefix}{key}.")
    return found


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def render(plan: Plan) -> Group:
    """The plan as a table with its warnings, for a console."""
    table = Table("arm", "branch", "free dimensions", "checked", title=f"Plan of {plan.space}", title_justify="left")
    table.columns[2].overflow = "fold"  # the names that an override wants, so whole
    table.columns[3].justify = "right"
    for one in plan.branches:
        labels = [f"{_short(name, one.arm)}: {label}" for name, label in one.labels.items()]
        free = [_short(name, one.arm) for name in one.free]
        table.add_row(
            one.arm, "\n".join(labels), f"{len(free)}:\n" + "\n".join(free) if free else "0", str(one.checked)
        )
    lines = [f"{plan.trials} trials, maximise {', '.join(plan.goals)}; {plan.checked} configurations checked"]
    if plan.facts is not None:
        lines += _understood(plan.facts)
        lines += [f"teacher {line}" for line in plan.outlines()]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    return Group(table, *(Text(line) for line in lines))


def _understood(facts: Facts) -> list[str]:
    """What the tables of the cohort say; images are opened when it is prepared."""
    tasks = "; ".join(f"{task.name} ({task.kind}: {', '.join(task.labels)})" for task in facts.tasks)
    lines = [f"cohort: {facts.num_samples} samples; {tasks}; ROI: {', '.join(facts.roi_labels) or 'none'}"]
    for role in ("descriptor", "context", "near_label", "forbidden"):
        if names := [column.name for column in facts.columns.values() if column.role == role]:
            lines.append(f"  {role}: {', '.join(names)}")
    return lines + ([f"  without a role, not stored: {', '.join(facts.unlisted)}"] if facts.unlisted else [])


def _short(name: str, arm: str) -> str:
    return name.removeprefix(f"{arm}/")
