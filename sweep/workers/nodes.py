"""Runs MPS on the machines of a Ray cluster on which several trials share a GPU.

MPS is never required: where it cannot be used, trials share their GPU without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweep.cluster import reservation_for, wanted_per_device
from sweep.workers import mps
from sweep.workers.device import enter_device

if TYPE_CHECKING:  # workers import this module, and need none of the samplers, which load SciPy
    from sweep.space.search_config import SearchConfig

ANSWER_SECONDS: Final = 3 * mps.CLIENT_SECONDS  # time within which a machine has to say whether MPS runs


@contextmanager
def mps_where_shared(
    search: SearchConfig, threads: int, notify: Callable[[str], None], client: str = mps.CLIENT
) -> Iterator[None]:
    """Runs MPS on every machine of the cluster that has GPUs, if several trials may share a GPU. MPS ends with this
    context, and also if this process is killed, because then Ray ends the actors that hold MPS.

    Args:
        notify: function that is called with a line that says whether MPS is used.
        client: Python code that uses CUDA, by which MPS is tried.
    """
    wanted = wanted_per_device(search)
    reservation = reservation_for(search, threads, 2 if wanted == "auto" else wanted)
    shares = reservation.gpus > 0 and reservation.per_device > 1
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")] if shares else []
    actors = [_mps_on(node["NodeID"]) for node in nodes]
    try:
        starts = [
            actor.start.remote(int(node["Resources"]["GPU"]), client) for actor, node in zip(actors, nodes, strict=True)
        ]
        problems = [_problem_of(start) for start in starts]
        if nodes:
            notify(_summary([node["NodeManagerAddress"] for node in nodes], problems))
        yield
    finally:
        for actor in actors:
            ray.kill(actor)


def enter_reserved_device(gpus: float) -> None:
    """Prepares this Ray worker for the share of a GPU that it has reserved; see `enter_device`."""
    enter_device(gpus, _pipe_folder(ray.get_runtime_context().get_node_id()))


def _pipe_folder(node_id: str) -> Path:
    """Returns the folder of the pipes of MPS on a machine. The driver and every worker on the machine compute the same
    path.
    """
    return Path("/tmp") / f"mps-{node_id[:12]}-{ray.get_runtime_context().get_job_id()}"


def _mps_on(node_id: str) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(mps.Mps).options(num_cpus=0, scheduling_strategy=strategy).remote(_pipe_folder(node_id))


def _problem_of(start: Any) -> str:
    try:
        problem: str = ray.get(start, timeout=ANSWER_SECONDS)
        return problem
    except RayError as error:
        return f"Ray could not start it there ({type(error).__name__})"


def _summary(addresses: Sequence[str], problems: Sequence[str]) -> str:
    failed = {address: problem for address, problem in zip(addresses, problems, strict=True) if problem}
    if not failed:
        return "CUDA MPS is used: trials that share a GPU run on it at the same time"
    reasons = "; ".join(f"{address}: {problem}" for address, problem in failed.items())
    if len(addresses) == 1:
        return f"CUDA MPS is not started ({problems[0]}); without it, trials that share a GPU take turns"
    where = f"on {len(failed)} of {len(addresses)} machines ({reasons})"
    return f"CUDA MPS is not started {where}; without it, trials that share a GPU take turns"
