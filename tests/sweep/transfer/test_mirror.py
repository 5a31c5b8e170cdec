"""A sweep in an object store whose machine is lost at any moment, without Ray: what the next driver finds."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmpkd.types import ConfigError, UserError
from sweep.options import storage_at
from sweep.search.searcher import Search
from sweep.storage.events import EpochEnded, TrialEnded, TrialStarted
from sweep.storage.layout import SweepFolder
from sweep.transfer import addresses, lease
from sweep.transfer.addresses import Place, place
from sweep.transfer.mirror import Mirror
from sweep.transfer.views import fetch
from tests.sweep.fake import play, play_all
from tests.sweep.swept import events, numbers, swept, untracked

__all__ = ["untracked"]  # a fixture, of every test here

MEMORY = "memory://bucket/runs"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short waits, an object store in the memory of this process, and scratch folders of this test alone."""
    monkeypatch.setattr(addresses, "FSSPEC_SCHEMES", ("memory",))
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    Place("memory", "bucket").delete()


class MachineLost(BaseException):
    """Stands for the loss of the driver's machine."""


def lost(*ignored: Any) -> None:
    raise MachineLost


def lose_machine(tmp_path: Path) -> None:
    shutil.rmtree(next(tmp_path.glob("mmpkd-*")))


@pytest.fixture
def mirrors(monkeypatch: pytest.MonkeyPatch) -> list[Mirror]:
    """The mirrors of all drivers, in the order in which they begin."""
    begun: list[Mirror] = []
    enter = Mirror.__enter__

    def note(mirror: Mirror) -> Mirror:
        begun.append(mirror)
        return enter(mirror)

    monkeypatch.setattr(Mirror, "__enter__", note)
    return begun


def check_complete(folder: SweepFolder, trials: int, num_epochs: int = 4) -> None:
    """Checks that every trial of a complete sweep began, trained each epoch and ended exactly once."""
    ended = {event.number for event in events(folder.path, TrialEnded) if event.state == "complete"}
    epochs = Counter((event.number, event.epoch) for event in events(folder.path, EpochEnded))
    starts = Counter(event.number for event in events(folder.path, TrialStarted))
    assert sorted(numbers(folder.path)) == sorted(ended) and len(ended) == trials
    assert set(starts.values()) == {1}
    assert all(epochs[number, epoch] == 1 for number in ended for epoch in range(1, num_epochs + 1))


def test_a_sweep_leaves_all_its_files_in_the_store(tmp_path: Path) -> None:
    swept(tmp_path, f"storage={MEMORY}")
    folder = storage_at(MEMORY).sweep("fake")
    names = folder.shared.names()
    assert {"journal.log", "spool.jsonl", "plan.json", "space.yaml", "trials.parquet", "epochs.parquet"} <= set(names)
    for path in (folder.journal, folder.spool, *folder.whole_files):
        assert not path.exists() or folder.shared.child(path.name).read_bytes() == path.read_bytes(), path.name
    check_complete(folder, 8)
    assert not (tmp_path / "runs").exists() and not Path("memory:").exists()


def test_another_machine_continues_what_the_first_has_copied(tmp_path: Path) -> None:
    swept(tmp_path, f"storage={MEMORY}", "trials=4")
    lose_machine(tmp_path)
    _, text = swept(tmp_path, f"storage={MEMORY}", "trials=8")
    assert "4 done before" in text and f"fetched the files of {MEMORY}/fake" in text
    check_complete(storage_at(MEMORY).sweep("fake"), 8)


def test_the_same_machine_continues_with_what_it_did_after_its_last_copy(tmp_path: Path) -> None:
    def dies(search: Search) -> None:
        play(search, "a", search.suggest("a"))
        raise MachineLost

    with pytest.MonkeyPatch.context() as patch, pytest.raises(MachineLost):
        patch.setattr(Mirror, "_copy_last", lambda mirror, fails: None)
        patch.setattr("sweep.transfer.lease.Lease.give_back", lambda lease: None)
        swept(tmp_path, f"storage={MEMORY}", play=dies)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MachineLost):
        patch.setattr("sweep.transfer.lease.Lease.check", lost)  # the next driver is killed when it has taken the lease
        swept(tmp_path, f"storage={MEMORY}")
    _, text = swept(tmp_path, f"storage={MEMORY}")
    assert "1 done before" in text and "fetched" not in text and "waits" not in text
    check_complete(storage_at(MEMORY).sweep("fake"), 8)


class Store:
    """Counts the writes to the store, and loses the machine in place of one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.num_writes, self.last = 0, -1
        write, delete = Place.write_bytes, Place.delete

        def counted(change: Callable[..., None]) -> Callable[..., None]:
            def changed(place: Place, *content: bytes) -> None:
                if place.scheme == "memory" and place.name != "last.pt":
                    self.num_writes += 1
                    if self.last >= 0 and self.num_writes > self.last:
                        raise MachineLost  # and nothing is written any more
                change(place, *content)

            return changed

        monkeypatch.setattr(Place, "write_bytes", counted(write))
        monkeypatch.setattr(Place, "delete", counted(delete))


def test_no_moment_of_a_loss_loses_or_doubles_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirrors: list[Mirror]
) -> None:
    """The machine is lost at every write to the store, from the first copy on. The next driver goes on without a hand,
    and nothing that MLflow may have received is taken back."""
    store = Store(monkeypatch)

    def play_copying(search: Search) -> list[dict[str, Any]]:
        receive = search.on_trial_result

        def receive_and_copy(*arguments: Any) -> None:
            receive(*arguments)
            mirrors[-1]._copy()

        search.on_trial_result = receive_and_copy  # type: ignore[method-assign]
        return play_all(search, epochs=2)

    last, words = 3, (f"storage={MEMORY}", "trials=2", "epochs=2")
    while True:
        Place("memory", "bucket").delete()
        shutil.rmtree(tmp_path, ignore_errors=True)
        tmp_path.mkdir()
        store.num_writes, store.last = 0, last
        try:
            swept(tmp_path, *words, play=play_copying)
        except MachineLost:
            lost = True
        else:
            lost = False
        folder = storage_at(MEMORY).sweep("fake")
        sent = folder.spool.read_bytes()[: int(mirrors[-1].sendable)] if folder.spool.exists() else b""
        lose_machine(tmp_path)
        store.last = -1
        swept(tmp_path, *words, play=lambda search: play_all(search, epochs=2))
        check_complete(folder, 2, num_epochs=2)
        assert folder.spool.read_bytes().startswith(sent), "MLflow knows nothing that the spool does not"
        if not lost:
            break
        last += 1
    assert last > 20, "the machine was lost at many moments"


def begun(folder: SweepFolder, lines: list[str]) -> Mirror:
    return Mirror(folder, "process 1 on head", lines.append)


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """The folder of a sweep with a journal and a spool, at an address."""
    path = tmp_path / "local" / "demo"
    path.mkdir(parents=True)
    return SweepFolder(path, Place("memory", "bucket/runs/demo"))


def test_a_start_that_fails_leaves_no_trace(folder: SweepFolder) -> None:
    with pytest.raises(UserError, match="no such space"), begun(folder, []):
        raise UserError("no such space")
    assert not list(folder.path.iterdir()) and folder.shared.sizes() == {}


def test_a_start_that_fails_deletes_nothing_that_was_there(folder: SweepFolder) -> None:
    folder.shared.child("checkpoints/1/attempt-1/last.pt").write_bytes(b"x")  # all other files are lost
    with pytest.raises(UserError, match="no such space"), begun(folder, []):
        raise UserError("no such space")
    assert set(folder.shared.sizes()) == {"checkpoints/1/attempt-1/last.pt", "driver.lock"}


def run(folder: SweepFolder, content: bytes, lines: list[str] | None = None) -> None:
    """Stands for a driver that appends to journal and spool, and copies them."""
    with begun(folder, [] if lines is None else lines) as mirror:
        for path in (folder.journal, folder.spool):
            path.write_bytes((path.read_bytes() if path.exists() else b"") + content)
        mirror.begin()


def on_another_machine(folder: SweepFolder) -> SweepFolder:
    path = folder.path.parents[1] / "other" / folder.name
    path.mkdir(parents=True)
    return SweepFolder(path, folder.address)


def refuse(place: Place, content: bytes) -> None:
    raise OSError(errno.ETIMEDOUT, "the store does not answer (Could not connect)", str(place))


def test_results_that_are_not_copied_survive_a_start_elsewhere_that_copies_nothing(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.transfer.mirror.LAST_SECONDS", 0.0)
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"what is not copied yet is in .*, and the same command on this machine"),
        begun(folder, []) as mirror,
    ):
        folder.journal.write_bytes(b"1\n")
        folder.spool.write_bytes(b"a\n")
        mirror.begin()
        folder.spool.write_bytes(b"a\nb\n")
        patch.setattr(Place, "write_bytes", refuse)
    with pytest.raises(UserError, match="no such data"), begun(on_another_machine(folder), []):
        raise UserError("no such data")
    run(folder, b"3\n")
    assert folder.spool.read_bytes() == folder.shared.child("spool.jsonl").read_bytes() == b"a\nb\n3\n"


def test_a_start_that_is_killed_before_it_fetches_does_not_bring_old_files_back(folder: SweepFolder) -> None:
    run(folder, b"1\n")
    run(on_another_machine(folder), b"2\n")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MachineLost):
        patch.setattr("sweep.transfer.lease.Lease.check", lost)
        run(folder, b"lost\n")
    run(folder, b"3\n")
    assert folder.spool.read_bytes() == folder.shared.child("spool.jsonl").read_bytes() == b"1\n2\n3\n"


@pytest.mark.parametrize("name", ["journal.log", "spool.jsonl"])
def test_files_that_a_cleaner_has_removed_here_are_fetched(folder: SweepFolder, name: str) -> None:
    run(folder, b"1\n")
    (folder.path / name).unlink()
    run(folder, b"2\n")
    assert folder.shared.child(name).read_bytes() == b"1\n2\n"


def test_copies_stay_if_a_cleaner_removes_a_file_here(folder: SweepFolder) -> None:
    with begun(folder, []) as mirror:
        for path in (folder.journal, folder.spool, folder.plan, folder.best):
            path.write_bytes(b"1\n")
        mirror.begin()
        folder.plan.unlink()
        folder.best.unlink()  # no trial is the best any more
    assert folder.shared.child("plan.json").exists() and not folder.shared.child("best.yaml").exists()


def test_while_the_store_is_away_the_sweep_goes_on(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("sweep.transfer.mirror.BEAT_SECONDS", 0.01)
    write = Place.write_bytes
    with begun(folder, lines) as mirror:
        folder.journal.write_bytes(b"1\n")
        folder.spool.write_bytes(b"a\n")
        mirror.begin()
        monkeypatch.setattr(Place, "write_bytes", refuse)
        folder.spool.write_bytes(b"a\nb\n")
        mirror.copy_now()
        assert mirror.sendable == 2, "MLflow is not sent what has not been copied"
        wait_for(lambda: len(lines) == 1)
        monkeypatch.setattr(Place, "write_bytes", write)
        wait_for(lambda: len(lines) == 2)
    assert lines[0].startswith("paused copies: memory://bucket/runs/demo/")
    assert lines[0].endswith("does not answer (Could not connect); the sweep goes on, and copying is tried again")
    assert lines[1] == "continued copies: memory://bucket/runs/demo can be used again"
    assert folder.shared.child("spool.jsonl").read_bytes() == b"a\nb\n"


def test_a_driver_whose_lease_is_taken_ends_and_writes_nothing_more(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, requests = list[str](), list[str]()
    monkeypatch.setattr("sweep.transfer.mirror.BEAT_SECONDS", 0.01)
    monkeypatch.setattr("sweep.interrupt.record_request", requests.append)
    with begun(folder, lines) as mirror:
        folder.journal.write_bytes(b"1\n")
        folder.spool.write_bytes(b"a\n")
        mirror.begin()
        folder.shared.child("driver.lock").write_bytes(b'{"token": "x", "driver": "process 2 on other"}')
        wait_for(lambda: bool(requests))
        folder.spool.write_bytes(b"a\nb\n")
    assert requests == ["another driver has taken over"] and "(process 2 on other)" in lines[0]
    assert folder.shared.child("spool.jsonl").read_bytes() == b"a\n"


def test_journal_and_spool_are_cut_where_they_ended_together(folder: SweepFolder) -> None:
    with begun(folder, []) as mirror:
        folder.journal.write_bytes(b"1\n2\n3")  # a line is being written
        folder.spool.write_bytes(b"a\n")
        mirror.begin()
    assert folder.shared.child("journal.log").read_bytes() == b"1\n2\n"
    folder.shared.child("journal.log").write_bytes(b"1\n2\n3\n4\n")  # the machine was lost before the spool was written
    other = SweepFolder(folder.path.with_name("other"), folder.address)
    assert fetch(other, other.files)
    assert other.journal.read_bytes() == b"1\n2\n" and other.spool.read_bytes() == b"a\n"


def test_checkpoints_go_once_the_end_of_their_trial_is_copied(folder: SweepFolder) -> None:
    for number in (1, 2):
        folder.shared_checkpoints.child(f"{number}/attempt-1/last.pt").write_bytes(b"x")
    with begun(folder, []) as mirror:
        folder.journal.write_bytes(b"1\n")
        folder.spool.write_bytes(b"a\n")
        folder.delete_checkpoints(1)
        folder.delete_checkpoints(7)  # has none
        assert folder.shared_checkpoints.names() == ["1", "2"]
        mirror.begin()
        assert folder.shared_checkpoints.names() == ["2"] and not folder.needless


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


PROGRAM = """
import os, signal, sys
from pathlib import Path
from sweep.tracking.mlflow import Tracker
from sweep.transfer import mirror
from tests.sweep.fake import play
from tests.sweep.swept import swept
mirror.COPY_SECONDS = 0.3
Tracker.start, Tracker.close = lambda self: None, lambda self, seconds: 0

def play_and_die(search):
    for index in range(5):
        play(search, str(index), search.suggest(str(index)))
        print(index, flush=True)
        if sys.stdin.readline() == "die\\n":
            os.kill(os.getpid(), signal.SIGKILL)

swept(Path(sys.argv[1]), "trials=5", f"storage={sys.argv[2]}", play=play_and_die)
"""


def test_a_killed_driver_whose_disk_is_lost_goes_on_from_the_bucket(tmp_path: Path, bucket: str) -> None:
    """A real kill -9 and a real S3 server. The second driver has the same words and an empty disk."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    words = [sys.executable, "-c", PROGRAM, str(tmp_path), f"{bucket}/runs"]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(words, **pipes) as driver:
        copies = place(f"{bucket}/runs/fake/spool.jsonl")
        for index in range(3):
            assert driver.stdout and driver.stdin and driver.stdout.readline() == f"{index}\n"
            if index < 2:
                wait_for(lambda: copies.exists() and copies.read_bytes().count(b'"end"') == index + 1)  # noqa: B023
            driver.stdin.write("go on\n" if index < 2 else "die\n")
            driver.stdin.flush()
        assert driver.wait() == -signal.SIGKILL
    lose_machine(tmp_path)
    _, text = swept(tmp_path, "trials=5", f"storage={bucket}/runs")
    assert "2 done before" in text or "3 done before" in text
    folder = storage_at(f"{bucket}/runs").sweep("fake")
    check_complete(folder, 5)
    assert folder.shared.child("spool.jsonl").read_bytes() == folder.spool.read_bytes()
    written = b"".join(folder.shared.child(name).read_bytes() for name in folder.shared.sizes())
    assert b"planted" not in written, "no credentials in any file"


@pytest.mark.parametrize("name", ["fake", f"{MEMORY}/fake"])
def test_a_sweep_in_a_store_begins_with_the_results_of_another(tmp_path: Path, name: str) -> None:
    swept(tmp_path, f"storage={MEMORY}", "trials=4")
    lose_machine(tmp_path)
    _, text = swept(tmp_path, f"storage={MEMORY}", "trials=2", "name=next", f"warm_start={name}")
    assert "warm start: 4 of 4 results of fake fit this space" in text
    with pytest.raises(ConfigError, match="is this sweep itself"):
        swept(tmp_path, f"storage={MEMORY}", "trials=2", "name=other", f"warm_start={MEMORY}/other")
    with pytest.raises(ConfigError, match=rf"there is no sweep in {MEMORY}/nothing"):
        swept(tmp_path, f"storage={MEMORY}", "trials=2", "name=other", f"warm_start={MEMORY}/nothing")
