"""A training of trivial arithmetic, and spaces for it: the engine is tested without torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpkd.config import TrialConfig
from mmpkd.types import ConfigError, DivergedError, EpochReport, TeacherError
from sweep.transfer.addresses import place
from sweep.types import Job, Places
from sweep.workers.worker import TrainingFunctions

if TYPE_CHECKING:
    from sweep.search.searcher import Search

SPACE = """
cohort: {reader: synthetic}
optimizer: {lr: {log_uniform: [1e-4, 1e-1]}, weight_decay: {uniform: [0.2, 1]}}
epochs: 4
arms:
  none: {}
  tabular:
    teachers: {findings: {kind: tabular}}
    objectives:
      one_of:
        soft: {logits: {weight: {log_uniform: [0.1, 10]}, params: {temperature: {log_uniform: [1, 10]}}}}
        near: {features: {weight: {log_uniform: [0.1, 10]}, params: {layer: 1}}}
search: {maximize: [val/auroc, val/pointing], trials: 8, early_stopping: false}
"""


def metrics_of(config: TrialConfig, epoch: int) -> dict[str, float]:
    """Two goals that pull apart over lr, and grow with the epochs."""
    share = epoch / config.epochs
    auroc = 0.5 + 0.4 * share * (1 - config.optimizer.lr)
    pointing = 0.1 + share * config.optimizer.lr + 0.01 * len(config.objectives)
    known = {"val/pointing_chance": 0.0625, "val/pointing_centre": 0.125}
    return {"val/auroc": auroc, "val/auroc_se": 0.02, "val/pointing": pointing, "val/pointing_se": 0.03, **known}


def run_training(job: Job, folder: Path, resume: Path | None, report: Callable[[EpochReport], None]) -> None:
    """Waits `FAKE_SECONDS` per epoch, and saves every epoch. With `FAKE_SPARSE` it saves only rungs, the last epoch,
    and the one after which it is stopped. In epoch 2 a weight decay below 0.05 diverges, one below 0.1 meets a bug, and
    one below 0.2 ends its process, the first time."""
    config, store = TrialConfig.model_validate_json(job["trial"]), Path(job["store"])
    assert store.name == "store", "where the driver has prepared it"
    history = [] if resume is None else read_history(resume)
    decay = config.optimizer.weight_decay
    if node := os.environ.get("TEST_NODE"):  # a cluster of `tests.sweep.nodes`
        with (Path(job["folder"]) / "nodes.txt").open("a") as log:  # the attempt may lie on the disk of the node
            log.write(f"{node} {os.getpid()}\n")

    def save() -> None:
        partial = folder / "last.partial"
        reports = [[past.epoch, past.step, past.seconds, past.terms, past.metrics] for past in history]
        partial.write_text(json.dumps([checkpoint_owner(config, store), reports]))
        os.replace(partial, folder / "last.pt")

    for epoch in range(len(history) + 1, config.epochs + 1):
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
        if epoch == 2 and decay < 0.05:
            raise DivergedError("term task is nan at step 7")
        if epoch == 2 and decay < 0.1:
            raise ValueError("a bug")
        if epoch == 2 and decay < 0.2 and folder.name == "attempt-1":
            os._exit(1)
        history.append(EpochReport(epoch, epoch * 10, 0.5, {"task": 1 / epoch}, metrics_of(config, epoch)))
        is_saved = epoch in {*job["rungs"], config.epochs} or "FAKE_SPARSE" not in os.environ
        if is_saved:
            save()
        with (Path(job["folder"]) / "trained.txt").open("a") as log:  # the epochs that were really trained
            log.write(f"{folder.parent.name} {folder.name} {epoch}\n")
        try:
            report(history[-1])
        except BaseException:
            if not is_saved:
                save()
            raise


def checkpoint_owner(config: TrialConfig, store: Path) -> str:
    return config.fingerprint()


def read_history(checkpoint: Path, owner: str = "") -> list[EpochReport]:
    try:
        written_owner, reports = json.loads(checkpoint.read_text())
    except (OSError, ValueError):
        raise ConfigError.at(str(checkpoint), "is damaged") from None
    if owner and written_owner != owner:
        raise ConfigError.at(str(checkpoint), "belongs to another configuration")
    return [EpochReport(*values) for values in reports]


def fit_in_a_file(places: Places, name: str, teacher: Any, fold: int, threads: int) -> list[str]:
    """Notes the name of a teacher as fitted, and fails for one teacher."""
    with (Path(places["folder"]) / "fits.txt").open("a") as log:
        log.write(f"{name}\n")
    if name == "fixed/findings":
        raise TeacherError("too few patients")
    return []


FAKE_TRAINING = TrainingFunctions(run_training, checkpoint_owner, read_history)


# --- Ray Tune's part, for tests without it ---


def report(job: dict[str, Any], epoch: int, seconds: float = 0.5) -> dict[str, Any]:
    metrics = metrics_of(TrialConfig.model_validate_json(job["trial"]), epoch)
    return {"epoch": epoch, "step": epoch, "seconds": seconds, "terms": {"task": 1.0}, "metrics": metrics}


def play(search: Search, trial_id: str, job: dict[str, Any], epochs: int = 4, seconds: float = 0.5) -> None:
    """Tune's part: results while the trial goes on, completion with the last one."""
    place(job["folder"]).child(f"checkpoints/{job['number']}/attempt-1/last.pt").write_bytes(b"")
    for epoch in range(1, epochs):
        search.on_trial_result(trial_id, {"reports": [report(job, epoch, seconds)]})
    search.on_trial_complete(trial_id, {"reports": [report(job, epochs, seconds)]})


def play_all(search: Search, **options: Any) -> list[dict[str, Any]]:
    jobs = []
    while isinstance(job := search.suggest(f"id-{search.state.next_number}-{len(jobs)}"), dict):
        (trial_id,) = search.running
        play(search, trial_id, job, **options)
        jobs.append(job)
    assert job == "FINISHED"
    return jobs
