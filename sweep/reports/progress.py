"""Shows the progress of a sweep: as a live display in a terminal, and as printed lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mmpkd.command import warn
from sweep.reports.console import clock
from sweep.reports.details import score_of_trial
from sweep.search.searcher import Search
from sweep.storage.records import best_of, over_seeds

LINE_SECONDS = 10.0  # seconds between two lines if there is no terminal


class Progress:
    """The display of progress. The search calls `tick` after every event; Ray Tune's loop calls `tick` between
    events.

    Args:
        priced_seconds: how long the remaining trials take by the price of the sweep, or None if it has no price. It is
            shown until the trials of this driver have got far enough to say better.
    """

    def __init__(self, search: Search, console: Console, priced_seconds: float | None = None):
        self._search, self._console, self._priced_seconds = search, console, priced_seconds
        self._since = time.monotonic()
        self._done_before = len(search.finished)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._shown_at = -math.inf
        self._shown_done = self._done_before
        search.on_change = self.tick

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        elif len(self._search.finished) > self._shown_done:
            self._console.print(self.line(), soft_wrap=True, highlight=False)

    def tick(self) -> None:
        warn(self._search.take_warnings(), self._console)
        silent = time.monotonic() - self._shown_at
        if self._live and silent > 0.5:
            self._live.update(self._drawn(), refresh=True)
        elif not self._live and (silent > LINE_SECONDS or (self._has_changed() and silent > 1)):
            self._console.print(self.line(), soft_wrap=True, highlight=False)
        else:
            return
        self._shown_at = time.monotonic()
        self._shown_done = len(self._search.finished)

    def _has_changed(self) -> bool:
        return len(self._search.finished) > self._shown_done

    def line(self) -> str:
        """Returns the numbers of trials done, running, starting and waiting, the best score of each goal by arm with
        the trial that has it, and the time left.
        """
        bests = [
            f"{arm}: {', '.join(f'best {goal} {score}' for goal, score in scores.items())}"
            for arm, scores in self._best().items()
            if scores
        ]
        return " | ".join([self._counts(), *bests, self._left()])

    def _counts(self) -> str:
        search = self._search
        states = Counter(record.state for record in search.finished.values())
        total = len(search.finished) + search.remaining_trials
        counts = ", ".join(f"{states[state]} {state}" for state in ("complete", "pruned", "failed") if states[state])
        done = f"{len(search.finished)}/{total} done{f' ({counts})' if counts else ''}"
        placement = search.placement
        running = min(placement.running, len(search.running))  # a worker whose trial is done may still be there
        places = [f"{running} running"]
        places += [f"{placement.starting} starting"] if placement.starting else []
        places += [f"{placement.waiting} waiting"] if placement.waiting else []
        return ", ".join([done, *places])

    def _best(self) -> dict[str, dict[str, str]]:
        """Returns for each arm the best score of each goal with its trial, such as '0.600 (trial 1)'."""
        scores: dict[str, dict[str, str]] = {}
        search = self._search
        done = over_seeds(list(search.finished.values()), search.space.search.repeats)
        for arm in search.space.arms:
            records = [record for record in done if record.arm == arm]
            best = {goal: best_of(records, goal) for goal in search.goals}
            scores[arm] = {
                goal: score_of_trial(record.metrics[goal], record.number) for goal, record in best.items() if record
            }
        return scores

    def seconds_left(self) -> float | None:
        """Returns how many seconds the remaining trials take: at the pace of this driver or, until its trials have got
        far enough to say, by the price. Returns None if neither is known, or if they take longer than the price says.
        """
        done_here = len(self._search.finished) - self._done_before
        started = sum(trial.reported.epoch / trial.config.epochs for trial in list(self._search.running.values()))
        elapsed = time.monotonic() - self._since
        if done_here + started < 0.5:
            left = -1.0 if self._priced_seconds is None else self._priced_seconds - elapsed
            return left if left > 0 else None
        seconds_per_trial = elapsed / (done_here + started)
        return seconds_per_trial * max(self._search.remaining_trials - started, 0)

    def _left(self) -> str:
        seconds = self.seconds_left()
        return "time left: unknown yet" if seconds is None else f"about {clock(seconds)} left"

    def _drawn(self) -> Group:
        table = Table("arm", *(f"best {goal}" for goal in self._search.goals), box=None, pad_edge=False)
        for arm, scores in self._best().items():
            table.add_row(arm, *(scores.get(goal, "-") for goal in self._search.goals))
        return Group(Text(f"{self._counts()}, {self._left()}"), table)
