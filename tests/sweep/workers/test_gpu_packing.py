"""How trials share a GPU: the memory of each, and MPS, which a command that only records stands for."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sweep.workers import device, mps
from sweep.workers.mps import Mps

# Stands for nvidia-cuda-mps-control. Its daemon is a `sleep`, and its server another `sleep` that `quit` leaves behind.
CONTROL = """#!/bin/sh
cd "${CUDA_MPS_PIPE_DIRECTORY:-/nowhere}" 2>/dev/null || exit 1
if [ "$1" = -f ]; then
    [ -z "$BROKEN_DAEMON" ] || exit 1
    sleep 600 &
    echo $! >> "$RECORDS/processes"
    echo $$ >> "$RECORDS/processes"
    echo "daemon sees ${CUDA_VISIBLE_DEVICES-all} GPUs" >> "$RECORDS/words"
    echo $$ > daemon
    exec sleep 600
fi
[ -f daemon ] || exit 1
read words
case "$words" in
    get_server_list) ;;
    *) echo "$words" >> "$RECORDS/words"; kill -KILL "$(cat daemon)" ;;
esac
"""
CLIENT = """
import os, pathlib
assert pathlib.Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"]).is_dir() and os.environ["CUDA_VISIBLE_DEVICES"] == "0"
"""
# A driver with a trial that reserves half of a GPU, which Ray believes to be there.
DRIVER = """
import os, sys, time
import sweep, ray
from sweep.space.search_config import SearchConfig
from sweep.workers.nodes import enter_reserved_device, mps_where_shared

@ray.remote(num_cpus=0)
class Trial:
    def __init__(self, gpus):
        enter_reserved_device(gpus)
    def variables(self):
        return [os.environ.get(name) for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_VISIBLE_DEVICES")]

options = dict(include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=80 * 2**20)
ray.init(address="local", num_cpus=1, num_gpus=1, _temp_dir=sys.argv[1], **options)
with mps_where_shared(SearchConfig(), 1, print, sys.argv[2]):
    print(*ray.get(Trial.options(num_gpus=0.5).remote(0.5).variables.remote()), sep="|", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path for sockets, which is not there yet."""
    with tempfile.TemporaryDirectory(prefix="m-", dir="/tmp", ignore_cleanup_errors=True) as parent:
        yield Path(parent) / "mps"


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the stand-ins for NVIDIA's commands record what happens."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in {mps.CONTROL: CONTROL, "nvidia-smi": '#!/bin/sh\necho "$MODES"\n'}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORDS", str(tmp_path))
    monkeypatch.setenv("MODES", "Default, Disabled")
    for name in (mps.PIPES, mps.LOGS):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def processes(records: Path) -> list[int]:
    return [int(line) for line in (records / "processes").read_text().split()]


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- memory ---


def test_the_context_of_a_process_is_in_its_share_of_the_memory() -> None:
    """A quarter of 24 GiB is 6 GiB, of which the context takes 600 MiB: 5,544 of 24,576 MiB remain."""
    assert device.memory_fraction(0.25, 24 * 2**30) == pytest.approx((6144 - 850) / 24576)
    assert device.memory_fraction(0.01, 24 * 2**30) == 0.0


@pytest.mark.parametrize(("gpus", "limits"), [(0.25, [(6144 - 850) / 24576]), (1.0, [])])
def test_a_worker_limits_its_memory_if_it_shares_a_gpu(
    gpus: float, limits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fractions: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    card = type("Card", (), {"total_memory": 24 * 2**30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(os, "environ", {})
    device.enter_device(gpus, tmp_path / "no-mps")
    assert fractions == pytest.approx(limits) and os.environ == {}


def test_a_worker_without_a_gpu_sees_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"CUDA_VISIBLE_DEVICES": "0,1"})
    device.enter_device(0.0, tmp_path)
    assert os.environ == {"CUDA_VISIBLE_DEVICES": ""}


# --- MPS ---


def test_mps_starts_and_leaves_nothing_behind(short: Path, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    service = Mps(short)
    assert service.start(1, CLIENT) == ""
    assert short.stat().st_mode & 0o777 == 0o700
    assert len(processes(records)) == 2 and all(map(alive, processes(records)))
    service.stop()
    assert not short.exists() and eventually(lambda: not any(map(alive, processes(records))))
    assert (records / "words").read_text().splitlines() == ["daemon sees all GPUs", "quit -t 10"]


def test_mps_ends_if_a_process_cannot_use_it(short: Path, records: Path) -> None:
    assert Mps(short).start(1, "raise SystemExit(1)") == "a process could not use CUDA through it"
    assert not short.exists() and eventually(lambda: not any(map(alive, processes(records))))


@pytest.mark.parametrize(("status", "servers", "fails"), [(0, "4711", False), (0, "", True), (805, "4711", True)])
def test_a_process_tries_cuda_through_mps(
    status: int, servers: str, fails: bool, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server shows that CUDA has reached the daemon; without one, CUDA works without MPS."""
    (records / "commands" / mps.CONTROL).write_text(f"#!/bin/sh\nread words\necho {servers}\n")
    cuda = SimpleNamespace(cuInit=lambda flags: status, cuDevicePrimaryCtxRetain=lambda context, device: 0)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: cuda)
    with pytest.raises(SystemExit) as raised:
        exec(mps.CLIENT, {})
    assert raised.value.code is fails


def test_mps_whose_daemon_fails_is_not_used(short: Path, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKEN_DAEMON", "1")
    monkeypatch.setattr(mps, "START_SECONDS", 0.5)
    assert Mps(short).start(1, CLIENT) == "its daemon did not answer within 0.5 s"
    assert eventually(lambda: not short.exists())


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("PATH", "/nowhere", "nvidia-cuda-mps-control is not on the PATH"),
        ("MODES", "Prohibited, Disabled", "the compute mode of a GPU is Prohibited, or MIG is enabled"),
        ("MODES", "Default, Enabled", "the compute mode of a GPU is Prohibited, or MIG is enabled"),
        ("MODES", "Default, [N/A]\nDefault, [N/A]", "the sweep has 1 of the 2 GPUs of the machine"),
        (mps.PIPES, "/elsewhere", f"{mps.PIPES} names another one"),
    ],
)
def test_mps_is_not_started_where_it_may_not_be(
    variable: str, value: str, problem: str, short: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert Mps(short).start(1, CLIENT) == problem
    assert not short.exists() and not (records / "processes").exists()


def test_mps_is_not_started_beside_the_one_of_the_machine(
    short: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon of the machine answers without a variable, at NVIDIA's own folder."""
    control = records / "commands" / mps.CONTROL
    control.write_text("#!/bin/sh\nread words\necho 4711\n")
    assert Mps(short).start(1, CLIENT) == "another one serves this machine"
    assert not short.exists()


USED = "CUDA MPS is used: trials that share a GPU run on it at the same time"
NOT_USED = "CUDA MPS is not started {}; without it, trials that share a GPU take turns"


@pytest.mark.parametrize(
    ("search", "gpus", "note"),
    [
        ({}, [2], USED),
        ({}, [1], NOT_USED.format("(no driver)")),
        ({}, [2, 1], NOT_USED.format("on 1 of 2 machines (10.0.0.1: no driver)")),
        ({"gpus": 0.5}, [0, 2], USED),
        ({"gpus": 0.6}, [2], ""),
        ({"gpus": 0}, [2], ""),
        ({"trials_per_device": 1}, [2], ""),
        ({}, [0], ""),
    ],
)
def test_mps_is_started_where_trials_share_gpus(
    search: dict[str, float], gpus: list[int], note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machines are named after their GPUs. MPS cannot be started on the machine with one GPU."""
    ray = pytest.importorskip("ray")
    from sweep.space.search_config import SearchConfig
    from sweep.workers import nodes

    def mps_on(node_id: str) -> SimpleNamespace:
        started.append(node_id)
        return SimpleNamespace(start=SimpleNamespace(remote=lambda gpus, client: "no driver" if gpus == 1 else ""))

    started, ended, notes = list[str](), list[object](), list[str]()
    machines = [
        {"Alive": True, "NodeID": f"{count}", "NodeManagerAddress": f"10.0.0.{count}", "Resources": resources}
        for count in gpus
        for resources in [{"CPU": 8.0, "GPU": float(count)} if count else {"CPU": 8.0}]
    ]
    monkeypatch.setattr(ray, "nodes", lambda: machines)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 24.0, "GPU": float(sum(gpus))})
    monkeypatch.setattr(ray, "kill", ended.append)
    monkeypatch.setattr(nodes, "_mps_on", mps_on)
    monkeypatch.setattr(nodes, "_problem_of", lambda start: start)
    with nodes.mps_where_shared(SearchConfig(**search), 1, notes.append):
        assert notes == ([note] if note else []) and not ended
    assert started == ([f"{count}" for count in gpus if count] if note else []) and len(ended) == len(started)


def test_trials_of_a_cluster_use_mps_and_a_killed_driver_leaves_nothing(records: Path, short: Path) -> None:
    command = [sys.executable, "-c", DRIVER, str(short.parent), CLIENT]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    try:
        line, sharing = (driver.stdout.readline().strip() for _ in range(2))
        assert line == USED
        folder, _, gpu = sharing.partition("|")
        assert Path(folder).is_dir() and gpu == "0"
        assert all(map(alive, processes(records)))
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert eventually(lambda: not Path(folder).exists() and not any(map(alive, processes(records))))


# --- on a GPU ---

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
GREEDY = """
import sys
from pathlib import Path
import torch
from sweep.workers.device import enter_device
enter_device(float(sys.argv[1]), Path("/nowhere"))
total = torch.cuda.get_device_properties(0).total_memory
small = torch.empty(int(float(sys.argv[2]) * total), dtype=torch.uint8, device="cuda")
"""


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("share", "wanted", "status"), [(0.25, 0.1, 0), (0.25, 0.3, 1)])
def test_a_process_cannot_allocate_more_than_its_share(share: float, wanted: float, status: int) -> None:
    command = [sys.executable, "-c", GREEDY, str(share), str(wanted)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == status
    assert ("OutOfMemoryError" in result.stderr) == bool(status)


@pytest.mark.gpu
@needs_gpu
def test_the_mps_of_nvidia_leaves_nothing_behind(short: Path) -> None:
    def of_this_folder() -> list[Path]:
        folders = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if str(short).encode() in path.read_bytes():
                    folders.append(path.parent)
            except OSError:
                continue
        return folders

    service = Mps(short)
    if problem := service.start(torch.cuda.device_count()):
        assert not short.exists() and eventually(lambda: not of_this_folder())
        pytest.skip(f"MPS cannot be used here: {problem}")
    assert of_this_folder()
    work = "import torch; print((torch.ones(64, 64, device='cuda') @ torch.ones(64, 64, device='cuda')).sum().item())"
    environment = os.environ | {mps.PIPES: str(short), mps.LOGS: str(short)}
    trials = [
        subprocess.Popen([sys.executable, "-c", work], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [trial.communicate()[0].strip() for trial in trials] == ["262144.0", "262144.0"]
    service.stop()
    assert not short.exists() and eventually(lambda: not of_this_folder())
