"""The folder for Ray's sockets, addresses at which no cluster answers, and reservations that do not fit."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import yaml

from mmpkd.machine.resources import Allowance
from mmpkd.types import ConfigError, UserError
from sweep import cluster, local_ray
from sweep.autoscaling import Growth, growth_of, read_growth
from sweep.cluster import (
    Reservation,
    cores_per_device,
    count_future_slots,
    count_machine_slots,
    count_slots,
    refuse_silent_cluster,
    refuse_too_many_cores,
    trials_at_a_time,
    wanted_per_device,
)
from sweep.local_ray import LONGEST_SOCKET, make_socket_folder
from sweep.space.search_config import SearchConfig


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path: the paths of pytest's own folders are too long for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="m-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


# --- a temporary folder ---


def usable(folder: Path) -> bool:
    socket_path = folder / LONGEST_SOCKET
    return folder.is_dir() and folder.stat().st_mode & 0o777 == 0o700 and len(os.fsencode(socket_path)) <= 107


@pytest.mark.parametrize("name", ["fit", "x" * 60, "blank and #%?:;='", "ünïcode", "missing", "a-file", "new\nline"])
def test_ray_gets_a_short_folder_with_any_tmpdir(name: str, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "a-file":
        (short / name).touch()
    elif name != "missing":
        (short / name).mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(short / name))
    folder = make_socket_folder()
    try:
        assert usable(folder)
        assert (folder.parent == short / name) == (name == "fit")
    finally:
        folder.rmdir()


def test_ray_tmpdir_is_never_replaced_by_another_folder(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short / "missing"))
    with pytest.raises(UserError, match=r"(?s)missing: No such file.*RAY_TMPDIR=DIR names one"):
        make_socket_folder()
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    folder = make_socket_folder()
    assert folder.parent == short and usable(folder)


def test_the_error_names_every_folder_that_was_tried(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second folder does not exist: one without write permission would not stop root."""
    (short / ("y" * 60)).mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(short / ("y" * 60)))
    monkeypatch.setattr(local_ray, "FURTHER_FOLDERS", (str(short / "none"),))
    with pytest.raises(UserError, match=r"(?s)y: no socket can be opened below it.*none: No such file"):
        make_socket_folder()
    assert not list((short / ("y" * 60)).iterdir())


# --- a cluster that does not answer ---


@contextmanager
def listening(answer: bytes = b"") -> Iterator[int]:
    """Yields a port at which a server listens that is not Ray."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("127.0.0.1:1", "nothing at .* answered as a Ray cluster does within"),
        ("localhost:{port}", "nothing at .* answered as a Ray cluster does within"),
        ("no-such-host.invalid:6379", "no machine has that name"),
        ("127.0.0.1", "Invalid address format"),
        ("127.0.0.1:99999", "OverflowError|nothing at"),
        ("ray://127.0.0.1:10001", "Ray client address"),
        ("http://127.0.0.1:8265", "web address"),
    ],
)
def test_a_silent_cluster_is_an_error(address: str, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says how to give another address. Ray itself would wait for minutes and end the process."""
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.3)
    with listening() as port:
        monkeypatch.setenv("RAY_ADDRESS", address.format(port=port))
        with pytest.raises(UserError, match=rf"RAY_ADDRESS={address[:5]}.*({complaint}).*(unset RAY_ADDRESS)"):
            refuse_silent_cluster()


def test_auto_without_a_cluster_is_an_error(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that was started on this machine and has ended leaves its address behind."""
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.3)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)  # those of tests that run at the same time
    with pytest.raises(UserError, match=r"RAY_ADDRESS=auto: .*Could not find any running Ray"):
        refuse_silent_cluster()
    (short / "ray").mkdir()
    (short / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    with pytest.raises(UserError, match=r"RAY_ADDRESS=auto: nothing at .*:1 answered"):
        refuse_silent_cluster()


@pytest.mark.usefixtures("ray_session")
def test_a_running_cluster_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    refuse_silent_cluster()


@pytest.mark.usefixtures("ray_session")
def test_a_port_of_ray_that_is_not_the_heads_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = ray.nodes()
    monkeypatch.setenv("RAY_ADDRESS", f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
    with pytest.raises(UserError, match="is not the head of a Ray cluster"):
        refuse_silent_cluster()


@pytest.mark.parametrize(("token", "sent"), [("", "none"), ("of another cluster", "another")])
@pytest.mark.usefixtures("ray_session")
def test_a_cluster_that_refuses_the_token_is_an_error(token: str, sent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused at once, before the cohort is prepared, and the message names the variable that is missing."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    loader = SimpleNamespace(get_token_for_http_header=lambda: headers)
    monkeypatch.setattr(cluster, "AuthenticationTokenLoader", SimpleNamespace(instance=lambda: loader))
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    with pytest.raises(UserError, match=rf"for its token, and this process sends {sent}\. Set RAY_AUTH_MODE=token"):
        refuse_silent_cluster()


@pytest.mark.parametrize("given", ["", "local"])
def test_without_an_address_no_cluster_is_asked(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given)
    refuse_silent_cluster()


def test_the_error_quotes_ray_on_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.0")

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setattr(cluster, "refuse_silent_cluster", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with (
        pytest.raises(UserError, match=r"Version mismatch.*\n.*same versions of Ray and Python") as raised,
        cluster.cluster(),
    ):
        pass
    assert isinstance(raised.value.__cause__, RuntimeError)


# --- what a trial reserves ---


@pytest.mark.parametrize(
    ("search", "gpus", "wanted"),
    [
        ({}, 2, "auto"),
        ({"cpus": 2}, 2, "auto"),
        ({}, 0, None),
        ({"gpus": 0}, 2, None),
        ({"gpus": 0.25}, 2, None),
        ({"trials_per_device": 3}, 2, 3),
        ({"trials_per_device": "auto"}, 0, "auto"),
    ],
)
def test_trials_to_a_gpu_are_measured_unless_the_space_says_what_a_trial_reserves(
    search: dict[str, Any], gpus: int, wanted: int | str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "expects_gpus", lambda: gpus > 0)
    assert wanted_per_device(SearchConfig(**search)) == wanted


def test_shares_of_gpus_are_counted_on_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger machine has 8 cores and 2 GPUs. A trial with 0.6 of a GPU is alone on it; three of 0.3 share one."""
    machines = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 16.0}, {"CPU": 3.0, "GPU": 1.0}]
    monkeypatch.setattr(cluster, "living_machines", lambda: machines)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 27.0, "GPU": 3.0})
    assert count_slots(Reservation(1.0, 0.6)) == 3 and count_machine_slots(Reservation(1.0, 0.6)) == 2
    assert count_slots(Reservation(1.0, 0.3)) == 9 and count_machine_slots(Reservation(1.0, 0.3)) == 6
    assert count_machine_slots(Reservation(2.0, 0.3)) == 4, "the cores of the machine with GPUs"
    assert count_slots(Reservation(4.0, 0.0)) == 6 and count_machine_slots(Reservation(4.0, 0.0)) == 4
    assert cores_per_device() == 4.0, "eight cores for two GPUs"
    machines[:] = [{"CPU": 8.0}, {"CPU": 16.0}, {}]
    assert cores_per_device() == 16.0
    machines[:] = [{"node:__internal_head__": 1.0}]
    assert cores_per_device() == 1.0, "a head without cores, before the first machine is there"


# --- what a cluster may become ---

# As `ray up` writes it: a head, four machines with two GPUs each, and ten with cores alone, but twelve in all.
GROWING = """
max_workers: 12
head_node_type: head
available_node_types:
  head: {resources: {CPU: 4}, max_workers: 0}
  gpu: {resources: {CPU: 8, GPU: 2, memory: 1000}, max_workers: 4}
  cpu: {resources: {CPU: 4}, max_workers: 10}
"""


def test_trials_are_requested_for_all_machines_that_may_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with GPUs has room for four trials of half a GPU and two cores; the machines with cores alone have room
    for none. Of trials with two cores, 4 x 4 fit on those with GPUs and 8 x 2 on eight more machines.
    """
    growth = growth_of(yaml.safe_load(GROWING))
    machines: list[dict[str, float]] = [{"CPU": 4.0}]
    monkeypatch.setattr(cluster, "living_machines", lambda: machines)
    monkeypatch.setattr(ray, "cluster_resources", lambda: machines[0])
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert growth.has_gpus
    assert count_future_slots(Reservation(2.0, 0.5), growth) == 16
    assert count_future_slots(Reservation(2.0, 0.0), growth) == 32
    assert trials_at_a_time(Reservation(2.0, 0.5), None, growth) == 17, "one more waits for a place"
    assert trials_at_a_time(Reservation(2.0, 0.5), 3, growth) == 3
    assert trials_at_a_time(Reservation(2.0, 0.0), None, Growth()) == 3, "what is there"


def test_a_machine_of_unknown_size_counts_as_the_largest_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As machines of one's own, which a file for `ray up` names by address alone."""
    growth = growth_of({"max_workers": 3, "head_node_type": "local", "available_node_types": {"local": {}}})
    assert growth == Growth(most=3), "the only kind is the head's, of which there is one"
    growth = growth_of({"max_workers": 3, "available_node_types": {"local": {"resources": {}}}})
    machines: list[dict[str, float]] = [{}]
    monkeypatch.setattr(cluster, "living_machines", lambda: machines)
    monkeypatch.setattr(ray, "cluster_resources", lambda: machines[0])
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not growth.has_gpus and count_future_slots(Reservation(1.0, 0.0), growth) == 3
    machines[:] = [{"CPU": 4.0}]
    assert count_future_slots(Reservation(1.0, 0.0), growth) == 12


def test_the_file_is_the_one_of_this_clusters_autoscaler(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(GROWING)
    for process, words in {
        "12": ["python", "monitor.py", "--gcs-address=10.0.0.2:6379", f"--autoscaling-config={tmp_path}/another"],
        "13": ["python", "monitor.py", "--gcs-address=10.0.0.1:6379"],
        "14": ["python", "monitor.py", f"--autoscaling-config={tmp_path}/config.yaml", "--gcs-address=10.0.0.1:6379"],
    }.items():
        (tmp_path / process).mkdir()
        (tmp_path / process / "cmdline").write_bytes("\0".join([*words, ""]).encode())
    assert read_growth("10.0.0.1:6379", tmp_path) == growth_of(yaml.safe_load(GROWING))
    assert read_growth("10.0.0.3:6379", tmp_path) == Growth()
    (tmp_path / "config.yaml").write_text("max_workers: [")
    assert read_growth("10.0.0.1:6379", tmp_path) == Growth(), "a file that cannot be read says nothing"


# --- more cores than there are ---


@pytest.mark.parametrize(
    ("search", "threads", "leaf"),
    [({"cpus": 4}, 1, "search.cpus"), ({}, 4, "threads"), ({"cpus": 2.5}, 1, "search.cpus")],
)
def test_a_trial_that_reserves_too_many_cores_is_refused(
    search: dict[str, float], threads: int, leaf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "cores", lambda: Allowance(2, "SLURM_CPUS_PER_TASK"))
    with pytest.raises(ConfigError, match=rf"{leaf}: .*may use 2 here .*SLURM_CPUS_PER_TASK.*{leaf}=2"):
        refuse_too_many_cores(SearchConfig(**search), threads)
    refuse_too_many_cores(SearchConfig(), 2)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # a cluster counts its own cores
    refuse_too_many_cores(SearchConfig(**search), threads)
