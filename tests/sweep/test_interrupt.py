"""Every signal ends the driver in good order at every stage, and the same command continues the sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient

from benchmarks.interrupted import disagreements
from mmpkd import command
from sweep import interrupt
from sweep.interrupt import allowed_seconds, deferred, repeated, requested, requests_end_the_driver
from sweep.reports import final, results
from sweep.search.searcher import Search
from sweep.storage.events import Spool, SweepBegan, SweepClosed
from sweep.storage.layout import SweepFolder
from sweep.tracking.mlflow import Tracker
from tests.sweep.fake import SPACE, play, report
from tests.sweep.fake_sweep import FAKE
from tests.sweep.swept import events, swept
from tests.sweep.test_run import ran


def send(number: int = signal.SIGTERM) -> None:
    """Sends a signal to this process; Python handles it before the next line."""
    os.kill(os.getpid(), number)


@pytest.fixture
def handled() -> Iterator[None]:
    with requests_end_the_driver():
        yield


# --- signals ---


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_every_signal_raises_keyboard_interrupt(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with requests_end_the_driver():
        with pytest.raises(KeyboardInterrupt):
            send(number)
        assert requested() == number.name
    assert not requested() and signal.getsignal(number) == before


@pytest.mark.usefixtures("handled")
def test_an_echo_changes_nothing_and_a_later_ctrl_c_is_a_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` and `make` send each signal twice, and a batch system sends another one; a person presses again."""
    with deferred():
        send(signal.SIGINT)
        send(signal.SIGINT)
        send(signal.SIGTERM)
    assert requested() == "SIGINT" and not repeated()
    send(signal.SIGTERM)
    monkeypatch.setattr(interrupt, "ECHO_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt), deferred():
        send(signal.SIGINT)
    assert repeated()


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with requests_end_the_driver():
            send(signal.SIGHUP)
            assert not requested()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_after_a_request_at_least_one_second_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    with requests_end_the_driver():
        assert allowed_seconds(60) == 60
        with deferred():
            send()
        assert 1 <= allowed_seconds(60) <= interrupt.END_SECONDS
        monkeypatch.setattr(interrupt, "END_SECONDS", -5.0)
        assert allowed_seconds(60) == 1


# --- every stage of a driver's part, without Ray ---


@pytest.mark.usefixtures("handled")
def test_a_request_during_preparation_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path, functions=replace(FAKE, prepare=lambda config, cache: send()))
    assert not (tmp_path / "runs" / "fake").exists(), "no sweep had begun"


def test_an_interrupted_command_says_so_and_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    """There is no traceback, for example while it plans."""
    with pytest.raises(SystemExit) as ended, command.command_line():
        requests_end_the_driver()(lambda words: send(signal.SIGHUP))([])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted; run the same command again\n"


@pytest.fixture
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow takes seconds to import; the spool holds everything that it would receive."""
    monkeypatch.setattr(Tracker, "start", lambda self: None)
    monkeypatch.setattr(Tracker, "close", lambda self, seconds: 0)


def play_some_then(end: Callable[[], Any]) -> Callable[[Search], None]:
    """Returns a function that plays two trials to their end and one epoch of a third, and then calls `end`."""

    def drive(search: Search) -> None:
        for index in range(2):
            play(search, str(index), search.suggest(str(index)))
        search.on_trial_result("2", {"reports": [report(search.suggest("2"), 1)]})
        search.release_running()
        end()

    return drive


@pytest.mark.usefixtures("handled", "untracked")
@pytest.mark.parametrize("stage", ["trials", "tables", "report"])
def test_finished_trials_are_written(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request may come while trials run, or while tables and report are written."""
    for name in ("write_tables", "write_report"):
        if stage in name:
            write = getattr(results, name)
            monkeypatch.setattr(results, name, lambda *args, write=write: (send(), write(*args)))
    search, text = swept(tmp_path, play=play_some_then(send if stage == "trials" else lambda: None))
    folder = tmp_path / "runs" / "fake"
    assert requested() == "SIGTERM" and "6 trials to go; this continues" in text
    assert ("stopped: asked to end (SIGTERM)" in text) == (stage == "trials")
    assert pd.read_parquet(folder / "trials.parquet")["state"].tolist() == ["complete", "complete"]
    assert (folder / "report.html").exists() and (folder / "best.yaml").exists()
    assert [event.status for event in events(folder, SweepClosed)] == ["KILLED"]
    assert search.remaining_trials == 6


@pytest.mark.usefixtures("handled", "untracked")
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press_ctrl_c_twice() -> None:
        monkeypatch.setattr(interrupt, "ECHO_SECONDS", 0.0)
        with deferred():
            send(signal.SIGINT)
        send(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path, play=play_some_then(press_ctrl_c_twice))
    assert not (tmp_path / "runs" / "fake" / "report.html").exists()


def test_a_server_that_does_not_answer_does_not_delay_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request may come before the driver waits for the server, or while it waits."""
    spool = Spool(SweepFolder(tmp_path))
    spool.append(SweepBegan(id="x"))
    waited: list[float] = []
    tracker = Tracker("http://127.0.0.1:1", "away", "x", spool, tmp_path)
    monkeypatch.setattr(tracker, "start", lambda: None)
    close = tracker.close

    def closing_for(seconds: float) -> int:
        waited.append(seconds)
        if not requested():
            send()
        return close(0)

    monkeypatch.setattr(tracker, "_thread", threading.Thread(target=time.sleep, args=(0,)))
    tracker._thread.start()
    monkeypatch.setattr(tracker, "close", closing_for)
    with requests_end_the_driver():
        assert final.send_rest(tracker) == 1, "the record waits in the spool"
        assert final.send_rest(tracker) == 1
    assert waited[0] == 60 and len(waited) == 3 and max(waited[1:]) <= interrupt.END_SECONDS


# --- a whole driver ---


@pytest.mark.usefixtures("ray_session")
def test_a_batch_system_ends_a_sweep_in_a_small_job(tmp_path: Path) -> None:
    """The job has one core of several and a long TMPDIR with odd characters; its process group gets SIGTERM twice.

    The trial that runs had no checkpoint yet, and is saved after its current epoch.
    """
    (tmp_path / "fake.yaml").write_text(SPACE)
    scratch = tmp_path / ("scratch of job #7 " + "x" * 60)
    scratch.mkdir()
    environ = {
        **os.environ,
        "SLURM_CPUS_PER_TASK": "1",
        "TMPDIR": str(scratch),
        "FAKE_SECONDS": "0.5",
        "FAKE_SPARSE": "",
    }
    words = [f"space={tmp_path / 'fake.yaml'}", f"storage={tmp_path}", "trials=8"]
    folder, address = tmp_path / "fake", f"sqlite:///{tmp_path / 'mlflow.db'}"
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.sweep.fake_run", *words],
        env=environ,
        process_group=0,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    trained = folder / "trained.txt"
    begun = tmp_path / "mlflow.db"  # or a busy machine would still import MLflow when the signal comes
    while not (begun.exists() and trained.exists() and len(trained.read_text().splitlines()) > 5):  # a second trial
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGTERM)
    os.killpg(driver.pid, signal.SIGTERM)
    text, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "stopped: asked to end (SIGTERM)" in text and "each trial from its last checkpoint:" in text
    assert "Traceback" not in text and "ray" not in text.replace("array", "").lower(), text
    assert ", 2 running" not in text, "one trial at a time on one core"
    ended = pd.read_parquet(folder / "trials.parquet")
    assert ended["state"].eq("complete").all() and (folder / "report.html").exists()
    assert list((folder / "checkpoints").glob("*/attempt-1/last.pt"))
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name("fake")
    assert experiment is not None
    statuses = sorted(run.info.status for run in client.search_runs([experiment.experiment_id]))
    assert "KILLED" in statuses and statuses.count("FINISHED") == len(ended)

    assert ran(tmp_path, "trials=8", "search.at_a_time=1")[0] == 0  # a worker takes seconds to start
    assert not disagreements(folder, address, trials=8)
    lines = [line.split() for line in trained.read_text().splitlines()]
    assert len({(number, epoch) for number, _, epoch in lines}) >= len(lines) - 1, "at most one epoch is trained again"


def test_a_second_ctrl_c_does_not_wait_for_the_interpreter() -> None:
    """The process ends without taking down its libraries: functions registered for the exit do not run."""
    code = """if True:
        import atexit, os, signal
        from sweep import interrupt
        atexit.register(print, "taken down")
        interrupt.ECHO_SECONDS = 0.0
        with interrupt.requests_end_the_driver():
            with interrupt.deferred():
                os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted; the same command continues\n"
