"""What ends a sweep before its trials are done, and that nothing is lost by it."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from mmpkd.types import EpochReport, UserError
from sweep import driver
from sweep.driver import SweepFunctions
from sweep.storage.events import EpochEnded, Event, Spool, TrialEnded
from sweep.storage.layout import SweepFolder
from sweep.storage.reader import read_sweep
from sweep.types import Job
from sweep.workers import watchdog
from tests.sweep.fake import play_all, run_training
from tests.sweep.fake_sweep import FAKE
from tests.sweep.swept import events, untracked
from tests.sweep.test_run import ran

__all__ = ["untracked"]  # a fixture
pytestmark = pytest.mark.usefixtures("ray_session")


def table_of(tmp_path: Path) -> pd.DataFrame:
    return pd.read_parquet(tmp_path / "fake" / "trials.parquet")


def trained_once(tmp_path: Path) -> bool:
    """No epoch of a trial was trained twice but such as were cut off in their middle."""
    lines = [line.split() for line in (tmp_path / "fake" / "trained.txt").read_text().splitlines()]
    return max(Counter((number, epoch) for number, _, epoch in lines).values()) == 1


def states(tmp_path: Path) -> Counter[str]:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "fake" / "journal.log")))
    names = optuna.get_all_study_names(storage)
    trials = [one for name in names for one in optuna.load_study(study_name=name, storage=storage).get_trials()]
    return Counter(one.state.name for one in trials)


# Where trials need not run side by side: a worker takes seconds to start.
ONE_WORKER = "search.at_a_time=1"


def running(run: Callable[..., None]) -> SweepFunctions:
    """Returns functions whose trainings are `run`. It should not mention `FAKE`, or each worker imports the driver."""
    return replace(FAKE, training=replace(FAKE.training, run=run))


def rarely_saved() -> SweepFunctions:
    """Trainings that save their last epoch, and the one after which they are stopped."""

    def run(*args: Any) -> None:
        os.environ["FAKE_SPARSE"] = ""  # of a worker that has no other trainings
        run_training(*args)

    return running(run)


def played(tmp_path: Path, *words: str) -> tuple[int, str]:
    """Runs a driver as `ran` does, whose trials are played in this process: a worker takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "run_trials", lambda search, *rest: play_all(search))
        return ran(tmp_path, *words)


def test_a_budget_ends_a_sweep_within_an_epoch_of_it_and_more_continues_it(tmp_path: Path) -> None:
    """Trials that are stopped are saved first."""
    hours = 4.2 / 3600  # the fake worker's epochs are half a second, on one core
    status, text = ran(tmp_path, "trials=5", f"budget_device_hours={hours!r}", functions=rarely_saved())
    spent = sum(event.seconds * (event.devices or 0.0) for event in events(tmp_path / "fake", EpochEnded))
    assert 4.2 <= spent <= 4.2 + 2 * 0.5, "an epoch of each of the two that run"
    assert status == 0 and "stopped: the budget of" in text and "each trial from its last checkpoint:" in text
    assert states(tmp_path)["RUNNING"] >= 1 and set(table_of(tmp_path)["state"]) == {"complete"}
    _, text = ran(tmp_path, "trials=5", f"budget_device_hours={hours!r}")
    assert "the budget of" in text and len(table_of(tmp_path)) < 5, "it is counted over restarts"
    assert ran(tmp_path, "trials=5", "budget_device_hours=1", ONE_WORKER)[0] == 0
    assert states(tmp_path) == {"COMPLETE": 5} and len(table_of(tmp_path)) == 5
    assert trained_once(tmp_path)


def test_a_deadline_that_has_passed_runs_nothing(tmp_path: Path) -> None:
    status, text = ran(tmp_path, "deadline=2020-01-01T00:00")
    assert status == 1 and "the deadline (2020-01-01 00:00) has passed; to continue, give a later deadline=..." in text
    assert not (tmp_path / "fake" / "trained.txt").exists()


def test_a_request_to_stop_is_heard(tmp_path: Path) -> None:
    asked = threading.Timer(0, lambda: None)

    def ask() -> None:
        while not (tmp_path / "fake" / "trained.txt").exists():
            time.sleep(0.05)
        (tmp_path / "fake" / "stop").touch()

    asked = threading.Timer(0, ask)
    asked.start()
    status, text = ran(tmp_path, "trials=40", ONE_WORKER, functions=rarely_saved())
    asked.join()
    assert status == 130 and "stopped: asked to stop by sweep.stop" in text and "trials to go" in text
    assert ran(tmp_path, "trials=3", ONE_WORKER)[0] == 0
    assert states(tmp_path)["RUNNING"] == 0 and trained_once(tmp_path)


def test_a_plateau_of_every_arm_ends_a_sweep(tmp_path: Path) -> None:
    flat = ["arms.none.optimizer={lr: {uniform: [0.01, 0.0100001]}}", "arms.tabular.optimizer.lr=0.01"]
    _, text = played(tmp_path, "trials=60", "search.plateau=3", *flat)
    assert "the last 3 configurations of each arm added less than 1 % to its hypervolume" in text
    assert len(table_of(tmp_path)) < 30


def test_a_goal_that_trainings_never_report_stops_the_sweep_and_fails_no_trial(tmp_path: Path) -> None:
    def run(*args: Any) -> None:
        args[-1](EpochReport(1, 1, 0.1, {}, {"val/auroc": 0.5, "val/auroc_se": 0.1}))

    with pytest.raises(UserError, match=r"search.maximize: trainings do not report val/pointing; they report val/auro"):
        ran(tmp_path, "trials=2", ONE_WORKER, functions=running(run))
    assert set(states(tmp_path)) == {"RUNNING"}
    assert played(tmp_path, "trials=2", ONE_WORKER)[0] == 0, "once it is mended"
    assert states(tmp_path) == {"COMPLETE": 2}


def test_a_storage_that_goes_read_only_stops_the_sweep_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Spool.append

    def fails(self: Spool, event: Event) -> None:
        if isinstance(event, TrialEnded) and event.number == 2:
            raise OSError(errno.EROFS, "Read-only file system", str(self.path))
        append(self, event)

    monkeypatch.setattr(Spool, "append", fails)
    with pytest.raises(UserError) as error:
        ran(tmp_path, "trials=4", ONE_WORKER)
    text = str(error.value)
    assert "spool.jsonl: cannot be read or written any more (Read-only file system); the sweep stopped" in text
    assert "python -m sweep.run" in text.splitlines()[-1]
    monkeypatch.undo()
    assert ran(tmp_path, "trials=4", ONE_WORKER)[0] == 0
    assert states(tmp_path) == {"COMPLETE": 4} and trained_once(tmp_path)
    assert sorted(table_of(tmp_path)["number"]) == list(range(4))


def failing_once(error: Callable[[], Exception]) -> SweepFunctions:
    def run(job: Job, folder: Path, *more: Any) -> None:
        if folder.parent.name == "1" and folder.name == "attempt-1":
            raise error()
        run_training(job, folder, *more)

    return running(run)


def test_a_trial_whose_worker_cannot_write_is_tried_again(tmp_path: Path) -> None:
    full = failing_once(lambda: OSError(errno.ENOSPC, "No space left on device", "last.pt"))
    status, text = ran(tmp_path, "trials=3", ONE_WORKER, functions=full)
    assert status == 0 and states(tmp_path) == {"COMPLETE": 3}
    host = socket.gethostname()
    problem = f"last.pt: cannot be read or written any more (No space left on device), in a worker on {host}"
    assert text.count(problem) == 1 and f"{host} trains again, after " in text
    assert [path.name for path in sorted((tmp_path / "fake" / "checkpoints" / "1").glob("*"))] in (
        [],
        ["attempt-1", "attempt-2"],
    )
    assert not list((tmp_path / "fake" / "errors").glob("*"))


def test_workers_that_cannot_write_end_the_sweep_after_the_patience_and_fail_no_trial(tmp_path: Path) -> None:
    def run(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "last.pt")

    with pytest.raises(UserError, match=r"\(No space left on device\), in a worker"):
        ran(tmp_path, "trials=2", "patience=1s", ONE_WORKER, functions=running(run))
    assert set(states(tmp_path)) == {"RUNNING"}
    assert played(tmp_path, "trials=2", ONE_WORKER)[0] == 0
    assert states(tmp_path) == {"COMPLETE": 2}


def test_a_worker_that_is_stopped_is_ended_and_its_trial_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker stops after its first epoch, which `ray.kill` cannot end."""

    def run(job: Job, folder: Path, resume: Path | None, report: Callable[[EpochReport], None]) -> None:
        def report_and_stop(epoch: EpochReport) -> None:
            report(epoch)
            if folder.parent.name == "1" and folder.name == "attempt-1":
                os.kill(os.getpid(), signal.SIGSTOP)

        run_training(job, folder, resume, report_and_stop)

    for name, seconds in {"SHORTEST_SECONDS": 5.0, "EPOCHS": 0.0, "LOOK_SECONDS": 1.0}.items():
        monkeypatch.setattr(watchdog, name, seconds)
    status, text = ran(tmp_path, "trials=3", ONE_WORKER, functions=running(run))
    assert status == 0 and states(tmp_path) == {"COMPLETE": 3} and trained_once(tmp_path)
    assert text.count("trial 1 has not reported for 5 s (its longest epoch took ") == 1
    assert "its worker is ended, and the trial is continued from its last checkpoint" in " ".join(text.split())


class PriceOfTwo:
    """A price that was measured with two trials on the cores of the machine."""

    per_device = 2

    def __init__(self, *ignored: Any):
        pass

    def lines(self) -> list[str]:
        return ["priced"]

    def as_json(self) -> dict[str, Any]:
        return {"per_device": self.per_device}


def test_out_of_memory_halves_the_trials_to_a_device_also_for_later_drivers(tmp_path: Path) -> None:
    """The first driver measures two, memory halves the number, and the second driver neither measures nor doubles."""

    def run(job: Job, folder: Path, *more: Any) -> None:
        if folder.parent.name == "1" and folder.name == "attempt-1":
            log = Path(job["folder"]) / "trained.txt"
            while not (log.exists() and len(log.read_text().splitlines()) > 1):  # trial 0 has reported an epoch
                time.sleep(0.05)
            raise MemoryError("Unable to allocate 2 GiB")
        run_training(job, folder, *more)

    functions = replace(running(run), price=cast(Any, PriceOfTwo))
    words = ("search.trials_per_device=auto",)
    status, text = ran(tmp_path, "trials=3", *words, functions=functions)
    assert status == 0 and states(tmp_path) == {"COMPLETE": 3} and text.count("priced") == 1
    assert "out of memory: continues with half as many trials per device" in text
    assert SweepFolder(tmp_path / "fake").read_plan()["price"]["per_device"] == 1
    _, text = ran(tmp_path, "trials=4", *words, functions=functions)
    assert "priced" not in text and states(tmp_path) == {"COMPLETE": 4}
    cores: dict[int, list[float | None]] = {}
    for event in events(tmp_path / "fake", EpochEnded):
        cores.setdefault(event.number, []).append(event.devices)
    assert cores[0][0] == 1.0, "two trials on two cores at first"
    assert set(cores[2]) == set(cores[3]) == {2.0}, "then both cores for one trial, in either driver"


def test_a_sweep_that_a_limit_ended_says_how_it_goes_on_and_is_not_called_finished(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "my runs"
    folder.mkdir()
    _, text = played(folder, "trials=8", "search.budget_device_hours=0.001", "deadline=2099-01-01")
    command = text[text.rindex("python -m sweep.run ") :]
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "sweep.run"] and f"space={folder / 'fake.yaml'}" in words
    assert words[-3:] == ["trials=8", "search.budget_device_hours=0.002", "search.deadline=null"]
    assert read_sweep(SweepFolder(folder / "fake")).state == "stopped"
