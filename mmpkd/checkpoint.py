"""What a training leaves on disk after each epoch, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mmpkd.config import TrialConfig
from mmpkd.machine.checksums import DamagedError, fingerprint, require_whole_archive
from mmpkd.stages import VERSION
from mmpkd.types import ConfigError, EpochReport

NAME = "last.pt"
MEND = "delete it, and the training begins anew"
KEYS = {"owner", "fingerprint", "history", "place", "student", "objectives", "optimizer"}


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
    owner: str,
    fingerprint: str,
) -> Path:
    """Writes `folder/last.pt` beside and renames it, so that a kill leaves the old one or the new one.

    Args:
        owner: whose it is, as far as its configuration and its cohort say.
        fingerprint: of all that decides the training, what its teachers say included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    state = {
        "owner": owner,
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
        require_whole_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError.at(str(path), f"cannot be read ({error.strerror})") from error
    except Exception as error:  # torch raises whatever the bytes led it to
        why = str(error) if isinstance(error, DamagedError) else type(error).__name__
        raise ConfigError.at(str(path), f"is not a readable checkpoint ({why}); {MEND}") from error
    if not isinstance(state, dict) or set(state) != KEYS:
        raise ConfigError.at(str(path), f"is not a checkpoint of this version of mmpkd.train; {MEND}")
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
        raise ConfigError.at(
            str(path), "belongs to another configuration, other data or another version; remove it, or restore those"
        )
    student.load_state_dict(state["student"])
    objectives.load_state_dict(state["objectives"])
    place = Place(*state["place"])
    enter(place.stage).load_state_dict(state["optimizer"])
    return place, _reports(state)


def history(path: Path, owner: str = "") -> list[EpochReport]:
    """The reports that a checkpoint has behind it; none while a stage before the last is trained.

    Raises:
        ConfigError: it is damaged; or, if an owner is given, of another configuration or other data.
    """
    state = read(path)
    if owner and state["owner"] != owner:
        raise ConfigError.at(str(path), "belongs to another configuration, other data or another version")
    return _reports(state)


def owner(config: TrialConfig, store_fingerprint: str) -> str:
    """What a training's checkpoints are known by before its teachers are asked."""
    return fingerprint([VERSION, config.fingerprint(), store_fingerprint])


def _reports(state: dict[str, Any]) -> list[EpochReport]:
    return [EpochReport(**report) for report in state["history"]]
