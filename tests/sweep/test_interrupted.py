"""A driver killed once, with trainings of trivial arithmetic; `benchmarks/interrupted.py` does it for real."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.interrupted import disagreements, interrupt
from tests.sweep.fake import SPACE


def test_killed_drivers_lose_nothing_and_repeat_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.15")
    space = tmp_path / "fake.yaml"
    space.write_text(SPACE)
    command = [sys.executable, "-m", "tests.sweep.fake_run", f"space={space}", f"storage={tmp_path}", "trials=10"]

    kills = interrupt(command, tmp_path / "fake", trials=10, moments=(0.4,))

    assert not [kill.survivors for kill in kills if kill.survivors]
    assert not disagreements(tmp_path / "fake", f"sqlite:///{tmp_path / 'mlflow.db'}", trials=10)
    trained = [line.split() for line in (tmp_path / "fake" / "trained.txt").read_text().splitlines()]
    assert max(Counter(number for number, _, epoch in trained if epoch == "4").values()) == 1
    # At most the epoch in the making is lost of each of the two trials that were in flight.
    assert len(trained) <= 10 * 4 + 2 * len(kills)
