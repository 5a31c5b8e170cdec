"""A driver that crashes is started again; one that ends, or is asked to end, is not; no process is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sweep import supervisor
from sweep.options import read_run_options
from sweep.supervisor import supervise
from tests.patched import patch_within

# A driver that notes its starts, and ends as the line of its number in the file `ends` says.
DRIVER = """
import os, signal, sys, time
from pathlib import Path
from sweep.interrupt import requests_end_the_driver
from sweep.supervisor import follow_supervisor

folder = Path(sys.argv[1])
with requests_end_the_driver():
    assert follow_supervisor()
    with (folder / "starts").open("a+") as file:
        file.seek(0)
        end = (folder / "ends").read_text().split()[len(file.readlines())]
    try:
        with (folder / "starts").open("a") as file:
            file.write(f"{os.getpid()}\\n")
        if end == "wait":
            time.sleep(60)
    except KeyboardInterrupt:
        with (folder / "asked").open("a") as file:
            file.write("asked\\n")
        time.sleep(1.2)  # so that a second signal would be noticed
        os._exit(130)
    os.kill(os.getpid(), int(end[1:])) if end.startswith("-") else os._exit(int(end))
"""
SUPERVISOR = """
import sys
from pathlib import Path
from sweep import supervisor
supervisor.FIRST_PAUSE = 0.05
sys.exit(supervisor.supervise(sys.argv[2:], int(sys.argv[1]), Path(sys.argv[-1]), 0.0))
"""


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., list[str]]:
    """Returns a function that makes the command of a driver whose starts end as given."""

    def make(*ends: str) -> list[str]:
        (tmp_path / "ends").write_text(" ".join(ends))
        return [sys.executable, "-c", DRIVER, str(tmp_path)]

    return make


def starts(folder: Path) -> list[int]:
    path = folder / "starts"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)


@pytest.mark.parametrize("status", ["0", "1", "2", "130"])
def test_a_driver_that_ends_by_itself_is_not_started_again(
    status: str, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert supervise(command(status, "0"), 5, tmp_path, 0.0) == int(status) and len(starts(tmp_path)) == 1


def test_a_driver_that_crashes_is_started_again_until_it_ends(
    command: Callable[..., list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert supervise(command("-9", "-11", "134", "0"), 5, tmp_path, 0.0) == 0 and len(starts(tmp_path)) == 4
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(" in ")[0] for line in lines] == [
        "the driver has died (signal 9) and is started again",
        "the driver has died (signal 11) and is started again",
        "the driver has died (exit status 134) and is started again",
    ]
    assert lines[2].endswith("in 0.04 s; 2 restarts left"), "the pauses are doubled"


def test_the_number_of_restarts_is_bounded(
    command: Callable[..., list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert supervise(command("-9", "-9", "-9", "0"), 2, tmp_path, 0.0) == 137 and len(starts(tmp_path)) == 3
    assert "no restarts are left; the same command continues the sweep" in capfd.readouterr().err


def receives_interrupts() -> None:
    """Undoes what a shell does for commands in the background, which ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def begun(command: list[str], tmp_path: Path) -> subprocess.Popen[bytes]:
    """Starts a supervisor in a process group of its own, and waits until its driver works."""
    words = [sys.executable, "-c", SUPERVISOR, "5", *command]
    process = subprocess.Popen(words, process_group=0, preexec_fn=receives_interrupts)
    while not starts(tmp_path):
        assert process.poll() is None
        time.sleep(0.02)
    return process


def has_received(process_id: int, number: signal.Signals) -> bool:
    """Returns whether a signal has been sent to a stopped process: it is pending, or blocked because its handler is
    about to run.
    """
    status = Path(f"/proc/{process_id}/status").read_text()
    masks = re.findall(r"^(?:SigPnd|ShdPnd|SigBlk):\s*(\w+)$", status, re.MULTILINE)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def gone(process_id: int) -> bool:
    """Waits for a process to end, and returns whether it did."""
    for _ in range(500):
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_signals_to_the_group_end_the_driver_once(
    number: signal.Signals, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """`timeout` and `make` send each signal twice."""
    process = begun(command("wait", "0"), tmp_path)
    os.killpg(process.pid, number)
    os.killpg(process.pid, number)
    assert process.wait() == 130
    assert (tmp_path / "asked").read_text() == "asked\n" and len(starts(tmp_path)) == 1
    assert gone(starts(tmp_path)[0])


def test_a_driver_that_dies_of_the_signal_is_not_started_again(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """The signal may come before the driver handles it, or the driver may hang until it is killed."""
    process = begun(command("wait", "0"), tmp_path)
    (driver,) = starts(tmp_path)
    os.kill(driver, signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    while not has_received(driver, signal.SIGTERM):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(driver, signal.SIGKILL)
    assert process.wait() == 130 and len(starts(tmp_path)) == 1


def test_no_driver_outlives_a_killed_supervisor(command: Callable[..., list[str]], tmp_path: Path) -> None:
    process = begun(command("wait"), tmp_path)
    process.kill()
    process.wait()
    assert gone(starts(tmp_path)[0]) and (tmp_path / "asked").read_text() == "asked\n"


def test_a_signal_in_a_pause_ends_the_command(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 60.0)
    patch_within(monkeypatch, supervisor, time, sleep=lambda seconds: os.kill(os.getpid(), signal.SIGTERM))
    assert supervise(command("-9", "0"), 5, tmp_path, 0.0) == 130 and len(starts(tmp_path)) == 1


def test_a_restart_waits_for_the_disk_of_the_sweep(
    command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The disk is away when the driver dies, and is back after two looks."""
    sweep, away = tmp_path / "sweep", tmp_path / "away"
    sweep.mkdir()
    pauses = []

    def wait(signals: object, seconds: float) -> bool:
        assert len(starts(tmp_path)) == 1, "no driver is started meanwhile"
        pauses.append(seconds)
        if len(pauses) == 1:
            sweep.rename(away)
        elif len(pauses) == 3:
            away.rename(sweep)
        return False

    monkeypatch.setattr(supervisor._Signals, "wait", wait)
    assert supervise(command("-9", "0"), 5, sweep, 60.0) == 0 and len(starts(tmp_path)) == 2
    assert pauses == [0.01, 5.0, 5.0]
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if "cannot be written" in line] == [
        f"paused: {sweep}: cannot be written (No such file or directory); the driver waits for its disk for at most "
        "60 s"
    ]


def test_the_patience_of_a_restart_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver that is started then says what is wrong with the disk."""
    monkeypatch.setattr(supervisor, "LOOK_SECONDS", 0.01)
    (tmp_path / "sweep").write_text("a file, in which nothing can be written")
    signals = supervisor._Signals(tmp_path / "sweep")
    signals.folder_was_there = True
    assert signals.wait_for_disk(0.05) is False


@pytest.mark.parametrize(
    ("words", "address", "restarts"),
    [([], "", 0), ([], "auto", 20), ([], "local", 0), (["restarts=3"], "", 3), (["restarts=0"], "auto", 0)],
)
def test_drivers_on_a_cluster_are_started_again_unless_the_user_says_otherwise(
    words: list[str], address: str, restarts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    options, mistakes = read_run_options(words)
    assert not mistakes and options.num_restarts == restarts


@pytest.mark.parametrize("text", ["-1", "many", "1.5"])
def test_other_numbers_of_restarts_are_mistakes(text: str) -> None:
    _, (mistake,) = read_run_options([f"restarts={text}"])
    assert mistake.path == "restarts" and "a number from 0 to 9999" in mistake.problem
