"""Drivers killed while they extend a sweep."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweep.search.searcher import Search
from sweep.storage.events import Spool, TrialEnded
from sweep.storage.journal import Journal
from sweep.storage.layout import SweepFolder
from sweep.storage.reader import read_sweep
from tests.sweep.swept import (
    Killed,
    dead,
    events,
    from_lr,
    further,
    left,
    refused,
    states,
    swept,
    untracked,
)

__all__ = ["dead", "left", "untracked"]  # fixtures


class Killer:
    """Counts the writes, and kills the driver before one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int | None = None):
        self.count, self._at = 0, at
        for owner, name in ((Journal, "append_logs"), (Spool, "append"), (os, "replace")):
            patch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self._at:
                raise Killed
            return write(*args, **options)

        return counted


def killed(tmp_path: Path, at: int | None, *words: str) -> int:
    """Kills a driver before its `at`-th write, or else before its first trial, and returns how often it wrote."""

    def dead(search: Search) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        killer = Killer(patch, at)
        swept(tmp_path, *words, play=dead)
    return killer.count


def outcome(folder: Path) -> tuple[Any, ...]:
    """Returns what must not depend on kills."""
    table = pd.read_parquet(folder / "trials.parquet").drop(columns=["seconds", "device_hours"])
    ends = sorted((event.number, event.state, event.cause) for event in events(folder, TrialEnded))
    running = [name for name, counts in states(folder).items() if counts["RUNNING"]]
    return table.to_json(), ends, running, read_sweep(SweepFolder(folder)).plan["left_behind"]


def test_after_a_kill_before_any_write_the_same_command_continues(dead: tuple[Path, float], tmp_path: Path) -> None:
    """Until the plan is written, the old command continues as if nothing had happened; afterwards it is refused."""
    folder, low = dead
    old, new = ("trials=9",), ("trials=9", from_lr(low))
    saved = tmp_path / "saved"
    shutil.copytree(folder, saved)

    def afresh(source: Path = saved) -> None:
        shutil.rmtree(folder)
        shutil.copytree(source, folder)

    swept(tmp_path, *old)
    unextended = outcome(folder)
    afresh()
    swept(tmp_path, *new, "extend=true")
    extended = outcome(folder)
    assert extended[2] == [] and extended[3]
    afresh()
    writes = killed(tmp_path, None, *new, "extend=true")
    assert writes > 12, "the copies, plan and space, and the ends of what was running"
    committed = []
    for at in range(1, writes + 1):
        afresh()
        killed(tmp_path, at, *new, "extend=true")
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "killed")
        committed.append(read_sweep(SweepFolder(folder)).plan["generation"] == 1)
        if committed[-1]:
            assert "optimizer.lr.log_uniform: was" in refused(tmp_path, *old)
        else:
            assert "extend=true continues" in refused(tmp_path, *new)
            swept(tmp_path, *old)
            assert outcome(folder) == unextended, at
        afresh(tmp_path / "killed")
        swept(tmp_path, *new, "extend=true")
        assert outcome(folder) == extended, at
    assert True in committed and False in committed


def test_copies_of_a_killed_extension_are_no_part_of_the_next(dead: tuple[Path, float], tmp_path: Path) -> None:
    folder, low = dead
    shutil.copytree(folder, tmp_path / "saved")
    other = ("trials=9", from_lr(further(folder, low)), "extend=true")
    swept(tmp_path, *other)
    expected = outcome(folder)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "saved", folder)
    killed(tmp_path, 12, "trials=9", from_lr(low), "extend=true")
    assert sum(sum(counts.values()) for name, counts in states(folder).items() if " 1" in name) > 3
    swept(tmp_path, *other)
    assert outcome(folder) == expected
