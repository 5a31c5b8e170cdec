"""Boxes in the text of questions and answers: `<box>(left,top),(right,bottom)</box>`, as BiRD and Qwen-VL write them.

In a store, coordinates are integers on a grid of 0 to 1000 along each side of the original image. For a student they
are moved to the grid of the stored square, with `VlmConfig.box_steps` steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

GRID = 1000  # steps along each side of the original image
PAIR = r"\(\s*(-?\d+)\s*,\s*(-?\d+)\s*\)"
TAGGED = re.compile(rf"<box>\s*{PAIR}\s*,\s*{PAIR}\s*</box>")
BARE = re.compile(r"\((\d+),(\d+)\),\((\d+),(\d+)\)")  # without blanks, as the authors' script expects
TAG = re.compile(r"</?box>")


class Box(NamedTuple):
    """A rectangle. The unit is that of the text it comes from; the second corner is at or beyond the first."""

    left: float
    top: float
    right: float
    bottom: float


def parse(text: str) -> list[Box]:
    """Returns the boxes of a text: those in `<box>` tags or, without any, bare pairs of points.

    This is how the authors' `eval_VG.py` reads answers. Corners in the wrong order are kept as they are; the IoU of
    such a box is 0.
    """
    return [Box(*map(float, match)) for match in TAGGED.findall(text) or BARE.findall(text)]


def written(box: Box) -> str:
    """Returns a box as text, with coordinates that are rounded to integers."""
    left, top, right, bottom = (round(value) for value in box)
    return f"<box>({left},{top}),({right},{bottom})</box>"


def with_boxes_moved(text: str, move: Callable[[Box], Box]) -> str:
    """Returns a text in which each tagged box is replaced by `move` of it. Other text stays as it is."""
    return TAGGED.sub(lambda match: written(move(Box(*map(float, match.groups())))), text)


def iou(first: Box, second: Box) -> float:
    """Returns the intersection over union of two boxes, 0 if either is empty or has its corners in the wrong order."""
    width = min(first.right, second.right) - max(first.left, second.left)
    height = min(first.bottom, second.bottom) - max(first.top, second.top)
    areas = [(box.right - box.left) * (box.bottom - box.top) for box in (first, second)]
    is_proper = all(box.right > box.left and box.bottom > box.top for box in (first, second))
    if not is_proper or width <= 0 or height <= 0:
        return 0.0
    return width * height / (sum(areas) - width * height)
