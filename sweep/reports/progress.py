"""Shows the progress of a sweep: as a live display in a terminal, and as printed lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mmpkd.command import warn, wrapped
from sweep.options import RunOptions
from sweep.reports.details import score_of_trial
from sweep.search.searcher import Search
from sweep.storage.records import best_of, over_seeds

LINE_SECONDS: Final = 10.0  # seconds between two lines if there is no terminal
PRICED_TRIALS: Final = 1.0  # the price counts as much as the measured time of so many trials
LEAST_TRIALS: Final = 0.5  # with less than this done, the pace says nothing
MANY_TRIALS: Final = 4.0  # with more than this done, the price counts little
UNITS: Final = (("h", 3600), ("min", 60), ("s", 1))
SPREAD: Final = 0.5  # standard deviation of the time of a trial as a share of its mean; a guess, for the shown range


def what_begins(options: RunOptions, search: Search) -> str:
    """Returns which trials a driver begins or continues with, in words."""
    config, arms, finished = search.space.search, search.space.arms, len(search.finished)
    trials = f"{config.trials} trials over"
    if options.part_of and config.trials == len(arms):  # of a confirmation: each runs on all seeds
        trials = f"{len(arms)} configurations on {config.repeats} seeds each:"
    so_far = f", {finished} done before" if finished else ""
    return f"{options.name}: {trials} {', '.join(arms)}{so_far}"


@dataclass(frozen=True)
class TimeLeft:
    """An estimate of how long the remaining trials take, in seconds, with a range that it may well lie in.

    Attributes:
        basis: what the estimate rests on, in words.
    """

    seconds: float
    low: float
    high: float
    basis: str

    def __str__(self) -> str:
        return f"about {span(self.low, self.high)} left, {self.basis}"


class Progress:
    """The display of progress. The search calls `tick` after every event; Ray Tune's loop calls `tick` between
    events.

    Args:
        priced_seconds: how long the remaining trials take by the price of the sweep, or None if it has no price. It is
            shown until the trials of this driver have got far enough to say better.
    """

    def __init__(self, search: Search, console: Console, priced_seconds: float | None = None):
        self._search, self._console, self._priced_seconds = search, console, priced_seconds
        self._done_before = len(search.finished)
        self._priced_trials = trials_ahead(search)  # their price is `priced_seconds`
        self._first_sign: tuple[float, float] | None = None  # time and trials done at the first report of a trial
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._shown_at = -math.inf
        self._shown_done = self._done_before
        self._shown_best: dict[str, dict[str, str]] = {}  # as the lines have said it
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
            self._print()

    def tick(self) -> None:
        warn(self._search.take_warnings(), self._console)
        silent = time.monotonic() - self._shown_at
        if self._live and silent > 0.5:
            self._live.update(self._drawn(), refresh=True)
        elif not self._live and (silent > LINE_SECONDS or (self._has_changed() and silent > 1)):
            self._print()
        else:
            return
        self._shown_at = time.monotonic()
        self._shown_done = len(self._search.finished)

    def _has_changed(self) -> bool:
        return len(self._search.finished) > self._shown_done

    def _print(self) -> None:
        self._console.print("\n".join(self.lines()), soft_wrap=True, highlight=False)

    def lines(self) -> list[str]:
        """Returns lines of at most the console's width: the numbers of trials done, running, starting and waiting, the
        time left, and the best scores of each arm that have changed since the last call, each with its trial.
        """
        left = self.time_left()
        lines = _packed([self._counts(), *([str(left)] if left else [])], " | ", self._console.width)
        best = self._best()
        for arm, scores in best.items():
            if scores and scores != self._shown_best.get(arm):
                bests = [f"best {goal} {score}" for goal, score in scores.items()]
                lines += _packed([f"  {arm}: {bests[0]}", *bests[1:]], ", ", self._console.width)
        self._shown_best = best
        return lines

    def _counts(self) -> str:
        search = self._search
        states = Counter(record.state for record in search.finished.values())
        total = len(search.finished) + trials_ahead(search)
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

    def time_left(self) -> TimeLeft | None:
        """Returns how long the remaining trials take, or None if that is unknown or nothing remains.

        The time of a trial is a mean of its price, which counts as `PRICED_TRIALS` trials, and of the pace of this
        driver since a trial first reported, which counts as the trials done since then. So it moves from the one to the
        other without a jump. The time that Ray and workers take to start is not in it.
        """
        search, now = self._search, time.monotonic()
        begun = sum(trial.reported.epoch / trial.config.epochs for trial in list(search.running.values()))
        done = len(search.finished) - self._done_before + begun
        if self._first_sign is None and done > 0:
            self._first_sign = (now, done)
        seconds, trials = (now - self._first_sign[0], done - self._first_sign[1]) if self._first_sign else (0.0, 0.0)
        basis = "by the pace so far"
        if self._priced_seconds is not None and self._priced_trials:
            seconds += PRICED_TRIALS * self._priced_seconds / self._priced_trials
            basis = basis if trials > MANY_TRIALS else "by price and pace" if trials > LEAST_TRIALS else "by the price"
            trials += PRICED_TRIALS
        remaining = trials_ahead(search) - begun
        if trials < LEAST_TRIALS or remaining <= 0:
            return None
        left, spread = seconds / trials * remaining, SPREAD / math.sqrt(trials)
        return TimeLeft(left, left / (1 + spread), left * (1 + spread), basis)

    def _drawn(self) -> Group:
        table = Table("arm", *(f"best {goal}" for goal in self._search.goals), box=None, pad_edge=False)
        for arm, scores in self._best().items():
            table.add_row(arm, *(scores.get(goal, "-") for goal in self._search.goals))
        left = self.time_left()
        return Group(Text(", ".join([self._counts(), *([str(left)] if left else [])])), table)


def trials_ahead(search: Search) -> int:
    """Returns how many trials remain, with those on further seeds that are certain.

    Which configurations run on further seeds is known when their first run has ended. Where every arm has a single
    configuration, as in a confirmation, each of them does.
    """
    config = search.space.search
    if config.repeats == 1 or config.trials != len(search.space.arms) or config.early_stopping:
        return search.remaining_trials
    firsts = sum(record.repeat_of is None for record in search.finished.values())
    unfinished = min(config.trials - firsts, search.remaining_trials)
    return search.remaining_trials + (config.repeats - 1) * unfinished


def span(low: float, high: float) -> str:
    """Returns a range of durations, given in seconds, for a person to read: '40 to 60 s', '4 to 6 min', '5 min'."""
    unit, size = next(((unit, size) for unit, size in UNITS if high >= 1.5 * size), UNITS[-1])
    ends = [f"{value:.1f}" if value < 3 and size > 1 else f"{value:.0f}" for value in (low / size, high / size)]
    return f"{' to '.join(dict.fromkeys(ends))} {unit}"


def _packed(parts: Sequence[str], separator: str, width: int) -> list[str]:
    """Returns the parts in lines of at most this width, as many in a line as fit. Further lines are indented."""
    lines = [parts[0]]
    for part in parts[1:]:
        longer = lines[-1] + separator + part
        if len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(f"    {part}")
    return [piece for line in lines for piece in wrapped(line, width, hanging="    ")]
