"""The parts of the report that are words and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from sweep.provenance import code_commit, library_versions
from sweep.reports.arms import ARM_COLUMNS, ArmTotals
from sweep.reports.console import TEACHER_COLUMN, cells, off_front, off_front_label, sampled
from sweep.reports.page.answer import BASELINE, CAUTION, EMPTY, INTERVALS, VERDICT, columns, rows, sentences
from sweep.selection import Selection, best_first, rule_of
from sweep.storage.layout import BEST, SweepFolder
from sweep.storage.records import IMAGE_BLIND, best_of, compared_metric, front_of, image_blind_scores_of, picked
from sweep.types import Record

EMPTY_CELL: Final = ' class="empty"'  # a phone leaves such a cell out
PROTOCOL: Final = (
    "Trials were chosen by their scores on validation patients. Splits go by patient. Students see images only; "
    "regions of interest and privileged columns are used for scores and by teachers."
)


def answer(records: Sequence[Record], arms: Sequence[str], goals: Sequence[str]) -> str:
    """Returns the answer of the sweep: a sentence for each arm and goal, and a table for each goal."""
    lines = [
        f"<li><strong>{escape(goal)}</strong>: {escape(line)}</li>" for goal, line in sentences(records, arms, goals)
    ]
    tables = [table(columns(goal, records), rows(records, arms, goal)) for goal in goals]
    words = f'<ul class="answer">{"".join(lines)}</ul><p>{CAUTION} {VERDICT}</p>'
    return f'{words}{"".join(tables)}<p class="note">{INTERVALS}</p>'


def best_table(records: Sequence[Record], arms: Sequence[str], goals: Sequence[str], select: str | Selection) -> str:
    """Returns a table of the best trial by each goal, the trial of best.yaml, the best of each arm that has no trial on
    the front, and always the best of the arm without a teacher.
    """
    chosen = picked(records, select)
    marked = select if chosen else ""
    best = [(f"best {goal}{f' ({BEST})' * (goal == marked)}", best_of(records, goal)) for goal in goals]
    if chosen and marked not in goals:
        best.append((f"{BEST}: best {select}", chosen))
    best += [
        (off_front_label(record, records, select), record)
        for record in off_front(records, arms, goals, select)
        if record is not chosen  # the picked trial already has a row
    ]
    of_baseline = best_of([record for record in records if record.arm == BASELINE], select)
    if of_baseline and not any(label.startswith(f"best of {BASELINE},") for label, _ in best):
        best.append((f"best {BASELINE}", of_baseline))
    lines = [[label, *cells(record, goals), sampled(record)] for label, record in best if record is not None]
    return table(["", *_trial_columns(goals)], [*lines, *_blind_rows(records, goals, 3)])


def front_table(records: Sequence[Record], goals: Sequence[str], select: str | Selection) -> str:
    """Returns a table of the trials on the front, the best by `select` first."""
    front = best_first(front_of(records, goals), compared_metric(records, rule_of(select).maximize))
    lines = [[*cells(record, goals), sampled(record)] for record in front]
    return table(_trial_columns(goals), [*lines, *_blind_rows(records, goals, 2)])


def arms_table(totals: Sequence[ArmTotals]) -> str:
    """Returns a table of what each arm got."""
    return table(ARM_COLUMNS, [arm.cells() for arm in totals])


def origin(
    folder: SweepFolder, records: Sequence[Record], totals: Sequence[ArmTotals], facts: Mapping[str, str]
) -> str:
    """Returns how the sweep was made: protocol, data, code, versions and cost.

    Args:
        facts: further lines by their titles, such as the command.
    """
    plan = folder.read_plan()
    lines = {"protocol": PROTOCOL, **facts}
    lines |= {"data": f"fingerprint {plan['store']}, {plan.get('samples', '?')} images"} if "store" in plan else {}
    lines |= {"code": f"commit {commit}"} if (commit := code_commit()) else {}
    lines["versions"] = ", ".join(f"{name} {number}" for name, number in library_versions().items())
    hours = sum(arm.device_hours for arm in totals)
    planned = (plan.get("price") or {}).get("hours")
    price = f", {planned:.3g} were planned without early stopping" if planned else ""
    lines |= {"cost": f"{hours:.3g} device-hours{price}; {len(records)} configurations"} if totals else {}
    body = "".join(f"<dt>{escape(title)}</dt><dd>{escape(text)}</dd>" for title, text in lines.items())
    return f"<dl>{body}</dl>"


def table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a table as HTML. Each cell carries the name of its column, which a phone shows beside it."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-name="{escape(name, quote=True)}"{EMPTY_CELL * (cell in ("", EMPTY))}>{escape(cell)}</td>'
            for name, cell in zip(names, line, strict=True)
        )
        + "</tr>"
        for line in lines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def bars(shares: Mapping[str, float]) -> str:
    """Returns a bar for each name, whose length is its share of 1."""
    items = "".join(
        f'<dt>{escape(name)}</dt><dd><i style="width:{80 * share:.1f}%"></i> {share:.2f}</dd>'
        for name, share in shares.items()
    )
    return f'<dl class="bars">{items}</dl>'


def _trial_columns(goals: Sequence[str]) -> list[str]:
    return ["trial", "arm", *goals, TEACHER_COLUMN, "sampled"]


def _blind_rows(records: Sequence[Record], goals: Sequence[str], before: int) -> list[list[str]]:
    """Returns a row for each kind of map that ignores the image, with its scores.

    Args:
        before: the number of columns before the goals.
    """
    best = {goal: best_of(records, goal) for goal in goals}
    scores = {goal: image_blind_scores_of(record, goal) if record else {} for goal, record in best.items()}
    lines = []
    for name, text in IMAGE_BLIND.items():
        if any(name in each for each in scores.values()):
            shown = [f"{each[name]:.3f}" if name in each else EMPTY for each in scores.values()]
            lines.append([f"no image: {text}", *([EMPTY] * (before - 1)), *shown, EMPTY, EMPTY])
    return lines
