"""Ray from start to end: what trials will cost, then one drive after another until none is left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmpkd.types import UserError
from sweep.space.space import Space

if TYPE_CHECKING:  # ray, torch and optuna are loaded once trials are run
    from rich.console import Console

    from sweep.plan.plan import Plan
    from sweep.reports.mlflow import Tracker
    from sweep.search.searcher import Search
    from sweep.workers.worker import TrialWorker

SHORT = 2.0  # seconds that each configuration is timed before a sweep


def run_trials(
    search: Search, planned: Plan, worker: type[TrialWorker], folder: Path, tracker: Tracker, console: Console
) -> None:
    """Ray from start to end; comes back when no trial is left, or when it is enough.

    Raises:
        KeyboardInterrupt: the driver was asked to end, see `interrupt.py`.
    """
    from sweep.cluster import cluster
    from sweep.reports.progress import Progress
    from sweep.search.halving import ArmHalving
    from sweep.workers.tune import drive, idle_gpus, share_of, slots

    assert planned.example is not None
    config, epochs = search.space.search, planned.example.epochs
    with cluster():
        tracker.start()  # its imports run while the workers start, not while Ray does
        per_device = _priced(search.space, planned, worker, folder, console)
        if not (config.gpus or per_device) and (count := idle_gpus()):
            hint = "search.gpus=1 gives each trial one, search.trials_per_device=4 runs four to each"
            console.print(f"warning: {count} GPUs are here and trials use none; {hint}", highlight=False)
        share = share_of(config, planned.example.threads, per_device)
        while True:
            halving, stopping, studies = None, config.early_stopping, search.books.studies
            if stopping and (rungs := stopping.rungs(epochs)):
                arms, past = list(search.space.arms), studies.arrivals()
                halving = ArmHalving(arms, search.goals, rungs, stopping.reduction, past, studies.reach)
            fewer = share.doubled()
            search.devices, search.can_halve = share.devices, fewer is not None
            with Progress(search, slots(share), console):
                drive(search, worker, halving, share, folder)
            if search.halt is None or search.halt.kind != "memory" or fewer is None:
                break
            console.print(
                f"{search.halt.reason}\nout of memory: goes on with half as many trials to a device", highlight=False
            )
            share, search.halt = fewer, None


def _priced(space: Space, planned: Plan, worker: type[TrialWorker], folder: Path, console: Console) -> int | None:
    """Says what the sweep will cost, unless an earlier driver has; returns trials to a device, None: as reserved."""
    from sweep.storage.events import read_plan, write_json

    wanted, known = space.search.trials_per_device, read_plan(folder).get("price")
    found: int | None = known and known["per_device"]
    if known is None or (wanted == "auto" and found is None):
        try:
            with console.status("timing") as status:
                say = status.update if console.is_terminal else console.print
                price = worker.price(space, planned, SHORT, say)
        except UserError as error:
            console.print(f"warning: no price: {error}", highlight=False, soft_wrap=True)
            return 1 if wanted == "auto" else wanted
        if price is not None:
            console.print("\n".join(price.lines()), highlight=False, soft_wrap=True)
            write_json(folder / "plan.json", read_plan(folder) | {"price": price.as_json()})
            found = price.per_device
    return found if wanted == "auto" else wanted
