"""The names of attempts at a trial."""

from __future__ import annotations

import re
from pathlib import Path

from sweep.transfer.attempts import attempts_in, attempts_in_order, next_attempt


def test_attempts_are_ordered_by_number(tmp_path: Path) -> None:
    assert attempts_in(tmp_path / "3") == []
    for name in ("attempt-10", "attempt-2", "attempt-x", "attempt-2-0af3", "attempt-1"):
        (tmp_path / "3" / name).mkdir(parents=True)
    in_order = ["attempt-1", "attempt-2", "attempt-2-0af3", "attempt-10"]
    assert [path.name for path in attempts_in(tmp_path / "3")] == in_order
    assert attempts_in_order(reversed(in_order)) == in_order


def test_an_attempt_counts_on_from_the_highest() -> None:
    assert next_attempt([]) == "attempt-1"
    assert next_attempt(["attempt-2", "attempt-10-0af3"]) == "attempt-11"


def test_two_workers_that_begin_at_once_can_get_different_names() -> None:
    names = [next_attempt(["attempt-1"], unique=True) for _ in range(2)]
    assert names[0] != names[1] and all(re.fullmatch(r"attempt-2-\w{8}", name) for name in names)
