"""Cores and memory of this process on simulated machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmpkd.cohort import journal
from mmpkd.machine import resources
from mmpkd.machine.resources import Allowance, cores, memory
from mmpkd.types import ConfigError

GIGABYTE = 2**30


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates eight cores and four gigabytes, without the batch system and control groups of the real machine."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 4 * GIGABYTE // 4096}
    monkeypatch.setattr(os, "sysconf", lambda name: pages[name])


def tree(root: Path, group: str, **files: str) -> Path:
    """Makes a file system with /proc/self/cgroup and files under /sys/fs/cgroup; '__' stands for '/'."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


VERSION_1 = "4:cpu,cpuacct:/docker/ab\n3:memory:/docker/ab\n"


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/job", {"job__cpu_DOT_max": "200000 100000"}, 2),
        ("0::/job", {"job__cpu_DOT_max": "max 100000"}, 8),
        ("0::/job", {"job__cpu_DOT_max": "50000 100000"}, 1),  # half a core
        ("0::/job", {"job__cpu_DOT_max": "390000 100000"}, 3),  # only whole cores count
        ("0::/", {"cpu_DOT_max": "300000 100000"}, 3),  # a container sees its own group as the root
        ("0::/slice/job/step", {"slice__cpu_DOT_max": "200000 100000", "slice__job__cpu_DOT_max": "max 100000"}, 2),
        ("0::/slice/job", {"slice__cpu_DOT_max": "400000 100000", "slice__job__cpu_DOT_max": "100000 100000"}, 1),
        ("0::/../outside", {"cpu_DOT_max": "200000 100000"}, 2),
        (VERSION_1, {"cpu__cpu_DOT_cfs_quota_us": "200000", "cpu__cpu_DOT_cfs_period_us": "100000"}, 2),
        (
            VERSION_1,
            {
                "cpu,cpuacct__docker__ab__cpu_DOT_cfs_quota_us": "50000",
                "cpu,cpuacct__docker__ab__cpu_DOT_cfs_period_us": "10000",
            },
            5,
        ),
        (VERSION_1, {"cpu__cpu_DOT_cfs_quota_us": "-1", "cpu__cpu_DOT_cfs_period_us": "100000"}, 8),
        ("0::/job", {"job__cpu_DOT_max": "nonsense"}, 8),
    ],
)
def test_cores_of_a_control_group(group: str, files: dict[str, str], expected: int, tmp_path: Path) -> None:
    result = cores({}, tree(tmp_path, group, **files))
    assert result.amount == expected
    assert ("control group" in result.source) == (expected < 8)


@pytest.mark.parametrize(
    ("environ", "expected", "source"),
    [
        ({"SLURM_CPUS_PER_TASK": "1"}, 1, "SLURM_CPUS_PER_TASK"),
        ({"SLURM_CPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "2"}, 2, "SLURM_CPUS_PER_TASK"),
        ({"SLURM_CPUS_ON_NODE": "4"}, 4, "SLURM_CPUS_ON_NODE"),
        ({"NCPUS": "3"}, 3, "NCPUS"),
        ({"LSB_DJOB_NUMPROC": "5"}, 5, "LSB_DJOB_NUMPROC"),
        ({"NSLOTS": "6"}, 6, "NSLOTS"),
        ({"LSB_DJOB_NUMPROC": "64"}, 8, "the machine has no more"),  # slots of a job on many machines
        ({"OMP_NUM_THREADS": "1"}, 8, "the machine has no more"),
        ({"SLURM_CPUS_PER_TASK": ""}, 8, "the machine has no more"),
    ],
)
def test_cores_of_a_batch_system(environ: dict[str, str], expected: int, source: str, tmp_path: Path) -> None:
    assert cores(environ, tmp_path) == Allowance(expected, source)


def test_cores_of_an_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5})
    result = cores({"SLURM_CPUS_PER_TASK": "4"}, tmp_path)
    assert result.amount == 1 and "taskset" in result.source


def test_part_of_a_core_is_named(tmp_path: Path) -> None:
    result = cores({}, tree(tmp_path, "0::/job", job__cpu_DOT_max="50000 100000"))
    assert "sys/fs/cgroup/job/cpu.max" in result.source and "0.5 of a core" in result.source


@pytest.mark.parametrize("text", ["0", "-2", "four", "4(x2)", "1.5", "²"])
def test_a_variable_without_a_number_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SLURM_CPUS_PER_TASK: .*whole number above 0.*unset SLURM_CPUS_PER_TASK"):
        cores({"SLURM_CPUS_PER_TASK": text}, tmp_path)


@pytest.mark.parametrize(
    ("group", "files", "environ", "expected"),
    [
        ("0::/job", {"job__memory_DOT_max": str(GIGABYTE)}, {}, GIGABYTE),
        ("0::/job", {"job__memory_DOT_max": "max"}, {}, 4 * GIGABYTE),
        ("0::/a/b", {"a__memory_DOT_max": str(GIGABYTE), "a__b__memory_DOT_max": str(2 * GIGABYTE)}, {}, GIGABYTE),
        (VERSION_1, {"memory__docker__ab__memory_DOT_limit_in_bytes": str(GIGABYTE)}, {}, GIGABYTE),
        (VERSION_1, {"memory__memory_DOT_limit_in_bytes": "9223372036854771712"}, {}, 4 * GIGABYTE),  # no limit
        ("0::/", {}, {"SLURM_MEM_PER_NODE": "2048"}, 2 * GIGABYTE),
        ("0::/", {}, {"SLURM_MEM_PER_NODE": "0"}, 4 * GIGABYTE),  # all of the machine's
        ("0::/", {}, {"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "2"}, GIGABYTE),
        ("0::/", {"memory_DOT_max": str(GIGABYTE)}, {"SLURM_MEM_PER_NODE": "2048"}, GIGABYTE),
    ],
)
def test_memory(group: str, files: dict[str, str], environ: dict[str, str], expected: int, tmp_path: Path) -> None:
    assert memory(environ, tree(tmp_path, group, **files)).amount == expected


def test_prepare_uses_the_same_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function is replaced by name, which fails if `prepare` counts by itself."""
    assert journal.cores is resources.cores
