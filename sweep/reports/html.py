"""report.html: the front, learning curves, and what each parameter did, in one file that opens anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sweep.reports.console import (
    TEACHERS,
    cells,
    error_of,
    off_front,
    off_front_label,
    resolution,
    sampled,
    shortest,
    without_complete,
    yardsticks,
)
from sweep.reports.teachers import teacher_warnings
from sweep.storage.events import write_whole
from sweep.storage.records import best_of, front_of, picked
from sweep.types import Record

# Okabe and Ito's colours, which colour-blind readers tell apart.
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
    path: Path,
    name: str,
    records: Sequence[Record],
    arms: Sequence[str],
    goals: Sequence[str],
    select: str,
    auroc_error: float | None = None,
) -> None:
    """Writes the page; `epochs.parquet` lies beside it already. `auroc_error`: see `resolution`."""
    colours = {arm: COLOURS[index % len(COLOURS)] for index, arm in enumerate(arms)}
    complete = [record for record in records if record.state == "complete"]
    counts = ", ".join(
        f"{sum(one.state == state for one in records)} {state}" for state in ("complete", "pruned", "failed")
    )
    errors = "Bars and ± are standard errors over validation patients; ± ? where those are too few to tell it."
    parts = [f'<p class="note">{counts}. {errors}</p>']
    if complete:
        parts += [f"<h2>Best by each goal</h2>{_best_table(records, arms, goals, select)}"]
    notes = [
        *yardsticks(records, goals),
        *teacher_warnings(records, arms),
        *without_complete(records, arms),
        *resolution(records, goals, auroc_error),
    ]
    parts += [f'<p class="note">{escape(note)}.</p>' for note in notes]
    if complete:
        parts += ["<h2>Front</h2>", _front_figure(complete, goals, colours)]
    epochs = pd.read_parquet(path.with_name("epochs.parquet"))
    if len(epochs):
        parts += ["<h2>Learning curves</h2>", _curves(epochs, goals, colours)]
    for arm in arms:
        mine = [record for record in complete if record.arm == arm]
        if len(mine) > 1 and any(record.sampled for record in mine):
            parts += [f"<h2>Parameters of {escape(arm)}</h2>", _parameters(mine, goals, colours[arm])]
    body = "\n".join(part if isinstance(part, str) else _html(part) for part in parts)
    script = _plotly() if len(epochs) or complete else ""
    write_whole(path, PAGE.format(name=escape(name), body=script + body))


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>"


def _html(figure: go.Figure) -> str:
    figure.update_layout(template="plotly_white", margin={"l": 60, "r": 20, "t": 30, "b": 50})
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    return text


def _best_table(records: Sequence[Record], arms: Sequence[str], goals: Sequence[str], select: str) -> str:
    marked = select if picked(records, select, goals) else ""
    best = [(f"best {goal}{' (best.yaml)' * (goal == marked)}", best_of(records, goal, goals)) for goal in goals]
    best += [(off_front_label(one), one) for one in off_front(records, arms, goals, select)]
    rows = []
    for label, one in best:
        assert one is not None
        row = [label, *cells(one, goals), sampled(one)]
        rows.append("".join(f"<td>{escape(cell)}</td>" for cell in row))
    head = "".join(f"<th>{escape(cell)}</th>" for cell in ["", "trial", "arm", *goals, TEACHERS, "sampled"])
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _front_figure(complete: Sequence[Record], goals: Sequence[str], colours: Mapping[str, str]) -> go.Figure:
    """Both goals against each other; a single goal against the trial's number."""
    figure = go.Figure()
    across = goals[0] if len(goals) > 1 else None
    up = goals[1] if len(goals) > 1 else goals[0]
    on_front = {record.number for record in front_of(complete, goals)}
    for arm, colour in colours.items():
        mine = [record for record in complete if record.arm == arm]
        figure.add_scatter(
            x=[record.metrics[across] if across else record.number for record in mine],
            y=[record.metrics[up] for record in mine],
            error_x=_bars(mine, across),
            error_y=_bars(mine, up),
            mode="markers",
            name=arm,
            marker={
                "color": colour,
                "size": [12 if record.number in on_front else 7 for record in mine],
                "symbol": ["star" if record.number in on_front else "circle" for record in mine],
            },
            text=[f"trial {record.number}, {arm}<br>{escape(sampled(record))}" for record in mine],
            hovertemplate="%{text}<br>%{x:.3f}, %{y:.3f}<extra></extra>",
        )
    if across:
        front = sorted((record.metrics[across], record.metrics[up]) for record in front_of(complete, goals))
        xs, ys = [x for x, _ in front], [y for _, y in front]
        line = {"color": "#999", "dash": "dot", "shape": "vh"}
        figure.add_scatter(x=xs, y=ys, mode="lines", line=line, name="front", hoverinfo="skip")
    chance = {goal: complete[0].metrics.get(f"{goal}_chance") for goal in goals}
    thin: dict[str, Any] = {"color": "#999", "dash": "dot", "width": 1}
    if across and chance[across] is not None:
        figure.add_vline(chance[across], line=thin, annotation_text=f"{across} by chance")
    if chance[up] is not None:
        figure.add_hline(chance[up], line=thin, annotation_text=f"{up} by chance")
    figure.update_layout(xaxis_title=across or "trial", yaxis_title=up, height=520)
    return figure


def _bars(records: Sequence[Record], goal: str | None) -> dict[str, Any] | None:
    if goal is None:
        return None
    errors = [error_of(record, goal) or 0.0 for record in records]  # no bar where it is not known
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
    """One row a parameter, one column a goal; positive numbers that span decades on a log axis."""
    names = list(dict.fromkeys(name for record in records for name in record.sampled))
    short = shortest([name.partition("/")[2] for name in names])
    height = 230 * len(names)
    figure = make_subplots(
        rows=len(names), cols=len(goals), vertical_spacing=min(60 / height, 0.9 / len(names)), shared_yaxes=False
    )
    for row, name in enumerate(names, start=1):
        mine = [record for record in records if name in record.sampled]
        values = [record.sampled[name] for record in mine]
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        decades = len(numbers) == len(values) and min(numbers) > 0 and max(numbers) > 20 * min(numbers)
        for column, goal in enumerate(goals, start=1):
            figure.add_trace(
                go.Scatter(
                    x=values if len(numbers) == len(values) else [escape(str(value)) for value in values],
                    y=[record.metrics[goal] for record in mine],
                    error_y=_bars(mine, goal),
                    mode="markers",
                    marker={"color": colour, "size": 7},
                    showlegend=False,
                    text=[f"trial {record.number}" for record in mine],
                    hovertemplate="%{text}<br>%{x}: %{y:.3f}<extra></extra>",
                ),
                row=row,
                col=column,
            )
            title = escape(short[name.partition("/")[2]])  # Plotly reads some HTML in its texts
            figure.update_xaxes(title=title, type="log" if decades else None, row=row, col=column)
            figure.update_yaxes(title=goal, row=row, col=column)
    figure.update_layout(height=height + 60)
    return figure
