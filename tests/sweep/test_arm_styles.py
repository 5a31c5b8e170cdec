"""Arms can be told apart without colour, and many arms too."""

from __future__ import annotations

import itertools

import numpy as np
from skimage.color import rgb2lab

from sweep.arm_styles import COLOURS, arm_styles


def test_arms_differ_in_colour_dash_and_marker() -> None:
    styles = arm_styles(["none", "tabular", "text"])
    assert styles["none"].colour == "#0072B2", "blue, the first of Okabe and Ito"
    for part in ("colour", "dash", "marker"):
        assert len({getattr(style, part) for style in styles.values()}) == 3


def test_arms_of_one_colour_differ_in_dash_and_marker() -> None:
    styles = list(arm_styles([str(index) for index in range(40)]).values())
    first, again = styles[0], styles[len(COLOURS)]
    assert first.colour == again.colour and first.dash != again.dash and first.marker != again.marker
    assert len(set(styles)) == 40


def test_colours_of_arms_differ_where_green_is_not_seen() -> None:
    """Deuteranopia as Machado et al. (2009) simulate it on linear RGB. A difference of 10 in CIELAB is seen
    at a glance. The check of the simulation is a red and a green that such a reader confuses.
    """
    deuteranopia = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    )

    def seen(colours: tuple[str, ...]) -> np.ndarray:
        rgb = np.array([[int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)] for colour in colours])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        linear = np.clip(linear @ deuteranopia.T, 0, 1)
        gamma = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
        return np.asarray(rgb2lab(gamma[None])[0])

    lab = seen(COLOURS)
    distances = [np.linalg.norm(one - other) for one, other in itertools.combinations(lab, 2)]
    assert min(distances) > 10
    red, green = seen(("#B05A3C", "#7D6E3C"))
    assert np.linalg.norm(red - green) < 10
