"""Trivial trials for the engine's benchmarks: a space, what trains in it, sweeps that have finished many,
and what is noted while they run."""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from ray import tune

from benchmarks.witness import descendants
from mmpkd.config import CohortConfig, TrialConfig
from mmpkd.machine.checksums import fingerprint
from mmpkd.machine.files import write_atomically
from mmpkd.types import EpochReport
from sweep.options import RunOptions, read_run_options
from sweep.search.choosers import OptunaChooser
from sweep.search.proposals import ArmSampler
from sweep.search.studies import Studies
from sweep.space.draw import draw
from sweep.space.space import Space, dump_space, load_space
from sweep.storage.events import EpochEnded, Spool, SweepBegan, TrialEnded, TrialStarted
from sweep.types import Arrival, Ending, Job
from sweep.workers.worker import TrainingFunctions

SPACE: Final = """
cohort: {reader: synthetic}
student: {drop_path_rate: {uniform: [0, 0.3]}}
optimizer:
  lr: {log_uniform: [1e-5, 1e-3]}
  weight_decay: {log_uniform: [1e-3, 0.3]}
  label_smoothing: {maybe: {uniform: [0.01, 0.2]}}
epochs: 2
arms:
  none: {}
  tabular:
    teachers: {findings: {kind: tabular}}
    objectives:
      one_of:
        logits: {logits: {weight: {log_uniform: [0.05, 20]}, params: {temperature: {log_uniform: [1, 10]}}}}
        features: {features: {weight: {log_uniform: [0.05, 20]}, params: {layer: {int: [3, 11]}}}}
search: {maximize: [val/auroc, val/pointing], early_stopping: {reduction: 2}, cpus: 1}
"""
GOALS: Final = ("val/auroc", "val/pointing")

SKIPPED: Final = 10  # trials at the beginning, not counted: workers start, MLflow is imported


def metrics_of(lr: float, weight_decay: float, epoch: int, noise: random.Random) -> dict[str, float]:
    """Two goals that pull apart over lr, and what else an epoch reports."""
    pull = (lr / 1e-3) ** 0.3
    auroc = 0.5 + 0.1 * epoch * (1 - pull) + noise.gauss(0, 0.02)
    pointing = 0.1 * epoch * pull - 0.1 * weight_decay + 0.2 + noise.gauss(0, 0.02)
    return {"val/auroc": auroc, "val/pointing": pointing, **{f"val/more/{one}": noise.random() for one in range(10)}}


def run_training(job: Job, folder: Path, resume: Path | None, report: Callable[[EpochReport], None]) -> None:
    config = TrialConfig.model_validate_json(job["trial"])
    noise = random.Random(config.fingerprint())
    for epoch in range(1, config.epochs + 1):
        metrics = metrics_of(config.optimizer.lr, config.optimizer.weight_decay, epoch, noise)
        report(EpochReport(epoch, epoch, 0.01, {"task": 1.0, "made": time.time()}, metrics))


def trivial_functions() -> Any:
    """Returns functions that prepare no cohort, find no column that gives labels away, and time nothing."""
    from sweep.driver import SweepFunctions  # workers import this file, and need no driver

    def prepare(config: CohortConfig, cache: Path) -> Any:
        return SimpleNamespace(path=cache / "store", fingerprint="none", num_folds=4)

    return SweepFunctions(prepare, lambda *_: [], lambda *_: None, TrainingFunctions(run_training))


class Plain(tune.Trainable):  # type: ignore[misc]
    """The same for Ray Tune alone."""

    def setup(self, config: dict[str, Any]) -> None:
        self._epoch, self._noise = 0, random.Random(json.dumps(config, sort_keys=True))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        self._epoch += 1
        optimizer = self.config["optimizer"]
        metrics = metrics_of(optimizer["lr"], optimizer["weight_decay"], self._epoch, self._noise)
        return {"epoch": self._epoch, "done": self._epoch == 2, "task": 1.0, **metrics, "made": time.time()}


class Asking:
    """The space as OptunaSearch takes it: the arm is one more choice."""

    def __init__(self, space: Space):
        self._space = space

    def __call__(self, trial: Any) -> dict[str, Any]:
        arm = trial.suggest_categorical("arm", list(self._space.arms))
        return draw(self._space.arms[arm], OptunaChooser(trial), arm).config


def words_of(place: Path, *overrides: str) -> tuple[RunOptions, Space]:
    (place / "overhead.yaml").write_text(SPACE)
    tracking = f"tracking=sqlite:///{place / 'mlflow.db'}"
    options, mistakes = read_run_options([f"space={place / 'overhead.yaml'}", f"storage={place}", tracking, *overrides])
    space, found = load_space(options.space, options.overrides)
    assert space is not None and not mistakes and not found, found
    return options, space


def begin_after(history: int, space: Space, options: RunOptions, noise: random.Random) -> None:
    """Leaves the folder of a sweep that has finished so many trials, told to MLflow as far as it knows."""
    options.folder.path.mkdir(parents=True)
    spool = Spool(options.folder)
    spool.append(SweepBegan(id="overhead", words=[]))
    write_atomically(options.folder.space, dump_space(space))
    studies = Studies(options.folder, space, GOALS)
    at_random = replace(space, search=space.search.model_copy(update={"sampler": "random"}))
    samplers = {arm: ArmSampler(at_random, arm, GOALS) for arm in space.arms}
    for number in range(history):
        proposal = samplers[list(samplers)[number % len(samplers)]].propose(number)
        assert proposal is not None
        arm, optimizer = proposal.arm, proposal.config.optimizer
        reported = [metrics_of(optimizer.lr, optimizer.weight_decay, epoch, noise) for epoch in (1, 2)]
        values = [tuple(one[goal] for goal in GOALS) for one in reported]
        goes_on = noise.random() < 0.5
        epochs, state = (2, "complete") if goes_on else (1, "pruned")
        studies.start(number, proposal, proposal.config)
        spool.append(TrialStarted(number=number, arm=arm, params={}, tags={}, devices=1.0))
        for epoch in range(1, epochs + 1):
            said_of = {"seconds": 0.01, "metrics": reported[epoch - 1], "terms": {"task": 1.0}}
            spool.append(EpochEnded(number=number, arm=arm, devices=1.0, epoch=epoch, **said_of))
        studies.record_arrival(Arrival(number, arm, 1, values[0], goes_on))
        spent = 0.01 * epochs
        ending = Ending(state, epochs, spent, spent, reported[epochs - 1], learned=None if goes_on else values[1])
        studies.end(number, ending)
        spool.append(TrialEnded(number=number, state=state, error="", cause=""))
    options.folder.spool_sent.write_text(f"{spool.path.stat().st_size} {fingerprint(options.tracking_uri)}\n")


# --- what is noted ---


@dataclass
class Watched:
    """What is noted while a sweep of either kind runs, from the end of the trial SKIPPED on."""

    ends: list[tuple[float, float, float]] = field(default_factory=list)  # clock, CPU of driver, of workers
    delays: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    proposals: list[float] = field(default_factory=list)
    once: dict[str, float] = field(default_factory=dict)  # what happens once
    workers: dict[int, float] = field(default_factory=dict)  # process id -> CPU seconds, the last if it has ended
    running: set[str] = field(default_factory=set)  # trials
    held_up: int = 0  # proposals that the loop waited for while trials ran

    def end(self) -> None:
        if len(self.ends) == SKIPPED - 1:
            self.workers = {pid: 0.0 for pid, command in descendants(os.getpid()) if command.startswith("ray::")}
            for values in (self.delays, self.waits, self.proposals):
                values.clear()
            self.held_up = 0
        self.workers = {pid: max(before, cpu_seconds(pid)) for pid, before in self.workers.items()}
        self.ends.append((time.perf_counter(), time.process_time(), sum(self.workers.values())))

    def figures(self) -> dict[str, float]:
        first, last = self.ends[SKIPPED - 1], self.ends[-1]
        trials = len(self.ends) - SKIPPED
        wall, driver, workers = ((end - begin) / trials for begin, end in zip(first, last, strict=True))
        found = {
            "trials": trials,
            "held_up": self.held_up,
            "wall": wall,
            "driver_cpu": driver,
            "workers_cpu": workers,
            **self.once,
        }
        for name, values in (("delay", self.delays), ("wait", self.waits), ("proposal", self.proposals)):
            found |= {f"{name}_median": statistics.median(values or [0]), f"{name}_longest": max(values, default=0)}
        return found


def cpu_seconds(pid: int) -> float:
    try:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except FileNotFoundError:
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def timed(owner: type, name: str, done: Callable[..., None]) -> Iterator[None]:
    """For as long as it lasts, `done` hears of every call: its seconds, what it gave, its arguments."""
    original = getattr(owner, name)

    def wrapped(self: Any, *args: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        given = original(self, *args, **options)
        done(time.perf_counter() - begun, given, *args, **options)
        return given

    setattr(owner, name, wrapped)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def observed(searcher: type, watched: Watched, made: Callable[[Any], float]) -> Iterator[None]:
    """Notes waits, delays and ends of a searcher of Ray Tune's; `made` finds in a result when it was made."""
    heard: set[float] = set()

    def suggested(seconds: float, given: Any, trial_id: str) -> None:
        if watched.running:
            watched.waits.append(seconds)
        if isinstance(given, dict):
            watched.running.add(trial_id)

    def result_heard(seconds: float, given: Any, trial_id: str, result: Any) -> None:
        if (at := made(result)) not in heard:  # of a stopped trial the last is told twice
            heard.add(at)
            watched.delays.append(time.time() - at)

    def completed(seconds: float, given: Any, trial_id: str, result: Any = None, error: bool = False) -> None:
        assert not error, "trivial trials do not fail"
        result_heard(seconds, given, trial_id, result)
        watched.running.discard(trial_id)
        watched.end()

    with ExitStack() as stack:
        for name, done in (
            ("suggest", suggested),
            ("on_trial_result", result_heard),
            ("on_trial_complete", completed),
        ):
            stack.enter_context(timed(searcher, name, done))
        yield
