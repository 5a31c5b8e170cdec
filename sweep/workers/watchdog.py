"""Watches the workers of running trials: ends those that hang, and lets those leave whose node is being drained.

A process that is stopped or deadlocked dies neither by itself nor by `ray.kill` (2.60), which asks the process to end.
A task on its node kills it with SIGKILL; Ray then frees its place, and the search hands its trial out again.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray

# Ray (2.60) documents no function that returns the node and the process of an actor, nor one for nodes being drained.
from ray._private import state as ray_state
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # a compiled module
from ray.exceptions import RayError
from ray.tune.experiment import Trial
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweep.patience import shown_duration

EPOCHS: Final = 5.0  # a trial hangs if it has not reported for so many of its longest epochs, ...
# ... and for so long: after the last epoch come all scores, the export of the student, and copies to a slow storage
SHORTEST_SECONDS: Final = 600.0
# or for so long before its worker has trained an epoch: it imports libraries, waits for teachers, and compiles. Each
# time a trial is ended before that, it gets twice the time, so that a slow start is no endless loop.
FIRST_SECONDS: Final = 3600.0
LOOK_SECONDS: Final = 5.0  # seconds between two looks
LONGEST_STEP: Final = 15.0  # if the driver itself paused for longer between two looks, the pause does not count


@dataclass
class _Watched:
    """A running trial.

    Attributes:
        results: the number of results of its worker so far.
        has_trained: whether its worker has trained an epoch. The first result of a resumed trial only repeats what its
            checkpoint holds.
        longest: seconds of its longest epoch or step.
        silent: seconds since its last result, or since it began.
    """

    node: str
    process: int
    results: int = 0
    has_trained: bool = False
    longest: float = 0.0
    silent: float = 0.0


class Watchdog:
    """Looks at all running trials from time to time.

    Args:
        warn: function that shows a line to the user.
    """

    def __init__(self, warn: Callable[[str], None]):
        self._warn = warn
        self._watched: dict[tuple[str, str], _Watched] = {}  # by the ids of trial and worker
        self._nodes: dict[str, str] = {}  # the node of each trial, by the trial's id
        self._slow_starts: Counter[int] = Counter()  # how often a trial was ended before its first report, by number
        self._leaving: set[str] = set()  # ids of the workers that were asked to leave
        self._looked_at = time.monotonic()

    def look(self, trials: Iterable[Trial]) -> None:
        """Ends workers that hang, and asks workers to leave whose node is being drained. Does nothing if it has looked
        within LOOK_SECONDS.
        """
        elapsed = time.monotonic() - self._looked_at
        if elapsed < LOOK_SECONDS:
            return
        self._looked_at += elapsed
        watched = dict[tuple[str, str], _Watched]()
        for trial in trials:
            worker = trial.temporary_state.ray_actor
            if trial.status != Trial.RUNNING or worker is None:
                continue
            key = trial.trial_id, worker._actor_id.hex()
            entry = self._watched.get(key) or _located(key[1])
            if entry is not None:
                watched[key] = entry
                self._nodes[trial.trial_id] = entry.node
                self._judge(trial, entry, min(elapsed, LONGEST_STEP))
        self._watched = watched
        self._let_leave(trials)

    def node_of(self, trial_id: str) -> str:
        """Returns the id of the node on which a trial runs or ran. It is empty if the trial was never seen."""
        return self._nodes.get(trial_id, "")

    def _judge(self, trial: Trial, entry: _Watched, elapsed: float) -> None:
        result = trial.run_metadata.last_result or {}
        if (results := result.get("iterations_since_restore", 0)) != entry.results:
            epochs = [report["seconds"] for report in result.get("reports", ())]
            entry.longest = max(entry.longest, result.get("time_this_iter_s", 0.0), *epochs)
            entry.has_trained = entry.has_trained or result.get("has_trained", False)
            entry.results, entry.silent = results, 0.0
            return
        entry.silent += elapsed
        number = trial.config["number"]
        shortest = SHORTEST_SECONDS if entry.has_trained else FIRST_SECONDS * 2 ** self._slow_starts[number]
        allowed = max(EPOCHS * entry.longest, shortest)
        if entry.silent < allowed:
            return
        self._slow_starts[number] += not entry.has_trained
        entry.silent = 0.0  # if the kill does not come through, it is tried again after the same time
        timing = f"its longest epoch took {shown_duration(entry.longest)}" if results else "since it began"
        self._warn(
            f"trial {number} has not reported for {shown_duration(allowed)} ({timing}); its worker is ended, and the "
            "trial is continued from its last checkpoint"
        )
        _kill_on(entry.node, entry.process)

    def _let_leave(self, trials: Iterable[Trial]) -> None:
        """Asks workers on nodes that are being drained to save their trials and hand them back."""
        draining = draining_nodes()
        for trial in trials if draining else ():
            worker = trial.temporary_state.ray_actor
            if worker is None or self.node_of(trial.trial_id) not in draining:
                continue
            if (worker_id := worker._actor_id.hex()) not in self._leaving:
                self._leaving.add(worker_id)
                worker.leave.remote()  # runs after the current epoch


def lost_nodes() -> set[str]:
    """Returns the ids of the nodes that Ray has lost."""
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


def draining_nodes() -> set[str]:
    """Returns the ids of the nodes that are about to be taken away (`ray drain-node`). There are none while the head
    does not answer; it is asked again at the next look.
    """
    try:
        client = GcsClient(address=ray.get_runtime_context().gcs_address)
        return set(client.get_draining_nodes(timeout=LOOK_SECONDS))
    except (RayError, OSError):
        return set()


def kill_worker(process: int) -> None:
    """Kills a Ray worker on the machine on which this runs, if the process still is one."""
    command = Path(f"/proc/{process}/cmdline")
    if command.exists() and command.read_bytes().startswith(b"ray::"):
        os.kill(process, signal.SIGKILL)


def _kill_on(node: str, process: int) -> None:
    """Kills a worker on its node."""
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    ray.remote(kill_worker).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy).remote(process)


def _located(worker: str) -> _Watched | None:
    """Returns an entry with node and process of a worker, or None if Ray does not know them yet."""
    facts: dict[str, Any] = ray_state.actors(worker)
    node, process = facts.get("Address", {}).get("NodeID", ""), facts.get("Pid", 0)
    return _Watched(node, process) if node and process else None
