"""What the parameters of each arm do to the goals: importances, parallel coordinates and effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from sweep.arm_styles import ArmStyle
from sweep.reports.console import shortest
from sweep.reports.page.figures import MIN_POINTS, PARALLEL_LINES, effect_figures, parallel_figure
from sweep.reports.page.importance import importances
from sweep.reports.page.sections import bars
from sweep.types import Record

METHOD: Final = "Importances are Optuna's, by the mean decrease of impurity in a random forest; they sum to 1."


def parameters(
    records: Sequence[Record], arms: Sequence[str], goals: Sequence[str], styles: Mapping[str, ArmStyle], is_ended: bool
) -> str:
    """Returns a part for each arm, and a line that names the arms of which nothing can be seen; nothing if this is so
    of all arms.

    Args:
        is_ended: whether the sweep has ended. Importances take too long to be computed at intervals.
    """
    parts, left_out, method = [], [], ""
    for arm in arms:
        shares = {goal: each for goal in goals if (each := importances(records, arm, goal))} if is_ended else {}
        names = {name for each in shares.values() for name in each}
        importance = {name: sum(each.get(name, 0.0) for each in shares.values()) for name in names}
        drawn = _in_bars(shares)
        drawn += parallel_figure(records, arm, goals, styles[arm], PARALLEL_LINES // len(arms))
        drawn += effect_figures(records, arm, goals, styles[arm], importance, len(arms))
        method = f'<p class="note">{METHOD}</p>' if shares else method
        if drawn:
            parts.append(f"<h3>{escape(arm)}</h3>{drawn}")
        else:
            num_complete = sum(record.arm == arm and record.state == "complete" for record in records)
            left_out.append(f"{arm} ({num_complete})")
    why = f"fewer than {MIN_POINTS} complete trials, or no sampled parameter that varies (complete trials in brackets)"
    note = f'<p class="note">Left out: {escape(", ".join(left_out))}, with {why}.</p>' if left_out else ""
    return "".join([method, *parts, note]) if parts else ""


def _in_bars(shares: Mapping[str, Mapping[str, float]]) -> str:
    """Returns the importances for each goal as bars."""
    short = shortest(
        [name.partition("/")[2] for name in dict.fromkeys(name for each in shares.values() for name in each)]
    )
    return "".join(
        f"<h4>Importance for {escape(goal)}</h4>"
        + bars({short[name.partition("/")[2]]: share for name, share in each.items()})
        for goal, each in shares.items()
    )
