"""What a trial reserves of a cluster, and Ray Tune's loop around the search."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import ray
from ray import tune

from mmpkd.machine.resources import cores
from mmpkd.types import ConfigError
from sweep import interrupt
from sweep.cluster import address
from sweep.search.halving import ArmHalving
from sweep.search.searcher import Search
from sweep.space.space import SearchConfig
from sweep.types import Halt
from sweep.workers.worker import TrialWorker

STOP_FILE: Final = "stop"  # in a sweep's folder: `python -m sweep.stop` puts it there


@dataclass(frozen=True)
class Share:
    """What of a cluster one trial reserves."""

    cpus: float
    gpus: float

    @property
    def devices(self) -> float:
        """What a second of the trial costs in device-seconds."""
        return self.gpus or self.cpus

    def doubled(self) -> Share | None:
        """Half as many trials to a device; None if it has only one."""
        if self.gpus:
            at_a_time = int(1 / self.gpus + 1e-9)
            return replace(self, gpus=1 / (at_a_time // 2)) if at_a_time > 1 else None
        cores = cores_of_a_machine()
        at_a_time = int(cores / self.cpus + 1e-9)
        return replace(self, cpus=cores / (at_a_time // 2)) if at_a_time > 1 else None


def share_of(search: SearchConfig, threads: int, per_device: int | None) -> Share:
    """What a trial reserves; `per_device` trials share a GPU or, where there is none, a machine's cores."""
    if per_device is None:
        return Share(search.cpus or float(threads), search.gpus)
    if idle_gpus():
        return Share(search.cpus or float(threads), 1 / per_device)
    return Share(cores_of_a_machine() / per_device, 0.0)


def cores_of_a_machine() -> float:
    """Of the largest in the cluster."""
    return max((float(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=1.0)


def slots(share: Share) -> int:
    """How many trials run at a time.

    Raises:
        ConfigError: not even one fits.
    """
    have = ray.cluster_resources()
    needs = [("CPU", share.cpus), ("GPU", share.gpus)]
    fitting = [int(have.get(name, 0.0) / wanted + 1e-9) for name, wanted in needs if wanted]
    if min(fitting) == 0 and not address():  # a cluster may grow
        if fitting[0] == 0:
            raise _too_few_cores(share.cpus, "search.cpus")
        found = f"{have.get('GPU', 0):g} GPUs are here"
        raise ConfigError.at("search.gpus", f"a trial wants {share.gpus:g} GPUs, and {found}; set search.gpus=...")
    return max(min(fitting), 1)


def refuse_more_cores(search: SearchConfig, threads: int) -> None:
    """
    Raises:
        ConfigError: a trial would reserve more cores than this process may use; how many these are, and why.
    """
    if address() or search.trials_per_device is not None:  # a cluster keeps its own count
        return
    if (search.cpus or threads) > cores().amount:
        raise _too_few_cores(search.cpus or threads, "search.cpus" if search.cpus else "threads")


def _too_few_cores(wanted: float, leaf: str) -> ConfigError:
    here = cores()
    return ConfigError.at(
        leaf,
        f"a trial wants {wanted:g} cores, and the sweep may use {here.amount} here (what sets this: {here.source}); "
        f"set {leaf}={here.amount}, or start the sweep with more cores",
    )


def idle_gpus() -> int:
    """GPUs that Ray has seen."""
    return int(ray.cluster_resources().get("GPU", 0))


class Heartbeat(tune.Callback):
    """Lets the display move while nothing happens, and the search see clock, stop file and a growing cluster."""

    def __init__(self, search: Search, share: Share, stop_file: Path):
        self._search, self._share, self._stop_file = search, share, stop_file
        self._next_look = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as the search: pickled by Tune, and never wanted back

    def setup(self, *ignored: Any, **info: Any) -> None:
        interrupt.take_signals()  # Tune has just put in a handler of its own for SIGUSR1 (2.60)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if interrupt.requested():  # here nothing is half written, and waiting for an epoch's end would take too long
            raise KeyboardInterrupt
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + 1
        self._search.most_live = slots(self._share) + 1
        self._search.look()
        if self._stop_file.exists() and self._search.halt is None:
            self._search.halt = Halt("requested", "asked to stop by sweep.stop")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._search.changed()


class Halted(tune.Stopper):
    """Ends Tune's loop when the search has halted. Tune tells the search nothing of the trials that it
    stops then, so they stay running in the storage (2.60)."""

    def __init__(self, search: Search):
        self._search = search

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._search.halt is not None

    def __getstate__(self) -> dict[str, Any]:
        return {}


def drive(search: Search, worker: type[TrialWorker], halving: ArmHalving | None, share: Share, folder: Path) -> None:
    """Runs trials until the search has none left or halts.

    Tune wants a folder for snapshots, which we never restore from; it goes with the end of the run.

    Raises:
        Exception: what broke the search.
        KeyboardInterrupt: the driver was asked to end. Trials that train then end with Ray, and stay 'running' in the
            storage, to be continued.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # Tune would start one worker after the other; how far ahead to ask is the search's to say.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots(share))
    scratch = folder / "ray"
    shutil.rmtree(scratch, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(worker, {"cpu": share.cpus, "gpu": share.gpus}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=halving,
            num_samples=-1,  # until the search says that it is finished
            reuse_actors=True,
            trial_name_creator=lambda trial: f"trial-{trial.config['number']}",
            trial_dirname_creator=lambda trial: f"trial-{trial.config['number']}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=scratch.name,
            storage_path=str(folder),
            verbose=0,
            callbacks=[Heartbeat(search, share, folder / STOP_FILE)],
            stop=Halted(search),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=0),  # the search hands a lost trial out again
        ),
    )
    try:
        with interrupt.deferred():
            tuner.fit()
    finally:
        search.release()
        shutil.rmtree(scratch, ignore_errors=True)
        if search.broken is not None:
            raise search.broken
