"""A fault of the machine is not blamed on the file that was being read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmpkd import checkpoint, command
from mmpkd.cohort.disk import explain_full_disk
from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.readers.synthetic import Synthetic
from mmpkd.config import CohortConfig
from mmpkd.machine.errors import machine_fault, with_fault
from mmpkd.machine.resources import memory
from mmpkd.types import CohortError, ConfigError, UserError


def caused_by(cause: BaseException) -> UserError:
    """Returns the error of a reader, with its cause hidden from the traceback."""
    try:
        try:
            raise cause
        except BaseException:
            raise UserError("best.pt is damaged; delete it") from None
    except UserError as error:
        return error


def allocation(num_bytes: int) -> MemoryError:
    """Returns the error that numpy raises."""
    error = MemoryError("Unable to allocate")
    error.shape, error.dtype = (num_bytes,), np.dtype(np.uint8)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("cause", "fault"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (MemoryError(), "out of memory"),
        (allocation(1000), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (allocation(1000 * memory().amount), ""),  # a damaged header
        (OSError(errno.EIO, "Input/output error"), ""),  # one bad block of the file
        (FileNotFoundError(errno.ENOENT, "No such file"), ""),
        (PermissionError(errno.EACCES, "Permission denied"), ""),
        (KeyError("student"), ""),
    ],
)
def test_machine_faults_are_recognised_behind_an_error(
    cause: BaseException, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = caused_by(cause)
    assert machine_fault(error) == fault

    with pytest.raises(SystemExit) as ended, command.command_line():
        raise error
    text = capsys.readouterr().err
    assert ended.value.code == 2 and text.startswith("error: best.pt is damaged")
    assert ("delete nothing before" in text) == bool(fault) and with_fault(error) in text


def test_mistakes_are_printed_with_the_machine_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), command.command_line():
        raise ConfigError.at("student", "cannot be built") from MemoryError()
    text = capsys.readouterr().err
    assert (
        text.startswith("1 mistake:\n  student: cannot be built\n  the cause is a fault of the machine")
        and "(out of memory)" in text
    )


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE])
def test_a_machine_fault_does_not_leave_out_samples(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if some bad samples are allowed; the same command continues once the machine is repaired."""
    config = CohortConfig(
        reader="synthetic", image_size=32, max_bad=0.5, params={"side": 32, "train": 60, "val": 30, "test": 12}
    )
    load: Callable[..., Any] = Synthetic.load
    calls: list[str] = []

    def failing(reader: Synthetic, sample: str) -> Any:
        calls.append(sample)
        if len(calls) == 40:
            try:
                raise OSError(number, os.strerror(number))
            except OSError as error:
                raise BadSample("", f"cannot be read: {error.strerror}") from None
        return load(reader, sample)

    monkeypatch.setattr(Synthetic, "load", failing)
    with pytest.raises(CohortError, match=rf"preparing stopped: {os.strerror(number)}; .*same command continues"):
        prepare(config, tmp_path)
    store = prepare(config, tmp_path)
    assert len(store.sample_ids) == 102 and not store.manifest["left_out"]


def test_a_fault_of_another_disk_is_not_blamed_on_the_cache(tmp_path: Path) -> None:
    """The part that was prepared so far is kept as well."""
    partial = tmp_path / "cache" / "store.partial"
    partial.mkdir(parents=True)
    elsewhere = OSError(errno.ENOSPC, "No space left on device", "/scratch/decoder.tmp")
    with pytest.raises(OSError, match="decoder") as raised, explain_full_disk(partial, 1):
        raise elsewhere
    assert raised.value is elsewhere and partial.exists()
    here = OSError(errno.ENOSPC, "No space left on device", str(partial / "images.npy"))
    with pytest.raises(CohortError, match="does not fit on the disk"), explain_full_disk(partial, 1):
        raise here


def test_an_unreachable_checkpoint_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "last.pt"))

    (tmp_path / "last.pt").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="is not a readable checkpoint"):
        checkpoint.read(tmp_path / "last.pt")
    monkeypatch.setattr(checkpoint, "require_whole_archive", forbidden)
    with pytest.raises(ConfigError, match=r"last.pt: cannot be read \(Permission denied\)"):
        checkpoint.read(tmp_path / "last.pt")
