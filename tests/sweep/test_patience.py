"""A disk that is full, read-only or away for a while: the driver waits, and nothing is lost, torn or doubled."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from mmpkd.types import UserError
from sweep import patience
from sweep.interrupt import deferred, requested, requests_end_the_driver
from sweep.options import read_run_options, seconds_of
from sweep.patience import GrowingFile, patiently, waiting_out
from sweep.search.searcher import Search
from sweep.storage.events import EpochEnded, Spool, SweepBegan, TrialEnded, TrialStarted, read_events
from sweep.storage.journal import Journal, find_damage, load_studies
from sweep.storage.layout import SweepFolder
from tests.patched import patch_within
from tests.sweep.fake import play_all
from tests.sweep.swept import events, numbers, states, swept, untracked

__all__ = ["untracked"]  # a fixture

ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EIO, errno.ENOTCONN]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(patience, "LONGEST_PAUSE", 0.01)


class Trouble:
    """Every write of this process fails `times` times from the call on that `begins` counts; a half is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, times: int, begins: int = 1):
        self.calls, self._error, self._bad = 0, number, range(begins, begins + times)
        self._write = os.write
        patch_within(monkeypatch, patience, os, write=self)

    def __call__(self, file: int, content: bytes) -> int:
        self.calls += 1
        if self.calls not in self._bad:
            return self._write(file, content)
        self._write(file, content[: len(content) // 2])
        raise OSError(self._error, os.strerror(self._error))


# --- one write ---


@pytest.mark.parametrize("number", ERRORS)
def test_an_append_is_tried_again_as_a_whole(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, lines, problems = tmp_path / "spool.jsonl", list[str](), list[str]()
    path.write_bytes(b"first\n")

    def show(line: str) -> None:
        lines.append(line)
        problems.append(patience.current_problem())

    with waiting_out(60, show):
        Trouble(monkeypatch, number, times=3)
        file = GrowingFile(path)
        file.append(b"second\n")
        file.append(b"third\n")
    assert path.read_bytes() == b"first\nsecond\nthird\n"
    assert len(lines) == 2, lines
    assert lines[0].startswith(f"paused: {path}: cannot be read or written ({os.strerror(number)})")
    assert lines[1].startswith(f"continued: {tmp_path} can be used again")
    assert problems == [f"{path}: cannot be read or written ({os.strerror(number)})", ""]


def test_lines_of_another_driver_that_took_over_meanwhile_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lines = tmp_path / "spool.jsonl", list[str]()
    path.write_bytes(b"first\n")

    def take_over(line: str) -> None:  # while this driver waits, its lock expires, and another driver goes on
        lines.append(line)
        path.write_bytes(b"first\nof another driver\n")

    with waiting_out(60, take_over), pytest.raises(UserError, match=f"{path}: another process has written to this"):
        Trouble(monkeypatch, errno.EIO, times=3)
        GrowingFile(path).append(b"second\n")
    assert path.read_bytes() == b"first\nof another driver\n" and len(lines) == 1


def test_two_drivers_of_a_sweep_never_write_both(tmp_path: Path) -> None:
    """Two that do not see the lock of each other, as on some file systems: the second write of the first is refused."""
    folder = SweepFolder(tmp_path)
    first = Spool(folder)
    first.append(SweepBegan("a"))
    second = Spool(folder)
    second.append(SweepBegan("a"))
    with pytest.raises(UserError, match="another process has written"):
        first.append(TrialEnded(0, "complete", ""))
    journals = [Journal(folder.journal), Journal(folder.journal)]
    journals[1].append_logs([{"op_code": 0}])
    with pytest.raises(UserError, match="another process has written"):
        journals[0].append_logs([{"op_code": 0}])
    second.append(TrialEnded(0, "complete", ""))
    assert len(list(read_events(folder.spool))) == 3 and find_damage(folder.journal) is None


def test_what_an_append_without_success_has_left_is_cut_off_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spool.jsonl"
    path.touch()
    file = GrowingFile(path)
    Trouble(monkeypatch, errno.ENOSPC, times=1)
    with pytest.raises(OSError, match="No space left"):
        file.append(b"first\n")
    assert path.read_bytes() == b"fir"
    file.append(b"second\n")
    assert path.read_bytes() == b"second\n"


def test_a_file_that_a_missing_mount_hides_is_not_begun_anew(tmp_path: Path) -> None:
    lines = list[str]()
    (tmp_path / "spool.jsonl").touch()
    file = GrowingFile(tmp_path / "spool.jsonl")
    (tmp_path / "spool.jsonl").unlink()
    with waiting_out(0.05, lines.append), pytest.raises(FileNotFoundError):
        file.append(b"line\n")
    assert not list(tmp_path.iterdir()) and len(lines) == 1


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_patience_has_an_end_and_the_error_names_the_file(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lines = tmp_path / "spool.jsonl", list[str]()
    path.touch()
    trouble = Trouble(monkeypatch, errno.EROFS, times=10_000)
    with waiting_out(seconds, lines.append), pytest.raises(OSError, match="Read-only") as raised:
        GrowingFile(path).append(b"line\n")
    assert raised.value.filename == str(path)
    assert len(lines) == (seconds > 0) and (trouble.calls > 1) == (seconds > 0)


def test_without_a_sweep_at_work_and_in_threads_nothing_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, errors, lines = tmp_path / "spool.jsonl", list[OSError](), list[str]()
    path.touch()

    def fails() -> None:
        try:
            GrowingFile(path).append(b"line\n")
        except OSError as error:
            errors.append(error)

    trouble = Trouble(monkeypatch, errno.EROFS, times=2)
    fails()
    with waiting_out(60, lines.append):
        thread = threading.Thread(target=fails)
        thread.start()
        thread.join()
    assert trouble.calls == len(errors) == 2 and not lines


@pytest.mark.parametrize("error", [OSError(errno.EFBIG, "File too large"), ValueError("a bug")])
def test_an_error_that_does_not_pass_is_raised_at_once(error: Exception, tmp_path: Path) -> None:
    lines = list[str]()

    def action() -> None:
        raise error

    with waiting_out(60, lines.append), pytest.raises(type(error)):
        patiently(action, tmp_path)
    assert not lines


@pytest.mark.parametrize("is_deferred", [False, True])
def test_a_signal_ends_the_waiting(is_deferred: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within Tune's loop signals are deferred, elsewhere they raise KeyboardInterrupt by themselves."""
    lines, attempts = list[str](), list[int]()

    def action() -> None:
        attempts.append(1)
        raise OSError(errno.ESTALE, "Stale file handle")

    def sleep(seconds: float) -> None:
        if len(attempts) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with requests_end_the_driver(), waiting_out(60, lines.append), monkeypatch.context() as patch:
        patch_within(patch, patience, time, sleep=sleep)
        with pytest.raises(KeyboardInterrupt):
            if is_deferred:
                with deferred():
                    patiently(action, tmp_path)
            else:
                patiently(action, tmp_path)
        assert requested() == "SIGTERM" and len(attempts) == 3
        with pytest.raises(OSError, match="Stale"):
            patiently(action, tmp_path)  # a driver that ends does not wait again
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30min", 1800), ("12h", 43200), ("7d", 604800), ("1.5h", 5400), ("0s", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["12", "h", "-1h", "1 week", "1h30min", "1e3s"])
def test_other_texts_are_refused_as_durations(text: str) -> None:
    _, (mistake,) = read_run_options([f"patience={text}"])
    assert mistake.path == "patience" and "a duration such as 30min, 12h or 7d" in mistake.problem


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (119, "119 s"), (150, "3 min"), (43200, "12 h")])
def test_durations_are_shown_in_their_largest_unit(seconds: float, text: str) -> None:
    assert patience.shown_duration(seconds) == text


# --- journal and spool ---


@pytest.mark.parametrize("begins", range(1, 9))
def test_the_journal_in_memory_and_on_disk_agree_after_trouble(
    begins: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.log"
    storage = optuna.storages.JournalStorage(Journal(path))
    trouble = Trouble(monkeypatch, errno.ENOSPC, times=3, begins=begins)
    with waiting_out(60, lambda line: None):
        study = optuna.create_study(storage=storage, study_name="arm")
        for number in range(3):
            trial = study.ask()
            trial.set_user_attr("number", number)
            study.tell(trial, float(number))
    assert trouble.calls > 11, "every operation and three that failed"
    assert find_damage(path) is None
    in_memory, (on_disk,) = study.get_trials(), load_studies(path)
    assert in_memory == on_disk.get_trials() and len(in_memory) == 3


def test_reading_the_journal_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.log"
    study = optuna.create_study(storage=optuna.storages.JournalStorage(Journal(path)), study_name="arm")
    stat, failures = os.stat, iter([True, True])

    def stale(file: Any, **options: Any) -> os.stat_result:
        if file == str(path) and next(failures, False):
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(file, **options)

    monkeypatch.setattr(os, "stat", stale)
    with waiting_out(60, lambda line: None):
        study.set_user_attr("a", 1)
    assert study.user_attrs["a"] == 1 and load_studies(path)[0].user_attrs == {"a": 1}


def raising(search: Search) -> None:
    """Plays until an event cannot be recorded, and raises the error as `run_tune` does."""
    with pytest.raises(AssertionError):
        play_all(search)
    assert search.error is not None
    raise search.error


def test_a_journal_that_was_given_up_is_continued_by_the_next_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half of a line stays in the file, and the memory has not taken it."""
    with monkeypatch.context() as patch:
        Trouble(patch, errno.ENOSPC, times=10_000, begins=40)
        with pytest.raises(UserError, match=r"cannot be read or written any more \(No space left"):
            swept(tmp_path, "patience=0s", "trials=8", play=raising)
    swept(tmp_path, "trials=8")
    assert numbers(tmp_path / "runs" / "fake") == list(range(8))


# --- a whole driver ---


def complete_once(folder: Path, trials: int) -> None:
    """Checks that every trial is in journal, spool and table once, with each of its epochs once."""
    assert sum((counter for counter in states(folder).values()), Counter()) == {"COMPLETE": trials}
    assert numbers(folder) == list(range(trials)) and find_damage(folder / "journal.log") is None
    for kind in (TrialStarted, TrialEnded):
        assert sorted(event.number for event in events(folder, kind)) == list(range(trials))
    epochs = Counter((event.number, event.epoch) for event in events(folder, EpochEnded))
    assert set(epochs.values()) == {1} and len(epochs) == trials * 4
    damaged: list[str] = []
    assert list(read_events(folder / "spool.jsonl", damaged=damaged)) and not damaged


@pytest.mark.parametrize("begins", [20, 33, 46, 57])
def test_a_disk_that_is_full_for_a_while_costs_two_lines(
    begins: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble = Trouble(monkeypatch, errno.ENOSPC, times=4, begins=begins)
    _, text = swept(tmp_path, "trials=6")
    assert trouble.calls > begins + 4
    assert text.count("paused: ") == text.count("continued: ") == 1
    complete_once(tmp_path / "runs" / "fake", 6)


def test_a_driver_that_is_asked_to_end_while_the_disk_is_away_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(search: Search) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with requests_end_the_driver(), monkeypatch.context() as patch:

        def unwritable(*arguments: Any) -> None:
            raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "runs" / "fake" / "trials.parquet"))

        patch.setattr("sweep.reports.results.write_tables", unwritable)
        _, text = swept(tmp_path, "trials=6", play=asked)
    assert "asked to end (SIGTERM) while " in text and "trials.parquet: cannot be read or written any more" in text
    assert "the same command continues" in text and "paused" not in text
    swept(tmp_path, "trials=6")
    complete_once(tmp_path / "runs" / "fake", 6)


def test_a_new_sweep_on_an_unwritable_disk_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touch(self: Path, **options: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "touch", touch)
    with pytest.raises(UserError, match=r"\(Read-only file system\); the sweep stopped"):
        swept(tmp_path, "trials=6")


# --- real disks ---


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "runs"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this test mounts a disk, which only root of a machine may do")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def after_two_trials(action: Callable[[], Any]) -> Callable[[Search], Any]:
    """Returns a function that plays trials, and calls `action` when two of them have ended."""

    def play(search: Search) -> None:
        search.on_change = lambda: action() if len(search.finished) == 2 else None
        play_all(search)

    return play


def test_a_real_disk_that_becomes_full(small_disk: Path, tmp_path: Path) -> None:
    filler = small_disk / "filler"

    def fill() -> None:
        if not filler.exists() and not cleaners:
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(b"x" * 4096) == 4096:
                        pass
                except OSError as error:
                    assert error.errno == errno.ENOSPC
            cleaners.append(threading.Timer(0.3, filler.unlink))
            cleaners[0].start()

    cleaners: list[threading.Timer] = []
    _, text = swept(tmp_path, "trials=6", play=after_two_trials(fill))
    assert text.count("paused: ") == text.count("continued: ") == 1 and "No space left on device" in text
    complete_once(small_disk / "fake", 6)


def test_a_real_mount_that_is_away(small_disk: Path, tmp_path: Path) -> None:
    """An empty read-only disk lies over the sweep's folder for a while."""

    def hide() -> None:
        if not timers:
            folder = str(small_disk / "fake")
            subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], check=True)
            timers.append(threading.Timer(0.3, subprocess.run, [["umount", folder]]))
            timers[0].start()

    timers: list[threading.Timer] = []
    _, text = swept(tmp_path, "trials=6", play=after_two_trials(hide))
    assert text.count("paused: ") == text.count("continued: ") == 1
    complete_once(small_disk / "fake", 6)


def test_events_before_and_after_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(SweepFolder(tmp_path))
    Trouble(monkeypatch, errno.EDQUOT, times=2)
    with waiting_out(60, lambda line: time.sleep(0)):
        for name in ("a", "b"):
            spool.append(SweepBegan(name))
    assert [event.id for event in events(tmp_path, SweepBegan)] == ["a", "b"]
