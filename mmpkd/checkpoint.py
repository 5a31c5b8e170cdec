"""Writes and reads the checkpoint of a training, which is replaced atomically from time to time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

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


def state_of(
    student: nn.Module,
    objectives: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: Sequence[EpochReport],
    progress: Progress,
    owner: str,
    fingerprint: str,
) -> dict[str, Any]:
    """Returns the content of a checkpoint. Its tensors are those of the training, which goes on to change them.

    Args:
        owner: hash of the configuration and the cohort, as the function `owner` returns it.
        fingerprint: hash of everything that determines the training, including the outputs of the teachers.
    """
    return {
        "owner": owner,
        "fingerprint": fingerprint,
        "history": [asdict(report) for report in history],
        "place": tuple(progress),
        "student": student.state_dict(),
        "objectives": objectives.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


def snapshot(content: Any) -> Any:
    """Returns a copy of nested dictionaries, lists and tuples in which every tensor is a copy in the memory of the
    host.

    Tensors of a GPU are copied to pinned memory without waiting for the GPU. The copies are complete when the GPU has
    done the work that it has been given so far.
    """
    match content:
        case Tensor(is_cuda=True):
            return torch.empty_like(content, device="cpu", pin_memory=True).copy_(content, non_blocking=True)
        case Tensor():
            return content.clone()
        case dict():
            copied = copy(content)  # keeps the versions of the modules, which are an attribute of a state_dict
            copied.update((key, snapshot(value)) for key, value in content.items())
            return copied
        case list() | tuple():
            return type(content)(snapshot(value) for value in content)
    return content


def write(folder: Path, state: Mapping[str, Any]) -> Path:
    """Writes `folder/last.pt` atomically: a killed process leaves the old checkpoint or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return path


class CheckpointWriter:
    """Saves a training at the ends of its epochs, most of them from a snapshot in a thread of its own.

    The writer is a context manager. If an exception ends the training between two epochs, the writer saves the last
    epoch that has ended. On leaving, it waits until everything is on disk.

    Args:
        folder: folder of the checkpoint. None saves nothing.
        seconds: least number of seconds between two snapshots, except at epochs that must be saved. 0: every epoch must
            be saved.
        clock: function that returns the time in seconds.
    """

    def __init__(self, folder: Path | None, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._folder, self._seconds, self._clock = folder, seconds, clock
        self._last = clock()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None
        self._unsaved: Callable[[], dict[str, Any]] | None = None

    def begin_epoch(self) -> None:
        """Must be called before the training changes its modules again."""
        self._unsaved = None

    def offer(self, state: Callable[[], dict[str, Any]], must: bool = False) -> None:
        """Saves the epoch that has just ended, if a checkpoint is due.

        A checkpoint that must be saved is on disk when this function returns. Any other is written while the training
        goes on, and is left out while an earlier one is still being written.

        Args:
            state: function that returns the content of the checkpoint; see `state_of`.

        Raises:
            OSError, RuntimeError: this checkpoint or an earlier one cannot be written.
        """
        if self._folder is None:
            return
        self._unsaved = state
        is_busy = self._is_busy()
        if must or self._seconds == 0:
            self._save()
        elif self._clock() - self._last >= self._seconds and not is_busy:
            copied, event = snapshot(state()), None
            if torch.cuda.is_initialized():
                event = torch.cuda.current_stream().record_event()
            self._writing = self._thread.submit(_write_when_copied, self._folder, copied, event)
            self._last, self._unsaved = self._clock(), None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._unsaved is not None:
                self._save()
            self._finish_writing()
        except Exception:
            if error is None:  # otherwise the first error is the one to report; an earlier checkpoint is on disk
                raise
        finally:
            self._thread.shutdown()

    def _save(self) -> None:
        """Writes the last epoch that has ended, and waits until it is on disk."""
        assert self._folder is not None and self._unsaved is not None
        self._finish_writing()
        write(self._folder, self._unsaved())
        self._last, self._unsaved = self._clock(), None

    def _is_busy(self) -> bool:
        """Returns whether a checkpoint is still being written. Raises the error of one that could not be written."""
        if self._writing is not None and self._writing.done():
            self._finish_writing()
        return self._writing is not None

    def _finish_writing(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def _write_when_copied(folder: Path, state: Mapping[str, Any], event: torch.cuda.Event | None) -> Path:
    if event is not None:
        event.synchronize()
    return write(folder, state)


def read(path: Path) -> dict[str, Any]:
    """Returns the content of a checkpoint, on the CPU. Only tensors and plain values are unpickled.

    Raises:
        ConfigError: the file does not exist, or was not written by `write`.
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
