"""Runs one driver's part of a sweep: locks the sweep's folder, prepares the cohort, runs trials, writes results."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.cohort.suspects import find_suspects_in, suspects_of
from mmpkd.command import warn
from mmpkd.machine.files import parse_own_yaml, write_atomically
from mmpkd.teachers import input_leakage
from mmpkd.training.stand_in import stand_in
from mmpkd.types import UserError
from sweep import interrupt
from sweep.cluster import cluster, reservation_for, wanted_per_device
from sweep.driver_status import this_driver
from sweep.options import RunOptions, check_tracking_uri, seconds_of
from sweep.patience import waiting_out
from sweep.plan.expectations import shown_by_test_part
from sweep.plan.plan import Plan
from sweep.plan.price import Price, wall_seconds
from sweep.plan.show import render
from sweep.reports.final import finish
from sweep.reports.progress import Progress, what_begins
from sweep.reports.watch import Watch
from sweep.search.halving import ArmHalving
from sweep.search.searcher import Search
from sweep.search.state import SweepState
from sweep.search.studies import Studies
from sweep.search.warm_start import load_warm_start
from sweep.space.space import Space, dump_space
from sweep.storage.continuation import (
    leaves_of,
    refuse_other_data,
    refuse_other_space,
    warn_of_other_rounding,
    with_earlier_rules,
)
from sweep.storage.events import Spool
from sweep.storage.failures import disk_problem
from sweep.storage.integrity import check_folder
from sweep.storage.layout import SweepFolder
from sweep.storage.lock import hold_driver_lock
from sweep.summary import beginning
from sweep.teachers import fit_teachers_first
from sweep.tracking.mlflow import Tracker
from sweep.transfer.mirror import Mirror
from sweep.transfer.preparing import prepare_shared, use_of_scratch
from sweep.types import Halt
from sweep.workers.first_machine import wait_for_first_machine
from sweep.workers.nodes import mps_where_shared
from sweep.workers.pricing import price_sweep
from sweep.workers.tune import run_tune
from sweep.workers.worker import TRAINING, TrainingFunctions

PLAN_SECONDS: Final = 6.0  # duration for which `plan=true` times each configuration
SWEEP_SECONDS: Final = 1.0  # duration for which a sweep times each configuration before its first trial


def leakage_warnings(planned: Plan, store: Store) -> list[str]:
    """Returns a warning for each input in a prepared cohort that reveals the labels to a teacher of the plan."""
    assert planned.example is not None
    return input_leakage.leakage_warnings(suspects_of(store), planned.teachers(), store, planned.example.cohort.fold)


@dataclass(frozen=True)
class SweepFunctions:
    """The parts of a sweep that take long or read the cohort. Tests and benchmarks pass in functions that are quick.

    Attributes:
        prepare: prepares the cohort in a cache folder, of which `shared` is the source if it is given.
        leakage_warnings: returns a warning for each input of a teacher that reveals the labels.
        price: computes the price of the sweep, or returns None if the sweep has none.
        training: what a worker calls to train a trial.
    """

    prepare: Callable[..., Store] = prepare
    leakage_warnings: Callable[[Plan, Store], list[str]] = leakage_warnings
    price: Callable[[Space, Plan, float, Callable[[str], None]], Price | None] = price_sweep
    training: TrainingFunctions = TRAINING


FUNCTIONS = SweepFunctions()


def show_plan(space: Space, planned: Plan, console: Console) -> None:
    """Shows the plan of a sweep, a warning for each input that reveals the labels, and the sweep's price.

    Raises:
        UserError: no configuration could be timed. The message says why.
    """
    assert planned.example is not None
    console.print(render(planned))
    cohort, tables = planned.example.cohort, stand_in(planned.example.cohort)
    for note in (*tables.notes, *shown_by_test_part(tables, cohort.fold)):
        console.print(note, highlight=False, soft_wrap=True)
    warn(input_leakage.leakage_warnings(find_suspects_in(tables), planned.teachers(), tables, cohort.fold), console)
    with cluster(), mps_where_shared(space.search, planned.example.threads, printer(console)):
        price = _timed_price(FUNCTIONS, space, planned, PLAN_SECONDS, console)
    if price is not None:
        console.print("\n".join(price.lines()), highlight=False)


def run_sweep(
    space: Space, planned: Plan, options: RunOptions, console: Console, functions: SweepFunctions | None = None
) -> int:
    """Runs one driver's part of a sweep and returns the exit status of the command.

    Raises:
        UserError: the folder belongs to another sweep, or can no longer be written.
    """
    folder = options.folder
    with hold_driver_lock(folder), Mirror(folder, this_driver(), printer(console)) as mirror:
        try:
            return _run_locked(space, planned, options, mirror, console, functions or FUNCTIONS)
        except OSError as error:
            problem = disk_problem(error, (folder.path, options.all_sweeps.path, Path(options.cache)))
            if not problem:
                raise
            if interrupt.requested():
                line = f"asked to end ({interrupt.requested()}) while {problem}; tables and report may be old"
                console.print(f"{line}; the same command continues", highlight=False, soft_wrap=True)
                return 130
            raise UserError(
                f"{problem}; the sweep stopped\n"
                f"  Everything written before is whole. Repair this, then continue with:\n  {options.continuing}"
            ) from error


def _run_locked(
    space: Space, planned: Plan, options: RunOptions, mirror: Mirror, console: Console, functions: SweepFunctions
) -> int:
    assert planned.example is not None
    search, spool, tracker = _open_sweep(space, planned, options, mirror, console, functions)
    mirror.begin()
    patience = waiting_out(seconds_of(options.patience) or 0.0, printer(console))
    with patience, Watch(search, tracker, spool, planned.example.cohort, options.command) as watch:
        if search.remaining_trials and search.halt is None:
            greeting = f"{what_begins(options, search)}; files in {options.folder}"
            console.print(greeting, highlight=False, soft_wrap=True)
            try:
                run_trials(search, planned, functions, options.folder, tracker, watch, console)
            except KeyboardInterrupt:
                if interrupt.repeated() or not interrupt.requested():
                    raise
                search.halt = Halt("requested", f"asked to end ({interrupt.requested()})")
        elif not search.remaining_trials:
            num_done = len(search.finished)
            console.print(f"{options.name}: all {num_done} trials are done; trials=N with a higher N adds more")
        watch.end_trials()
        return finish(search, planned, options, spool, tracker, console)


def _open_sweep(
    space: Space, planned: Plan, options: RunOptions, mirror: Mirror, console: Console, functions: SweepFunctions
) -> tuple[Search, Spool, Tracker]:
    """Begins a new sweep in its folder, or continues the sweep that an earlier driver began there.

    Raises:
        UserError: the folder is damaged, or holds a sweep of another search space or of other data.
    """
    assert planned.example is not None
    cohort, folder, storage = planned.example.cohort, options.folder, options.all_sweeps
    repairing = options.command + ("" if options.repair else " repair=true")
    before = check_folder(folder, options.repair, repairing)
    folder.stop_request.unlink(missing_ok=True)
    space = with_earlier_rules(folder, space)
    extended = refuse_other_space(folder, space, options.extend)
    store, cache = prepare_shared(functions.prepare, cohort, options)  # here, so that the user sees its progress
    refuse_other_data(folder, before.store, store.fingerprint, cohort.root)
    warn([*before.notes, *warn_of_other_rounding(folder, space), *functions.leakage_warnings(planned, store)], console)
    warm_start, warm_start_line = load_warm_start(space, planned.goals, folder, storage, store.fingerprint)

    sweep_id = before.sweep_id or uuid.uuid4().hex
    spool = Spool(folder)
    spool.append(beginning(sweep_id, options, planned, store.fingerprint))
    earlier_plan = folder.read_plan()
    generation = earlier_plan.get("generation", 0) + extended
    identity = {"sweep": sweep_id, "store": store.fingerprint}
    studies = Studies(folder, space, planned.goals, generation, begins=extended, identity=identity)
    for line in filter(None, (studies.adopt_earlier_trials() if extended else "", warm_start_line)):
        console.print(line, highlight=False, soft_wrap=True)

    # The plan's file decides which space the sweep has. A driver that is killed before this write leaves the old space;
    # a driver that is killed after this write leaves the new space.
    content: dict[str, Any] = planned.as_json() | identity
    content |= {"generation": generation, "left_behind": sorted({*studies.left_behind, *before.lost})}
    content["lost"] = list(before.lost)
    if (price := earlier_plan.get("price")) and not extended:
        content["price"] = price
    dumped = dump_space(space)
    folder.write_plan(content | {"leaves": leaves_of(parse_own_yaml(dumped))})
    write_atomically(folder.space, dumped)

    state = SweepState(space, planned.goals, studies, spool, folder, warm_start, before.lost)
    scratch, patience = use_of_scratch(options, cache, sweep_id), seconds_of(options.patience) or 0.0
    search = Search(space, state, folder, str(cache), store.path, store.num_folds, scratch=scratch, patience=patience)
    uri = check_tracking_uri(options.tracking_uri)
    return search, spool, Tracker(uri, options.name, sweep_id, spool, storage.mlflow_artifacts, mirror)


def run_trials(
    search: Search,
    planned: Plan,
    functions: SweepFunctions,
    folder: SweepFolder,
    tracker: Tracker,
    watch: Watch,
    console: Console,
) -> None:
    """Runs trials on Ray until no trial is left or the search halts.

    When memory runs short, it continues with half the number of trials per device.

    Raises:
        KeyboardInterrupt: a signal asked the driver to end; see `interrupt.py`.
    """
    assert planned.example is not None
    config, epochs, threads = search.space.search, planned.example.epochs, planned.example.threads
    with ExitStack() as stack:
        stack.enter_context(cluster())
        tracker.start()  # starts to import MLflow only now: while the workers start, not while Ray starts
        wait_for_first_machine(config, threads, folder.stop_request, printer(console))
        stack.enter_context(mps_where_shared(config, threads, printer(console)))
        per_device = _price_and_trials_per_device(search.space, planned, functions, folder, console)
        reservation = reservation_for(config, threads, per_device)
        if functions.training.use_teachers and not search.state.num_started:
            fit_teachers_first(planned, search.places, reservation, console)
        while True:
            halving, stopping, studies = None, config.early_stopping, search.state.studies
            if stopping and (rungs := stopping.rungs(epochs)):
                arms, past = list(search.space.arms), studies.arrivals()
                halving = ArmHalving(arms, search.goals, rungs, stopping.reduction, past, studies.record_arrival)
            doubled = reservation.doubled()
            search.devices, search.can_halve = reservation.devices, doubled is not None
            priced = wall_seconds(folder.read_plan().get("price"), len(search.finished), search.remaining_trials)
            with Progress(search, console, priced) as progress:
                watch.follow(progress)
                run_tune(search, halving, functions.training, reservation, folder, config.at_a_time)
            if search.halt is None or search.halt.kind != "memory" or doubled is None:
                break
            console.print(
                f"{search.halt.reason}\nout of memory: continues with half as many trials per device", highlight=False
            )
            reservation, search.halt = doubled, None
            if wanted_per_device(config) == "auto":
                _store_per_device(folder, reservation.per_device)


def _price_and_trials_per_device(
    space: Space, planned: Plan, functions: SweepFunctions, folder: SweepFolder, console: Console
) -> int | None:
    """Shows the price of the sweep unless an earlier driver has shown it, and returns the number of trials per device.

    A number that an earlier driver measured is kept. The number is None if `search.cpus` and `search.gpus` say what
    each trial reserves.
    """
    wanted, known = wanted_per_device(space.search), folder.read_plan().get("price")
    per_device: int | None = known and known["per_device"]
    if known is None or (wanted == "auto" and per_device is None):
        try:
            price = _timed_price(functions, space, planned, SWEEP_SECONDS, console)
        except UserError as error:
            warn([f"no price: {error}"], console)
            return 1 if wanted == "auto" else wanted
        if price is not None:
            console.print("\n".join(price.lines()), highlight=False)
            folder.add_to_plan({"price": price.as_json()})
            per_device = price.per_device
    return (per_device or 1) if wanted == "auto" else wanted


def _store_per_device(folder: SweepFolder, per_device: int) -> None:
    """Stores the number of trials per device that the memory allows, with which the next driver begins."""
    if price := folder.read_plan().get("price"):
        folder.add_to_plan({"price": price | {"per_device": per_device}})


def printer(console: Console) -> Callable[[str], None]:
    """Returns a function that prints a line on the console as it is."""
    return lambda line: console.print(line, highlight=False, soft_wrap=True)


def _timed_price(
    functions: SweepFunctions, space: Space, planned: Plan, seconds: float, console: Console
) -> Price | None:
    with console.status("timing") as status:
        return functions.price(space, planned, seconds, status.update if console.is_terminal else console.print)
