"""A worker of a cluster: it reads from copies on its node, and its trials go on from checkpoints of other nodes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweep.options import RunOptions
from sweep.transfer import checkpoints
from sweep.transfer.addresses import Place, place
from sweep.transfer.preparing import prepare_shared, use_of_scratch
from sweep.workers.node_disk import NodeDisk
from sweep.workers.worker import TrainingFunctions, TrialWorker
from tests.sweep.fake import FAKE_TRAINING
from tests.sweep.transfer.test_staging import contents, write_entry
from tests.sweep.workers.test_worker import epochs_of, job, worker_for

STORE = "stores/synthetic-01"
WORKERS: list[TrialWorker] = []


def started(job: dict[str, Any], seen: list[Any]) -> TrialWorker:
    WORKERS.append(worker_for(job, training(seen)))
    return WORKERS[-1]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Looks often for new checkpoints, and ends the workers of a test after it."""
    monkeypatch.setattr(checkpoints, "CHECK_SECONDS", 0.01)
    yield
    while WORKERS:
        WORKERS.pop().cleanup()


def job_on(node: Path, shared: Path, number: int = 0) -> dict[str, Any]:
    """Returns a trial of a sweep in a shared folder, for a worker of a node whose disk is the folder `node`."""
    scratch = {"folder": str(node), "gigabytes": 0.0, "sweep": "0af3"}
    places = {"cache": str(shared / "cache"), "store": str(shared / "cache" / STORE), "scratch": scratch}
    return job(shared, number) | places


def near(node: Path) -> Path:
    return node / f"mmpkd-{os.getuid()}"


def training(seen: list[Any]) -> TrainingFunctions:
    """Returns functions that note the job of each training, and train as the fake does."""

    def run(placed: Any, folder: Path, resume: Path | None, report: Any) -> None:
        seen.append((placed, folder, resume))
        FAKE_TRAINING.run({**placed, "store": "store"}, folder, resume, report)  # type: ignore[misc]

    return TrainingFunctions(run, FAKE_TRAINING.checkpoint_owner, FAKE_TRAINING.read_history)


def test_a_training_reads_copies_on_its_node_and_writes_its_checkpoints_there(tmp_path: Path) -> None:
    shared, node, seen = tmp_path / "shared", tmp_path / "node", list[Any]()
    store = write_entry(shared / "cache", STORE)
    worker = started(job_on(node, shared), seen)
    assert [worker.step()["done"] for _ in range(3)] == [False, False, True]
    ((placed, folder, _),) = seen
    assert Path(placed["store"]) == near(node) / "cache" / STORE and contents(Path(placed["store"])) == contents(store)
    assert placed["cache"] == str(near(node) / "cache") and placed["shared"] is not None
    assert folder == near(node) / "checkpoints/0af3/0/attempt-1"
    assert (shared / "checkpoints/0/attempt-1/last.pt").exists(), "the last epoch has travelled before the trial ends"
    assert not folder.exists(), "nothing of an ended trial stays on the node"


def test_a_trial_goes_on_from_the_checkpoint_of_another_node(tmp_path: Path) -> None:
    shared, seen = tmp_path / "shared", list[Any]()
    write_entry(shared / "cache", STORE)
    first = started(job_on(tmp_path / "a", shared), seen)
    assert epochs_of(first.step()) == [1] and epochs_of(first.step()) == [2]
    first.cleanup()  # Ray ends the worker, and the node goes away
    second = started(job_on(tmp_path / "b", shared), seen)
    assert epochs_of(second.step()) == [1, 2] and epochs_of(second.step()) == [3]
    assert seen[1][2] == shared / "checkpoints/0/attempt-1/last.pt"


def test_a_trial_goes_on_from_the_newer_file_on_the_same_node(tmp_path: Path) -> None:
    shared, node, seen = tmp_path / "shared", tmp_path / "node", list[Any]()
    write_entry(shared / "cache", STORE)
    killed = started(job_on(node, shared), seen)
    killed.step()
    assert killed._attempt is not None
    killed._attempt.finish()
    killed._attempt._closed.set()  # no copy travels any more
    killed.step()
    again = started(job_on(node, shared), seen)
    assert epochs_of(again.step()) == [1, 2] and epochs_of(again.step()) == [3]
    assert seen[1][2] == near(node) / "checkpoints/0af3/0/attempt-1/last.pt"
    assert seen[1][1].name == "attempt-2", "the folder of the earlier attempt is only read"


def test_a_checkpoint_travels_when_the_trial_passes_a_rung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, sent = tmp_path / "shared", list[int]()
    write_entry(shared / "cache", STORE)
    worker = started(job_on(tmp_path / "node", shared), [])
    worker.step()
    assert worker._attempt is not None
    monkeypatch.setattr(worker._attempt, "send", lambda: sent.append(1))
    worker.step()  # epoch 2 is a rung, at which the trial may be stopped
    assert sent == []
    worker.step()
    assert sent == [1]


def test_a_node_whose_disk_cannot_be_used_uses_the_shared_folders(tmp_path: Path) -> None:
    shared, node, seen = tmp_path / "shared", tmp_path / "node", list[Any]()
    write_entry(shared / "cache", STORE)
    node.write_text("a file where a folder should be")
    worker = started(job_on(node, shared), seen)
    (note,) = worker.step()["notes"]
    assert "cannot be made (File exists)" in note and "uses the shared folders directly" in note
    ((placed, folder, _),) = seen
    assert placed["store"] == str(shared / "cache" / STORE) and placed["shared"] is None
    assert folder == shared / "checkpoints/0/attempt-1"


def test_on_one_machine_nothing_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = RunOptions(storage=str(tmp_path / "runs"), name="demo", cache=str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert use_of_scratch(options, place(tmp_path / "cache"), "0af3") is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert use_of_scratch(options, place(tmp_path / "cache"), "0af3") == {
        "folder": "",
        "gigabytes": 0.0,
        "sweep": "0af3",
    }
    plain: Any = job(tmp_path)
    disk = NodeDisk(plain)
    assert disk.placed(plain)["store"] == plain["store"] and disk.cache is None


def test_a_cohort_for_a_cache_in_an_object_store_is_copied_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[Path | None] = []

    def prepare(cohort: Any, cache: Path, shared: Any) -> Any:
        fetched.append(shared.fetch(STORE))
        return SimpleNamespace(path=fetched[-1] or write_entry(cache, STORE))

    monkeypatch.setattr("sweep.transfer.preparing.place", lambda address, key: Place("memory", "test-node-disk"))
    for node in ("head", "another head"):
        options = RunOptions(cache="memory://", scratch=str(tmp_path / node))
        store, cache = prepare_shared(prepare, None, options)  # type: ignore[arg-type]
        assert store.path == near(tmp_path / node) / "cache" / STORE
    assert fetched == [None, near(tmp_path / "another head") / "cache" / STORE], "it is prepared once"
    assert set(cache.child(STORE).sizes()) == {"embedding.npy", "logits.npy", "manifest.json"}
