"""What a driver prints at the end of a sweep that is a part of something, such as of a confirmation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mmpkd.types import Mistake
from sweep.options import RunOptions, read_run_options
from sweep.search.searcher import Search
from tests.sweep import swept as harness
from tests.sweep.fake import play
from tests.sweep.swept import swept, untracked

__all__ = ["untracked"]
CONFIRM = "python -m sweep.confirm demo new=true"


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(words: Sequence[str]) -> tuple[RunOptions, list[Mistake]]:
        options, mistakes = read_run_options(words)
        return replace(options, part_of=CONFIRM), mistakes

    monkeypatch.setattr(harness, "read_run_options", read)


def two_trials(search: Search) -> None:
    for index in ("0", "1"):
        play(search, index, search.suggest(index))


def test_its_trials_are_no_candidates(tmp_path: Path, part: None) -> None:
    _, text = swept(tmp_path, "trials=4", "search.repeats=2")
    assert " trials: " in text and "files in " in text
    assert not any(words in text for words in ("Front", "promising", "sweep.pick", "sweep.run"))


def test_the_command_of_the_whole_continues(tmp_path: Path, part: None) -> None:
    _, text = swept(tmp_path, "trials=4", play=two_trials)
    assert (
        "the confirmation has not ended; this continues it" in text
        and text.rstrip().endswith(CONFIRM)
        and "sweep.run" not in text
    )


def test_fixed_configurations_are_counted_with_their_seeds(tmp_path: Path, part: None) -> None:
    _, text = swept(tmp_path, "trials=2", "search.repeats=3")
    assert "fake: 2 configurations on 3 seeds each: none, tabular; files in " in text
