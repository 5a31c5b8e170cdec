"""Runs MLflow on the head of a cluster, on loopback; ray_node.sh starts it. It ends when Ray on the head has ended.

The database is an SQLite file on the head's own disk: SQLite's locks do not hold on NFS, and a shared disk that is away
would stop it. Copies of the database and of the files of the runs go to shared storage at intervals and at the end. A
head without a database, such as a new machine, begins with the copy.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from pyarrow.lib import ArrowException

from mmpkd.types import UserError
from sweep.transfer.addresses import Place, place

DATABASE: Final = "mlflow.db"
FILES: Final = "artifacts"  # folder of the files that runs have
COPY_SECONDS: Final = 300.0  # time between two copies
RAY_SECONDS: Final = 30.0  # a head whose Ray has been away for this long is no head any more
HANDOVER_SECONDS: Final = 60.0  # time that an older server has to make its last copy and end
MLFLOW_SECONDS: Final = 20.0  # time that MLflow has to end by itself


def main(words: list[str]) -> int:
    """Runs MLflow until Ray has ended or SIGTERM arrives. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the database, on a disk of this machine")
    parser.add_argument("--copies", required=True, help="folder or address of the copies, on shared storage")
    parser.add_argument("--port", type=int, default=5000, help="port on loopback (default: 5000)")
    parser.add_argument("--while-port", type=int, help="port of Ray on this machine: MLflow ends with it")
    parser.add_argument("--every", type=float, default=COPY_SECONDS, help="seconds between two copies (default: 300)")
    options = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    folder: Path = options.folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        copies = place(options.copies, "--copies")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    with only_server(folder):
        restore(folder, copies)
        server = start_mlflow(folder, options.port)
        try:
            watch(server, folder, copies, options.while_port, options.every)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            end_group(server)
            copy(folder, copies)
    return server.returncode if server.returncode > 0 else 0


def watch(server: subprocess.Popen[bytes], folder: Path, copies: Place, ray_port: int | None, every: float) -> None:
    """Makes copies at intervals, until MLflow has ended or Ray has been away for RAY_SECONDS."""
    ray_seen = copied = time.monotonic()
    while server.poll() is None:
        time.sleep(1)
        now = time.monotonic()
        if ray_port is None or answers(ray_port):
            ray_seen = now
        if now - ray_seen > RAY_SECONDS:
            log("Ray on this machine has ended, so MLflow ends, too")
            return
        if now - copied > every:
            copied = now
            copy(folder, copies)


@contextmanager
def only_server(folder: Path) -> Iterator[None]:
    """Holds the folder's lock. A server that holds it already is asked to end: `ray up` has started a newer one.

    Raises:
        SystemExit: the older server does not end.
    """
    with (folder / "server.pid").open("a+") as file:
        for second in range(int(HANDOVER_SECONDS)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                if second == 0 and (pid := file.read().strip()):  # whoever holds the lock lives, so the number is right
                    os.kill(int(pid), signal.SIGTERM)
                time.sleep(1)
        else:
            sys.exit(f"{folder}: another MLflow server does not end. End the process whose number is in {file.name}.")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def start_mlflow(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Starts `mlflow server` on loopback, in a process group of its own."""
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"),
        *(f"--backend-store-uri=sqlite:///{folder / DATABASE}", f"--artifacts-destination={folder / FILES}"),
    ]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # evaluations of language models
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.Popen(command, env=environment, start_new_session=True)


def end_group(server: subprocess.Popen[bytes]) -> None:
    """Ends MLflow and the processes that it started."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(MLFLOW_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def answers(port: int) -> bool:
    """Returns whether a process of this machine listens on the port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


# --- copies ---


def copy(folder: Path, copies: Place) -> None:
    """Copies the database, and the files of runs that have no copy of the same size. If shared storage is away, a line
    says so, and the next copy makes up for it.
    """
    database = folder / DATABASE
    if not database.exists():
        return
    try:
        snapshot = folder / f"{DATABASE}.copy"
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(snapshot)) as target:
            source.backup(target)  # a consistent state, while MLflow writes
        copies.upload(snapshot, DATABASE)
        snapshot.unlink()
        there = copies.child(FILES).sizes()
        for name, size in place(folder / FILES).sizes().items():
            if there.get(name) != size:
                copies.child(FILES).upload(folder / FILES / name, name)
    except (OSError, sqlite3.Error, ArrowException) as error:
        log(f"no copy in {copies} ({error}); the next one is tried later")


def restore(folder: Path, copies: Place) -> None:
    """Fetches the copy of the database and of the files, if this machine has no database.

    Raises:
        SystemExit: shared storage does not answer. An empty database would then replace the copy.
    """
    if (folder / DATABASE).exists():
        return
    try:
        if not copies.child(DATABASE).exists():
            return
        for name in copies.child(FILES).sizes():
            copies.child(FILES).download(name, folder / FILES / name)
        copies.download(DATABASE, folder / DATABASE)
    except (OSError, ArrowException) as error:
        sys.exit(f"{copies} cannot be read ({error}), so MLflow is not started. Mend that; then run `ray up` again.")
    log(f"began with the copy in {copies}")


def log(line: str) -> None:
    """Prints a line with the time; ray_node.sh sends it to server.log."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
