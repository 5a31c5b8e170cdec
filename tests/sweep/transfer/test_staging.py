"""Copies of the shared cache on the disk of a node: whole or not used, made once, removed when there is no room."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmpkd.machine.checksums import of_files, sealed
from sweep.storage.failures import cause_of
from sweep.transfer import copies
from sweep.transfer.addresses import Place, place
from sweep.transfer.staging import NodeCache

ENTRY = "teachers/tabular-01"


def write_entry(cache: Path, entry: str = ENTRY, num_bytes: int = 1000) -> Path:
    """Writes an entry of two files and a manifest."""
    folder = cache / entry
    folder.mkdir(parents=True)
    for name in ("logits.npy", "embedding.npy"):
        (folder / name).write_bytes(os.urandom(num_bytes))
    checksums = of_files(folder, ["logits.npy", "embedding.npy"])
    (folder / "manifest.json").write_text(sealed({"checksums": checksums}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the files that are read from the shared place, by name."""
    counted: Counter[str] = Counter()
    original = Place.download

    def download(self: Place, name: str, path: Path) -> None:
        counted[name] += 1
        original(self, name, path)

    monkeypatch.setattr(Place, "download", download)
    return counted


def test_an_entry_is_read_from_the_shared_place_once_for_each_node(tmp_path: Path, downloads: Counter[str]) -> None:
    shared = write_entry(tmp_path / "shared")
    for node in ("a", "b"):
        for _ in range(3):  # workers of the same node
            copy = NodeCache(place(tmp_path / "shared"), tmp_path / node).fetch(ENTRY)
            assert copy == tmp_path / node / ENTRY and contents(copy) == contents(shared)
    assert downloads == {f"{ENTRY}/{name}": 2 for name in contents(shared)}


def test_an_entry_that_nobody_has_made_is_not_there(tmp_path: Path) -> None:
    assert NodeCache(place(tmp_path / "shared"), tmp_path / "node").fetch(ENTRY) is None


def test_a_half_publication_is_not_used(tmp_path: Path) -> None:
    (write_entry(tmp_path / "shared") / "manifest.json").unlink()
    assert NodeCache(place(tmp_path / "shared"), tmp_path / "node").fetch(ENTRY) is None


COPY_SLOWLY = """
import sys, time
from pathlib import Path
from sweep.transfer.addresses import Place, place
from sweep.transfer.staging import NodeCache

original = Place.download
def download(self, name, path):
    original(self, name, path)
    print("copied", name, flush=True)
    time.sleep(float(sys.argv[3]))

Place.download = download
NodeCache(place(Path(sys.argv[1])), Path(sys.argv[2])).fetch("teachers/tabular-01")
"""


def copying(tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", COPY_SLOWLY, str(tmp_path / "shared"), str(tmp_path / "node"), str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_a_copy_whose_process_was_killed_is_never_used(tmp_path: Path, downloads: Counter[str]) -> None:
    shared = write_entry(tmp_path / "shared")
    with copying(tmp_path, seconds=60) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("copied")
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "node" / ENTRY).exists()
    copy = NodeCache(place(tmp_path / "shared"), tmp_path / "node").fetch(ENTRY)
    assert copy and contents(copy) == contents(shared)
    assert len(downloads) == 3
    assert [path.name for path in copy.parent.iterdir() if "partial" in path.name] == []


def test_two_processes_that_need_an_entry_at_once_make_one_copy(tmp_path: Path, downloads: Counter[str]) -> None:
    shared = write_entry(tmp_path / "shared")
    with copying(tmp_path, seconds=0.1) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("copied")
        copy = NodeCache(place(tmp_path / "shared"), tmp_path / "node").fetch(ENTRY)
    assert copy and contents(copy) == contents(shared)
    assert not downloads, "this process waited for the copy of the other"


def test_a_damaged_copy_is_replaced(tmp_path: Path, downloads: Counter[str]) -> None:
    shared = write_entry(tmp_path / "shared")
    copy = NodeCache(place(tmp_path / "shared"), tmp_path / "node").fetch(ENTRY)
    assert copy
    newer = (copy / "manifest.json").stat().st_mtime + 1
    (copy / "logits.npy").write_bytes(b"damage")
    os.utime(copy / "logits.npy", (newer, newer))
    again = NodeCache(place(tmp_path / "shared"), tmp_path / "node").fetch(ENTRY)
    assert again == copy and contents(copy) == contents(shared)
    assert set(downloads.values()) == {2}


def test_a_copy_that_is_damaged_on_its_way_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, original, damages = write_entry(tmp_path / "shared"), Place.download, iter([True])

    def download(self: Place, name: str, path: Path) -> None:
        original(self, name, path)
        if next(damages, False):
            path.write_bytes(b"damage")

    monkeypatch.setattr(Place, "download", download)
    copy = NodeCache(place(tmp_path / "shared"), tmp_path / "node").fetch(ENTRY)
    assert copy and contents(copy) == contents(shared)


def test_a_damaged_shared_entry_is_not_used_and_is_replaced_by_a_new_one(tmp_path: Path) -> None:
    shared = write_entry(tmp_path / "shared")
    (shared / "logits.npy").write_bytes(b"damage")
    node = NodeCache(place(tmp_path / "shared"), tmp_path / "node")
    assert node.fetch(ENTRY) is None
    (note,) = node.take_notes()
    assert "is damaged (logits.npy is missing or does not match its checksum), and is not used" in note
    made = contents(write_entry(tmp_path / "node"))  # the teacher is fitted again
    node.publish(ENTRY)
    assert contents(shared) == made


def test_what_was_made_on_one_node_is_copied_to_another(tmp_path: Path) -> None:
    first, second = (NodeCache(place(tmp_path / "shared"), tmp_path / name) for name in ("a", "b"))
    made = contents(write_entry(tmp_path / "a"))
    first.publish(ENTRY)
    copy = second.fetch(ENTRY)
    assert copy and contents(copy) == made
    assert [path.name for path in (tmp_path / "shared" / "teachers").iterdir()] == ["tabular-01"]


def test_a_finished_stage_is_a_single_file(tmp_path: Path) -> None:
    import torch

    (tmp_path / "a/stages").mkdir(parents=True)
    torch.save({"weight": torch.ones(3)}, tmp_path / "a/stages/cohort-01.pt")
    NodeCache(place(tmp_path / "shared"), tmp_path / "a").publish("stages/cohort-01.pt")
    copy = NodeCache(place(tmp_path / "shared"), tmp_path / "b").fetch("stages/cohort-01.pt")
    assert copy and copy.read_bytes() == (tmp_path / "a/stages/cohort-01.pt").read_bytes()


def test_a_cache_that_cannot_be_written_costs_only_the_publication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_entry(tmp_path / "node")
    (tmp_path / "shared").write_text("a file where the cache should be")
    node = NodeCache(place(tmp_path / "shared"), tmp_path / "node")
    node.publish(ENTRY)
    (note,) = node.take_notes()
    assert "other machines fit it again" in note


# --- room ---


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A disk of 10 GB, of which 6 GB are free."""
    usage = SimpleNamespace(total=10 * copies.GIGABYTE, free=6 * copies.GIGABYTE)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    return usage


def used_at(node: Path, entry: str, seconds: float) -> None:
    os.utime(copies.beside(node / entry, "used"), (seconds, seconds))


def test_the_copy_that_was_used_least_recently_is_removed_first(tmp_path: Path, disk: SimpleNamespace) -> None:
    names = [f"teachers/tabular-{number}" for number in range(4)]
    for name in names:
        write_entry(tmp_path / "shared", name)
    capacity = 3.5 * 2100 / copies.GIGABYTE  # three entries of 2 000 bytes and a manifest
    for age, name in enumerate(names[:3]):
        with NodeCache(place(tmp_path / "shared"), tmp_path / "node", capacity) as node:
            node.fetch(name)
        used_at(tmp_path / "node", name, 1000 - age)  # the last is the oldest
    NodeCache(place(tmp_path / "shared"), tmp_path / "node", capacity).fetch(names[3])
    assert [(tmp_path / "node" / name).exists() for name in names] == [True, True, False, True]


def test_what_a_killed_copy_has_left_makes_room(tmp_path: Path, disk: SimpleNamespace) -> None:
    write_entry(tmp_path / "shared")
    for ending in ("partial", "removed"):
        (tmp_path / "node" / "stores" / f".cohort-02.{ending}").mkdir(parents=True)
    with copies.locked(tmp_path / "node" / "stores" / ".cohort-03.copying"):
        (tmp_path / "node" / "stores" / ".cohort-03.partial").mkdir()
        assert NodeCache(place(tmp_path / "shared"), tmp_path / "node").fetch(ENTRY) is not None
    assert [path.name for path in (tmp_path / "node" / "stores").iterdir() if path.is_dir()] == [".cohort-03.partial"]


def test_a_copy_in_use_is_never_removed(tmp_path: Path, disk: SimpleNamespace) -> None:
    names = [f"teachers/tabular-{number}" for number in range(3)]
    for name in names:
        write_entry(tmp_path / "shared", name)
    capacity = 2.5 * 2100 / copies.GIGABYTE
    user = NodeCache(place(tmp_path / "shared"), tmp_path / "node", capacity)
    user.fetch(names[0])
    with NodeCache(place(tmp_path / "shared"), tmp_path / "node", capacity) as node:
        node.fetch(names[1])
    used_at(tmp_path / "node", names[0], 1000)  # older than the other, but in use
    NodeCache(place(tmp_path / "shared"), tmp_path / "node", capacity).fetch(names[2])
    assert [(tmp_path / "node" / name).exists() for name in names] == [True, False, True]
    assert user.fetch(names[0]) == tmp_path / "node" / names[0]


def test_without_room_an_entry_is_read_from_the_shared_folder(tmp_path: Path, disk: SimpleNamespace) -> None:
    write_entry(tmp_path / "shared")
    disk.free = copies.MARGIN_BYTES
    node = NodeCache(place(tmp_path / "shared"), tmp_path / "node")
    assert node.fetch(ENTRY) == node.fetch(ENTRY) == tmp_path / "shared" / ENTRY
    (note,) = node.take_notes()  # a single line
    assert "no room for a copy of 0.0 GB (1.0 GB are free, and copies may take 5.0 GB)" in note
    assert f"{ENTRY} is read from {tmp_path / 'shared'}, which is slower" in note


def test_a_disk_that_fills_while_copying_is_no_end_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_entry(tmp_path / "shared")

    def download(self: Place, name: str, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Place, "download", download)
    node = NodeCache(place(tmp_path / "shared"), tmp_path / "node")
    assert node.fetch(ENTRY) == tmp_path / "shared" / ENTRY


def test_trouble_of_the_shared_place_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker waits for the storage; its own disk is not to blame."""
    shared = write_entry(tmp_path / "shared")

    def download(self: Place, name: str, path: Path) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(shared / "logits.npy"))

    monkeypatch.setattr(Place, "download", download)
    with pytest.raises(OSError, match="Stale"):
        NodeCache(place(tmp_path / "shared"), tmp_path / "node").fetch(ENTRY)


def test_without_room_and_without_a_shared_folder_the_user_learns_what_is_needed(
    tmp_path: Path, disk: SimpleNamespace
) -> None:
    shared = write_entry(tmp_path / "shared")
    store = Place("file", str(tmp_path / "shared"))  # read through fsspec, as an object store is
    copy = NodeCache(store, tmp_path / "node").fetch(ENTRY)
    assert copy and contents(copy) == contents(shared)
    disk.free = copies.MARGIN_BYTES
    with pytest.raises(
        OSError, match=r"no room for a copy .* name another disk of every node with scratch=DIR"
    ) as raised:
        NodeCache(store, tmp_path / "other").fetch(ENTRY)
    assert cause_of(raised.value, [tmp_path / "runs"]) == "storage", "other nodes continue the trial"


def test_a_copy_waits_for_the_process_that_makes_it(tmp_path: Path) -> None:
    write_entry(tmp_path / "shared")
    lock = copies.beside(tmp_path / "node" / ENTRY, "copying")
    with copies.locked(lock):
        fetched: list[Path | None] = []
        node = NodeCache(place(tmp_path / "shared"), tmp_path / "node")
        thread = threading.Thread(target=lambda: fetched.append(node.fetch(ENTRY)))
        thread.start()
        time.sleep(0.1)
        assert not fetched
    thread.join()
    assert fetched == [tmp_path / "node" / ENTRY]
