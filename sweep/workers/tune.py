"""Runs Ray Tune's loop, which asks the searcher for trials and runs each trial in a worker."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from sweep import interrupt
from sweep.cluster import Reservation, configured_growth, trials_at_a_time
from sweep.storage.failures import Deaths
from sweep.storage.layout import SweepFolder
from sweep.types import Halt, Placement
from sweep.workers.controller import SlotController, controller_made_by
from sweep.workers.watchdog import Watchdog, lost_nodes
from sweep.workers.worker import TrainingFunctions, TrialWorker

REQUESTS: Final = 10**6  # so many requests may wait at a time for Tune; the search itself has a lower limit
SAVE_SECONDS: Final = 2.0  # time in which trials may end and save their epochs once the driver is asked to end


class HaltableSearch(Protocol):
    """Interface of a Ray Tune searcher that decides itself when the sweep halts. `sweep.search.searcher.Search`
    implements it.
    """

    halt: Halt | None
    error: Exception | None  # the exception that broke the search
    max_running: int  # number of trials that may be open at a time
    placement: Placement
    deaths: Deaths
    warnings: list[str]  # lines that the display shows
    on_change: Callable[[], None]

    @property
    def has_more(self) -> bool:
        """Whether it has trials that it has not handed out."""

    def check_limits(self) -> None:
        """Halts the search if the budget is spent or the deadline has passed."""

    def release_running(self) -> None:
        """Tells the search that no trial runs any more."""


def run_tune(
    search: HaltableSearch,
    scheduler: TrialScheduler | None,
    functions: TrainingFunctions,
    reservation: Reservation,
    folder: SweepFolder,
    at_a_time: int | None = None,
) -> None:
    """Runs trials until the search has none left or halts.

    Tune needs a folder for snapshots. Nothing is restored from these snapshots, and the folder, a temporary one on the
    driver's machine, is deleted at the end.

    Args:
        scheduler: scheduler that decides after each epoch which trials go on. If None, all trials go on.
        reservation: the cores and the share of a GPU that each trial reserves.
        at_a_time: number of trials that may be requested at once; see `trials_at_a_time`.

    Raises:
        Exception: the exception that broke the search.
        KeyboardInterrupt: the driver was asked to end. Running trials are saved if their epochs are short, end with
            Ray, stay 'running' in the storage, and are continued by the next driver.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # Without this, Tune would start workers one by one, and a cluster would grow machine by machine.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(REQUESTS)
    heartbeat = Heartbeat(search, reservation, folder.stop_request, at_a_time)
    scratch = Path(tempfile.mkdtemp(prefix="tune-"))  # not in the sweep's folder, whose disk may be away for a while
    worker = tune.with_parameters(TrialWorker, functions=functions, gpus=reservation.gpus)
    tuner = tune.Tuner(
        tune.with_resources(worker, {"cpu": reservation.cpus, "gpu": reservation.gpus}),
        tune_config=tune.TuneConfig(
            search_alg=cast(Searcher, search),
            scheduler=scheduler,
            num_samples=-1,  # until the search says that it is finished
            reuse_actors=True,
            trial_name_creator=lambda trial: f"trial-{trial.config['number']}",
            trial_dirname_creator=lambda trial: f"trial-{trial.config['number']}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=scratch.name,
            storage_path=str(scratch.parent),
            verbose=0,
            callbacks=[heartbeat],
            stop=StopWhenHalted(search),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=0),  # the search itself repeats a trial whose worker died
        ),
    )
    try:
        with interrupt.deferred(), controller_made_by(heartbeat.make_controller):
            tuner.fit()
    finally:
        search.release_running()
        search.placement = Placement()
        shutil.rmtree(scratch, ignore_errors=True)
        if search.error is not None:
            raise search.error


class Heartbeat(tune.Callback):
    """Ray Tune callback that runs around every step of Tune's loop.

    It notes where the open trials are and updates the display. Once a second it checks the limits of the search, a
    request to stop, the size of the cluster, and whether workers hang.
    """

    def __init__(
        self, search: HaltableSearch, reservation: Reservation, stop_request: Path, at_a_time: int | None = None
    ):
        self._search, self._reservation, self._stop_request = search, reservation, stop_request
        self._at_a_time, self._growth = at_a_time, configured_growth()
        self._controller: SlotController | None = None
        self._watchdog = Watchdog(lambda line: search.warnings.append(line))
        search.deaths.node_of, search.deaths.lost_nodes = self._watchdog.node_of, lost_nodes
        self._next_check = 0.0
        self._machines: dict[str, str] = {}  # addresses of the cluster's machines, by the ids of their nodes

    def make_controller(self, **options: Any) -> SlotController:
        """Makes the controller of Tune's loop."""
        self._controller = SlotController(**options)
        self._controller.more_to_come = lambda: self._search.has_more
        return self._controller

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles this callback for its own restore, which is never used

    def setup(self, *ignored: Any, **info: Any) -> None:
        interrupt.install_handlers()  # Ray Tune (2.60) has just installed its own handler for SIGUSR1

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if interrupt.requested():  # no file is half-written at this point, and the current epoch may still take long
            save_trials(trials)
            raise KeyboardInterrupt
        if time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + 1
        self._search.max_running = trials_at_a_time(self._reservation, self._at_a_time, self._growth)
        self._search.check_limits()
        self._warn_of_lost_machines()
        self._watchdog.look(trials)
        if os.path.exists(self._stop_request) and self._search.halt is None:
            self._search.halt = Halt("requested", "asked to stop by sweep.stop")

    def _warn_of_lost_machines(self) -> None:
        machines = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        for node in self._machines.keys() - machines.keys():
            self._search.warnings.append(f"lost machine {self._machines[node]}; its trials are continued on others")
        self._machines = machines

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        assert self._controller is not None, "Tune's loop belongs to the controller that this callback has made"
        self._search.placement = self._controller.placement()
        self._search.on_change()


def save_trials(trials: Sequence[Trial]) -> None:
    """Ends running trials, each after its current epoch, so that their workers save them. Waits for SAVE_SECONDS at
    most.

    A trial whose last epoch took longer than that is not waited for. It loses the epochs since its last checkpoint.
    """
    stops: list[Any] = [
        actor.stop.remote()
        for trial in trials
        if (actor := trial.temporary_state.ray_actor) is not None
        and trial.status == Trial.RUNNING
        and trial.run_metadata.last_result.get("time_this_iter_s", SAVE_SECONDS + 1) <= SAVE_SECONDS
    ]
    if stops:
        ray.wait(stops, num_returns=len(stops), timeout=SAVE_SECONDS)


class StopWhenHalted(tune.Stopper):
    """Ends Tune's loop when the search has halted.

    Ray Tune (2.60) does not tell the search about trials that it stops in this way, so the trials stay 'running' in the
    storage.
    """

    def __init__(self, search: HaltableSearch):
        self._search = search

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._search.halt is not None

    def __getstate__(self) -> dict[str, Any]:
        return {}
