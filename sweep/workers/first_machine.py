"""Waits for the first machine of a cluster that begins empty, if a trial's reservation depends on the machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ray.util.placement_group import placement_group, remove_placement_group

from sweep import interrupt
from sweep.cluster import (
    ROUNDING,
    Reservation,
    cluster_address,
    expects_gpus,
    living_machines,
    wanted_per_device,
)
from sweep.space.search_config import SearchConfig

POLL_SECONDS: Final = 1.0


def has_room(reservation: Reservation) -> bool:
    """Whether a machine of the cluster is large enough for a trial, free or not."""
    cpus, gpus = reservation.cpus - ROUNDING, reservation.gpus - ROUNDING
    return any(machine.get("CPU", 0.0) >= cpus and machine.get("GPU", 0.0) >= gpus for machine in living_machines())


def wait_for_first_machine(
    search: SearchConfig, threads: int, stop_request: Path, notify: Callable[[str], None]
) -> None:
    """Requests a machine for one trial and waits for it, if none is there and a trial's reservation depends on it: the
    number of trials per GPU is to be measured, or trials share the cores of a machine.

    Args:
        stop_request: file by which sweep.stop asks the driver to end.
        notify: function that is called with a line that says what is waited for.

    Raises:
        KeyboardInterrupt: the driver was asked to end while it waited.
    """
    wanted = wanted_per_device(search)
    gpus = 1.0 if expects_gpus() else 0.0
    if not cluster_address() or wanted is None or (gpus and wanted != "auto"):
        return
    needed = Reservation(search.cpus or float(threads), gpus)
    if has_room(needed):
        return
    notify(
        f"waits for the first machine of the cluster: a trial wants {needed.cpus:g} cores"
        + (" and a GPU" if gpus else "")
    )
    request = placement_group([{"CPU": needed.cpus} | ({"GPU": gpus} if gpus else {})])
    try:
        while not has_room(needed):
            if stop_request.exists():
                interrupt.record_request("sweep.stop")
            if interrupt.requested():  # also by a thread, which cannot raise this here
                raise KeyboardInterrupt
            time.sleep(POLL_SECONDS)
    finally:
        remove_placement_group(request)
