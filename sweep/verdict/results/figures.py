"""Figures of a verdict as SVG: intervals of differences against zero, and the scores of all students."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from sweep.reports.page.charts import MARKER_PATHS, Axis

WIDTH, ROW, FOOT = 440, 36, 44  # pixels: all, a row with its label above its markers, the axis below
MARGIN: Final = 16


@dataclass(frozen=True)
class Row:
    """A row of a figure.

    Attributes:
        points: values, drawn as one marker each.
        bar: ends of an interval; None draws none.
        text: what a reader sees when the pointer rests on the row.
    """

    label: str
    points: Sequence[float]
    bar: tuple[float, float] | None
    colour: str
    marker: str
    text: str


def rows_figure(rows: Sequence[Row], title: str, levels: Sequence[tuple[float, str]]) -> str:
    """Returns a figure with a row for each arm or contrast.

    Args:
        title: what the horizontal axis shows.
        levels: values at which a dashed vertical line is drawn, with its text.
    """
    values = [value for row in rows for value in (*row.points, *(row.bar or ()))]
    axis = Axis(title, [*values, *(value for value, _ in levels)])
    bottom = ROW * len(rows) + 8
    parts = []
    for share, label in axis.ticks():
        at = _x(share)
        parts.append(f'<path d="M{at:.1f},4V{bottom}" class="grid"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(label)}</text>')
    for value, text in levels:
        at = _x(axis.share(value))
        line = f'<path d="M{at:.1f},4V{bottom}" stroke="#555" stroke-width="1.3" stroke-dasharray="5 3">'
        parts.append(f"{line}<title>{escape(text)}</title></path>")
    for index, row in enumerate(rows):
        y = ROW * index + 26
        parts.append(f'<text x="0" y="{y - 12}">{escape(row.label)}</text>')
        marks = []
        if row.bar is not None:
            low, high = (_x(axis.share(end)) for end in row.bar)
            marks.append(f'<path d="M{low:.1f},{y}H{high:.1f}" stroke="{row.colour}" stroke-width="2"/>')
        for value in row.points:
            place = f"translate({_x(axis.share(value)):.1f},{y})"
            shape = f'd="{MARKER_PATHS[row.marker]}" fill="{row.colour}" stroke="#fff" stroke-width=".6"'
            marks.append(f'<path transform="{place}" {shape}/>')
        parts.append(f"<g><title>{escape(row.text)}</title>{''.join(marks)}</g>")
    parts.append(f'<text x="{WIDTH / 2}" y="{bottom + 36}" text-anchor="middle">{escape(title)}</text>')
    about = escape(f"{title}: {'; '.join(row.text for row in rows)}", quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {bottom + FOOT}" role="img" aria-label="{about}">{"".join(parts)}</svg>'


def _x(share: float) -> float:
    return MARGIN + share * (WIDTH - 2 * MARGIN)
