"""Reads boxes and polygons from the cells of a table, in pixels of the original image, and draws them as masks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mmpkd.cohort.facts import BadSample

Box = tuple[float, float, float, float]  # left, top, width, height
Polygon = list[tuple[float, float]]  # corners as (x, y)
BOX_WANTED = "a box is left, top, width and height in its pixels, not two corners"
SLACK = 1.0  # a corner may lie this many pixels outside its image, because coordinates may have been rounded


def read_polygons(cell: str) -> list[Polygon]:
    """Reads a polygon [[x, y], ...] or a list of polygons. A polygon may also be flat, as in COCO: [x, y, x, y, ...].

    Raises:
        ValueError, TypeError: the cell is not JSON, a polygon has fewer than three corners or all its corners on one
            line, or a corner is not two finite numbers.
    """
    content = json.loads(cell)
    is_list = isinstance(content, list) and content and isinstance(content[0], list) and content[0]
    several = content if is_list and (isinstance(content[0][0], list) or len(content[0]) > 2) else [content]
    polygons = [[(float(x), float(y)) for x, y in _corner_pairs(polygon)] for polygon in several]
    if any(len(corners) < 3 for corners in polygons) or not np.isfinite(np.concatenate(polygons)).all():
        raise ValueError("a polygon has three corners or more, of two finite numbers each")
    if not all(map(_area, polygons)):
        raise ValueError("a polygon encloses something: its corners do not lie on one line")
    return polygons


def _area(polygon: Polygon) -> float:
    """Returns a measure of a polygon's area that is 0 if and only if all corners lie on one line.

    It is the distance between the first corner and the corner farthest from it, times the largest distance of any
    corner from the line through these two.
    """
    sides = np.subtract(polygon[1:], polygon[0])
    far = sides[np.abs(sides).sum(axis=1).argmax()]
    return float(np.abs(sides[:, 0] * far[1] - sides[:, 1] * far[0]).max())


def _corner_pairs(polygon: list[Any]) -> list[Any]:
    """Returns the corners of a polygon as pairs (x, y). A flat list of even length is split into pairs."""
    if not isinstance(polygon, list):
        raise ValueError("a polygon is a list of corners")
    if any(isinstance(each, list) for each in polygon):
        return polygon
    return list(zip(polygon[::2], polygon[1::2], strict=True))


def read_box_list(cell: str) -> list[Box]:
    """Reads a box [left, top, width, height], or a list of boxes.

    Raises:
        ValueError, TypeError: the cell is not JSON, or a box does not consist of four finite numbers with a width and a
            height above 0.
    """
    content = json.loads(cell)
    several = content if isinstance(content, list) and content and isinstance(content[0], list) else [content]
    if not all(isinstance(box, list) for box in several):
        raise ValueError("a box is a list of four numbers")
    boxes = [(float(left), float(top), float(width), float(height)) for left, top, width, height in several]
    if not np.isfinite(boxes).all() or any(min(box[2:]) <= 0 for box in boxes):
        raise ValueError("a box is left, top, width and height, finite numbers of which the last two are above 0")
    return boxes


def boxes_mask(boxes: Sequence[Box], shape: tuple[int, ...], file: str) -> np.ndarray:
    """Returns the union of boxes as a mask, H x W bool. Each box is drawn by `box_mask`."""
    union: np.ndarray = np.any([box_mask(box, shape, file) for box in boxes], axis=0)
    return union


def box_mask(box: Box, shape: tuple[int, ...], file: str) -> np.ndarray:
    """Returns a box as a mask, H x W bool: the pixels whose centres lie in [left, left + width) x [top, top + height).

    At least one pixel is set. COCO's rasteriser does the same (rleFrPoly in pycocotools/common/maskApi.c). On average
    over positions, a side of the mask is as long as the side of the box.

    Raises:
        BadSample: the box reaches beyond the image. This happens, for example, if the table states two corners instead
            of a corner and a size.
    """
    left, top, width, height = box
    _require_inside([(left, top), (left + width, top + height)], shape, file, BOX_WANTED)
    mask = np.zeros(shape[:2], bool)
    row, column = (min(max(_first_pixel(low), 0), side - 1) for low, side in zip((top, left), shape, strict=False))
    mask[row : max(_first_pixel(top + height), row + 1), column : max(_first_pixel(left + width), column + 1)] = True
    return mask


def _first_pixel(edge: float) -> int:
    """Returns the index of the first pixel whose centre lies at or after a coordinate. The centre of pixel 0 is at
    0.5."""
    return math.ceil(edge - 0.5)


def polygon_mask(polygons: Sequence[Polygon], shape: tuple[int, ...], file: str) -> np.ndarray:
    """Returns the union of polygons as a mask, H x W bool. The pixels inside and on the outline of a polygon are True.

    Raises:
        BadSample: a corner lies outside the image.
    """
    canvas = Image.new("1", (shape[1], shape[0]))
    for corners in polygons:
        _require_inside(corners, shape, file, "corners are (x, y) in its pixels")
        ImageDraw.Draw(canvas).polygon(corners, fill=1)
    return np.asarray(canvas)


def _require_inside(corners: Sequence[tuple[float, float]], shape: tuple[int, ...], file: str, wanted: str) -> None:
    """Raises BadSample if a corner is outside the image.

    The message states the size of the image but not the place of the region, because messages about credentialed
    cohorts must not reveal the place.
    """
    if any(not (-SLACK <= x <= shape[1] + SLACK and -SLACK <= y <= shape[0] + SLACK) for x, y in corners):
        size = f"{shape[1]} x {shape[0]} pixels (width x height)"
        raise BadSample(file, f"a region reaches out of its image of {size}; {wanted}")
