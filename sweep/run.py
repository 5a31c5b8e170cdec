"""Searches a space: `python -m sweep.run [space=NAME|FILE] [key=value ...]`; --help says the rest."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mmpkd.command import plain_console
from mmpkd.command import run as command
from mmpkd.types import ConfigError, UserError
from sweep.interrupt import leave, requests_end_the_driver
from sweep.options import RUN_KEYS, RunOptions, check_tracking_uri, read_run_options
from sweep.space.loading import SHORTCUTS, shipped
from sweep.space.space import PATHS_OF_SPACE, Space, dump_space, load_space
from sweep.workers.trials import run_trials

if TYPE_CHECKING:  # ray, torch and optuna are loaded once the space is known to be sound
    from rich.console import Console

    from sweep.plan.plan import Plan
    from sweep.search.searcher import Search
    from sweep.workers.worker import TrialWorker

HELP = """\
usage: python -m sweep.run [space=NAME|FILE] [key=value ...]

Draws configurations from a search space, trains them, and keeps those that classify and localise
best. The same command again continues a sweep that was stopped, or killed, and never repeats a
finished trial; a higher trials= adds to it.

  space=demo        {spaces},
                    or the path of a .yaml file
  name=SPACE        the sweep's name; its files go to STORAGE/NAME
  trials=N          configurations to start, over all arms (search.trials of the space)
  budget_device_hours=H, deadline=WHEN   stop there; more of either goes on
  storage=runs      folder of all sweeps
  cache=cache       folder of prepared images and teachers' answers, shared by all sweeps
  tracking=URI      MLflow; MLFLOW_TRACKING_URI, or else sqlite:///STORAGE/mlflow.db
  warm_start=SWEEP  begin with what another sweep of the same cohort, by name or folder, has learned
  extend=true       go on though the space has changed, with the earlier trials that lie in the new one
  repair=true       go on though the journal is damaged or has lost trials, without what is lost
  show=true         print the space as a tree, and stop
  schema=true       print a JSON schema of space files, for editors, and stop
  plan=true         check every branch of the space, time some steps, put a price on the sweep, and stop
  any.other=value   replaces that leaf of the space: epochs=8  seed=1  cohort.root=DIR
                    optimizer.lr=3e-4  arms.none=false  'optimizer.lr={{log_uniform: [1e-4, 1e-2]}}'

examples
  python -m sweep.run                                          the demo, minutes on two cores
  python -m sweep.run space=breast cohort.root=DIR plan=true
  python -m sweep.run space=breast cohort.root=DIR trials=12 epochs=8 name=first-look
  RAY_ADDRESS=auto python -m sweep.run space=FILE search.gpus=0.25     four trials to a GPU, on a cluster

a sweep leaves in STORAGE/NAME
  report.html       the front, learning curves, what each parameter did
  best.yaml         the best configuration by search.select; python -m mmpkd.train config=best.yaml
  trials.parquet    a row a trial; epochs.parquet a row an epoch
  space.yaml, plan.json, journal.log (Optuna), checkpoints of the front, errors/ of failed trials

Ctrl-C, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU end it in good order within about ten seconds, and
the same command goes on; what trains then loses its epoch at most. A second Ctrl-C waits for nothing.
Without RAY_ADDRESS it runs on the cores and the memory that this process may use, by taskset, control
groups (containers) or batch system; Ray's sockets go below TMPDIR if that is short, else /tmp, or RAY_TMPDIR.

exit status: 0 done; 1 nothing came through; 2 a mistake, told above; 130 stopped before the end (a signal,
sweep.stop), the same command goes on
"""


@requests_end_the_driver()
def main(words: Sequence[str]) -> None:
    """Raises SystemExit with 0 (done), 1 (nothing came through) or 130 (interrupted); UserError means 2."""
    if {"--help", "-h", "help"} & set(words):
        print(HELP.format(spaces=", ".join(shipped())), end="")
        return
    options, mistakes = read_run_options(words, (*SHORTCUTS, *PATHS_OF_SPACE))
    if options.schema and not mistakes:
        from sweep.space.schema import schema

        print(json.dumps(schema(), indent=2))
        return
    space, found = load_space(options.space, options.overrides, RUN_KEYS)
    mistakes += found
    if space is None:
        raise ConfigError(mistakes)
    console = plain_console()
    if options.show:
        from sweep.space.show import tree

        console.print(tree(space))
        if mistakes:
            raise ConfigError(mistakes)
        return
    from sweep.plan.plan import plan
    from sweep.space.show import render

    planned = plan(space, mistakes)
    if planned.mistakes:
        raise ConfigError(planned.mistakes)
    from sweep.cluster import cluster, refuse_silent_cluster
    from sweep.workers.tune import refuse_more_cores
    from sweep.workers.worker import TrialWorker

    assert planned.example is not None
    refuse_more_cores(space.search, planned.example.threads)
    if options.plan:
        console.print(render(planned))
        from mmpkd.cohort.suspects import find_in
        from mmpkd.probe import stand_in
        from mmpkd.teachers.input_leakage import leakage_warnings

        cohort = planned.example.cohort
        tables = stand_in(cohort)
        for note in tables.notes:
            console.print(note, highlight=False, soft_wrap=True)
        warn(leakage_warnings(find_in(tables), planned.teachers(), tables, cohort.fold), console)

        with cluster(), console.status("timing") as status:
            say = status.update if console.is_terminal else console.print
            price = TrialWorker.price(space, planned, PLAN_SECONDS, say)
        assert price is not None
        console.print("\n".join(price.lines()), highlight=False, soft_wrap=True)
        return
    warn(planned.warnings, console)
    refuse_silent_cluster()  # before hours may be spent on preparing the cohort
    leave(sweep(space, planned, options, console))


PLAN_SECONDS = 6.0  # for which each configuration is timed by `plan=true`


def warn(warnings: Iterable[str], console: Console) -> None:
    for warning in warnings:
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True)


def sweep(
    space: Space, planned: Plan, options: RunOptions, console: Console, worker: type[TrialWorker] | None = None
) -> int:
    """One driver's part of a sweep, from its lock to its report; the exit status.

    Raises:
        UserError: the folder is another sweep's, or cannot be written any more.
    """
    from sweep.storage.continuation import held
    from sweep.storage.failures import disk_trouble

    with held(options.folder):
        try:
            return _sweep(space, planned, options, console, worker)
        except OSError as error:
            trouble = disk_trouble(error, (options.folder, Path(options.storage), Path(options.cache)))
            if not trouble:
                raise
            raise UserError(
                f"{trouble}; the sweep stopped\n"
                f"  what was written before is whole; once that is mended, this goes on:\n  {options.command}"
            ) from error


def _sweep(space: Space, planned: Plan, options: RunOptions, console: Console, worker: type[TrialWorker] | None) -> int:
    from sweep import interrupt
    from sweep.reports.final import finish
    from sweep.reports.mlflow import Tracker
    from sweep.search.searcher import Search
    from sweep.search.state import Books
    from sweep.search.studies import Studies
    from sweep.search.warm_start import warm_results
    from sweep.storage.continuation import leaves_of, refuse_other_data, refuse_other_space
    from sweep.storage.events import SPOOL, Spool, read_plan, write_json, write_whole
    from sweep.storage.ownership import JOURNAL, examined
    from sweep.types import Halt
    from sweep.workers.worker import TrialWorker

    assert planned.example is not None
    cohort, worker = planned.example.cohort, worker or TrialWorker
    folder, cache = options.folder, Path(options.cache).absolute()
    repaired = "" if options.repair else " repair=true"
    here = examined(folder, options.repair, options.command + repaired)
    (folder / "stop").unlink(missing_ok=True)
    extended = refuse_other_space(folder, space, options.extend)
    store = worker.prepare(cohort, cache)  # here, so that its progress and its troubles are seen
    refuse_other_data(folder, here.store, store.fingerprint, cohort.root)
    warn([*here.notes, *worker.cautions(planned, store)], console)
    known, told = warm_results(space, planned.goals, folder, Path(options.storage), store.fingerprint)
    spool, sweep_id = Spool(folder / SPOOL), here.sweep_id or uuid.uuid4().hex
    spool.append("sweep", id=sweep_id, words=list(options.words))
    generation = read_plan(folder).get("generation", 0) + extended
    belongs = {"sweep": sweep_id, "store": store.fingerprint}
    studies = Studies(folder / JOURNAL, space, planned.goals, generation, anew=extended, belongs=belongs)
    for line in filter(None, (studies.take_over() if extended else "", told)):
        console.print(line, highlight=False, soft_wrap=True)
    # The plan decides which space the sweep is in: killed before it is written, the old one; after it, this one.
    left_behind = sorted({*studies.left_behind, *here.lost})
    began: dict[str, Any] = {
        **belongs,
        "generation": generation,
        "left_behind": left_behind,
        "lost": list(here.lost),
    }
    if (price := read_plan(folder).get("price")) and not extended:
        began["price"] = price
    dumped = dump_space(space)
    write_json(folder / "plan.json", planned.as_json() | began | {"leaves": leaves_of(yaml.safe_load(dumped))})
    write_whole(folder / "space.yaml", dumped)
    books = Books(space, planned.goals, studies, spool, folder, known, here.lost)
    search = Search(space, books, folder, cache, store.path, store.num_folds)
    tracker = Tracker(
        check_tracking_uri(options.tracking_uri), options.name, sweep_id, spool, Path(options.storage) / "mlartifacts"
    )
    if search.left and search.halt is None:
        console.print(_greeting(search, options), highlight=False, soft_wrap=True)
        try:
            run_trials(search, planned, worker, folder, tracker, console)
        except KeyboardInterrupt:
            if interrupt.insisted() or not interrupt.requested():
                raise
            search.halt = Halt("requested", f"asked to end ({interrupt.requested()})")
    elif not search.left:
        console.print(f"{options.name}: all {len(books.finished)} trials are done; trials=N with a higher N adds more")
    return finish(search, planned, options, spool, tracker, console)


def _greeting(search: Search, options: RunOptions) -> str:
    done, target = len(search.finished), search.space.search.trials
    so_far = f", {done} done before" if done else ""
    return f"{options.name}: {target} trials over {', '.join(search.space.arms)}{so_far}; files in {options.folder}"


if __name__ == "__main__":
    command(main)
