"""A sweep on a cluster of several nodes that begins empty, grows by several nodes at once, and loses one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sweep.storage.layout import SweepFolder
from tests.sweep.fake import SPACE
from tests.sweep.nodes import LocalCluster, local_cluster

WAIT_SECONDS = 120.0  # only a test that fails waits so long
# What Ray knows of the requests of all drivers, from a process of its own.
REQUESTS = """
import ray
ray.init(logging_level="ERROR", log_to_driver=False)
print([group["state"] for group in ray.util.placement_group_table().values()].count("PENDING"))
"""


def eventually(condition: Callable[[], bool], driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    with local_cluster(monkeypatch.setenv, {"FAKE_SECONDS": "0.1"}) as started:
        yield started


def trained(folder: Path) -> list[tuple[str, str]]:
    """Returns the node and the process of every training that has begun, in order."""
    path = folder / "nodes.txt"
    return [(line.split()[0], line.split()[1]) for line in path.read_text().splitlines()] if path.exists() else []


def test_every_slot_of_a_cluster_that_changes_works(cluster: LocalCluster, tmp_path: Path) -> None:
    """Four trials are requested of an empty cluster at once. Two nodes join, with one slot and with two, and each slot
    gets a worker. A third node joins from another thread and is used. When the node with two slots is lost, the sweep
    goes on.
    """
    (tmp_path / "fake.yaml").write_text(SPACE)
    folder = SweepFolder(tmp_path / "fake")
    words = [f"space={tmp_path / 'fake.yaml'}", f"storage={tmp_path}", "trials=5000", "search.sampler=random"]
    command = [sys.executable, "-m", "tests.sweep.fake_run", *words, "search.at_a_time=4", "arms.tabular=false"]
    log = (tmp_path / "driver.log").open("wb")
    driver = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: b" 4 waiting" in (tmp_path / "driver.log").read_bytes(), driver)
        known = subprocess.run([sys.executable, "-c", REQUESTS], capture_output=True, text=True, check=True)
        assert known.stdout.split()[-1] == "4", "what an autoscaler sees"

        small, large = cluster.add(cpus=1), cluster.add(cpus=2)
        eventually(lambda: len(set(trained(tmp_path / "fake"))) == 3, driver)
        assert sorted(node for node, _ in set(trained(tmp_path / "fake"))) == [small.name, large.name, large.name]

        joining = threading.Thread(target=lambda: cluster.add(cpus=1))
        joining.start()
        joining.join()
        late = cluster.nodes[-1]
        eventually(lambda: late.name in dict(trained(tmp_path / "fake")), driver)

        large.kill()
        before = len(trained(tmp_path / "fake"))
        eventually(lambda: len(trained(tmp_path / "fake")) > before + 8, driver)
        assert {node for node, _ in trained(tmp_path / "fake")[before:]} <= {small.name, late.name}
        eventually(lambda: b"lost machine" in (tmp_path / "driver.log").read_bytes(), driver)
        Path(str(folder.stop_request)).touch()
        driver.wait(WAIT_SECONDS)
        assert "stopped: asked to stop by sweep.stop" in (tmp_path / "driver.log").read_text()
    finally:
        driver.kill()
        driver.wait()
        log.close()
        print((tmp_path / "driver.log").read_text())
