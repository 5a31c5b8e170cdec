"""Checkpoints on the disk of a node: they travel to the storage, and a trial continues on another node."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sweep.storage.layout import CHECKPOINT
from sweep.transfer import checkpoints
from sweep.transfer.addresses import Place, place
from sweep.transfer.checkpoints import Attempt, Checkpoints

NUMBER = 7


def waited_for(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def write(attempt: Attempt, content: str, name: str = CHECKPOINT) -> None:
    """Writes a file as a training does: under another name, which is then changed."""
    partial = attempt.folder / "new.partial"
    partial.write_text(content)
    os.replace(partial, attempt.folder / name)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(checkpoints, "STOP_SECONDS", 60.0)  # also on a busy machine


@pytest.fixture
def storage(tmp_path: Path) -> Place:
    (tmp_path / "shared").mkdir()
    return place(tmp_path / "shared" / "checkpoints")


@pytest.fixture
def near(storage: Place, tmp_path: Path) -> Checkpoints:
    return Checkpoints(storage, tmp_path / "node")


def content(storage: Place, attempt: str = "attempt-1", name: str = CHECKPOINT) -> str:
    path = storage.local_path / str(NUMBER) / attempt / name
    return path.read_text() if path.exists() else ""


def test_on_one_machine_a_training_writes_straight_into_the_sweeps_folder(storage: Place) -> None:
    attempt = Checkpoints(storage).begin(NUMBER)
    assert attempt.folder == storage.local_path / str(NUMBER) / "attempt-1"
    write(attempt, "epoch 1")
    attempt.finish()
    attempt.close(ended=True)
    assert [path.name for path in attempt.folder.iterdir()] == [CHECKPOINT], "no second copy, and nothing removed"
    assert Checkpoints(storage).begin(NUMBER).folder.name == "attempt-2"


def test_the_first_checkpoint_travels_at_once_and_later_ones_when_asked(near: Checkpoints, storage: Place) -> None:
    attempt = near.begin(NUMBER)
    assert content(storage) == ""
    write(attempt, "epoch 1")
    assert waited_for(lambda: content(storage) == "epoch 1")
    write(attempt, "epoch 2")
    time.sleep(0.1)
    assert content(storage) == "epoch 1", "the next copy is due after COPY_SECONDS"
    attempt.send()
    assert waited_for(lambda: content(storage) == "epoch 2")
    attempt.close(ended=False)


def test_checkpoints_travel_at_intervals(near: Checkpoints, storage: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "COPY_SECONDS", 0.05)
    attempt = near.begin(NUMBER)
    for epoch in range(1, 4):
        write(attempt, f"epoch {epoch}")
        assert waited_for(lambda expected=f"epoch {epoch}": content(storage) == expected)  # type: ignore[misc]
    attempt.close(ended=False)


def test_a_complete_trial_waits_until_its_student_has_arrived(near: Checkpoints, storage: Place) -> None:
    attempt = near.begin(NUMBER)
    write(attempt, "epoch 4")
    write(attempt, "weights", "student.safetensors")
    attempt.finish()
    assert content(storage) == "epoch 4" and content(storage, name="student.safetensors") == "weights"
    attempt.close(ended=True)
    assert not attempt.folder.exists()


def test_the_disk_of_a_node_need_not_know_links(
    near: Checkpoints, storage: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*ignored: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    attempt = near.begin(NUMBER)
    write(attempt, "student", "student.safetensors")
    attempt.finish(seconds=0.0)
    assert content(storage, name="student.safetensors") == "student"


def test_a_trial_that_is_stopped_sends_its_last_checkpoint(near: Checkpoints, storage: Place) -> None:
    attempt = near.begin(NUMBER)
    write(attempt, "epoch 1")
    assert waited_for(lambda: content(storage) == "epoch 1")
    write(attempt, "epoch 2")
    attempt.close(ended=False)
    assert content(storage) == "epoch 2"


def test_another_node_continues_from_the_copy_and_the_same_node_from_its_own_file(
    near: Checkpoints, storage: Place, tmp_path: Path
) -> None:
    attempt = near.begin(NUMBER)
    write(attempt, "epoch 1")
    assert waited_for(lambda: content(storage) == "epoch 1")
    write(attempt, "epoch 2")  # the worker is killed before this one travels
    elsewhere = Checkpoints(storage, tmp_path / "other node")
    assert [path.read_text() for path in elsewhere.saved(NUMBER)] == ["epoch 1"]
    assert [path.read_text() for path in near.saved(NUMBER)] == ["epoch 1", "epoch 2"]
    assert elsewhere.begin(NUMBER).folder == tmp_path / "other node" / str(NUMBER) / "attempt-2"


def test_a_target_that_is_away_for_a_while_is_waited_for(
    near: Checkpoints, storage: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, tries = Place.upload, iter(range(3))

    def away(self: Place, path: Path, name: str) -> None:
        if next(tries, None) is not None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        upload(self, path, name)

    monkeypatch.setattr(Place, "upload", away)
    attempt = near.begin(NUMBER)
    write(attempt, "epoch 1")
    assert waited_for(lambda: content(storage) == "epoch 1")
    assert attempt.trouble == os.strerror(errno.EROFS)
    write(attempt, "epoch 2")
    attempt.finish()
    assert content(storage) == "epoch 2"


def test_a_target_that_stays_away_is_an_error_only_at_the_end(
    near: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: Place, path: Path, name: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Place, "upload", away)
    attempt = near.begin(NUMBER)
    write(attempt, "epoch 1")
    assert waited_for(lambda: bool(attempt.trouble)) and attempt.folder.exists()
    monkeypatch.setattr(checkpoints, "STOP_SECONDS", 0.1)
    with pytest.raises(OSError, match="Read-only"):
        attempt.finish(seconds=0.1)
    attempt.close(ended=False)


def test_a_storage_that_comes_back_while_it_is_looked_at_gets_the_checkpoint(
    near: Checkpoints, storage: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the attempt is missing, and a moment later the storage is mounted again."""
    attempt, answers, exists = near.begin(3), [False], Place.exists
    attempt._closed.set()
    attempt._thread.join()
    (attempt.folder / CHECKPOINT).write_bytes(b"epochs")
    monkeypatch.setattr(Place, "exists", lambda place: answers.pop() if answers else exists(place))
    attempt.finish(30.0)
    assert answers == [] and storage.child(f"3/{attempt.folder.name}/{CHECKPOINT}").read_bytes() == b"epochs"


def test_a_copy_is_never_half_there(near: Checkpoints, storage: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = near.begin(NUMBER)
    write(attempt, "epoch 1")
    attempt.finish()
    copyfile = shutil.copyfile

    def torn(source: Path, target: Path) -> None:
        Path(target).write_text(Path(source).read_text()[:3])
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))

    monkeypatch.setattr(shutil, "copyfile", torn)
    write(attempt, "epoch 2")
    attempt.send()
    assert waited_for(lambda: bool(attempt.trouble)) and content(storage) == "epoch 1"
    monkeypatch.setattr(shutil, "copyfile", copyfile)
    attempt.finish()
    assert content(storage) == "epoch 2"


def test_the_checkpoints_of_a_pruned_trial_do_not_come_back(near: Checkpoints, storage: Place) -> None:
    attempt = near.begin(NUMBER)
    write(attempt, "epoch 1")
    attempt.finish()
    shutil.rmtree(storage.local_path / str(NUMBER))  # the driver ends the trial
    write(attempt, "epoch 2")
    attempt.send()
    attempt.finish()
    assert not storage.child(str(NUMBER)).exists()
    attempt.close(ended=True)
    assert not attempt.folder.exists()


def test_what_ended_trials_left_on_a_node_is_removed(near: Checkpoints, storage: Place, tmp_path: Path) -> None:
    for number in (1, 2):
        attempt = near.begin(number)
        write(attempt, "epoch 1")
        attempt.close(ended=False)  # another worker may continue it
    shutil.rmtree(storage.local_path / "1")  # another node has continued it, and it was pruned
    near.begin(3)
    assert sorted(path.name for path in (tmp_path / "node").iterdir()) == ["2", "3"]


def test_a_trial_in_an_object_store_continues_on_another_node(tmp_path: Path) -> None:
    store = Place("memory", "test-checkpoints")
    attempt = Checkpoints(store, tmp_path / "a").begin(NUMBER)
    assert store.child(str(NUMBER)).names() == [attempt.folder.name], "the attempt is known before its first checkpoint"
    write(attempt, "epoch 1")
    attempt.close(ended=False)
    elsewhere = Checkpoints(store, tmp_path / "b")
    assert [path.read_text() for path in elsewhere.saved(NUMBER)] == ["epoch 1"]
    assert elsewhere.begin(NUMBER).folder.name.startswith("attempt-2-")
