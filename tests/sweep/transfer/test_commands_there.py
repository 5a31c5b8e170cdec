"""The commands on a sweep in an object store, and addresses that no command may take for a folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmpkd import evaluate, predict, train
from mmpkd.cohort import __main__ as cohort
from mmpkd.types import ConfigError
from sweep import clean, run, status, stop
from sweep.driver_status import DriverStatus, write_status
from sweep.storage.events import SweepBegan
from sweep.storage.layout import SweepFolder
from sweep.transfer import lease, views
from sweep.transfer.addresses import Place, place
from sweep.transfer.mirror import WRITER, Mirror
from sweep.transfer.views import refresh
from tests.patched import patch_within
from tests.sweep.folders import add, make

TYPOS = ["s3:/bucket/runs", "s3:bucket/runs", "s4://bucket/runs", "s3://", "s3://key:planted@bucket/runs"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(stop, "REMOTE_POLL_SECONDS", 0.05)
    monkeypatch.setattr("sweep.transfer.mirror.BEAT_SECONDS", 0.05)


@pytest.fixture
def folder(bucket: str, tmp_path: Path) -> SweepFolder:
    """A sweep of three trials, on the disk of its driver and not yet at its address."""
    local = SweepFolder(tmp_path / "head" / "breast", place(f"{bucket}/runs/breast"))
    words = ["space=elsewhere.yaml", "name=breast", "storage=somewhere", "trials=8"]
    spool = make(local.path, words=words)
    spool.append(SweepBegan("x", words))
    for number, (state, auroc) in enumerate([("complete", 0.9), ("pruned", 0.5), ("open", 0.0)]):
        add(spool, number, state, auroc, auroc)
        local.shared_checkpoints.child(f"{number}/attempt-1/last.pt").write_bytes(b"x" * 100)
    local.journal.write_bytes(b"{}\n")
    return local


def driven(folder: SweepFolder, phase: str = "training") -> Mirror:
    """The mirror of a driver that shows that it lives."""
    mirror = Mirror(folder, "process 7 on head", lambda line: None)
    now = time.time()
    write_status(folder, DriverStatus("process 7 on head", began=now, time=now, phase=phase))
    mirror._lease.take((), lambda line: None)
    folder.copies.write_text(json.dumps([mirror._lease.token]))
    earlier = {folder.journal.name: 0, folder.spool.name: 0, WRITER: mirror._lease.token}  # of empty files
    folder.shared.child(folder.copies.name).write_bytes(json.dumps(earlier).encode())
    mirror._lease.give_back()
    return mirror


def facts(bucket: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    status.main([f"storage={bucket}/runs", "json=true"])
    (sweep,) = json.loads(capsys.readouterr().out)["sweeps"]
    return dict(sweep)


def test_status_reads_a_sweep_in_a_bucket(folder: SweepFolder, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    with driven(folder) as mirror:
        mirror.begin()
        mirror._copy_status()
        running = facts(bucket, capsys)
        write_status(folder, DriverStatus("process 7 on head", began=0.0, time=time.time(), phase="ended"))
    assert running["state"] == "running" and running["folder"] == f"{bucket}/runs/breast"
    assert (running["complete"], running["pruned"], running["open"]) == (1, 1, 1)
    command = f"python -m sweep.run space=elsewhere.yaml trials=8 storage={bucket}/runs name=breast"
    assert running["continue"] == command
    assert facts(bucket, capsys)["state"] == "stopped"
    status.main([f"storage={bucket}/runs", "breast"])
    assert command in capsys.readouterr().out.replace(" \\\n     ", "")
    with pytest.raises(ConfigError, match=r"no sweep 'braest' under s3://.*did you mean 'breast'"):
        status.main([f"storage={bucket}/runs", "braest"])


def test_of_the_spool_only_what_is_new_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = place(tmp_path / "there" / "breast")
    folder, spool = SweepFolder(tmp_path / "here" / "breast", there), there.child("spool.jsonl")
    fetched = list[int]()
    read_bytes = Place.read_bytes

    def counted(file: Place, begin: int = 0) -> bytes:
        content = read_bytes(file, begin)
        fetched.append(len(content))
        return content

    monkeypatch.setattr(Place, "read_bytes", counted)
    for content in (b"a" * 9000, b"a" * 9000 + b"b" * 7, b"c" * 9001):  # the last is another spool
        spool.write_bytes(content)
        refresh(folder)
        assert folder.spool.read_bytes() == content
    assert fetched == [views.OVERLAP + 7, views.OVERLAP - 6], "and the other spool as a whole"


def test_stop_reaches_a_driver_through_the_bucket(
    folder: SweepFolder, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with driven(folder) as mirror:
        mirror.begin()
        mirror._copy_status()

        def end_when_asked(seconds: float) -> None:
            if folder.stop_request.exists():
                write_status(folder, DriverStatus("process 7 on head", began=0.0, time=time.time(), phase="ended"))
            os.sched_yield()

        with pytest.MonkeyPatch.context() as patch:
            patch_within(patch, stop, time, sleep=end_when_asked)
            stop.main(["breast", f"storage={bucket}/runs"])
    assert "breast has stopped" in capsys.readouterr().out
    assert not folder.shared.child("stop").exists()
    stop.main(["breast", f"storage={bucket}/runs"])
    assert "breast is not running" in capsys.readouterr().out


def test_clean_deletes_checkpoints_in_the_bucket_and_nothing_else(
    folder: SweepFolder, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with driven(folder, phase="ended") as mirror:
        mirror.begin()
    before = set(folder.shared.sizes())
    clean.main([f"storage={bucket}/runs"])
    assert f"{bucket}/runs/breast/checkpoints/1  (checkpoints of trial 1" in capsys.readouterr().out
    assert set(folder.shared.sizes()) == before
    clean.main([f"storage={bucket}/runs", "delete=true"])
    assert before - set(folder.shared.sizes()) == {"checkpoints/1/attempt-1/last.pt"}
    with pytest.raises(ConfigError, match=r"cache: s3://.* lies in an object store; delete there with its own tools"):
        clean.main([f"storage={bucket}/runs", "unused=true", f"cache={bucket}/cache"])


def test_clean_leaves_a_running_sweep_alone(
    folder: SweepFolder, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with driven(folder) as mirror:
        mirror.begin()
        mirror._copy_status()
        clean.main([f"storage={bucket}/runs", "delete=true"])
    assert "breast is running, and is not touched" in capsys.readouterr().out
    assert folder.shared_checkpoints.names() == ["0", "1", "2"]


@pytest.mark.parametrize("address", TYPOS)
@pytest.mark.parametrize(
    ("main", "words"),
    [
        (run.main, ["storage="]),
        (run.main, ["cache="]),
        (status.main, ["storage="]),
        (stop.main, ["demo", "storage="]),
        (clean.main, ["storage="]),
        (train.main, ["config=any.yaml", "cache="]),
        (train.main, ["config=any.yaml", "out="]),
        (evaluate.main, ["model=any", "cache="]),
        (evaluate.main, ["model=any", "out="]),
        (predict.main, ["model=any", "images=any", "out="]),
        (cohort.main, ["prepare", "cache="]),
    ],
)
def test_no_command_takes_a_mistyped_address_for_a_folder(
    main: Callable[[list[str]], None], words: list[str], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        main([*words[:-1], words[-1] + address])
    key = words[-1].removesuffix("=")
    assert any(mistake.path == key for mistake in caught.value.mistakes) and "planted" not in str(caught.value)
    assert not list(tmp_path.iterdir())
