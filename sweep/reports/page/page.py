"""Writes report.html: what a sweep shows, first in words, then in tables, charts and pictures, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import pandas as pd

from mmpkd.machine.files import write_atomically
from sweep.arm_styles import arm_styles
from sweep.reports.arms import ArmTotals
from sweep.reports.choosing import choices_in_words
from sweep.reports.console import few_patients, image_blind_scores, resolution, without_complete
from sweep.reports.page.figures import (
    EFFECT_POINTS,
    MIN_POINTS,
    curve_figures,
    effect_figures,
    front_figures,
    parallel_figure,
)
from sweep.reports.page.importance import importances
from sweep.reports.page.sections import answer, arms_table, bars, best_table, front_table, origin
from sweep.reports.page.style import PAGE
from sweep.reports.teachers import teacher_warnings
from sweep.selection import Selection
from sweep.storage.layout import SweepFolder
from sweep.types import Record


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
) -> None:
    """Writes the report. The table of epochs must exist already, because the learning curves are drawn from that table.

    Args:
        auroc_error: standard error of AUROC that the plan states, or None; `console.resolution` uses it.
        totals: what each arm got. Without it the table of arms is left out.
        note: a line for the head of the report, for example that the sweep still runs.
        ended: what the report of an ended sweep shows beside the rest; None while the sweep runs. Importances of
            parameters are shown at the end, too.
    """
    styles = arm_styles(arms)
    complete = [record for record in records if record.state == "complete"]
    counts = ", ".join(
        f"{sum(record.state == state for record in records)} {state}" for state in ("complete", "pruned", "failed")
    )
    errors = (
        "Bars and ± are standard errors over validation patients; those of means over seeds are over patients and "
        "seeds. All equal: every resampling of the patients gives the same score, so that its error is unknown. "
        "± ?: too few patients have a score."
    )
    parts = [f"<p><strong>{escape(note)}</strong></p>"] if note else []
    parts += [f"<h2>The answer</h2>{answer(records, arms, goals)}"] if complete else []
    parts += [f'<p class="note">{counts}. {errors}</p>']
    if complete:
        parts += [f"<h2>Best trials</h2>{best_table(records, arms, goals, select)}"]
    notes = [
        *choices_in_words(records, goals),
        *image_blind_scores(records, goals),
        *teacher_warnings(records, arms),
        *without_complete(records, arms),
        *few_patients(records),
        *resolution(records, goals, auroc_error),
    ]
    items = "".join(f"<li>{escape(note.rstrip('.'))}.</li>" for note in notes)
    parts += [f"<h3>What limits this</h3><ul>{items}</ul>"] if notes else []
    if complete:
        parts += [f"<h2>Front</h2>{front_table(records, goals, select)}{front_figures(records, goals, styles)}"]
    if ended is not None and ended.pictures:
        parts += [f"<h2>Where the students look</h2>{ended.pictures}"]
    epochs = pd.read_parquet(folder.epochs)
    if len(epochs):
        parts += [f"<h2>Learning curves</h2>{curve_figures(epochs, records, goals, styles)}"]
    for arm in arms:
        shares = {goal: importances(records, arm, goal) for goal in goals} if ended is not None else {}
        drawn = [
            *(f"<h3>Importance for {escape(goal)}</h3>{bars(each)}" for goal, each in shares.items() if each),
            parallel_figure(records, arm, goals, styles[arm]),
            effect_figures(records, arm, goals, styles[arm], EFFECT_POINTS // len(arms)),
        ]
        num_complete = sum(record.arm == arm for record in complete)
        few = f"Effects of parameters are shown from {MIN_POINTS} complete trials on; this arm has {num_complete}."
        body = "".join(drawn) or f'<p class="note">{few}</p>'
        method = "Importances are Optuna's, by the mean decrease of impurity in a random forest; they sum to 1."
        body += f'<p class="note">{method}</p>' if any(shares.values()) else ""
        parts += [f"<h2>Parameters of {escape(arm)}</h2>{body}"] if num_complete else []
    parts += [f"<h2>Arms</h2>{arms_table(totals)}"] if totals else []
    parts += [f"<h2>How it was made</h2>{origin(folder, records, totals, ended.facts if ended else {})}"]
    write_atomically(folder.report, PAGE.format(name=escape(folder.name), body="\n".join(parts)))
