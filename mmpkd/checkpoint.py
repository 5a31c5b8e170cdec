"""Writes and reads the checkpoint of a training, which is saved atomically after each epoch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mmpkd.config import TrialConfig
from mmpkd.fit import load_optimizer
from mmpkd.machine.checksums import DamagedError, fingerprint, require_whole_archive
from mmpkd.training.stages import VERSION
from mmpkd.types import ConfigError, EpochReport

NAME = "last.pt"
DELETE_ADVICE = "delete it to start the training from the beginning"
KEYS = {"owner", "fingerprint", "history", "place", "student", "objectives", "optimizer"}


class Progress(NamedTuple):
    """The progress of a training."""

    stage: int  # index of the current stage; 0 is the first
    epoch: int  # number of finished epochs of this stage
    seconds: float = 0.0  # wall time of all stages before the last stage


def save(
    folder: Path,
    student: nn.Module,
    objectives: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: list[EpochReport],
    progress: Progress,
    owner: str,
    fingerprint: str,
) -> Path:
    """Writes `folder/last.pt` atomically: a killed process leaves the old checkpoint or the new one.

    Args:
        owner: hash of the configuration and the cohort, as the function `owner` returns it.
        fingerprint: hash of everything that determines the training, including the outputs of the teachers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    state = {
        "owner": owner,
        "fingerprint": fingerprint,
        "history": [asdict(report) for report in history],
        "place": tuple(progress),
        "student": student.state_dict(),
        "objectives": objectives.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return path


def read(path: Path) -> dict[str, Any]:
    """Returns the content of a checkpoint, on the CPU. Only tensors and plain values are unpickled.

    Raises:
        ConfigError: the file does not exist, or was not written by `save`.
    """
    try:
        require_whole_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError.at(str(path), f"cannot be read ({error.strerror})") from error
    except Exception as error:  # torch raises errors of many types for damaged bytes
        reason = str(error) if isinstance(error, DamagedError) else type(error).__name__
        raise ConfigError.at(str(path), f"is not a readable checkpoint ({reason}); {DELETE_ADVICE}") from error
    if not isinstance(state, dict) or set(state) != KEYS:
        raise ConfigError.at(str(path), f"is not a checkpoint of this version of mmpkd.train; {DELETE_ADVICE}")
    return state


def restore(
    path: Path,
    student: nn.Module,
    objectives: nn.Module,
    enter: Callable[[int], torch.optim.Optimizer],
    fingerprint: str,
) -> tuple[Progress, list[EpochReport]]:
    """Loads a checkpoint and returns its progress and its epoch reports.

    Args:
        enter: function that begins the stage with a given index and returns its optimiser.

    Raises:
        ConfigError: the checkpoint belongs to another configuration.
    """
    state = read(path)
    if state["fingerprint"] != fingerprint:
        raise ConfigError.at(
            str(path),
            "belongs to another configuration, other data or another version; remove it, or restore what it belongs to",
        )
    student.load_state_dict(state["student"])
    objectives.load_state_dict(state["objectives"])
    progress = Progress(*state["place"])
    load_optimizer(enter(progress.stage), state["optimizer"])
    return progress, _reports(state)


def history(path: Path, owner: str = "") -> list[EpochReport]:
    """Returns the epoch reports of a checkpoint. The list is empty until the last stage, because earlier stages report
    nothing.

    Raises:
        ConfigError: the checkpoint is damaged; or it does not belong to the given owner.
    """
    state = read(path)
    if owner and state["owner"] != owner:
        raise ConfigError.at(str(path), "belongs to another configuration, other data or another version")
    return _reports(state)


def owner(config: TrialConfig, store_fingerprint: str) -> str:
    """Returns the hash that identifies the checkpoints of a training. It can be computed before the teachers are
    fitted."""
    return fingerprint([VERSION, config.fingerprint(), store_fingerprint])


def _reports(state: dict[str, Any]) -> list[EpochReport]:
    return [EpochReport(**report) for report in state["history"]]
