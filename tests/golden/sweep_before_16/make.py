"""Makes the sweep of this folder with the code of an earlier commit; README.md beside this file shows the commands.

    python tests/golden/sweep_before_16/make.py CHECKOUT WORK

CHECKOUT is a worktree of that commit; WORK is an empty folder, in which sweeps run. A first driver ends in good order.
A second one is killed (SIGKILL) while two trials train, and the files that it leaves are copied here. The same code
then continues a copy of them, to write down what it makes of the trials that had ended before the kill.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import torch

HERE = Path(__file__).parent
WORDS = ("space=before.yaml", "storage=runs", "cache=cache")
FIRST, SECOND = "trials=3", "trials=10"
PLACE = "/sweep_before_16"  # stands in MLflow's file for the folder that it was made in
ATTEMPTS = 12  # of which one should kill the second driver in a state that exercises enough


def start(checkout: Path, work: Path, *words: str) -> subprocess.Popen[bytes]:
    """Starts a driver of the earlier commit with relative words, so that no path of this machine is recorded."""
    environment = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    command = [sys.executable, "-m", "sweep.run", *WORDS, *words]
    return subprocess.Popen(command, cwd=work, env=environment | {"PYTHONPATH": str(checkout.absolute())})


def events(folder: Path) -> list[dict[str, Any]]:
    spool = folder / "spool.jsonl"
    lines = spool.read_bytes().splitlines(keepends=True) if spool.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def open_trials(folder: Path) -> dict[int, str]:
    """Returns the arm of each trial that has reported an epoch and has not ended, by number."""
    arms, ended = dict[int, str](), set[int]()
    for event in events(folder):
        if event["event"] == "epoch":
            arms[event["number"]] = event["arm"]
        elif event["event"] == "end":
            ended.add(event["number"])
    return {number: arm for number, arm in arms.items() if number not in ended}


def is_due(folder: Path) -> bool:
    """Returns whether trials have ended in every way, and two trials train."""
    ends = Counter(event["state"] for event in events(folder) if event["event"] == "end")
    running = open_trials(folder)
    enough = ends["failed"] >= 1 and ends["pruned"] >= 1 and ends["complete"] >= 3
    return enough and len(running) == 2


def epochs_saved(folder: Path, number: int) -> int:
    checkpoint = folder / "checkpoints" / str(number) / "attempt-1" / "last.pt"
    return len(torch.load(checkpoint, weights_only=True)["history"]) if checkpoint.exists() else 0


def kill(checkout: Path, work: Path, folder: Path) -> bool:
    """Runs the second driver, kills it, and returns whether what it left is wanted."""
    driver = start(checkout, work, SECOND)
    while not is_due(folder):
        if driver.poll() is not None:
            return False
        time.sleep(0.002)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(8)  # Ray's processes notice, and end
    running = open_trials(folder)
    behind = int((folder / "spool.sent").read_text().split()[0]) < (folder / "spool.jsonl").stat().st_size
    saved = [epochs_saved(folder, number) for number in running]
    print(f"killed while {running} trained, with {saved} epochs saved; MLflow lacks events: {behind}")
    return all(0 < epochs < 4 for epochs in saved) and behind


def copy_here(checkout: Path, work: Path) -> None:
    """Copies what the killed driver left, but the report (5 MB) and what nobody reads of the front's checkpoints."""
    shutil.rmtree(HERE / "storage", ignore_errors=True)
    shutil.copytree(work / "runs" / "before", HERE / "storage" / "before", ignore=shutil.ignore_patterns("ray"))
    folder = HERE / "storage" / "before"
    (folder / "report.html").unlink()
    (folder / "driver.lock").write_text("process 7 on a-machine\n")
    running = open_trials(folder)
    for path in folder.glob("checkpoints/*/attempt-1/last.pt"):
        if int(path.parents[1].name) not in running:
            path.unlink()
    for path in folder.glob("errors/*.txt"):
        text = path.read_text().replace(f"{sys.prefix}/", "/before/.venv/")
        path.write_text(text.replace(f"{checkout.absolute()}/", "/before/"))
    shutil.copy(work / "runs" / "mlflow.db", HERE / "storage")
    compress_database(HERE / "storage" / "mlflow.db", work)


def compress_database(path: Path, work: Path) -> None:
    """Compresses MLflow's file, with PLACE for the folder of this machine that it was made in."""
    with sqlite3.connect(path) as database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(work), PLACE))
    database.execute("VACUUM")
    database.close()
    path.with_suffix(".db.xz").write_bytes(lzma.compress(path.read_bytes(), preset=9))
    path.unlink()


def main() -> None:
    checkout, work = Path(sys.argv[1]), Path(sys.argv[2]).absolute()
    work.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "before.yaml", work)
    folder = work / "runs" / "before"
    if start(checkout, work, FIRST).wait() != 0:
        sys.exit("the first driver failed")
    shutil.copytree(work / "runs", work / "first")
    for _ in range(ATTEMPTS):
        if kill(checkout, work, folder):
            break
        shutil.rmtree(work / "runs")
        shutil.copytree(work / "first", work / "runs")
    else:
        sys.exit("no kill hit a wanted state; run this again")
    copy_here(checkout, work)
    ended = {event["number"] for event in events(folder) if event["event"] == "end"}
    if start(checkout, work, SECOND).wait() != 0:
        sys.exit("the earlier commit cannot continue it")
    for name in ("trials", "epochs"):
        table = pd.read_parquet(folder / f"{name}.parquet")
        known = table[table["number"].isin(ended)]
        known.to_csv(HERE / f"{name}.csv", index=False)


if __name__ == "__main__":
    main()
