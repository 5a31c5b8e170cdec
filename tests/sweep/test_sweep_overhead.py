"""The benchmark of the sweep's overhead runs, and says what it found; how fast is for the benchmark itself."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.sweep_overhead import ours, report


@pytest.mark.usefixtures("ray_session")
def test_the_overhead_of_a_sweep_is_measured(tmp_path: Path) -> None:
    figures = ours(history=20, trials=12, seed=0, place=tmp_path)
    console = Console(file=StringIO(), width=120)
    said = report([("ours", 20, figures)], console)
    assert figures["trials"] == 2 and figures["wall"] > 0
    assert "s per trial" in console.file.getvalue()  # type: ignore[attr-defined]
    assert said == {"results that waited for a suggestion": "0.00, at most 0: PASS"}
