"""Checks which privileged columns a teacher may read: those with the role descriptor or context, or near-label columns
that the configuration names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mmpkd.cohort.facts import Facts, admitted_columns, comparable_name, matching_names
from mmpkd.near_names import near
from mmpkd.types import Mistake


def check_columns(columns: Sequence[str], near_label: Sequence[str], facts: Facts) -> list[Mistake]:
    """Returns the mistakes in a teacher's choice of columns, each under the path `columns` or `near_label`.

    Each entry of `columns` must be the name of a column with the role descriptor or context, or a pattern
    (`matching_names`) that matches at least one of them. `near_label` lists near-label columns by name.
    """
    counts = Counter((*columns, *near_label))
    problems = [(name, _column_problem(name, near_label, facts)) for name in counts]
    problems += [(name, f"column {name!r} is listed twice") for name, count in counts.items() if count > 1]
    return [
        Mistake("near_label" if name in near_label else "columns", problem) for name, problem in problems if problem
    ]


def _column_problem(name: str, near_label: Sequence[str], facts: Facts) -> str:
    usable = admitted_columns(facts)
    if "*" in name and name not in near_label and matching_names(name, usable):
        return ""
    wanted = f" (columns to teach from: {', '.join(usable)})" if usable else " (this cohort has none to teach from)"
    columns = {comparable_name(column): column for column in (*facts.unlisted, *facts.columns)}
    column = columns.get(comparable_name(name))
    if column is None:
        return f"no column {name!r}{near(name, [*usable, *near_label_columns(facts)])}"
    if column in facts.unlisted:
        return f"column {column!r} has no role in this cohort, so it is not stored{wanted}"
    role = facts.columns[column].role
    if role == "forbidden":
        return f"column {column!r} is forbidden: it states the label and is never stored{wanted}"
    if role == "id":
        return f"column {column!r} only names things (role id){wanted}"
    if column != name:
        return f"no column {name!r}; write it as the source does: {column!r}"
    if role == "near_label" and name not in near_label:
        remedy = "to teach from it all the same, list it under `near_label:` instead"
        return f"column {name!r} nearly states the label (role near_label); {remedy}"
    if role != "near_label" and name in near_label:
        return f"column {name!r} has role {role}, not near_label; list it under `columns:`"
    return ""


def near_label_columns(facts: Facts) -> list[str]:
    """Returns the near-label columns, which teachers use only when the configuration names them."""
    return [column.name for column in facts.columns.values() if column.role == "near_label"]
