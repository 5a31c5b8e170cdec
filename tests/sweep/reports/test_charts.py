"""The axes of the report's charts."""

from __future__ import annotations

import math

import pytest

from sweep.reports.page.charts import Axis


def test_an_error_bar_below_zero_does_not_break_a_logarithmic_axis() -> None:
    axis = Axis("rate", [0.001, 0.1], is_parameter=True)
    assert axis.is_log and axis.share(-0.004) == -math.inf
    assert axis.share(0.01) == pytest.approx(0.5), "the middle of the two powers of ten"
