"""What happened to a sweep whose driver was killed, by witnesses that do not rely on the driver's own books.

A worker that writes down every epoch as it begins and ends (`logged`), an observer of the checkpoint
folders and of the killed drivers' processes (`Watch`), and what must be true of what they saw (`faults`).
What follows from the log alone is in `attempts.py`.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.attempts import Kill, Line, losses_of, unexplained_cuts
from mmpkd.config import TrialConfig
from mmpkd.types import EpochReport
from sweep.storage.layout import SweepFolder
from sweep.transfer.attempts import attempts_in
from sweep.types import PlacedJob
from sweep.workers.worker import TrainingFunctions

LOG: Final = "trained.log"  # appended to by workers only
WRITE_SECONDS: Final = 1.0  # in which a small checkpoint is on disk, also on a busy machine


def logged(training: TrainingFunctions, witness: Path | None = None) -> TrainingFunctions:
    """Returns functions that also write to LOG when an attempt finds checkpoints, and when an epoch begins or ends.

    Args:
        witness: the folder of LOG; by default the sweep's folder.
    """

    def run(job: PlacedJob, folder: Path, resume: Path | None, report: Callable[[EpochReport], None]) -> None:
        epochs = TrialConfig.model_validate_json(job["trial"]).epochs
        number, attempt = job["number"], folder.name.partition("-")[2]
        sweep = SweepFolder(Path(job["folder"]))

        def write_line(word: str, epoch: int) -> None:
            with ((witness or sweep.path) / LOG).open("a") as file:  # one short write in append mode: never torn
                file.write(f"{time.time()} {word} {number} {attempt} {epoch} {os.getpid()}\n")

        def log_and_report(epoch_report: EpochReport) -> None:
            write_line("ends", epoch_report.epoch)
            report(epoch_report)  # returns when Tune asks for the next epoch, never if the trial is stopped
            if epoch_report.epoch < epochs:
                write_line("begins", epoch_report.epoch + 1)

        attempts = {*attempts_in(sweep.checkpoints_of(number)), *attempts_in(folder.parent)}  # there, and on this disk
        earlier = [each for each in attempts if each.name != folder.name]
        write_line("found", max((_epochs_in(training, attempt) for attempt in earlier), default=0))
        write_line("begins", (0 if resume is None else len(training.read_history(resume, ""))) + 1)
        training.run(job, folder, resume, log_and_report)

    return replace(training, run=run)


def _epochs_in(training: TrainingFunctions, attempt: Path) -> int:
    with suppress(Exception):  # there is no checkpoint, or it is torn
        return len(training.read_history(attempt / "last.pt", ""))
    return 0


def lines_of(folder: Path) -> list[Line]:
    path = folder / LOG
    rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [Line(float(row[0]), row[1], *map(int, row[2:])) for row in rows]


def events_of(folder: Path) -> list[dict[str, Any]]:
    """Returns what the drivers have recorded so far."""
    spool = folder / "spool.jsonl"
    lines = spool.read_bytes().splitlines(keepends=True) if spool.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def recorded(folder: Path) -> Counter[str]:
    """Returns how many events of each kind the drivers have recorded."""
    return Counter(event["event"] for event in events_of(folder))


# --- what is watched while it happens ---


class Watch:
    """Looks at the folders and at the killed drivers' processes, as often as it is called.

    Attributes:
        written: files of an attempt that changed after its successor was there.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._kept: dict[Path, Mapping[str, tuple[int, int]]] = {}
        self.kills: list[Kill] = []
        self.written: list[str] = []

    def look(self) -> None:
        now = time.time()
        for kill in self.kills:
            if kill.family:
                kill.family = {pid: command for pid, command in kill.family.items() if _alive(pid)}
                kill.gone_after = now - kill.at
        with suppress(FileNotFoundError):
            for trial in (self._folder / "checkpoints").iterdir():
                for attempt in attempts_in(trial)[:-1]:
                    self._compare(attempt)

    def _compare(self, attempt: Path) -> None:
        try:
            now = {path.name: ((stat := path.stat()).st_mtime_ns, stat.st_size) for path in attempt.iterdir()}
        except FileNotFoundError:
            return  # the trial is finished, and its checkpoints go
        before = self._kept.setdefault(attempt, now)
        if now != before and set(now) >= set(before):
            self.written.append(f"{attempt.parent.name}/{attempt.name} changed after its successor was there")
            self._kept[attempt] = now

    def settle(self) -> list[str]:
        """Waits until nothing is left of the killed drivers, or too long.

        Returns:
            What is left.
        """
        while any(kill.family and time.time() - kill.at < kill.allowed for kill in self.kills):
            self.look()
            time.sleep(0.1)
        late = [kill for kill in self.kills if kill.family or kill.gone_after > kill.allowed]
        return [f"{kill.family or 'some'} outlived the driver by {kill.gone_after:.0f} s" for kill in late]


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Less Ray's two agents: they train nothing, and end by themselves a minute after their node."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in children.read_text().split():
                command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                if not command.endswith("Agent"):
                    yield int(child), command[-60:]
                yield from descendants(int(child))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- what must be true of it ---


def faults(
    folder: Path,
    lines: Sequence[Line],
    kills: Sequence[Kill],
    epochs: Mapping[int, int],
    checkpoint_seconds: float = 0.0,
    damaged: Container[int] = (),
    copied: bool = False,
    without_copies: Sequence[tuple[float, float]] = (),
) -> list[str]:
    """Whatever was lost, trained twice without need, resumed from the wrong place, or written by an orphan.

    Args:
        epochs: that each trial has, by its number, as trials.parquet says.
        checkpoint_seconds: how often trainings saved their state; 0: after every epoch, so that none that had ended may
            be trained again.
        damaged: numbers of the trials whose newest checkpoint was damaged: they may train any epochs again.
        copied: whether checkpoints lie on the disks of nodes and are copied every `checkpoint_seconds`, so that a lost
            node takes the newest ones with it.
        without_copies: intervals in which none could be copied, as `time.time()`.
    """
    wrong = []
    times = Counter((one["number"], one["epoch"]) for one in events_of(folder) if one["event"] == "epoch")
    wrong += [f"trial {number}: epoch {epoch} was recorded {n} times" for (number, epoch), n in times.items() if n > 1]
    ended_at = {one["number"]: one["time"] for one in events_of(folder) if one["event"] == "end"}
    by_trial: dict[int, list[Line]] = defaultdict(list)
    for line in sorted(lines):
        by_trial[line.number].append(line)
    for number, count in epochs.items():
        trained = {line.epoch for line in by_trial[number] if line.word == "ends"}
        if trained != set(range(1, count + 1)):
            wrong.append(f"trial {number}: epochs {sorted(trained)} were trained, the table says {count}")
    for number, own in by_trial.items():
        wrong += [
            f"trial {number}: epoch {line.epoch} {line.word} after the trial was finished"
            for line in own
            if line.time > ended_at.get(number, float("inf"))
        ]
        wrong += _faults_of_attempts(number, own, copied or number in damaged)
    for loss in losses_of(lines):
        if loss.number in damaged:
            continue
        # The first end of an epoch after `checkpoint_seconds` is saved, and others end while that is written.
        allowed = checkpoint_seconds + loss.longest + WRITE_SECONDS + loss.seconds_within(without_copies)
        if checkpoint_seconds == 0 or loss.seconds > allowed:
            wrong.append(f"trial {loss.number}: {loss.epochs} epochs over {loss.seconds:.1f} s were lost")
    wrong += unexplained_cuts(lines, kills)
    return wrong


def _faults_of_attempts(number: int, own: Sequence[Line], may_lose: bool) -> Iterator[str]:
    attempts: dict[int, list[Line]] = defaultdict(list)
    for line in own:
        attempts[line.attempt].append(line)
    for attempt in sorted(attempts):
        first, *rest = attempts[attempt]
        earlier = [line for line in own if line.attempt < attempt]
        for line in earlier:
            if line.time > first.time:
                yield f"trial {number}: attempt {line.attempt} {line.word} epoch {line.epoch} after {attempt} had begun"
        known = max((line.epoch for line in earlier if line.word == "found"), default=0)
        begun = [line.epoch for line in rest if line.word == "begins"]
        if first.word != "found" or (first.epoch < known and not may_lose):
            yield f"trial {number}: attempt {attempt} found epoch {first.epoch}, after {known} had been found"
        if begun != list(range(first.epoch + 1, first.epoch + 1 + len(begun))):
            yield f"trial {number}: attempt {attempt} found epoch {first.epoch} and trained {begun}"
