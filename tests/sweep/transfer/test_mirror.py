"""A sweep in an object store whose machine is lost at any moment, without Ray: what the next driver finds."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweep.options import storage_at
from sweep.search.searcher import Search
from sweep.storage.events import EpochEnded, TrialEnded, TrialStarted
from sweep.storage.layout import SweepFolder
from sweep.transfer import addresses, lease
from sweep.transfer.addresses import Place
from sweep.transfer.mirror import Mirror
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


def check_complete(folder: SweepFolder, trials: int) -> None:
    """Checks that every trial of a complete sweep began, trained each epoch and ended exactly once."""
    ended = {event.number for event in events(folder.path, TrialEnded) if event.state == "complete"}
    epochs = Counter((event.number, event.epoch) for event in events(folder.path, EpochEnded))
    starts = Counter(event.number for event in events(folder.path, TrialStarted))
    assert sorted(numbers(folder.path)) == sorted(ended) and len(ended) == trials
    assert all(epochs[number, epoch] == 1 for number in ended for epoch in range(1, 5)) and set(starts.values()) == {1}


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
        patch.setattr(Mirror, "_copy_last", lambda mirror: None)
        patch.setattr("sweep.transfer.lease.Lease.give_back", lambda lease: None)
        swept(tmp_path, f"storage={MEMORY}", play=dies)
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
        return play_all(search)

    last = 3
    while True:
        Place("memory", "bucket").delete()
        shutil.rmtree(tmp_path, ignore_errors=True)
        tmp_path.mkdir()
        store.num_writes, store.last = 0, last
        try:
            swept(tmp_path, f"storage={MEMORY}", "trials=2", play=play_copying)
        except MachineLost:
            lost = True
        else:
            lost = False
        folder = storage_at(MEMORY).sweep("fake")
        sent = folder.spool.read_bytes()[: int(mirrors[-1].sendable)] if folder.spool.exists() else b""
        lose_machine(tmp_path)
        store.last = -1
        swept(tmp_path, f"storage={MEMORY}", "trials=2")
        check_complete(folder, 2)
        assert folder.spool.read_bytes().startswith(sent), "MLflow knows nothing that the spool does not"
        if not lost:
            break
        last += 1
    assert last > 20, "the machine was lost at many moments"
