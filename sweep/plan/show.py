"""Renders a plan as text for a console (`plan=true`)."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from mmpkd.cohort.facts import Facts
from sweep.plan.plan import Plan


def render(plan: Plan) -> Group:
    """Returns the plan for a console: the branches of each arm with the settings that vary in them, the cohort, and the
    warnings.
    """
    parts: list[RenderableType] = [Text(f"Plan of {plan.space}")]
    for branch in plan.branches:
        labels = [f", {_short(name, branch.arm)}: {label}" for name, label in branch.labels.items()]
        checked = f"{branch.checked} configuration{'s' * (branch.checked != 1)} checked"
        varying = "1 setting varies" if len(branch.free) == 1 else f"{len(branch.free)} settings vary"
        parts.append(Text(f"arm {branch.arm}{''.join(labels)}: {checked}, {varying}"))
        names = [_short(name, branch.arm) for name in branch.free]
        parts += [Padding(Text(", ".join(names)), (0, 0, 0, 4))] if names else []
    lines = [f"{plan.trials} trials, maximise {', '.join(plan.goals)}; {plan.checked} configurations checked"]
    if plan.facts is not None:
        lines += _cohort_lines(plan.facts)
        lines += [f"teacher {line}" for line in plan.outlines()]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    return Group(*parts, *(Text(line) for line in lines))


def _cohort_lines(facts: Facts) -> list[str]:
    """Returns lines that describe the tables of the cohort. Its images are read later, when the cohort is prepared."""
    if (questions := facts.questions) is not None:
        unanswered = f", {questions.num_unanswered} without an answer" if questions.num_unanswered else ""
        kinds = f"tasks {', '.join(questions.tasks)}; modalities {', '.join(questions.modalities)}"
        return [f"cohort: {facts.num_samples} images; {questions.num_items} questions{unanswered}; {kinds}"]
    tasks = "; ".join(f"{task.name} ({task.kind}: {', '.join(task.labels)})" for task in facts.tasks)
    lines = [f"cohort: {facts.num_samples} samples; {tasks}; ROI: {', '.join(facts.roi_labels) or 'none'}"]
    for role in ("descriptor", "context", "near_label", "forbidden"):
        if names := [column.name for column in facts.columns.values() if column.role == role]:
            lines.append(f"  {role}: {', '.join(names)}")
    return lines + ([f"  without a role, not stored: {', '.join(facts.unlisted)}"] if facts.unlisted else [])


def _short(name: str, arm: str) -> str:
    return name.removeprefix(f"{arm}/")
