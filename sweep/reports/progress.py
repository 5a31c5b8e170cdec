"""How far the sweep is, live in a terminal, line by line elsewhere."""

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

from sweep.search.searcher import Search
from sweep.storage.records import best_of, over_seeds

LINE_SECONDS = 10.0  # between two lines where there is no terminal


class Progress:
    """Ticked by the search after every event, and by Ray Tune's loop in between."""

    def __init__(self, search: Search, slots: int, console: Console):
        self._search, self._slots, self._console = search, slots, console
        self._since = time.monotonic()
        self._before = len(search.finished)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._shown_at = -math.inf
        self._shown_done = self._before
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
        for warning in self._search.take_warnings():
            self._console.print(f"warning: {warning}", highlight=False, markup=False, soft_wrap=True)
        silent = time.monotonic() - self._shown_at
        if self._live and silent > 0.5:
            self._live.update(self._drawn(), refresh=True)
        elif not self._live and (silent > LINE_SECONDS or (self._news() and silent > 1)):
            self._console.print(self.line(), soft_wrap=True, highlight=False)
        else:
            return
        self._shown_at = time.monotonic()
        self._shown_done = len(self._search.finished)

    def _news(self) -> bool:
        return len(self._search.finished) > self._shown_done

    def line(self) -> str:
        """Trials done, running, best of each goal by arm, time left."""
        best = " | ".join(f"{arm} " + " ".join(cells) for arm, cells in self._best().items() if cells)
        return f"{self._counts()}{' | ' + best if best else ''} | {self._left()}"

    def _counts(self) -> str:
        search = self._search
        states = Counter(record.state for record in search.finished.values())
        total = len(search.finished) + search.remaining_trials
        running = min(len(search.running), self._slots)
        told = ", ".join(f"{states[state]} {state}" for state in ("complete", "pruned", "failed") if states[state])
        return f"{len(search.finished)}/{total} done{f' ({told})' if told else ''}, {running} running"

    def _best(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        search = self._search
        done = over_seeds(list(search.finished.values()), search.space.search.repeats)
        for arm in search.space.arms:
            records = [one for one in done if one.arm == arm]
            best = {goal: best_of(records, goal, search.goals) for goal in search.goals}
            found[arm] = [f"{goal} {one.metrics[goal]:.3f}" for goal, one in best.items() if one]
        return found

    def _left(self) -> str:
        here = len(self._search.finished) - self._before
        started = sum(live.epoch / live.config.epochs for live in list(self._search.running.values()))
        if here + started < 0.5:
            return "time left: not known yet"
        seconds = (time.monotonic() - self._since) / (here + started) * max(self._search.remaining_trials - started, 0)
        return f"about {clock(seconds)} left"

    def _drawn(self) -> Group:
        table = Table("arm", *(f"best {goal}" for goal in self._search.goals), box=None, pad_edge=False)
        for arm, cells in self._best().items():
            table.add_row(arm, *([cell.rpartition(" ")[2] for cell in cells] or ["-"] * len(self._search.goals)))
        return Group(Text(f"{self._counts()}, {self._left()}"), table)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
