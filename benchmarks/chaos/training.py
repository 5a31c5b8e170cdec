"""The trainings of the fault campaign: they wait, save real checkpoint files with all epochs inside, resume from
them, and fail when they are ordered to. Workers import this module, which needs no torch."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Final

from mmpkd.config import TrialConfig
from mmpkd.machine.checksums import DamagedError, sealed, unsealed
from mmpkd.machine.files import write_atomically
from mmpkd.types import ConfigError, DivergedError, EpochReport
from sweep.transfer import checkpoints
from sweep.types import PlacedJob
from sweep.workers.worker import TrainingFunctions

ORDERS: Final = "CHAOS_ORDERS"  # environment variable: folder of the orders
SECONDS: Final = "CHAOS_SECONDS"  # environment variable: how long an epoch takes
RAISE, NAN = "raise", "nan"  # orders: the file ORDER-NUMBER makes a trial fail in every epoch from then on
HOLD: Final = "hold"  # orders: while this file is there, only the trials that it lists go on at their own pace
# Longest time that an epoch of the other trials takes then. A worker counts as hung after 100 s without a report.
SLOW_SECONDS: Final = 30.0
HOLD_SECONDS: Final = 80.0  # ... if it may be the last epoch of the trial
COPY_SECONDS: Final = (
    3.0  # between copies of a checkpoint to the storage, as the trainings last seconds instead of hours
)
WEIGHTS: Final = 100_000  # bytes that stand for a student's weights in a checkpoint

SPACE: Final = """
cohort: {reader: synthetic}
optimizer: {lr: {log_uniform: [1e-4, 1e-1]}, weight_decay: {uniform: [0.2, 1]}}
epochs: 20
arms:
  none: {}
  tabular: {teachers: {findings: {kind: tabular}}, objectives: {logits: {}}}
search: {maximize: [val/auroc, val/pointing], sampler: random, cpus: 1}
"""


def metrics_of(config: TrialConfig, epoch: int) -> dict[str, float]:
    """Two goals that pull apart over lr, with noise that an epoch trained again repeats."""
    noise, share = random.Random(f"{config.fingerprint()} {epoch}"), epoch / config.epochs
    auroc = 0.5 + 0.4 * share * (1 - config.optimizer.lr) + noise.gauss(0, 0.02)
    return {"val/auroc": auroc, "val/pointing": 0.1 + share * config.optimizer.lr + noise.gauss(0, 0.02)}


def run_training(job: PlacedJob, folder: Path, resume: Path | None, report: Callable[[EpochReport], None]) -> None:
    """Trains a trial and saves every epoch.

    Raises:
        ValueError: the trial is ordered to raise.
        DivergedError: the trial is ordered to diverge.
    """
    checkpoints.COPY_SECONDS = COPY_SECONDS  # type: ignore[misc]
    config, orders = TrialConfig.model_validate_json(job["trial"]), Path(os.environ[ORDERS])
    owner = checkpoint_owner(config, Path(job["store"]))
    history = [] if resume is None else read_history(resume, owner)
    for epoch in range(len(history) + 1, config.epochs + 1):
        began = time.time()
        time.sleep(float(os.environ[SECONDS]))
        longest = HOLD_SECONDS if epoch in (*job["rungs"], config.epochs) else SLOW_SECONDS
        while time.time() < began + longest and _is_held(orders, job["number"]):
            time.sleep(0.1)
        if (orders / f"{RAISE}-{job['number']}").exists():
            raise ValueError("ordered to raise")
        if (orders / f"{NAN}-{job['number']}").exists():
            raise DivergedError(f"term task is nan at step {10 * epoch}")
        seconds = time.time() - began
        history.append(EpochReport(epoch, 10 * epoch, seconds, {"task": 1 / epoch}, metrics_of(config, epoch)))
        reports = [astuple(past)[:5] for past in history]
        content = {"owner": owner, "reports": reports, "weights": random.Random(epoch).randbytes(WEIGHTS // 2).hex()}
        write_atomically(folder / "last.pt", sealed(content))
        report(history[-1])


def _is_held(orders: Path, number: int) -> bool:
    try:
        return str(number) not in (orders / HOLD).read_text().split()
    except FileNotFoundError:
        return False


def checkpoint_owner(config: TrialConfig, store: Path) -> str:
    return config.fingerprint()


def read_history(checkpoint: Path, owner: str = "") -> list[EpochReport]:
    try:
        content = unsealed(checkpoint.read_bytes())
    except OSError as error:
        raise ConfigError.at(str(checkpoint), "cannot be read") from error
    except DamagedError:
        raise ConfigError.at(str(checkpoint), "is damaged") from None
    if owner and content["owner"] != owner:
        raise ConfigError.at(str(checkpoint), "belongs to another configuration")
    return [EpochReport(*values) for values in content["reports"]]


TRAINING: Final = TrainingFunctions(run_training, checkpoint_owner, read_history)
