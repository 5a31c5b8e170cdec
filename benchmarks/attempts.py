"""What follows from the lines that workers write while they train (`witness.py`): the attempts at each trial, what a
later attempt had to train again, and which kill ended which attempt."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

# Seconds after a kill by which every process of the driver must have gone. On a busy machine a Ray worker that was just
# starting has looked for its raylet for more than 30.
PATIENCE: Final = 60.0


class Line(NamedTuple):
    time: float
    word: str  # found: the last epoch in any earlier attempt's checkpoint; begins, ends: an epoch
    number: int
    attempt: int
    epoch: int
    pid: int


@dataclass
class Kill:
    new_epochs: int  # that the driver had told since its start
    waited: float  # seconds since it was due
    done: int  # trials finished at that moment
    in_flight: tuple[int, ...]  # numbers of the trials that a worker had begun and that were not finished
    since: float  # time.time() before it was done
    at: float  # time.time() when it had been done
    family: dict[int, str] = field(default_factory=dict)  # pid -> command, of those still alive
    gone_after: float = 0.0  # seconds until the last of them was seen no more
    allowed: float = PATIENCE  # seconds within which they must have gone
    what: str = "driver killed"


def attempts_of(lines: Sequence[Line]) -> dict[int, list[list[Line]]]:
    """The lines of each attempt at each trial, by the trial's number."""
    attempts: dict[int, dict[int, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for line in sorted(lines, key=lambda line: line.time):  # as they were written
        attempts[line.number][line.attempt].append(line)
    return {number: [own[attempt] for attempt in sorted(own)] for number, own in attempts.items()}


def extra_epochs(lines: Sequence[Line]) -> Counter[int]:
    """How often an epoch was begun that had been begun before, by trial."""
    begun = Counter((line.number, line.epoch) for line in lines if line.word == "begins")
    again: Counter[int] = Counter()
    for (number, _), times in begun.items():
        again[number] += times - 1
    return +again


# --- epochs that had ended ---


@dataclass(frozen=True)
class Loss:
    """Epochs that had ended, that an attempt still had, and that its successor had to train again.

    Attributes:
        attempt: the attempt that had trained them. Between it and the one that lost them, others may have gone on from
            its checkpoint without a checkpoint of their own.
        first, last: when the first of these epochs and the last one ended, as `time.time()`.
        longest: seconds of the longest epoch of the attempt, with the time until the next one began.
    """

    number: int
    attempt: int
    epochs: int
    first: float
    last: float
    longest: float

    @property
    def seconds(self) -> float:
        return self.last - self.first

    def seconds_within(self, intervals: Sequence[tuple[float, float]]) -> float:
        """Returns how many of its seconds lie in any of the intervals."""
        seconds, counted = 0.0, self.first
        for begin, end in sorted(intervals):
            seconds += max(0.0, min(end, self.last) - max(begin, counted))
            counted = max(end, counted)
        return seconds


def losses_of(lines: Sequence[Line]) -> list[Loss]:
    losses = []
    for number, attempts in attempts_of(lines).items():
        trained_by: dict[int, tuple[int, float]] = {}  # the index of the last attempt that ended each epoch, and when
        for index, (before, after) in enumerate(pairwise(attempts)):
            ends = {line.epoch: (index, line.time) for line in before if line.word == "ends"}
            trained_by |= ends
            reached = {*range(1, before[0].epoch + 1), *ends}
            lost: dict[int, list[float]] = defaultdict(list)
            for epoch in reached & trained_by.keys():
                if epoch > after[0].epoch:
                    trainer, time = trained_by[epoch]
                    lost[trainer].append(time)
            for trainer, times in sorted(lost.items()):
                own = attempts[trainer]
                moments = [own[0].time, *(line.time for line in own if line.word == "ends")]
                longest = max(later - earlier for earlier, later in pairwise(moments))
                losses.append(Loss(number, own[0].attempt, len(times), min(times), max(times), longest))
    return losses


# --- epochs that had not ended ---


def cut_attempts(attempts: Sequence[Sequence[Line]]) -> list[int]:
    """Returns the indices of those attempts at one trial that were cut off in an epoch that a later one began again."""
    cut, last_begun = set[int](), dict[int, int]()  # the last attempt that began each epoch
    for index, own in enumerate(attempts):
        for line in own:
            if line.word != "begins":
                continue
            before = last_begun.get(line.epoch)
            if before is not None and not any(each[1::3] == ("ends", line.epoch) for each in attempts[before]):
                cut.add(before)
            last_begun[line.epoch] = index
    return sorted(cut)


def endings(attempts: Sequence[Sequence[Line]], kills: Sequence[Kill]) -> dict[int, Kill | None]:
    """Returns the kill that ended each attempt at one trial that was cut off, by the attempt's index; None if there was
    no such kill.

    A kill ends an attempt if it came after the last line of the attempt before and before the first line of the next
    one. The first line of the attempt itself may be later than the kill, because a worker that is just starting may
    live on for a moment. A kill ends one attempt at most, since those after it begin in other processes. These
    intervals move on from attempt to attempt, so that the earliest kill that fits is always right.
    """
    left, ended = sorted(kills, key=lambda kill: kill.at), dict[int, Kill | None]()
    for index in cut_attempts(attempts):
        after = attempts[index - 1][-1].time if index else float("-inf")
        before = attempts[index + 1][0].time
        ended[index] = next((kill for kill in left if kill.at > after and kill.since < before), None)
        left = [kill for kill in left if kill is not ended[index]]
    return ended


def unexplained_cuts(lines: Sequence[Line], kills: Sequence[Kill]) -> list[str]:
    """Returns a text for each attempt that was cut off though no kill explains it, with the story of its trial: what
    every attempt found and trained, and what ended it. Times are seconds since the first line.
    """
    wrong, start = [], min((line.time for line in lines), default=0.0)
    for number, attempts in attempts_of(lines).items():
        ended = endings(attempts, kills)
        story = "; ".join(_in_words(own, start, index, ended) for index, own in enumerate(attempts))
        done = ", ".join(f"{kill.what} {kill.at - start:.1f}" for kill in kills) or "nothing"
        for index in (index for index, kill in ended.items() if kill is None):
            attempt = attempts[index][0].attempt
            wrong.append(f"trial {number}: no kill explains the end of attempt {attempt} ({story}; done: {done})")
    return wrong


def _in_words(own: Sequence[Line], start: float, index: int, ended: Mapping[int, Kill | None]) -> str:
    first, last = own[0], own[-1]
    kill = ended.get(index)
    end = "not cut off" if index not in ended else f"cut off by {kill.what}" if kill else "cut off by nothing known"
    return (
        f"attempt {first.attempt} in process {first.pid} found epoch {first.epoch} at {first.time - start:.1f}, "
        f"last {last.word} {last.epoch} at {last.time - start:.1f}, {end}"
    )
