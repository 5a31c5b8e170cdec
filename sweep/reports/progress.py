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
from sweep.search.searcher import Search
from sweep.storage.records import best_of, over_seeds

LINE_SECONDS = 10.0  # seconds between two lines if there is no terminal


class Progress:
    """The display of progress. The search calls `tick` after every event; Ray Tune's loop calls `tick` between
    events.
    """

    def __init__(self, search: Search, console: Console):
        self._search, self._console = search, console
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
        """Returns the numbers of trials done, running, starting and waiting, the best score of each goal by arm, and
        the time left.
        """
        best = " | ".join(f"{arm} " + " ".join(cells) for arm, cells in self._best().items() if cells)
        return f"{self._counts()}{' | ' + best if best else ''} | {self._left()}"

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

    def _best(self) -> dict[str, list[str]]:
        cells: dict[str, list[str]] = {}
        search = self._search
        done = over_seeds(list(search.finished.values()), search.space.search.repeats)
        for arm in search.space.arms:
            records = [record for record in done if record.arm == arm]
            best = {goal: best_of(records, goal) for goal in search.goals}
            cells[arm] = [f"{goal} {record.metrics[goal]:.3f}" for goal, record in best.items() if record]
        return cells

    def seconds_left(self) -> float | None:
        """Returns how many seconds the remaining trials take at the pace of this driver, or None if its trials have not
        got far enough to say.
        """
        done_here = len(self._search.finished) - self._done_before
        started = sum(trial.reported.epoch / trial.config.epochs for trial in list(self._search.running.values()))
        if done_here + started < 0.5:
            return None
        seconds_per_trial = (time.monotonic() - self._since) / (done_here + started)
        return seconds_per_trial * max(self._search.remaining_trials - started, 0)

    def _left(self) -> str:
        seconds = self.seconds_left()
        return "time left: unknown yet" if seconds is None else f"about {clock(seconds)} left"

    def _drawn(self) -> Group:
        table = Table("arm", *(f"best {goal}" for goal in self._search.goals), box=None, pad_edge=False)
        for arm, cells in self._best().items():
            table.add_row(arm, *([cell.rpartition(" ")[2] for cell in cells] or ["-"] * len(self._search.goals)))
        return Group(Text(f"{self._counts()}, {self._left()}"), table)


def clock(seconds: float) -> str:
    """Returns a duration for a person to read, such as '2 h 05 min', '3 min 20 s' or '40 s'."""
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min"
        if hours
        else f"{minutes} min {seconds_left:02d} s"
        if minutes
        else f"{seconds_left} s"
    )
