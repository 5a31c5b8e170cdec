"""Renders a plan as text for a console (`plan=true`)."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mmpkd.cohort.facts import Facts
from sweep.plan.plan import Plan


def render(plan: Plan) -> Group:
    """Returns the plan for a console: a table, followed by the warnings."""
    table = Table("arm", "branch", "free dimensions", "checked", title=f"Plan of {plan.space}", title_justify="left")
    table.columns[2].overflow = "fold"  # not shortened, because an override needs the whole name
    table.columns[3].justify = "right"
    for branch in plan.branches:
        labels = [f"{_short(name, branch.arm)}: {label}" for name, label in branch.labels.items()]
        free = [_short(name, branch.arm) for name in branch.free]
        names = f"{len(free)}:\n" + "\n".join(free) if free else "0"
        table.add_row(branch.arm, "\n".join(labels), names, str(branch.checked))
    lines = [f"{plan.trials} trials, maximise {', '.join(plan.goals)}; {plan.checked} configurations checked"]
    if plan.facts is not None:
        lines += _cohort_lines(plan.facts)
        lines += [f"teacher {line}" for line in plan.outlines()]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    return Group(table, *(Text(line) for line in lines))


def _cohort_lines(facts: Facts) -> list[str]:
    """Returns lines that describe the tables of the cohort. Its images are read later, when the cohort is prepared."""
    tasks = "; ".join(f"{task.name} ({task.kind}: {', '.join(task.labels)})" for task in facts.tasks)
    lines = [f"cohort: {facts.num_samples} samples; {tasks}; ROI: {', '.join(facts.roi_labels) or 'none'}"]
    for role in ("descriptor", "context", "near_label", "forbidden"):
        if names := [column.name for column in facts.columns.values() if column.role == role]:
            lines.append(f"  {role}: {', '.join(names)}")
    return lines + ([f"  without a role, not stored: {', '.join(facts.unlisted)}"] if facts.unlisted else [])


def _short(name: str, arm: str) -> str:
    return name.removeprefix(f"{arm}/")
