"""Draws an image beside its saliency map, with probabilities, the scale of the map's colours and a ruler; and names the
files of such pictures."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

COLOURS = matplotlib.colormaps["inferno"]
ALPHA = 0.6  # opacity of the map over its image at its maximum
MAX_SIDE = 1024  # pixels, longest side of an overlay
MIN_SIDE = 420  # pixels, longest side of either panel of a picture, and the width that the text below it needs
GAP, LINE = 12, 22  # pixels between things, and height of a line of text
BAR = (140, 12)  # pixels, width and height of the scale of colours
MAX_RULER = 1 / 3  # largest length of the ruler, as a share of a panel's width
FONT = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 15)


def overlay(image: NDArray[np.uint8], heat_HW: NDArray[np.float32]) -> Image.Image:
    """Returns a map over its image (H x W or H x W x 3), scaled down to at most `MAX_SIDE` pixels. Colour and opacity
    run from the map's minimum to its maximum."""
    base = np.asarray(Image.fromarray(image).convert("RGB"), np.float32)
    heat_HW = (heat_HW - heat_HW.min()) / max(float(np.ptp(heat_HW)), 1e-12)
    alpha_HW1 = ALPHA * heat_HW[..., None]
    blended = (1 - alpha_HW1) * base + alpha_HW1 * 255 * COLOURS(heat_HW)[..., :3]
    picture = Image.fromarray(blended.round().astype(np.uint8))
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return picture


def beside(image: NDArray[np.uint8], overlaid: Image.Image, lines: Sequence[str], spacing: float | None) -> Image.Image:
    """Returns a picture: the image on the left, its overlay on the right, below them the ruler, the scale of the
    colours and the lines of text.

    Args:
        spacing: distance of neighbouring columns of the image in millimetres. None draws no ruler.
    """
    factor = max(1, MIN_SIDE / max(overlaid.size))
    width, height = (round(side * factor) for side in overlaid.size)
    panels = [Image.fromarray(image).convert("RGB").resize((width, height)), overlaid.resize((width, height))]
    column = max(width, MIN_SIDE)  # the panels of a narrow image are apart, so that the text below them fits
    total = 2 * column + GAP
    wrapped = [part for line in lines for part in wrapped_lines(line, total - 2 * GAP)]
    picture = Image.new("RGB", (total, height + 2 * GAP + LINE * (1 + len(wrapped))), "white")
    for number, panel in enumerate(panels):
        picture.paste(panel, (number * (column + GAP), 0))
    draw, top = ImageDraw.Draw(picture), height + GAP
    if spacing is not None:
        _draw_ruler(draw, GAP, top, spacing * image.shape[1] / width, width)
    _draw_scale(picture, draw, column + GAP, top)
    for number, line in enumerate(wrapped, start=1):
        draw.text((GAP, top + number * LINE), line, "black", FONT)
    return picture


def ruler_length(longest: float) -> float:
    """Returns the largest of the lengths 1, 2 and 5, times a power of ten, that is at most `longest` (above 0)."""
    power = 10.0 ** math.floor(math.log10(longest))
    return max(step * power for step in (1, 2, 5) if step == 1 or step * power <= longest)


def picture_names(images: Sequence[str]) -> dict[str, str]:
    """Returns for each image the file name of its overlay, without `.png`: `a` for the image `a.png`. If two names
    would be equal, as for `a` and `a.png`, all names keep the endings of the images."""
    short = {image: image[:-4] if image.lower().endswith(".png") else image for image in images}
    is_one_to_one = len({name.casefold() for name in short.values()}) == len(short)
    return short if is_one_to_one else {image: image for image in images}


def file_names(names: Sequence[str]) -> list[str]:
    """Returns one text for each name, which can be a part of a file name. No two texts are equal, even if case is
    ignored, and none holds a dot, so that `IMAGE.TEXT.png` tells every pair of image and text apart."""
    parts: list[str] = []
    for name in names:
        part = readable = re.sub(r"[^\w\- ]", "-", name)[:100]
        for count in itertools.count(2):
            if part.casefold() not in {earlier.casefold() for earlier in parts}:
                break
            part = f"{readable}-{count}"
        parts.append(part)
    return parts


def _draw_ruler(draw: ImageDraw.ImageDraw, left: int, top: int, spacing: float, width: int) -> None:
    """Draws a ruler. `spacing` is the distance of neighbouring columns of the panel in millimetres."""
    length = ruler_length(MAX_RULER * width * spacing)
    right, middle = left + round(length / spacing), top + LINE // 2 - 2
    draw.line((left, middle, right, middle), "black", 2)
    for end in (left, right):
        draw.line((end, middle - 5, end, middle + 5), "black", 2)
    draw.text((right + GAP, top), f"{length:g} mm", "black", FONT)


def _draw_scale(picture: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
    low, high = "map: lowest", "highest in this image"
    start = left + round(draw.textlength(low, FONT)) + GAP // 2
    colours_W3 = (255 * COLOURS(np.linspace(0, 1, BAR[0]))[:, :3]).round().astype(np.uint8)
    picture.paste(Image.fromarray(np.repeat(colours_W3[None], BAR[1], axis=0)), (start, top + 3))
    draw.text((left, top), low, "black", FONT)
    draw.text((start + BAR[0] + GAP // 2, top), high, "black", FONT)


def wrapped_lines(text: str, width: int) -> list[str]:
    """Returns the text as lines of at most `width` pixels, if its words allow it."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and FONT.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
