"""How each arm of a sweep looks, in MLflow and in the report: its colour, dash and marker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# The colours of Okabe and Ito, which colour-blind readers can distinguish, without their yellow, which is faint on
# white. The numbers of colours, dashes and markers differ, so that two arms of one colour differ in the others.
# `sweep/reports/page/charts.py` draws the dashes and markers.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: Final = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS: Final = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star-triangle-up")


@dataclass(frozen=True)
class ArmStyle:
    """How an arm looks.

    Attributes:
        colour: a colour such as '#0072B2'.
        dash: the name of the dash of its lines, one of `DASHES`.
        marker: the name of the symbol of its points, one of `MARKERS`.
    """

    colour: str
    dash: str
    marker: str


def arm_styles(arms: Sequence[str]) -> dict[str, ArmStyle]:
    """Returns the style of each arm. It depends only on the place of the arm in the space file."""
    return {
        arm: ArmStyle(COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)], MARKERS[index % len(MARKERS)])
        for index, arm in enumerate(arms)
    }
