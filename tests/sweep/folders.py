"""Folders such as sweeps leave them, and locks such as drivers hold."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from sweep.storage.events import EpochEnded, Spool, SweepBegan, TrialEnded, TrialStarted
from sweep.storage.layout import SweepFolder
from sweep.storage.lock import is_locked

GOALS = ["val/auroc", "val/pointing"]


def make(
    folder: Path,
    store: str = "aa11",
    repeats: int = 1,
    words: Sequence[str] | None = None,
    references: Sequence[str] = (),
) -> Spool:
    """A sweep that was begun and is not running: its folder, with nothing in the spool but its first line."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "driver.lock").write_text("process 7 on a-machine\n")
    plan = {"space": "breast", "trials": 8, "goals": GOALS, "store": store, "references": list(references)}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "space.yaml").write_text(yaml.safe_dump({"search": {"trials": 8, "repeats": repeats}}))
    spool = Spool(SweepFolder(folder))
    spool.append(SweepBegan(id="x", **({} if words is None else {"words": list(words)})))
    return spool


def add(
    spool: Spool, number: int, state: str, auroc: float, pointing: float, arm: str = "none", of: int | None = None
) -> None:
    """A trial of two epochs of 900 s on half a device, with checkpoints; state 'open' has no end."""
    tags = {} if of is None else {"repeat_of": str(of)}
    spool.append(TrialStarted(number=number, arm=arm, params={}, tags=tags, devices=0.5))
    for epoch in (1, 2):
        metrics = {"val/auroc": auroc * epoch / 2, "val/pointing": pointing * epoch / 2}
        spool.append(EpochEnded(number=number, arm=arm, epoch=epoch, seconds=900.0, metrics=metrics, terms={}))
    if state != "open":
        spool.append(TrialEnded(number=number, state=state, error="", cause=""))
    attempt = spool.path.parent / "checkpoints" / str(number) / "attempt-1"
    attempt.mkdir(parents=True)
    (attempt / "last.pt").write_bytes(b"x" * 100)


@contextmanager
def driven(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the sweep's lock as its driver would, and lets go when `stop` appears."""
    code = f"""if True:
        import time
        from pathlib import Path
        from sweep.storage.layout import SweepFolder
        from sweep.storage.lock import hold_driver_lock
        folder = SweepFolder(Path({str(folder)!r}))
        with hold_driver_lock(folder):
            while not folder.stop_request.exists():
                time.sleep(0.02)
    """
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        while not is_locked(folder / "driver.lock"):
            assert process.poll() is None
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
