"""When a training is saved: by a thread from a snapshot, at most every few seconds, and at once where it must be."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpkd import checkpoint
from mmpkd.checkpoint import CheckpointWriter
from mmpkd.config import TrialConfig, dump_trial, validate
from mmpkd.train import main, train
from mmpkd.training.epoch import train_epoch
from mmpkd.training.stages import Run
from mmpkd.types import EpochReport

EPOCHS = 6


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Disk:
    """A disk in place of the real one: it notes what is written, and can be slow or full.

    Attributes:
        free: while this event is cleared, writes wait.
    """

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.threads: list[str] = []
        self.free = threading.Event()
        self.free.set()
        self.error: OSError | None = None

    def __call__(self, folder: Path, state: Any) -> Path:
        assert self.free.wait(60)
        if self.error is not None:
            raise self.error
        self.written.append(state["epoch"])
        self.threads.append(threading.current_thread().name)
        return folder


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(checkpoint, "write", disk)
    return disk


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def writer(disk: Disk, clock: Clock) -> Iterator[CheckpointWriter]:
    with CheckpointWriter(Path("folder"), 10.0, clock) as writer:
        yield writer
        disk.free.set()


def offer(writer: CheckpointWriter, epoch: int, must: bool = False) -> None:
    writer.begin_epoch()
    writer.offer(lambda: {"epoch": epoch}, must)


def settle(writer: CheckpointWriter) -> None:
    """Waits until the thread has written."""
    assert writer._writing is not None
    wait([writer._writing])


def test_nothing_is_saved_before_its_time(writer: CheckpointWriter, disk: Disk, clock: Clock) -> None:
    for epoch, clock.now in ((1, 5.0), (2, 9.9), (3, 10.0)):
        offer(writer, epoch)
    settle(writer)
    for epoch, clock.now in ((4, 19.9), (5, 21.0)):
        offer(writer, epoch)
    settle(writer)
    assert disk.written == [3, 5] and all(name.startswith("checkpoint") for name in disk.threads)


def test_a_checkpoint_is_left_out_while_another_is_being_written(
    writer: CheckpointWriter, disk: Disk, clock: Clock
) -> None:
    disk.free.clear()
    for epoch, clock.now in ((1, 10.0), (2, 25.0), (3, 40.0)):
        offer(writer, epoch)
    disk.free.set()
    settle(writer)
    offer(writer, 4)
    settle(writer)
    assert disk.written == [1, 4]


def test_what_must_be_saved_is_on_disk_at_once_and_in_order(writer: CheckpointWriter, disk: Disk, clock: Clock) -> None:
    disk.free.clear()
    clock.now = 10.0
    offer(writer, 1)
    threading.Timer(0.05, disk.free.set).start()
    offer(writer, 2, must=True)
    assert disk.written == [1, 2]
    clock.now = 19.0  # nine seconds after the one that had to be saved
    offer(writer, 3)
    assert disk.written == [1, 2]


def test_with_zero_seconds_every_epoch_is_on_disk_before_the_next(disk: Disk, clock: Clock) -> None:
    with CheckpointWriter(Path("folder"), 0.0, clock) as writer:
        for epoch in range(1, 4):
            offer(writer, epoch)
            assert disk.written == list(range(1, epoch + 1))


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_the_last_epoch_is_saved_on_leaving(error: type[BaseException] | None, disk: Disk, clock: Clock) -> None:
    """The modules hold that epoch until the next one begins."""
    try:
        with CheckpointWriter(Path("folder"), 10.0, clock) as writer:
            offer(writer, 1)
            offer(writer, 2)
            if error:
                raise error
    except (KeyboardInterrupt, RuntimeError):
        pass
    assert disk.written == [2]


def test_an_epoch_that_has_begun_is_not_saved_on_leaving(disk: Disk, clock: Clock) -> None:
    with pytest.raises(KeyboardInterrupt), CheckpointWriter(Path("folder"), 10.0, clock) as writer:
        clock.now = 10.0
        disk.free.clear()
        offer(writer, 1)
        clock.now = 15.0
        offer(writer, 2)
        writer.begin_epoch()
        threading.Timer(0.05, disk.free.set).start()
        raise KeyboardInterrupt
    assert disk.written == [1], "what was being written is waited for"


@pytest.mark.parametrize("at", ["the next epoch", "an epoch that must be saved", "the end"])
def test_an_error_of_the_thread_reaches_the_training(disk: Disk, clock: Clock, at: str) -> None:
    disk.error = OSError(errno.ENOSPC, "No space left on device", "/runs/last.partial")
    with pytest.raises(OSError, match="No space left") as caught, CheckpointWriter(Path("x"), 10.0, clock) as writer:
        clock.now = 10.0
        offer(writer, 1)
        settle(writer)
        if at != "the end":
            offer(writer, 2, must="must" in at)
            pytest.fail("the error came too late")
    assert caught.value is disk.error


def test_an_error_on_leaving_does_not_hide_the_first_one(disk: Disk, clock: Clock) -> None:
    disk.error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(KeyboardInterrupt), CheckpointWriter(Path("folder"), 10.0, clock) as writer:
        offer(writer, 1)
        raise KeyboardInterrupt


def test_without_a_folder_nothing_is_saved(disk: Disk, clock: Clock) -> None:
    with CheckpointWriter(None, 0.0, clock) as writer:
        offer(writer, 1, must=True)
    assert not disk.written


# --- a real training ---


@pytest.fixture(scope="module")
def trial(tiny_trial: TrialConfig) -> TrialConfig:
    return tiny_trial.model_copy(update={"epochs": EPOCHS})


@pytest.fixture(scope="module")
def whole(trial: TrialConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted training, with a copy of the checkpoint of each epoch."""
    folder = tmp_path_factory.mktemp("whole")

    def keep(report: EpochReport) -> None:
        shutil.copy(folder / checkpoint.NAME, folder / f"{report.epoch}.pt")

    train(trial.model_copy(update={"checkpoint_seconds": 0.0}), cache, folder, report=keep)
    return folder


def same(ours: Any, theirs: Any) -> bool:
    """Whether two checkpoints hold the same values, apart from the seconds that epochs took."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours if key != "seconds")
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


def test_at_the_default_only_the_last_epoch_of_a_short_training_is_saved(
    trial: TrialConfig, cache: Path, tmp_path: Path
) -> None:
    saved = []
    train(trial, cache, tmp_path, report=lambda report: saved.append((tmp_path / checkpoint.NAME).exists()))
    assert saved == [False] * (EPOCHS - 1) + [True]
    assert [report.epoch for report in checkpoint.history(tmp_path / checkpoint.NAME)] == list(range(1, EPOCHS + 1))


def test_a_snapshot_is_not_torn_by_the_training_that_goes_on(
    trial: TrialConfig, whole: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of epoch 2 is written only when epoch 5 has been trained; the training resumed from it, four
    epochs back, ends as the uninterrupted one."""
    clock, may_write, write = Clock(), threading.Event(), checkpoint.write

    def slow_write(folder: Path, state: Any) -> Path:
        assert may_write.wait(60)
        return write(folder, state)

    def stop_after_epoch_5(report: EpochReport) -> None:
        clock.now = 100.0 if report.epoch == 1 else clock.now
        if report.epoch == 5:
            may_write.set()
            monkeypatch.setattr(CheckpointWriter, "_save", lambda self: None)  # as if the process were killed
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write", slow_write)
    monkeypatch.setattr(checkpoint, "CheckpointWriter", lambda *args: CheckpointWriter(*args, clock=clock))
    with pytest.raises(KeyboardInterrupt):
        train(trial, cache, tmp_path, report=stop_after_epoch_5)
    monkeypatch.undo()
    last = tmp_path / checkpoint.NAME
    assert same(checkpoint.read(last), checkpoint.read(whole / "2.pt"))
    assert not same(checkpoint.read(last), checkpoint.read(whole / "3.pt"))
    assert last.stat().st_size == (whole / "2.pt").stat().st_size

    reported: list[int] = []
    train(trial, cache, tmp_path, last, lambda report: reported.append(report.epoch))
    assert reported == [3, 4, 5, 6]
    assert same(checkpoint.read(last), checkpoint.read(whole / checkpoint.NAME))


def test_a_training_that_is_stopped_between_epochs_is_saved(
    trial: TrialConfig, whole: Path, cache: Path, tmp_path: Path
) -> None:
    def stop(report: EpochReport) -> None:
        if report.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trial, cache, tmp_path, report=stop)
    assert same(checkpoint.read(tmp_path / checkpoint.NAME), checkpoint.read(whole / "3.pt"))


def test_a_folder_that_goes_away_ends_the_training_with_its_error(
    trial: TrialConfig, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread meets the error, and the training raises it after its next epoch."""
    clock, writers, reported = Clock(), list[CheckpointWriter](), list[int]()

    def make(*args: Any) -> CheckpointWriter:
        writers.append(CheckpointWriter(*args, clock=clock))
        return writers[0]

    def go_on(report: EpochReport) -> None:
        reported.append(report.epoch)
        clock.now += 100
        if report.epoch == 2:
            settle(writers[0])

    monkeypatch.setattr(checkpoint, "CheckpointWriter", make)
    folder = tmp_path / "run"
    folder.write_text("a file in the place of the folder")
    with pytest.raises(FileExistsError, match=str(folder)):
        train(trial, cache, folder, report=go_on)
    assert reported == [1, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_snapshot_of_a_gpu_is_taken_without_waiting_and_is_not_torn(tmp_path: Path) -> None:
    """The tensor is changed by work that is queued right behind the snapshot."""
    values = torch.zeros(1 << 26, device="cuda")
    torch.cuda.synchronize()
    with CheckpointWriter(tmp_path, 1e-9) as writer:
        torch.cuda.set_sync_debug_mode("error")
        try:
            writer.offer(lambda: {"values": values, "rate": [torch.ones((), device="cuda"), 0.5]})
            for _ in range(100):
                values.add_(1.0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    saved = torch.load(tmp_path / checkpoint.NAME, weights_only=True)
    assert saved["values"].device.type == "cpu" and not saved["values"].any()
    assert saved["rate"] == [torch.ones(()), 0.5] and bool((values == 100).all())


# --- the key ---


def test_the_key_changes_no_fingerprint_and_is_dumped_only_if_set(trial: TrialConfig) -> None:
    often = trial.model_copy(update={"checkpoint_seconds": 5.0})
    assert often.fingerprint() == trial.fingerprint()
    assert checkpoint.owner(often, "store") == checkpoint.owner(trial, "store")
    assert "checkpoint_seconds" not in dump_trial(trial) and "checkpoint_seconds: 5.0" in dump_trial(often)
    with pytest.raises(Exception, match="checkpoint_seconds"):
        validate(TrialConfig, {"cohort": {"reader": "synthetic"}, "checkpoint_seconds": -1})


def test_a_killed_write_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.write(tmp_path, {"epoch": 1})
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        checkpoint.write(tmp_path, {"epoch": 2})
    assert torch.load(tmp_path / checkpoint.NAME, weights_only=True) == {"epoch": 1}


# --- the command ---


def test_the_command_says_what_is_saved_when_it_is_interrupted_and_continued(
    trial: TrialConfig, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C comes in the middle of an epoch: what was saved before counts."""
    (path := tmp_path / "best.yaml").write_text(dump_trial(trial))
    words = [f"config={path}", f"cache={cache}", f"out={tmp_path / 'out'}"]

    def interrupted_in(epoch: int) -> Any:
        def train_or_stop(run: Run, index: int) -> Any:
            if index + 1 == epoch:
                raise KeyboardInterrupt
            return train_epoch(run, index)

        return train_or_stop

    for epoch, *wanted in (
        (2, "no epoch yet (between checkpoints: checkpoint_seconds=60)"),
        (3, "saved: epoch 2 ("),
        (5, "after epoch 2", "saved: epoch 4"),
    ):
        monkeypatch.setattr("mmpkd.train.train_epoch", interrupted_in(epoch))
        with pytest.raises(KeyboardInterrupt):
            main(words if epoch == 2 else [*words, "checkpoint_seconds=0"])
        printed = capsys.readouterr().out
        assert all(text in printed for text in wanted), printed
    monkeypatch.undo()
    main(words)
    printed = capsys.readouterr().out
    assert "after epoch 4\n" in printed and "epoch   5/6" in printed and "epoch   4/6" not in printed
    assert "goals alone" not in printed
    main([*words, "scores=every"])
    assert "epochs 1 to 5 were trained before scores=every and have the goals alone" in capsys.readouterr().out
