"""What a training leaves on disk after each epoch, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mmpkd.types import ConfigError, EpochReport

NAME = "last.pt"
KEYS = {"fingerprint", "history", "place", "student", "objectives", "optimizer"}


class Place(NamedTuple):
    """How far a training has come."""

    stage: int  # 0 is the first
    epoch: int  # epochs of it that are finished
    seconds: float = 0.0  # that the stages before the last have taken


def save(
    folder: Path,
    student: nn.Module,
    objectives: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: list[EpochReport],
    place: Place,
    fingerprint: str,
) -> Path:
    """Writes `folder/last.pt` beside and renames it, so that a kill leaves the old one or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    state = {
        "fingerprint": fingerprint,
        "history": [asdict(report) for report in history],
        "place": tuple(place),
        "student": student.state_dict(),
        "objectives": objectives.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    beside = path.with_suffix(".partial")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    return path


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU; nothing is unpickled but tensors and plain values.

    Raises:
        ConfigError: no such file, or not a checkpoint of ours.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError.one(str(path), f"cannot be read ({error.strerror})") from error
    except Exception as error:  # torch raises whatever the bytes led it to
        raise ConfigError.one(str(path), f"is not a readable checkpoint ({type(error).__name__})") from error
    if not isinstance(state, dict) or set(state) != KEYS:
        raise ConfigError.one(str(path), "is not a checkpoint of mmpkd.train")
    return state


def restore(
    path: Path,
    student: nn.Module,
    objectives: nn.Module,
    enter: Callable[[int], torch.optim.Optimizer],
    fingerprint: str,
) -> tuple[Place, list[EpochReport]]:
    """Loads a checkpoint and returns where it stands, and the reports it has behind it.

    Args:
        enter: begins a stage and gives its optimiser.

    Raises:
        ConfigError: the checkpoint belongs to another configuration.
    """
    state = read(path)
    if state["fingerprint"] != fingerprint:
        raise ConfigError.one(
            str(path), "belongs to another configuration, other data or another version; remove it, or restore those"
        )
    student.load_state_dict(state["student"])
    objectives.load_state_dict(state["objectives"])
    place = Place(*state["place"])
    enter(place.stage).load_state_dict(state["optimizer"])
    return place, _reports(state)


def history(path: Path) -> list[EpochReport]:
    """The reports that a checkpoint has behind it; none while a stage before the last is trained."""
    return _reports(read(path))


def _reports(state: dict[str, Any]) -> list[EpochReport]:
    return [EpochReport(**report) for report in state["history"]]
