"""What the fault campaign runs on: a cluster of several nodes on this machine, a sweep's driver as a process of its
own, a tracking server, and a small disk for the folder of all sweeps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from benchmarks.attempts import Line
from benchmarks.chaos.driver import WITNESS
from benchmarks.chaos.training import HOLD, SPACE
from benchmarks.witness import Watch, descendants, events_of, lines_of
from mmpkd.machine.files import write_atomically
from sweep.space.search_config import EarlyStopping
from sweep.storage.layout import CHECKPOINT, Storage, SweepFolder
from sweep.transfer.attempts import attempts_in
from tests.sweep.nodes import LocalCluster, Node, free_port

ROOT: Final = Path(__file__).parents[2]
NAME: Final = "campaign"  # of the sweep
DISK: Final = 64 * 2**20  # bytes of the disk
FEWEST_NODES: Final = 2
MODULE: Final = "benchmarks.chaos.driver"
ASKED_TO_END: Final = 130  # exit status of a driver
SLOTS: Final = 2  # trials on a node


class Disk:
    """A small file system for the folder of all sweeps, which can be full or read-only.

    Args:
        mounted: whether it is a file system of its own. This needs root, in a mount namespace of its own.
    """

    def __init__(self, path: Path, mounted: bool):
        self.path, self._filling = path, path / "filling"
        path.mkdir()
        if mounted:
            mount("-t", "tmpfs", "-o", f"size={DISK}", "chaos", path)

    def make_read_only(self) -> None:
        """Puts a read-only view of the disk over the disk. A remount is refused while a file is open for writing."""
        mount("--bind", self.path, self.path)
        mount("-o", "remount,bind,ro", self.path)

    def make_writable(self) -> None:
        subprocess.run(["umount", "--lazy", self.path], check=True)

    def fill(self) -> None:
        with suppress(OSError), self._filling.open("ab") as file:
            for size in (2**16, 2**12, 1):
                with suppress(OSError):
                    while file.write(bytes(size)):
                        file.flush()

    def make_room(self) -> None:
        self._filling.unlink(missing_ok=True)


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


class Server:
    """An MLflow server with its database on a disk of its own."""

    def __init__(self, folder: Path):
        self._folder, self._port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        folder.mkdir()
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self._port}", "--workers=1"]
        places = [
            f"--backend-store-uri=sqlite:///{self._folder / 'mlflow.db'}",
            f"--artifacts-destination={self._folder}",
        ]
        with (self._folder / "server.log").open("ab") as log:
            self.process = start([*command, *places], log)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Rig:
    """One sweep on its cluster.

    Attributes:
        disk: the disk of the folder of all sweeps.
        trials: number of trials of the sweep.
        orders: folder of the orders to trainings.
        stops: the epochs after which a trial may end.
        held_since: since when trials are held back.
        queued_again: how often the sweep was started again after a request to end.
        asked_to_end: whether the sweep was asked to end.
        by_hand: what a person would have had to do.
        watch: sees the checkpoint folders and the processes of killed drivers.
    """

    def __init__(
        self,
        folder: Path,
        cluster: LocalCluster,
        disk: Disk,
        server: Server | None,
        trials: int,
        epochs: int,
    ):
        self._folder, self.cluster, self.disk, self.server = folder, cluster, disk, server
        self.orders, self.witness = folder / "orders", folder
        self.orders.mkdir()
        self.sweep: SweepFolder = Storage(disk.path).sweep(NAME)
        self.tracking = server.uri if server else f"sqlite:///{folder / 'tracking.db'}"
        (folder / "space.yaml").write_text(SPACE)
        places = {"space": folder / "space.yaml", "name": NAME, "storage": disk.path, "cache": folder / "cache"}
        self.words = [
            *(f"{key}={value}" for key, value in places.items()),
            f"tracking={self.tracking}",
            f"trials={trials}",
            f"epochs={epochs}",
        ]
        self.stops = {*EarlyStopping().rungs(epochs), epochs}
        self.watch = Watch(self.sweep.path)
        self.log = folder / "driver.log"
        self.trials, self.queued_again, self.by_hand = trials, 0, list[str]()
        self.held_since = 0.0
        self._failed: list[Node] = []
        self.asked_to_end = False
        self.command = self._start_driver()

    # --- the driver ---

    def _start_driver(self) -> subprocess.Popen[bytes]:
        """Starts the command of the sweep, whose process is the supervisor of the driver."""
        with self.log.open("ab") as log:
            environment = {WITNESS: str(self.witness)}
            return start([sys.executable, "-m", MODULE, *self.words], log, environment)

    def driver_pid(self) -> int | None:
        """Returns the process id of the driver. None while the supervisor waits before it starts a driver."""
        children = descendants(self.command.pid) if self.command.poll() is None else ()
        return next((pid for pid, _ in children), None)

    @property
    def complete(self) -> bool:
        return self.command.poll() == 0

    def look_after(self, trouble: bool) -> None:
        """Does what is due now and then.

        Args:
            trouble: whether a fault lasts.
        """
        self.watch.look()
        self._keep_nodes()
        self._keep_driver(trouble)

    def _keep_driver(self, trouble: bool) -> None:
        """Starts the sweep again after a request to end, as a batch system does that queues the job again. After a kill
        of the driver its supervisor does so. After any other end a person would, once the trouble is over.
        """
        if (status := self.command.poll()) in (None, 0) or (trouble and not self.asked_to_end):
            return
        if self.asked_to_end and status == ASKED_TO_END:
            self.queued_again += 1
        else:
            lines = self.log.read_text(errors="replace").strip().splitlines()[-6:]
            self.by_hand.append(f"the sweep ended with status {status}, and was started again: " + " | ".join(lines))
        self.asked_to_end = False
        self.command = self._start_driver()

    def hold(self, exempt: Collection[int]) -> None:
        """Slows down all trials but those named, so that the trials last until all faults are done."""
        if not (self.orders / HOLD).exists():
            self.held_since = time.time()
        write_atomically(self.orders / HOLD, " ".join(map(str, exempt)))

    def release(self) -> None:
        (self.orders / HOLD).unlink(missing_ok=True)

    def end(self) -> None:
        """Ends the driver and the tracking server."""
        processes = [self.command.pid, *(pid for pid, _ in descendants(self.command.pid))]
        for pid in processes:  # the supervisor first
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.command.wait()
        if self.server is not None:
            self.server.kill()

    # --- what is going on ---

    def events(self) -> list[dict[str, Any]]:
        return events_of(self.sweep.path)

    def lines(self) -> list[Line]:
        return lines_of(self.witness)

    def finished(self) -> set[int]:
        return {event["number"] for event in self.events() if event["event"] == "end"}

    def waiting(self) -> int:
        """Returns how many trials have not begun."""
        return self.trials - len({event["number"] for event in self.events() if event["event"] == "start"})

    def in_flight(self) -> dict[int, int]:
        """Returns the process ids of the workers that train, by the numbers of their trials."""
        newest = {line.number: line.pid for line in self.lines()}
        finished = self.finished()
        return {number: pid for number, pid in newest.items() if number not in finished and is_running(pid)}

    def newest_checkpoints(self, number: int) -> list[Path]:
        """Returns the checkpoint of the newest attempt at a trial that has one: in the storage, and on nodes' disks."""
        folders = [self.sweep.checkpoints_of(number), *self.cluster.folder.glob(f"disk-*/*/checkpoints/*/{number}")]
        for attempt in reversed(attempts_in(folders[0])):
            if paths := [path for folder in folders if (path := folder / attempt.name / CHECKPOINT).exists()]:
                return paths
        return []

    def workers(self) -> list[Node]:
        """Returns the living nodes without the head."""
        return [node for node in self.cluster.nodes[1:] if node.process.poll() is None]

    def add_node(self) -> Node:
        return self.cluster.add(cpus=SLOTS, wait=False)

    def start_nodes(self, nodes: int) -> None:
        """Starts nodes one after another, and returns when all have joined the cluster."""
        for count in range(1, nodes + 1):
            self.add_node()
            while sum(node.has_started() for node in self.workers()) < count:
                self._keep_nodes()
                time.sleep(0.1)

    def _keep_nodes(self) -> None:
        """Starts another node for each that has failed to start: now and then two that start at once get in each
        other's way.
        """
        for node in self.cluster.nodes[1:]:
            if node.process.poll() is not None and node not in self._failed and not node.has_started():
                self._failed.append(node)
                self.add_node()

    def left_behind(self, allowed: Sequence[Node]) -> dict[int, str]:
        """Returns the commands of processes of this campaign that run outside the allowed nodes, by process id, less
        Ray's two agents of each node, which end by themselves after their node.
        """
        own = {str(self._folder), str(self.cluster.folder)}
        known = {*_ancestors(), *(pid for node in allowed for pid in node.processes())}
        if self.server is not None:
            known |= {pid for pid in all_processes() if _group(pid) == self.server.process.pid}
        left = {pid: command(pid) for pid in all_processes() - known if _mentions(pid, own)}
        return {pid: text for pid, text in left.items() if not text.endswith("Agent")}


# --- processes ---


def start(words: Sequence[str], log: Any, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, as a user starts one."""
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=os.environ | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def all_processes() -> set[int]:
    return {int(folder.name) for folder in Path("/proc").glob("[0-9]*")}


def is_running(pid: int) -> bool:
    """Returns whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def _ancestors() -> set[int]:
    """Returns this process and those above it, whose command lines may name the campaign's folder too."""
    pids, pid = set[int](), os.getpid()
    while pid:
        pids.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pids


def _group(pid: int) -> int:
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return 0


def _mentions(pid: int, texts: set[str]) -> bool:
    """Returns whether one of the texts stands in a process's command line or environment, or in the path of its
    output."""
    content, folder = command(pid), Path(f"/proc/{pid}")
    if not is_running(pid):
        return False
    with suppress(OSError):
        content += (folder / "environ").read_bytes().decode(errors="replace")
        content += os.readlink(folder / "fd" / "1")
    return any(text in content for text in texts)


def wait_for(condition: Any, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
