"""The number of cores and the memory that this process may use: limits of machine, affinity, cgroups, batch system.

All code that starts or prices processes and threads uses these functions, so that there is a single answer.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmpkd.types import ConfigError

ROOT = Path("/")
MEGABYTE = 2**20
# Environment variables in which a batch system states the cores of a job on this machine: Slurm, OpenPBS, LSF and
# Grid Engine, in this order. OMP_NUM_THREADS is not a limit but a setting of one library.
CORE_VARIABLES = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "NCPUS", "LSB_DJOB_NUMPROC", "NSLOTS")


@dataclass(frozen=True)
class Allowance:
    """A number of cores or bytes, and the source of this limit."""

    amount: int
    source: str


def cores(environ: Mapping[str, str] = os.environ, root: Path = ROOT) -> Allowance:
    """Returns the number of whole cores that this process may use, at least one. It is the smallest of all limits.

    Args:
        root: root of the file system in which control groups are looked up.

    Raises:
        ConfigError: a variable of a batch system does not hold a number of cores.
    """
    bounds = [(float(os.cpu_count() or 1), "the machine has no more")]
    if hasattr(os, "sched_getaffinity"):
        bounds.append((float(len(os.sched_getaffinity(0))), "the CPU affinity of this process, as taskset sets it"))
    bounds += _cgroup_cores(root)
    bounds += [(float(_positive(environ, name)), name) for name in CORE_VARIABLES if environ.get(name)]
    amount, source = min(bounds, key=lambda bound: bound[0])
    if amount < 1:
        source = f"{source} ({amount:g} of a core, which counts as one)"
    return Allowance(max(int(amount), 1), source)


def memory(environ: Mapping[str, str] = os.environ, root: Path = ROOT) -> Allowance:
    """Returns the bytes of memory that this process and its children may use. It is the smallest of all limits.

    Raises:
        ConfigError: a variable of a batch system does not hold a number.
    """
    bounds = [(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "the machine has no more")]
    bounds += _cgroup_memory(root)
    if environ.get("SLURM_MEM_PER_NODE", "0") != "0":  # 0 stands for all memory of the machine
        bounds.append((_positive(environ, "SLURM_MEM_PER_NODE") * MEGABYTE, "SLURM_MEM_PER_NODE"))
    elif environ.get("SLURM_MEM_PER_CPU", "0") != "0":
        per_core = _positive(environ, "SLURM_MEM_PER_CPU") * MEGABYTE
        bounds.append((per_core * cores(environ, root).amount, "SLURM_MEM_PER_CPU"))
    return Allowance(*min(bounds, key=lambda bound: bound[0]))


def process_bytes() -> int:
    """Returns the peak memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def thread_warnings(threads: int) -> list[str]:
    """Returns a warning if a training would use more threads than this process has cores."""
    limit = cores()
    if threads <= limit.amount:
        return []
    allowed = f"threads={threads}, but this process may use {limit.amount} cores (limit: {limit.source})"
    return [f"{allowed}; more threads than cores only slow a training down"]


def _positive(environ: Mapping[str, str], name: str) -> int:
    text = environ[name].strip()
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        wanted = f"this environment variable must hold a whole number above 0, got {text!r}"
        raise ConfigError.at(name, f"{wanted}; correct it, or unset {name}")
    return int(text)


def _cgroup_cores(root: Path) -> Iterator[tuple[float, str]]:
    for folder in _cgroups(root, "cpu"):
        new, quota, period = folder / "cpu.max", folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
        whole, _, part = _read(new).partition(" ")
        if whole.isdecimal() and part.isdecimal() and int(part):
            yield int(whole) / int(part), f"the control group's CPU limit in {new}"
        elif _read(quota).isdecimal() and _read(period).isdecimal() and int(_read(period)):  # -1: no limit
            yield int(_read(quota)) / int(_read(period)), f"the control group's CPU limit in {quota}"


def _cgroup_memory(root: Path) -> Iterator[tuple[int, str]]:
    for folder in _cgroups(root, "memory"):
        for path in (folder / "memory.max", folder / "memory.limit_in_bytes"):
            if _read(path).isdecimal() and int(_read(path)):
                yield int(_read(path)), f"the control group's memory limit in {path}"


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Yields the folders of the control groups of this process, of versions 1 and 2, with all their parents.

    A container may see its own group as the root of the tree while /proc still shows the path outside of it. So
    folders that do not exist are skipped, and the root is always included (cgroups(7)).
    """
    tree = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines() or ["0::/"]:
        controllers, _, inside = line.partition(":")[2].partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        names = [controllers, controller] if controllers else ["", "unified"]
        parts = [part for part in inside.split("/") if part not in ("", "..")]
        for top in dict.fromkeys(tree / name for name in names):
            for depth in range(len(parts), -1, -1):
                yield top.joinpath(*parts[:depth])
    yield from (tree / controller, tree)


def _read(path: Path) -> str:
    """Returns the text of a kernel file. It is empty if the file cannot be read: the limit is then absent or hidden."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
