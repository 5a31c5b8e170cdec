"""The counts of trials that a running sweep shows."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from sweep.reports.progress import Progress
from sweep.types import Placement, Record


def test_a_trial_that_is_done_is_not_counted_as_running() -> None:
    """Its worker is there until Ray Tune has ended it: "4/4 done, 1 running" was shown at the end of a sweep."""
    ended = {0: SimpleNamespace(state="complete"), 1: SimpleNamespace(state="pruned")}
    search: Any = SimpleNamespace(finished=ended, running={"c": None}, remaining_trials=2)
    search.placement = Placement(running=2, waiting=1)
    counts = Progress(search, Console(file=StringIO()))._counts()
    assert counts == "2/4 done (1 complete, 1 pruned), 1 running, 1 waiting"


def searched(*scores: tuple[float, float], priced: float | None = None, epoch: int = 0) -> Progress:
    """The progress of a sweep whose trials 1, 2, ... of arm none have these AUROCs and pointings, with one running."""
    ended = {
        number: Record(number, "none", "complete", 1, 1.0, {}, {"val/auroc": auroc, "val/pointing": pointing}, "{}")
        for number, (auroc, pointing) in enumerate(scores, start=1)
    }
    running = SimpleNamespace(reported=SimpleNamespace(epoch=epoch), config=SimpleNamespace(epochs=4))
    search: Any = SimpleNamespace(finished=ended, running={"c": running}, remaining_trials=2)
    search.placement, search.goals = Placement(running=1), ["val/auroc", "val/pointing"]
    search.space = SimpleNamespace(arms={"none": {}, "tabular": {}}, search=SimpleNamespace(repeats=1))
    return Progress(search, Console(file=StringIO()), priced)


def test_each_best_score_names_its_trial() -> None:
    """'none val/auroc 0.600 val/pointing 0.050' read as one trial, and no trial had both."""
    line = searched((0.6, 0.01), (0.5, 0.05)).line()
    assert "none: best val/auroc 0.600 (trial 1), best val/pointing 0.050 (trial 2)" in line
    assert "tabular" not in line


def test_the_price_gives_the_time_left_until_epochs_do() -> None:
    before = searched(priced=1000.0).seconds_left()
    assert before is not None and 900 < before <= 1000
    assert searched().seconds_left() is None
    assert searched(priced=0.0).seconds_left() is None, "it takes longer than the price says"
    half = searched(priced=1000.0, epoch=2).seconds_left()
    assert half is not None and half < 100, "half of a trial is done, so its own pace counts"
