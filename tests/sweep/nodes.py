"""A Ray cluster of several nodes on this machine, for tests that add and kill nodes while a sweep runs.

    with local_cluster(monkeypatch.setenv) as cluster:
        nodes = [cluster.add(cpus=1) for _ in range(3)]
        ...
        nodes[0].kill()

Every node is a `ray start --block` in a session of its own. Ports are free ones and the temporary folder is
private, so several clusters can run beside each other, and beside any other Ray of the machine. Nodes can be added from
any thread. With `ray.cluster_utils.Cluster` (2.60) they cannot, because its `add_node` installs handlers of signals,
which only the main thread may do.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ray._private.authentication.authentication_token_setup import (
    enable_token_auth_by_default,
    ensure_token_if_auth_enabled,
)

NAME: Final = "TEST_NODE"  # the environment variable in which every worker finds the name of its node
START_SECONDS: Final = 60.0  # time within which a node has to start on a busy machine
START_TRIES: Final = 3
# Ray looks for lost nodes every second instead of every few seconds, and a node is lost after three misses.
HEALTH: Final = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


class Node:
    """A node of the cluster: `ray start --block` and everything that it has started.

    Args:
        log: file to which the command writes.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path):
        self.name, self.process, self._log = name, process, log

    def wait(self) -> None:
        """Waits until the node has joined the cluster."""
        deadline = time.monotonic() + START_SECONDS
        while not self.has_started():
            ended = self.process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} has not started:\n{self._log.read_text()}")
            time.sleep(0.05)

    def has_started(self) -> bool:
        return b"Ray runtime started" in self._log.read_bytes()

    def kill(self) -> None:
        """Kills every process of the node at once, as a loss of power does."""
        self.send(signal.SIGKILL)
        self.process.wait()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to every process of the node, for example SIGSTOP."""
        for process_id in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process_id, number)

    def processes(self) -> dict[int, str]:
        """Returns the command of every process of the node, by process id. The command of a worker begins with
        `ray::`, and the command of the raylet contains `/raylet/raylet`.
        """
        commands = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.getsid(int(folder.name)) == self.process.pid:  # workers have process groups of their own
                    commands[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return commands


@dataclass
class LocalCluster:
    """A cluster whose head has no cores, so that it runs no trial.

    Args:
        folder: private folder for Ray's sessions, with a short path.
        environment: environment of all nodes, and thus of their workers.
    """

    address: str
    folder: Path
    environment: Mapping[str, str]
    nodes: list[Node] = field(default_factory=list)

    def add(self, cpus: float = 1, gpus: int = 0, wait: bool = True) -> Node:
        """Starts a node with so many cores and GPUs, which need not exist. Returns once it has joined the cluster, or
        at once if `wait` is false.

        Ray (2.60) gives up a node that needs more than 30 s to start, as it may on a busy machine. Another node is then
        started.
        """
        words = [f"--address={self.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        for tries_left in reversed(range(START_TRIES)):
            node = self.start(f"node-{len(self.nodes)}", words, wait=False)
            try:
                if wait:
                    node.wait()
                return node
            except RuntimeError:
                node.kill()
                if not tries_left:
                    raise
        raise AssertionError("unreachable")

    def start(self, name: str, words: list[str], wait: bool) -> Node:
        log, disk = self.folder / f"{name}.log", self.folder / f"disk-{name}"
        disk.mkdir()
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--temp-dir={self.folder}"]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        command += [f"--object-store-memory={80 * 2**20}", "--include-log-monitor=false", "--disable-usage-stats"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command + words,
                env=os.environ | dict(self.environment) | {NAME: name, "TMPDIR": str(disk)},  # a disk of its own
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        node = Node(name, process, log)
        self.nodes.append(node)
        if wait:
            node.wait()
        return node


@contextmanager
def local_cluster(
    setenv: Callable[[str, str], None], environment: Mapping[str, str] | None = None
) -> Iterator[LocalCluster]:
    """Starts the head of a cluster, and sets RAY_ADDRESS for this process and its children. At the end all nodes are
    killed.

    Args:
        setenv: function that sets an environment variable, such as that of pytest's `monkeypatch`.
        environment: further variables of the environment of every node.
    """
    folder = Path(tempfile.mkdtemp(prefix="n-", dir="/tmp"))
    enable_token_auth_by_default()  # as `ray.init` does for a new cluster; sets RAY_AUTH_MODE for all children
    ensure_token_if_auth_enabled()
    address = f"127.0.0.1:{free_port()}"
    started = LocalCluster(address, folder, {"RAY_worker_niceness": "0"} | dict(environment or {}))
    try:
        port = address.rpartition(":")[2]
        words = ["--head", f"--port={port}", f"--ray-client-server-port={free_port()}", "--include-dashboard=false"]
        words += ["--num-cpus=0", "--num-gpus=0", "--node-ip-address=127.0.0.1"]
        started.start("head", [*words, f"--system-config={json.dumps(HEALTH)}"], wait=True)
        setenv("RAY_ADDRESS", address)
        yield started
    finally:
        for node in reversed(started.nodes):
            node.kill()
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """Returns a port that no process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
