"""Decides which arm of a space is furthest behind its share. The search and the plan follow the same rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

TIE_DIGITS: Final = 9  # decimal digits in which quotients are compared; 7 / 0.7 and 3 / 0.3 differ by rounding only


def furthest_behind(used: Mapping[str, float], shares: Mapping[str, float], arms: Sequence[str]) -> str:
    """Returns the arm that has used the smallest part of its share. If several arms are equal, returns the first of
    them.

    Args:
        used: what each arm has used, either a number of trials or device-seconds.
        shares: the share of each arm.
        arms: the arms to choose from, in the order of the space file.
    """
    return min(arms, key=lambda arm: round(used[arm] / shares[arm], TIE_DIGITS))
