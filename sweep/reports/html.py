"""Writes report.html: the front, learning curves and the effect of each parameter, in one self-contained file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mmpkd.machine.files import write_atomically
from sweep.reports.arms import ARM_COLUMNS, ArmTotals
from sweep.reports.choosing import choices_in_words
from sweep.reports.console import (
    TEACHER_COLUMN,
    cells,
    few_patients,
    image_blind_scores,
    off_front,
    off_front_label,
    resolution,
    sampled,
    shortest,
    without_complete,
)
from sweep.reports.teachers import teacher_warnings
from sweep.selection import Selection, error_of
from sweep.storage.layout import BEST, SweepFolder
from sweep.storage.records import best_of, compared_metric, front_of, picked
from sweep.types import Record

# The colours of Okabe and Ito, which colour-blind readers can distinguish.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em; }}
h1, h2 {{ font-weight: 600; }} h2 {{ margin-top: 2.2em; }} p.note {{ color: #666; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .3em .8em .3em 0; border-bottom: 1px solid #ddd; vertical-align: top; }}
</style></head><body><h1>{name}</h1>
{body}
</body></html>
"""


def write_report(
    folder: SweepFolder,
    records: Sequence[Record],
    arms: Sequence[str],
    goals: Sequence[str],
    select: str | Selection,
    auroc_error: float | None = None,
    totals: Sequence[ArmTotals] = (),
    note: str = "",
) -> None:
    """Writes the report. The table of epochs must exist already, because the learning curves are drawn from that table.

    Args:
        auroc_error: standard error of AUROC that the plan states, or None; `console.resolution` uses it.
        totals: what each arm got. Without it the table of arms is left out.
        note: a line for the head of the report, for example that the sweep still runs.
    """
    colours = {arm: COLOURS[index % len(COLOURS)] for index, arm in enumerate(arms)}
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
    parts += [f'<p class="note">{counts}. {errors}</p>']
    if totals:
        parts += [f"<h2>Arms</h2>{_table(ARM_COLUMNS, [arm.cells() for arm in totals])}"]
    if complete:
        parts += [f"<h2>Best by each goal</h2>{_best_table(records, arms, goals, select)}"]
    notes = [
        *choices_in_words(records, goals),
        *image_blind_scores(records, goals),
        *teacher_warnings(records, arms),
        *without_complete(records, arms),
        *few_patients(records),
        *resolution(records, goals, auroc_error),
    ]
    parts += [f'<p class="note">{escape(note.rstrip("."))}.</p>' for note in notes]
    if complete:
        parts += ["<h2>Front</h2>", _front_figure(complete, goals, colours)]
    epochs = pd.read_parquet(folder.epochs)
    if len(epochs):
        parts += ["<h2>Learning curves</h2>", _curves(epochs, goals, colours)]
    for arm in arms:
        of_arm = [record for record in complete if record.arm == arm]
        if len(of_arm) > 1 and any(record.sampled for record in of_arm):
            parts += [f"<h2>Parameters of {escape(arm)}</h2>", _parameters(of_arm, goals, colours[arm])]
    body = "\n".join(part if isinstance(part, str) else _html(part) for part in parts)
    script = _plotly() if len(epochs) or complete else ""
    write_atomically(folder.report, PAGE.format(name=escape(folder.name), body=script + body))


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>"


def _html(figure: go.Figure) -> str:
    figure.update_layout(template="plotly_white", margin={"l": 60, "r": 20, "t": 30, "b": 50})
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    return text


def _best_table(records: Sequence[Record], arms: Sequence[str], goals: Sequence[str], select: str | Selection) -> str:
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
    rows = []
    for label, record in best:
        assert record is not None
        rows.append([label, *cells(record, goals), sampled(record)])
    return _table(["", "trial", "arm", *goals, TEACHER_COLUMN, "sampled"], rows)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>"


def _front_figure(complete: Sequence[Record], goals: Sequence[str], colours: Mapping[str, str]) -> go.Figure:
    """Plots the second goal against the first. If there is a single goal, plots it against the number of the trial.
    The values are those by which trials are compared, which may be estimates.
    """
    metrics = {goal: compared_metric(complete, goal) for goal in goals}
    titles = {goal: goal if metric == goal else f"{goal}, as compared" for goal, metric in metrics.items()}

    def score(record: Record, goal: str) -> float:
        return record.metrics.get(metrics[goal], record.metrics[goal])  # a reference may have no estimate

    figure = go.Figure()
    x_goal = goals[0] if len(goals) > 1 else None
    y_goal = goals[1] if len(goals) > 1 else goals[0]
    on_front = {record.number for record in front_of(complete, goals)}
    for arm, colour in colours.items():
        of_arm = [record for record in complete if record.arm == arm]
        figure.add_scatter(
            x=[score(record, x_goal) if x_goal else record.number for record in of_arm],
            y=[score(record, y_goal) for record in of_arm],
            error_x=_bars(of_arm, x_goal),
            error_y=_bars(of_arm, y_goal),
            mode="markers",
            name=arm,
            marker={
                "color": colour,
                "size": [12 if record.number in on_front else 7 for record in of_arm],
                "symbol": ["star" if record.number in on_front else "circle" for record in of_arm],
            },
            text=[f"trial {record.number}, {arm}<br>{escape(sampled(record))}" for record in of_arm],
            hovertemplate="%{text}<br>%{x:.3f}, %{y:.3f}<extra></extra>",
        )
    if x_goal:
        front = sorted((score(record, x_goal), score(record, y_goal)) for record in front_of(complete, goals))
        xs, ys = [x for x, _ in front], [y for _, y in front]
        line = {"color": "#999", "dash": "dot", "shape": "vh"}
        figure.add_scatter(x=xs, y=ys, mode="lines", line=line, name="front", hoverinfo="skip")
    chance = {goal: complete[0].metrics.get(f"{goal}_chance") for goal in goals}
    line_style: dict[str, Any] = {"color": "#999", "dash": "dot", "width": 1}
    if x_goal and chance[x_goal] is not None:
        figure.add_vline(chance[x_goal], line=line_style, annotation_text=f"{x_goal} by chance")
    if chance[y_goal] is not None:
        figure.add_hline(chance[y_goal], line=line_style, annotation_text=f"{y_goal} by chance")
    figure.update_layout(xaxis_title=titles[x_goal] if x_goal else "trial", yaxis_title=titles[y_goal], height=520)
    return figure


def _bars(records: Sequence[Record], goal: str | None) -> dict[str, Any] | None:
    if goal is None:
        return None
    errors = [error_of(record, goal) or 0.0 for record in records]  # no bar where the error is unknown
    return {"type": "data", "array": errors, "thickness": 0.6, "width": 2}


def _curves(epochs: pd.DataFrame, goals: Sequence[str], colours: Mapping[str, str]) -> go.Figure:
    figure = make_subplots(cols=len(goals), rows=1, subplot_titles=list(goals))
    for (arm, number), rows in epochs.groupby(["arm", "number"], sort=False):
        for column, goal in enumerate(goals, start=1):
            figure.add_trace(
                go.Scatter(
                    x=rows["epoch"].tolist(),
                    y=rows[goal].tolist(),
                    mode="lines+markers" if len(rows) == 1 else "lines",
                    line={"color": colours.get(str(arm), "#999"), "width": 1},
                    opacity=0.6,
                    name=str(arm),
                    legendgroup=str(arm),
                    showlegend=False,
                    hovertemplate=f"trial {number}, {arm}<br>epoch %{{x}}: %{{y:.3f}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
    for arm, colour in colours.items():
        figure.add_scatter(x=[None], y=[None], mode="lines", line={"color": colour}, name=arm, legendgroup=arm)
    figure.update_xaxes(title="epoch")
    figure.update_layout(height=400)
    return figure


def _parameters(records: Sequence[Record], goals: Sequence[str], colour: str) -> go.Figure:
    """Plots a grid: each goal (columns) against each parameter (rows). Positive parameters that span decades get a log
    axis.
    """
    names = list(dict.fromkeys(name for record in records for name in record.sampled))
    short = shortest([name.partition("/")[2] for name in names])
    height = 230 * len(names)
    figure = make_subplots(
        rows=len(names), cols=len(goals), vertical_spacing=min(60 / height, 0.9 / len(names)), shared_yaxes=False
    )
    for row, name in enumerate(names, start=1):
        with_name = [record for record in records if name in record.sampled]
        values = [record.sampled[name] for record in with_name]
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        decades = len(numbers) == len(values) and min(numbers) > 0 and max(numbers) > 20 * min(numbers)
        for column, goal in enumerate(goals, start=1):
            figure.add_trace(
                go.Scatter(
                    x=values if len(numbers) == len(values) else [escape(str(value)) for value in values],
                    y=[record.metrics[goal] for record in with_name],
                    error_y=_bars(with_name, goal),
                    mode="markers",
                    marker={"color": colour, "size": 7},
                    showlegend=False,
                    text=[f"trial {record.number}" for record in with_name],
                    hovertemplate="%{text}<br>%{x}: %{y:.3f}<extra></extra>",
                ),
                row=row,
                col=column,
            )
            title = escape(short[name.partition("/")[2]])  # Plotly interprets some HTML tags in its texts
            figure.update_xaxes(title=title, type="log" if decades else None, row=row, col=column)
            figure.update_yaxes(title=goal, row=row, col=column)
    figure.update_layout(height=height + 60)
    return figure
