"""Workers that hang are ended and their trials continued; lost nodes are counted apart; drained nodes are left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial

from sweep.storage.failures import MAX_LOST_NODES, Deaths
from sweep.workers import node_disk, watchdog
from sweep.workers.watchdog import EPOCHS, FIRST_SECONDS, SHORTEST_SECONDS, Watchdog, kill_worker
from tests.patched import patch_within
from tests.sweep.workers.test_worker import epochs_of, job, worker_for

# --- the rule, without Ray ---


class Watched:
    """A watchdog over trials of one node, with a clock that the test moves, and the kills that it orders."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now, self.lines, self.killed, self.drained = 1000.0, list[str](), list[int](), set[str]()
        monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(watchdog, "_located", lambda worker: watchdog._Watched("node", int(worker)))
        monkeypatch.setattr(watchdog, "_kill_on", lambda node, process: self.killed.append(process))
        monkeypatch.setattr(watchdog, "draining_nodes", lambda: self.drained)
        self.watchdog = Watchdog(self.lines.append)
        self.left = list[str]()

    def trial(self, number: int) -> Any:
        leave = SimpleNamespace(remote=lambda: self.left.append(str(number)))
        worker = SimpleNamespace(_actor_id=SimpleNamespace(hex=lambda: str(number)), leave=leave)
        return SimpleNamespace(
            trial_id=f"id-{number}",
            config={"number": number},
            status=Trial.RUNNING,
            temporary_state=SimpleNamespace(ray_actor=worker),
            run_metadata=SimpleNamespace(last_result={}),
        )

    def pass_time(self, seconds: float, *trials: Any) -> None:
        for _ in range(int(seconds / 5)):
            self.now += 5
            self.watchdog.look(trials)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def report(trial: Any, results: int, seconds: float, epochs: tuple[float, ...] = (), has_trained: bool = True) -> None:
    trial.run_metadata.last_result = {
        "iterations_since_restore": results,
        "time_this_iter_s": seconds,
        "reports": [{"seconds": seconds} for seconds in epochs],
        "has_trained": has_trained,
    }


@pytest.mark.parametrize(("longest", "allowed"), [(2.0, SHORTEST_SECONDS), (180.0, 900.0), (600.0, 3000.0)])
def test_a_trial_hangs_after_five_of_its_longest_epochs(watched: Watched, longest: float, allowed: float) -> None:
    silent, other = watched.trial(3), watched.trial(4)
    for results, seconds in ((1, longest), (2, longest / 2)):
        report(silent, results, seconds)
        watched.pass_time(10, silent, other)
    watched.pass_time(allowed - 10, silent, other)
    assert watched.killed == []
    watched.pass_time(10, silent, other)
    assert watched.killed == [3] and len(watched.lines) == 1
    assert watched.lines[0].startswith("trial 3 has not reported for ")


def test_a_slow_start_gets_more_time_at_each_attempt(watched: Watched) -> None:
    for attempt in range(3):
        trial = watched.trial(7)
        trial.trial_id = f"attempt-{attempt}"  # each attempt is a new trial of Tune's
        watched.pass_time(FIRST_SECONDS * 2**attempt - 5, trial)
        assert len(watched.killed) == attempt
        watched.pass_time(10, trial)
        assert len(watched.killed) == attempt + 1


def test_a_resumed_trial_gets_the_time_of_a_start_and_of_its_epochs(watched: Watched) -> None:
    """Its first result, after two seconds, only repeats the two epochs of 20 min that its checkpoint holds."""
    trial = watched.trial(7)
    report(trial, 1, 2.0, (1200.0, 1100.0), has_trained=False)
    watched.pass_time(EPOCHS * 1200, trial)
    assert watched.killed == []
    watched.pass_time(10, trial)
    assert watched.killed == [7]
    quick = watched.trial(8)
    report(quick, 1, 2.0, (1.0,), has_trained=False)
    watched.pass_time(FIRST_SECONDS - 5, quick)
    assert watched.killed == [7], "it may have to wait for a teacher"
    report(quick, 2, 1900.0, (1.0,))
    watched.pass_time(EPOCHS * 1900 - 5, quick)
    assert watched.killed == [7]


def test_a_pause_of_the_driver_is_no_silence_of_its_workers(watched: Watched) -> None:
    trial = watched.trial(1)
    report(trial, 1, 1.0)
    watched.pass_time(10, trial)
    watched.now += 10_000  # the disk was away
    watched.pass_time(SHORTEST_SECONDS - 30, trial)
    assert watched.killed == []


def test_workers_of_drained_nodes_are_asked_once_to_leave(watched: Watched) -> None:
    trials = watched.trial(1), watched.trial(2)
    watched.pass_time(5, *trials)
    assert watched.left == []
    watched.drained = {"node"}
    watched.pass_time(20, *trials)
    assert watched.left == ["1", "2"]


def test_a_worker_that_leaves_saves_its_trial_and_takes_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = list[float]()
    monkeypatch.setenv("FAKE_SPARSE", "")
    patch_within(monkeypatch, node_disk, time, sleep=pauses.append)
    worker = worker_for(job(tmp_path) | {"rungs": []})
    assert epochs_of(worker.step()) == [1] and not list(tmp_path.rglob("last.pt"))
    worker.leave()
    result = worker.step()
    assert result["cause"] == "leaving" and result["error"].endswith(" is being drained; its trials move")
    assert list(tmp_path.rglob("last.pt")) and pauses == []
    again = worker.step()
    assert (again["cause"], again["error"]) == ("leaving", "") and pauses == [1], "one line is enough"
    successor = worker_for(job(tmp_path))
    repeated, trained = successor.step(), successor.step()
    assert epochs_of(repeated) == [1] and not repeated["has_trained"], "from the checkpoint"
    assert epochs_of(trained) == [2] and trained["has_trained"]
    successor.cleanup()


def test_only_workers_of_ray_are_killed() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        kill_worker(process.pid)
        time.sleep(0.2)
        assert process.poll() is None
        worker = subprocess.Popen(["bash", "-c", "exec -a ray::step sleep 60"])
        os.kill(worker.pid, signal.SIGSTOP)
        while not Path(f"/proc/{worker.pid}/cmdline").read_bytes().startswith(b"ray::"):
            os.kill(worker.pid, signal.SIGCONT)
            time.sleep(0.05)
        os.kill(worker.pid, signal.SIGSTOP)
        kill_worker(worker.pid)
        assert worker.wait(timeout=10) == -signal.SIGKILL
        kill_worker(worker.pid)  # it is gone
    finally:
        process.kill()
        process.wait()


# --- deaths and lost nodes ---


def deaths_on(allowed: int, lost: Callable[[], set[str]]) -> Deaths:
    deaths = Deaths(allowed)
    deaths.node_of, deaths.lost_nodes = lambda trial_id: trial_id, lost
    return deaths


def test_lost_nodes_are_no_deaths_of_a_worker() -> None:
    lost: set[str] = set()
    deaths = deaths_on(2, lambda: lost)
    assert deaths.add(5, "a") == ""
    lost |= {"a", "b", "c"}
    assert [deaths.add(5, node) for node in ("b", "c", "d", "d")] == [""] * 4
    assert deaths.add(5, "d") == "its worker process died 3 times (out of memory?), and 3 times its node was lost"
    assert deaths.add(6, "d") == "", "each trial has its own count"


def test_a_node_that_is_known_to_be_lost_later_is_counted_as_lost_then() -> None:
    lost: set[str] = set()
    deaths = deaths_on(1, lambda: lost)
    assert deaths.add(5, "a") == ""
    lost.add("a")
    assert deaths.add(5, "b") == "" and "died 2 times" in deaths.add(5, "b")


def test_no_trial_is_tried_for_ever() -> None:
    deaths = deaths_on(3, lambda: {"a"})
    reasons = [deaths.add(5, "a") for _ in range(MAX_LOST_NODES + 1)]
    assert set(reasons[:-1]) == {""} and reasons[-1] == f"its node was lost {MAX_LOST_NODES + 1} times"
