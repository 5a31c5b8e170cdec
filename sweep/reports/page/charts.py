"""Draws charts as SVG, which a page holds as text: small, sharp on paper, and readable without a script or a network.

A chart has a fixed frame that the page scales to the width that it has. A point or a line shows its text when the
pointer rests on it (`<title>` in SVG).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any, Final

WIDTH, HEIGHT = 480, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 46  # of the frame around the plotted area
GREY: Final = "#8a8a8a"
DASH_ARRAYS: Final = {
    "solid": "",
    "dash": "7 4",
    "dot": "2 3",
    "dashdot": "7 3 2 3",
    "longdash": "12 4",
    "longdashdot": "12 3 2 3",
}
# Outlines of markers of about equal area around (0, 0), as paths.
MARKER_PATHS: Final = {
    "circle": "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "square": "M-3.6,-3.6H3.6V3.6H-3.6z",
    "diamond": "M0,-5L5,0L0,5L-5,0z",
    "triangle-up": "M0,-4.8L4.6,3.6H-4.6z",
    "cross": "M-1.6,-4.8H1.6V-1.6H4.8V1.6H1.6V4.8H-1.6V1.6H-4.8V-1.6H-1.6z",
    "x": "M-4.5,-2.3L-2.3,-4.5L0,-2.2L2.3,-4.5L4.5,-2.3L2.2,0L4.5,2.3L2.3,4.5L0,2.2L-2.3,4.5L-4.5,2.3L-2.2,0z",
    "triangle-down": "M0,4.8L4.6,-3.6H-4.6z",
    "star-triangle-up": "M0,-6L1.8,0.9L5.2,3.8L0,2.2L-5.2,3.8L-1.8,0.9z",
}


@dataclass(frozen=True)
class Axis:
    """An axis of a chart: numbers, on a linear or logarithmic scale, or categories at equal distances.

    Attributes:
        title: the name of what it shows.
        values: the values that must fit on it. Values that are not finite are left out.
        is_parameter: whether it shows a parameter, which may get a logarithmic scale. Scores never get one.
    """

    title: str
    values: Sequence[Any]
    is_parameter: bool = False

    @cached_property
    def categories(self) -> list[str]:
        """The categories, ordered by first appearance; empty if all values are numbers."""
        if all(_is_number(value) for value in self.values):
            return []
        return list(dict.fromkeys(str(value) for value in self.values))

    @cached_property
    def is_log(self) -> bool:
        """Whether the values are positive numbers of a parameter that span more than a factor of 20."""
        finite = self._finite
        return (
            self.is_parameter
            and not self.categories
            and bool(finite)
            and min(finite) > 0
            and max(finite) > 20 * min(finite)
        )

    @cached_property
    def _finite(self) -> list[float]:
        return [float(value) for value in self.values if _is_number(value) and math.isfinite(value)]

    def share(self, value: Any) -> float:
        """Returns where a value lies between the ends of the axis, from 0 to 1."""
        if categories := self.categories:
            return (categories.index(str(value)) + 0.5) / len(categories)
        low, high = self._ends
        if high == low:
            return 0.5
        return (self._scaled(float(value)) - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Returns the places of the ticks, from 0 to 1, with their labels."""
        if categories := self.categories:
            return [(self.share(name), name if len(name) <= 14 else f"{name[:13]}…") for name in categories]
        low, high = self._ends
        if self.is_log:
            decades = [10.0**power for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]
            numbers = decades if len(decades) > 1 else [10**low, 10 ** ((low + high) / 2), 10**high]
            return [(self.share(number), f"{number:.2g}") for number in numbers]
        if high == low:
            return [(0.5, f"{low:g}")]
        step = _round_step((high - low) / 4)
        first = math.ceil(low / step - 1e-9)
        count = math.floor(high / step + 1e-9) - first + 1
        numbers = [(first + index) * step for index in range(count)]
        return [(self.share(number), f"{number:.6g}") for number in numbers]

    @cached_property
    def _ends(self) -> tuple[float, float]:
        scaled = [self._scaled(value) for value in self._finite] or [0.0, 1.0]
        low, high = min(scaled), max(scaled)
        margin = 0.05 * (high - low)
        return low - margin, high + margin

    def _scaled(self, value: float) -> float:
        """Returns a value on the axis's scale. The lower end of an error bar may be below 0, which no logarithm has."""
        if not self.is_log:
            return value
        return math.log10(value) if value > 0 else -math.inf


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _round_step(step: float) -> float:
    """Returns the smallest of 1, 2, 2.5 and 5 times a power of ten that is not below a step."""
    power: float = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))


@dataclass
class Chart:
    """A chart with two axes, to which points and lines are added in the order in which they are painted."""

    x: Axis
    y: Axis
    parts: list[str] = field(default_factory=list)

    def point(
        self, x: Any, y: float, colour: str, marker: str, text: str, error: tuple[float, float], big: bool
    ) -> None:
        """Adds a point with bars of its standard errors in x and y, in units of the axes; 0 draws no bar."""
        if not math.isfinite(y) or (_is_number(x) and not math.isfinite(x)):
            return
        at_x, at_y = self._x(x), self._y(y)
        for share_error, along in zip(error, "xy", strict=True):
            if share_error > 0:
                ends = self._bar(x, y, share_error, along)
                self.parts.append(f'<path d="{ends}" stroke="{colour}" stroke-width=".7" opacity=".5"/>')
        scale = " scale(1.6)" if big else ""
        edge = "#000" if big else "#fff"
        self.parts.append(
            f'<path transform="translate({at_x:.1f},{at_y:.1f}){scale}" d="{MARKER_PATHS[marker]}" fill="{colour}" '
            f'stroke="{edge}" stroke-width=".7"><title>{escape(text)}</title></path>'
        )

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: str, dash: str, text: str, width: float) -> None:
        """Adds a line through points. Points whose y is not finite are left out."""
        points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y) and math.isfinite(x)]
        path = "L".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in points)
        if len(points) == 1:
            path = f"{path}h.1"  # a line of no length is not painted
        if points:
            self.parts.append(
                f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linecap="round"'
                f"{dashed(dash)}><title>{escape(text)}</title></path>"
            )

    def level(self, value: float, along: str, dash: str, text: str) -> None:
        """Adds a grey line across the chart at a value of the axis `along`, 'x' or 'y'."""
        at = self._x(value) if along == "x" else self._y(value)
        path = f"M{at:.1f},{TOP}V{HEIGHT - BOTTOM}" if along == "x" else f"M{LEFT},{at:.1f}H{WIDTH - RIGHT}"
        self.parts.append(
            f'<path d="{path}" stroke="#555" stroke-width="1.3"{dashed(dash)}><title>{escape(text)}</title></path>'
        )

    def svg(self) -> str:
        """Returns the chart as SVG. The description that screen readers read names both axes."""
        frame = []
        for share, label in self.x.ticks():
            at = LEFT + share * (WIDTH - LEFT - RIGHT)
            frame.append(f'<path d="M{at:.1f},{TOP}V{HEIGHT - BOTTOM}" class="grid"/>')
            frame.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{escape(label)}</text>')
        for share, label in self.y.ticks():
            at = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
            frame.append(f'<path d="M{LEFT},{at:.1f}H{WIDTH - RIGHT}" class="grid"/>')
            frame.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(label)}</text>')
        middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
        frame.append(f'<text x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">{escape(self.x.title)}</text>')
        frame.append(
            f'<text transform="translate(14,{middle_y}) rotate(-90)" text-anchor="middle">{escape(self.y.title)}</text>'
        )
        about = escape(f"{self.y.title} against {self.x.title}", quote=True)
        body = "".join([*frame, *self.parts])
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{about}">{body}</svg>'

    def _x(self, value: Any) -> float:
        return LEFT + self.x.share(value) * (WIDTH - LEFT - RIGHT)

    def _y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self.y.share(value) * (HEIGHT - TOP - BOTTOM)

    def _bar(self, x: Any, y: float, error: float, along: str) -> str:
        def inside(at: float, low: float, high: float) -> float:
            return min(max(at, low), high)

        if along == "x":
            low, high = (inside(self._x(x + sign * error), LEFT, WIDTH - RIGHT) for sign in (-1, 1))
            return f"M{low:.1f},{self._y(y):.1f}H{high:.1f}"
        low, high = (inside(self._y(y + sign * error), TOP, HEIGHT - BOTTOM) for sign in (-1, 1))
        return f"M{self._x(x):.1f},{low:.1f}V{high:.1f}"


def dashed(dash: str) -> str:
    """Returns the attribute of a line with a dash, with a space before it; empty for a solid line."""
    array = DASH_ARRAYS[dash]
    return f' stroke-dasharray="{array}"' if array else ""


def legend(entries: Sequence[tuple[str, str, str, str]]) -> str:
    """Returns a legend as HTML.

    Args:
        entries: for each entry the text, the colour, the dash of its line ('' for none) and its marker ('' for none).
    """
    items = []
    for text, colour, dash, marker in entries:
        line = f'<path d="M1,7H33" stroke="{colour}" stroke-width="2"{dashed(dash)}/>' if dash else ""
        sign = f'<path transform="translate(17,7)" d="{MARKER_PATHS[marker]}" fill="{colour}"/>' if marker else ""
        items.append(f'<span><svg viewBox="0 0 34 14" class="key">{line}{sign}</svg>{escape(text)}</span>')
    return f'<p class="legend">{"".join(items)}</p>'


def parallel(axes: Sequence[Axis], lines: Sequence[tuple[Sequence[Any], str, float, str]]) -> str:
    """Returns parallel coordinates as SVG. The axes lie below one another, so that a phone shows any number of them.

    Args:
        lines: for each trial its value on each axis, its colour, the width of its line and its text.
    """
    step, left, width = 58, 14, WIDTH - 28
    height = step * len(axes) + 14
    parts = []
    for values, colour, thick, text in lines:
        places = [
            (left + axis.share(value) * width, 26 + step * row)
            for row, (axis, value) in enumerate(zip(axes, values, strict=True))
        ]
        path = "L".join(f"{x:.1f},{y}" for x, y in places)
        parts.append(
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{thick}" opacity=".65">'
            f"<title>{escape(text)}</title></path>"
        )
    for row, axis in enumerate(axes):
        y = 26 + step * row
        parts.append(f'<path d="M{left},{y}H{left + width}" stroke="#333" stroke-width="1.2"/>')
        title = f"{axis.title} (log)" if axis.is_log else axis.title
        parts.append(f'<text x="{left}" y="{y - 8}" class="title">{escape(title)}</text>')
        for share, label in axis.ticks():
            at = left + share * width
            parts.append(f'<path d="M{at:.1f},{y - 3}V{y + 3}" stroke="#333"/>')
            parts.append(f'<text x="{at:.1f}" y="{y + 15}" text-anchor="middle">{escape(label)}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="parallel coordinates">{"".join(parts)}</svg>'
