"""The counts of trials that a running sweep shows."""

from __future__ import annotations

import time
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from sweep.reports import progress as progress_module
from sweep.reports.progress import Progress, span, trials_ahead
from sweep.types import Placement, Record
from tests.patched import patch_within


def test_a_trial_that_is_done_is_not_counted_as_running() -> None:
    """Its worker is there until Ray Tune has ended it: "4/4 done, 1 running" was shown at the end of a sweep."""
    ended = {0: SimpleNamespace(state="complete"), 1: SimpleNamespace(state="pruned")}
    search: Any = SimpleNamespace(finished=ended, running={"c": None}, remaining_trials=2)
    search.placement = Placement(running=2, waiting=1)
    search.space = SimpleNamespace(search=SimpleNamespace(repeats=1))
    counts = Progress(search, Console(file=StringIO()))._counts()
    assert counts == "2/4 done (1 complete, 1 pruned), 1 running, 1 waiting"


def test_the_total_of_a_confirmation_does_not_grow() -> None:
    """Three arms with a configuration each, on five seeds: 3, 7 and 11 were shown while the first runs ended."""
    config = SimpleNamespace(repeats=5, trials=3, early_stopping=None)
    space: Any = SimpleNamespace(search=config, arms=dict.fromkeys("abc"))
    first, further = SimpleNamespace(repeat_of=None), SimpleNamespace(repeat_of=0)
    states = [({}, 3), ({0: first}, 2 + 4), ({0: first, 3: further, 1: first}, 1 + 3 + 4)]
    for finished, remaining in states:
        search: Any = SimpleNamespace(finished=finished, remaining_trials=remaining, space=space)
        assert len(finished) + trials_ahead(search) == 15
    config.trials = 6
    assert trials_ahead(search) == 8, "whether a configuration of several is repeated is not known"


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


def test_each_best_score_names_its_trial_once_in_80_columns() -> None:
    """'none val/auroc 0.600 val/pointing 0.050' read as one trial, and no trial had both."""
    progress = searched((0.6, 0.01), (0.5, 0.05), priced=720.0)
    bests = "  none: best val/auroc 0.600 (trial 1), best val/pointing 0.050 (trial 2)"
    counts = "2/4 done (2 complete), 1 running | about 8 to 18 min left, by the price"
    assert progress.lines() == [counts, bests]
    assert progress.lines() == [counts], "bests that have not changed"
    long = Progress(searched()._search, Console(file=StringIO(), width=30)).lines()
    assert long == ["0/2 done, 1 running"]


def test_the_time_left_moves_from_the_price_to_the_pace_without_a_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    """A price of 10 s for each of 10 trials, which then take 30 s each."""
    progress = searched(priced=100.0)
    search: Any = progress._search
    search.running, progress._priced_trials = {}, 10
    estimates = list[float]()
    for done in range(10):
        patch_within(monkeypatch, progress_module, time, monotonic=lambda now=30.0 * done: now)
        search.finished, search.remaining_trials = dict.fromkeys(range(done)), 10 - done
        left = progress.time_left()
        assert left is not None and left.low < left.seconds < left.high
        estimates.append(left.seconds)
    assert estimates[:2] == [100.0, 90.0], "the price, also while nothing but the first report is known"
    assert estimates[3:5] == pytest.approx([7 * (10 + 60) / 3, 6 * (10 + 90) / 4])


def test_without_a_price_the_time_left_is_unknown_until_half_a_trial_is_done() -> None:
    assert searched().time_left() is None and searched(epoch=2).time_left() is None
    done = searched(priced=5.0)
    done._search.remaining_trials = 0  # type: ignore[misc]
    assert done.time_left() is None


def test_a_range_has_one_unit() -> None:
    ranges = [(9.4, 31), (61, 121), (240, 260), (3700, 7265)]
    assert [span(*ends) for ends in ranges] == ["9 to 31 s", "1.0 to 2.0 min", "4 min", "1.0 to 2.0 h"]
