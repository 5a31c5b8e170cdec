"""Arms can be told apart without colour, and many arms too."""

from __future__ import annotations

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
