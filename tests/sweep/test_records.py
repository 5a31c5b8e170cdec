"""Fronts by hand, and tables that parquet takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweep.records import Record, admit, trials_table


def test_the_front_by_hand() -> None:
    front: dict[int, Any] = {}
    assert admit(front, 0, (0.5, 0.5)) == []
    assert admit(front, 1, (0.4, 0.6)) == []
    assert admit(front, 2, (0.4, 0.5)) == [2]  # worse than both
    assert admit(front, 3, (0.5, 0.5)) == []  # a twin dominates nobody
    assert admit(front, 4, (0.5, 0.6)) == [0, 1, 3]
    assert list(front) == [4]


def test_a_choice_of_numbers_and_words_fits_a_table(tmp_path: Path) -> None:
    records = [
        Record(index, "none", "complete", 1, 1.0, {"none/layers": value}, {"val/auroc": 0.5}, "{}")
        for index, value in enumerate((3, "last", None, 0.5))
    ]
    table = trials_table(records)
    table.to_parquet(tmp_path / "t.parquet")
    assert table["none/layers"].tolist()[:2] == ["3", "last"]
