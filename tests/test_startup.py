"""What benchmarks/startup.py makes of the marks of a sweep, by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.startup import BEGINS, FIRST, LOOP, MARKS, NEXT, REPORTS, figures, mark, noted, read_marks


def line(what: str, at: float, process_cpu: float = 0.0, seconds: float | None = None, cpu: float = 0.0) -> Any:
    return {"what": what, "at": at, "seconds": seconds, "cpu": cpu, "process_cpu": process_cpu}


def test_every_second_is_in_one_row() -> None:
    """The driver starts at 99 s; all processes together use half a core."""
    driver = [line("driver: imports", 102, seconds=2), line("driver: plan", 104, seconds=1), line(LOOP, 110)]
    worker = [
        line("trial begins", 112, 3.0),
        line("worker: imports", 115, 5.0, seconds=3, cpu=2),
        line(BEGINS, 116, 5.5),
        line(REPORTS, 120, 9.0),
        line("trial begins", 120.5, 9.1),
        line("worker: Store.open", 120.9, 9.3, seconds=0.2, cpu=0.1),
        line(BEGINS, 121, 9.4),
        line(REPORTS, 125, 13.0),
    ]
    later = [line("trial begins", 113), line(BEGINS, 118), line(REPORTS, 122)]  # a worker without a second trial
    rows = figures({1: driver, 2: worker, 3: later}, 1, 99.0, lambda moment: (moment - 99) / 2)
    expected = {
        "driver: imports": (2, 1),
        "driver: plan": (1, 0.5),
        "driver: other": (11 - 3, 5.5 - 1.5),
        "worker: start of the process": (2, 1),
        "worker: imports": (3, 2),
        "worker: other": (116 - 112 - 3, 5.5 - 3 - 2),
        FIRST: (17, 8.5),
        "reused: Store.open": (0.2, 0.1),
        "reused: other": (0.8, 0.3),
        NEXT: (1, 0.4),
    }
    assert rows.keys() == expected.keys()
    for name, row in expected.items():
        assert rows[name] == [pytest.approx(row)], name


def test_marks_are_read_by_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARKS, str(tmp_path))
    mark("begins")
    calls: list[str] = []
    double = noted(lambda number: 2 * number, "double", lambda: calls.append("then"))
    assert double(4) == 8 and calls == ["then"]
    (lines,) = read_marks(tmp_path).values()
    assert [each["what"] for each in lines] == ["begins", "double"]
    assert lines[0]["seconds"] is None and 0 <= lines[1]["seconds"] < 60
    assert list(read_marks(tmp_path)) == [os.getpid()] and json.dumps(lines)
