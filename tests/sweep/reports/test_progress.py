"""The counts of trials that a running sweep shows."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from sweep.reports.progress import Progress
from sweep.types import Placement


def test_a_trial_that_is_done_is_not_counted_as_running() -> None:
    """Its worker is there until Ray Tune has ended it: "4/4 done, 1 running" was shown at the end of a sweep."""
    ended = {0: SimpleNamespace(state="complete"), 1: SimpleNamespace(state="pruned")}
    search: Any = SimpleNamespace(finished=ended, running={"c": None}, remaining_trials=2)
    search.placement = Placement(running=2, waiting=1)
    counts = Progress(search, Console(file=StringIO()))._counts()
    assert counts == "2/4 done (1 complete, 1 pruned), 1 running, 1 waiting"
