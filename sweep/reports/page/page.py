"""Writes report.html: what a sweep shows, first in words, then in tables, charts and pictures, in one file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

import pandas as pd

from mmpkd.machine.files import write_atomically
from sweep.arm_styles import arm_styles
from sweep.reports.arms import ArmTotals
from sweep.reports.choosing import choices_in_words
from sweep.reports.console import few_patients, resolution, without_complete
from sweep.reports.page.commands import commands, storage_of
from sweep.reports.page.figures import curve_figures, front_figures
from sweep.reports.page.parameters import parameters
from sweep.reports.page.sections import answer, arms_table, origin, trials_table
from sweep.reports.page.style import PAGE, contents, sections
from sweep.reports.teachers import students_above_teachers, teacher_warnings
from sweep.selection import Selection
from sweep.space.search_config import are_of_answers
from sweep.storage.layout import SweepFolder
from sweep.types import Record

ERRORS: Final = (
    "Bars and ± are one standard error over validation patients; those of means over seeds are over patients and "
    "seeds. All equal: every resampling of the patients gives the same score, so that its error is unknown. "
    "± ?: too few patients have a score."
)
AT_THE_END: Final = (
    "Pictures of where the students look, importances of parameters and the command of the sweep follow at the end."
)
ANSWERS_AT_THE_END: Final = (
    "Pictures of answers, importances of parameters and the command of the sweep follow at the end."
)


@dataclass(frozen=True)
class Ended:
    """What only the report of a sweep that has ended shows, because it takes too long to be made at intervals.

    Attributes:
        facts: lines on how the sweep was made by their titles, such as the command and the sizes of the parts.
        pictures: pictures of students as HTML, or the reason why there are none.
    """

    facts: Mapping[str, str] = field(default_factory=dict)
    pictures: str = ""


def write_report(
    folder: SweepFolder,
    records: Sequence[Record],
    arms: Sequence[str],
    goals: Sequence[str],
    select: str | Selection,
    auroc_error: float | None = None,
    totals: Sequence[ArmTotals] = (),
    note: str = "",
    ended: Ended | None = None,
    storage: str = "",
) -> None:
    """Writes the report. The table of epochs must exist already, because the learning curves are drawn from that table.

    Args:
        auroc_error: standard error of AUROC that the plan states, or None; `console.resolution` uses it.
        totals: what each arm got. Without it the table of arms is left out.
        note: a line for the head of the report, for example that the sweep still runs.
        ended: what the report of an ended sweep shows beside the rest; None while the sweep runs. Importances of
            parameters are shown at the end, too.
        storage: the folder or address of all sweeps, for the commands that pick a trial. It is the folder's own by
            default.
    """
    counts = ", ".join(
        f"{sum(record.state == state for record in records)} {state}" for state in ("complete", "pruned", "failed")
    )
    records, goals, missing = _with_values(records, goals)
    styles = arm_styles(arms)
    epochs = pd.read_parquet(folder.epochs)
    storage = storage or storage_of(folder)
    parts: dict[str, str] = {}  # by title
    if goals and any(record.state == "complete" for record in records):
        limits = [
            *choices_in_words(records, goals),
            *teacher_warnings(records, arms),
            *students_above_teachers(records, arms),
            *without_complete(records, arms),
            *few_patients(records),
            *resolution(records, goals, auroc_error),
        ]
        parts["The answer"] = answer(records, arms, goals) + _list("What limits this", [*missing, *limits])
        parts["Trials to pick from"] = (
            f'{trials_table(records, arms, goals, select)}<p class="note">{ERRORS}</p>'
            f"{front_figures(records, goals, styles)}"
            f"<h3>Take a student, with its model card</h3>{commands(folder.name, storage, records, goals, select)}"
        )
    if ended is not None and ended.pictures:
        parts["What the students answer" if are_of_answers(goals) else "Where the students look"] = ended.pictures
    if len(epochs) and goals:
        parts["Learning curves"] = curve_figures(epochs, records, goals, styles)
    if goals:
        parts["What parameters do"] = parameters(records, arms, goals, styles, ended is not None)
    parts["Arms"] = arms_table(totals) if totals else ""
    parts["How it was made"] = origin(folder, records, totals, ended.facts if ended else {}, goals)
    later = "" if ended else f" {ANSWERS_AT_THE_END if are_of_answers(goals) else AT_THE_END}"
    head = f"<p><strong>{escape(note)}.</strong>{later}</p>" if note else ""
    head += f'<p class="note">{counts}</p>{contents(parts)}'
    head += _list("What limits this", missing) if "The answer" not in parts else ""
    write_atomically(folder.report, PAGE.format(name=escape(folder.name), body=f"{head}\n{sections(parts)}"))


def _with_values(records: Sequence[Record], goals: Sequence[str]) -> tuple[list[Record], list[str], list[str]]:
    """Returns the trials and the goals that can be shown, and a sentence about each goal of which values are missing.

    Sweeps fail trials without a value of a goal. Tables of earlier versions and of other programs may hold such trials.
    """
    complete = [record for record in records if record.state == "complete"]
    known = {
        goal: {record.number for record in complete if math.isfinite(record.metrics.get(goal, math.nan))}
        for goal in goals
    }
    shown = [goal for goal in goals if known[goal] or not complete]
    why = "its validation patients allow no such score"
    lines = [f"{goal} is left out, because no complete trial has a value: {why}" for goal in goals if goal not in shown]
    lacking: set[int] = set()
    for goal in shown:
        numbers = {record.number for record in complete} - known[goal]
        lacking |= numbers
        listed = ", ".join(map(str, sorted(numbers)))
        lines += [f"these complete trials have no value of {goal} and are left out: {listed}"] if numbers else []
    return [record for record in records if record.number not in lacking], shown, lines


def _list(title: str, lines: Sequence[str]) -> str:
    """Returns sentences below a title; nothing if there are none."""
    items = "".join(f"<li>{escape(line.rstrip('.'))}.</li>" for line in lines)
    return f"<h3>{title}</h3><ul>{items}</ul>" if lines else ""
