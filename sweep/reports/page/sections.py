"""The parts of the report that are words and tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from sweep.provenance import code_commit, library_versions
from sweep.reports.arms import ARM_COLUMNS, ArmTotals
from sweep.reports.console import TEACHER_COLUMN, cells, off_front, sampled
from sweep.reports.page.answer import BASELINE, CAUTION, EMPTY, INTERVALS, VERDICT, columns, rows, sentences
from sweep.selection import Selection, best_first, rule_of
from sweep.space.search_config import are_of_answers
from sweep.storage.layout import BEST, SweepFolder
from sweep.storage.records import best_of, compared_metric, front_of, picked
from sweep.types import Record

EMPTY_CELL: Final = ' class="empty"'  # a phone leaves such a cell out
PROTOCOL: Final = (
    "Trials were chosen by their scores on validation patients. Splits go by patient. Students see images only; "
    "regions of interest and privileged columns are used for scores and by teachers."
)
PROTOCOL_OF_ANSWERS: Final = (
    "Trials were chosen by their scores on validation patients. Splits go by patient. Students see an image and a "
    "question; true answers are used for scores and to train, and a teacher may see another image of the patient."
)


def answer(records: Sequence[Record], arms: Sequence[str], goals: Sequence[str]) -> str:
    """Returns the answer of the sweep: a sentence for each arm and goal, and a table for each goal."""
    lines = [
        f"<li><strong>{escape(goal)}</strong>: {escape(line)}</li>" for goal, line in sentences(records, arms, goals)
    ]
    tables = [table(columns(goal, records), rows(records, arms, goal)) for goal in goals]
    words = f'<ul class="answer">{"".join(lines)}</ul><p>{CAUTION} {VERDICT}</p>'
    return f'{words}{"".join(tables)}<p class="note">{INTERVALS}</p>'


def trials_table(records: Sequence[Record], arms: Sequence[str], goals: Sequence[str], select: str | Selection) -> str:
    """Returns a table of the trials from which a reader picks: the trials on the front, the best by `select` first,
    then those of `off_front`, the best by each goal where a tie keeps it off the front, and always the best of the arm
    without a teacher. The first column says why a trial is shown.
    """
    chosen = picked(records, select)
    front = best_first(front_of(records, goals), compared_metric(records, rule_of(select).maximize))
    best = {goal: best_of(records, goal) for goal in goals}
    of_baseline = best_of([record for record in records if record.arm == BASELINE], select)
    others = off_front(records, arms, goals, select)
    shown = {record.number: record for record in [*front, *others, *best.values(), of_baseline] if record is not None}
    lines = []
    for record in shown.values():
        reasons = [f"{BEST}: best {select}"] if record is chosen else []
        of_goals = [goal for goal in goals if record is best[goal]]
        reasons += [f"best {goal}" for goal in of_goals if record is not chosen or goal != select]
        reasons += ["best of the arm"] if record is of_baseline or (record in others and not reasons) else []
        off = "reads another image at test" if record.reference else "not on the front"
        reasons.append("on the front" if record in front else off)
        lines.append([", ".join(reasons), *cells(record, goals), sampled(record)])
    names, teacher = ["", "trial", "arm", *goals, TEACHER_COLUMN, "sampled"], 3 + len(goals)
    if not any(line[teacher] for line in lines):  # its empty column would narrow the others
        names, *lines = ([*line[:teacher], *line[teacher + 1 :]] for line in [names, *lines])
    return table(names, lines)


def arms_table(totals: Sequence[ArmTotals]) -> str:
    """Returns a table of what each arm got."""
    return table(ARM_COLUMNS, [arm.cells() for arm in totals])


def origin(
    folder: SweepFolder,
    records: Sequence[Record],
    totals: Sequence[ArmTotals],
    facts: Mapping[str, str],
    goals: Sequence[str] = (),
) -> str:
    """Returns how the sweep was made: protocol, data, code, versions and cost.

    Args:
        facts: further lines by their titles, such as the command.
    """
    plan = folder.read_plan()
    lines = {"protocol": PROTOCOL_OF_ANSWERS if are_of_answers(goals) else PROTOCOL, **facts}
    images = f", {plan['samples']} images" if plan.get("samples") else ""
    lines |= {"data": f"fingerprint {plan['store']}{images}"} if plan.get("store") else {}
    lines |= {"code": f"commit {commit}"} if (commit := code_commit()) else {}
    lines["versions"] = ", ".join(f"{name} {number}" for name, number in library_versions().items())
    hours = sum(arm.device_hours for arm in totals)
    planned = (plan.get("price") or {}).get("hours_halving")
    price = f" of {planned:.3g} planned" if planned else ""
    lines |= {"cost": f"{hours:.3g} device-hours{price}; {len(records)} configurations"} if totals else {}
    body = "".join(f"<dt>{escape(title)}</dt><dd>{escape(text)}</dd>" for title, text in lines.items())
    return f"<dl>{body}</dl>"


def table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a table as HTML. Each cell carries the name of its column, which a phone shows beside it."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-name="{escape(name, quote=True)}"{EMPTY_CELL * (cell in ("", EMPTY))}>{_unbroken(cell)}</td>'
            for name, cell in zip(names, line, strict=True)
        )
        + "</tr>"
        for line in lines
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _unbroken(cell: str) -> str:
    """Returns a cell as HTML in which no line breaks between a score and its error, or inside an interval."""
    return re.sub(r" ± | to (?=[+-]?\d)", lambda match: match[0].replace(" ", "&nbsp;"), escape(cell))


def bars(shares: Mapping[str, float]) -> str:
    """Returns a bar for each name, whose length is its share of 1."""
    items = "".join(
        f'<dt>{escape(name)}</dt><dd><i style="width:{80 * share:.1f}%"></i> {share:.2f}</dd>'
        for name, share in shares.items()
    )
    return f'<dl class="bars">{items}</dl>'
