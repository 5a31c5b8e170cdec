"""Searches a space: `python -m sweep.run [space=NAME|FILE] [key=value ...]`; --help says the rest."""

from __future__ import annotations

import os
import re
import signal
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from mmpkd.command import run as command
from mmpkd.types import ConfigError, Mistake
from sweep.source import shipped
from sweep.space import Space, dump_space, load_space

if TYPE_CHECKING:  # ray, torch and optuna are loaded once the space is known to be sound
    from rich.console import Console

    from sweep.plan import Plan
    from sweep.records import Spool
    from sweep.search import Search
    from sweep.tracking import Tracker
    from sweep.trial import TrialWorker

HELP = """\
usage: python -m sweep.run [space=NAME|FILE] [key=value ...]

Draws configurations from a search space, trains them, and keeps those that classify and localise
best. The same command again continues a sweep that was stopped, or killed, and never repeats a
finished trial; a higher trials= adds to it.

  space=demo        a file of search_spaces/ ({spaces}), or the path of a .yaml file
  name=SPACE        the sweep's name; its files go to STORAGE/NAME
  trials=N          configurations to start, over all arms (search.trials of the space)
  storage=runs      folder of all sweeps
  cache=cache       folder of prepared images and teachers' answers, shared by all sweeps
  tracking=URI      MLflow; MLFLOW_TRACKING_URI, or else sqlite:///STORAGE/mlflow.db
  show=true         print the space as a tree, and stop
  plan=true         check every branch of the space, and stop; nothing is trained
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
"""


@dataclass(frozen=True)
class Words:
    """The command line: what is ours, and what is the space's."""

    space: str = "demo"
    name: str = ""
    storage: str = "runs"
    cache: str = "cache"
    tracking: str = ""
    show: str = "false"
    plan: str = "false"
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return (Path(self.storage) / self.name).absolute()

    @property
    def address(self) -> str:
        default = f"sqlite:///{(Path(self.storage) / 'mlflow.db').absolute()}"
        return self.tracking or os.environ.get("MLFLOW_TRACKING_URI") or default


def main(words: Sequence[str]) -> None:
    """Raises SystemExit with 0 (done), 1 (nothing came through) or 130 (interrupted); UserError means 2."""
    if {"--help", "-h", "help"} & set(words):
        print(HELP.format(spaces=", ".join(shipped())), end="")
        return
    said, mistakes = read_words(words)
    space, found = load_space(said.space, said.overrides)
    mistakes += found
    if space is None:
        raise ConfigError(mistakes)
    from rich.console import Console

    console = Console()
    if said.show == "true":
        from sweep.show import tree

        console.print(tree(space))
        if mistakes:
            raise ConfigError(mistakes)
        return
    from sweep.plan import plan, render

    planned = plan(space, mistakes)
    if planned.mistakes:
        raise ConfigError(planned.mistakes)
    if said.plan == "true":
        console.print(render(planned))
        return
    for warning in planned.warnings:
        console.print(f"warning: {warning}", highlight=False)
    raise SystemExit(sweep(space, planned, said, console))


def read_words(words: Sequence[str]) -> tuple[Words, list[Mistake]]:
    own = {key: value for key, equals, value in (word.partition("=") for word in words) if equals and key in OWN}
    rest = tuple(word for word in words if "=" not in word or word.partition("=")[0] not in OWN)
    said = Words(**own, overrides=rest)
    if not said.name:
        said = Words(**{**own, "name": Path(said.space).stem}, overrides=rest)
    mistakes = []
    if not re.fullmatch(r"\w[\w.-]*", said.name, re.ASCII):
        mistakes.append(Mistake("name", f"letters, digits, '-', '_' and '.' only, got {said.name!r}"))
    for key in ("show", "plan"):
        if getattr(said, key) not in ("true", "false"):
            mistakes.append(Mistake(key, f"true or false, got {getattr(said, key)!r}"))
    from sweep.tracking import check_address

    try:
        check_address(said.address)
    except ConfigError as error:
        mistakes += error.mistakes
    return said, mistakes


OWN = ("space", "name", "storage", "cache", "tracking", "show", "plan")


def sweep(space: Space, planned: Plan, said: Words, console: Console, worker: type[TrialWorker] | None = None) -> int:
    """One driver's part of a sweep, from its lock to its report; the exit status."""
    from sweep.folder import held, refuse_other_data, refuse_other_space
    from sweep.records import Spool, write_json, write_whole
    from sweep.search import Search
    from sweep.studies import Studies
    from sweep.tracking import Tracker, check_address
    from sweep.trial import TrialWorker

    assert planned.example is not None
    cohort, worker = planned.example.cohort, worker or TrialWorker
    folder, cache = said.folder, Path(said.cache).absolute()
    with held(folder):
        refuse_other_space(folder, space)
        store = worker.prepare(cohort, cache)  # here, so that its progress and its troubles are seen
        refuse_other_data(folder, store.fingerprint, cohort.root)
        write_whole(folder / "space.yaml", dump_space(space))
        write_json(folder / "plan.json", planned.as_json() | {"store": store.fingerprint})
        spool = Spool(folder / "spool.jsonl")
        sweep_id = next((event["id"] for _, event in spool.read() if event["event"] == "sweep"), uuid.uuid4().hex)
        spool.append("sweep", id=sweep_id)
        studies = Studies(folder / "journal.log", space, planned.goals)
        search = Search(space, planned.goals, studies, spool, folder, cache, store.path)
        address = check_address(said.address)
        tracker = Tracker(address, said.name, sweep_id, spool, Path(said.storage) / "mlartifacts")
        if search.left:
            console.print(_greeting(search, said), highlight=False, soft_wrap=True)
            run_trials(search, planned, worker, folder, spool, tracker, console)
        else:
            console.print(
                f"{said.name}: all {len(search.finished)} trials are done; trials=N with a higher N adds more"
            )
        return finish(search, planned, said, spool, tracker, console)


def run_trials(
    search: Search,
    planned: Plan,
    worker: type[TrialWorker],
    folder: Path,
    spool: Spool,
    tracker: Tracker,
    console: Console,
) -> None:
    """Ray from start to end; comes back when no trial is left, or after Ctrl-C."""
    from sweep.driver import cluster, drive, idle_gpus, slots
    from sweep.halving import ArmHalving
    from sweep.progress import Progress

    assert planned.example is not None
    config, stopping = search.space.search, search.space.search.early_stopping
    cpus, epochs = config.cpus or float(planned.example.threads), planned.example.epochs
    halving = None
    if stopping and (grace := stopping.first_rung(epochs)) < epochs:
        events = (event for _, event in spool.read() if event["event"] == "epoch")
        heard = ((one["number"], one["arm"], one["epoch"], one["metrics"][config.select]) for one in events)
        halving = ArmHalving(list(search.space.arms), config.select, epochs, grace, stopping.reduction, heard)
    with cluster():
        # A batch system's polite end is our Ctrl-C (Ray has just set a handler of its own). Ray Tune stops
        # at that, and running trials stay 'running' in the storage, to be continued.
        before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        tracker.start()  # its imports run while the workers start, not while Ray does
        if not config.gpus and (count := idle_gpus()):
            hint = "search.gpus=1 gives each trial one, 0.25 runs four trials to each"
            console.print(f"warning: {count} GPUs are here and trials use none; {hint}", highlight=False)
        with Progress(search, slots(cpus, config.gpus), console):
            drive(search, worker, halving, cpus, config.gpus, folder)
        signal.signal(signal.SIGTERM, before)


def finish(search: Search, planned: Plan, said: Words, spool: Spool, tracker: Tracker, console: Console) -> int:
    """Tables, report and tracking, whatever the trials came to; the exit status."""
    from mmpkd.config import TrialConfig, dump_trial
    from sweep.records import best_of, write_tables, write_whole
    from sweep.report import write_report
    from sweep.summary import print_summary
    from sweep.tracking import without_password

    assert planned.example is not None
    records, select, folder = search.records(), search.space.search.select, said.folder
    write_tables(folder, records, spool)
    best = best_of(records, select, planned.goals)
    if best:
        here = {"cohort": planned.example.cohort}  # the data may have moved since
        config = TrialConfig.model_validate_json(best.config).model_copy(update=here)
        write_whole(folder / "best.yaml", dump_trial(config))
    arms = list(search.space.arms)
    write_report(folder / "report.html", said.name, records, arms, planned.goals, select)
    status = "FINISHED" if not search.left else "FAILED" if search.hopeless else "KILLED"
    kept = ["space.yaml", "plan.json", "best.yaml"]
    if planned.facts is not None and not planned.facts.credentialed:
        kept += ["trials.parquet", "report.html"]  # of a credentialed cohort nothing but settings leaves the store
    spool.append("files", paths=[str(folder / name) for name in kept])
    spool.append("close", status=status)

    print_summary(console, records, arms, planned.goals, select, folder)
    tracker.start()
    left = tracker.close(seconds=60)
    _tell_tracking(left, tracker, said, console)
    again = "python -m sweep.run " + " ".join(quote(without_password(word)) for word in sys.argv[1:])
    if search.hopeless:
        console.print("stopped: every trial failed so far; mend that, then run the same command again", highlight=False)
    elif search.left:
        console.print(
            f"{search.left} trials to go; this continues from their checkpoints:\n  {again}",
            highlight=False,
            soft_wrap=True,
        )
    return 0 if best and not search.left else 1 if search.hopeless or not search.left else 130


def _greeting(search: Search, said: Words) -> str:
    done, target = len(search.finished), search.space.search.trials
    so_far = f", {done} done before" if done else ""
    return f"{said.name}: {target} trials over {', '.join(search.space.arms)}{so_far}; files in {said.folder}"


def _tell_tracking(left: int, tracker: Tracker, said: Words, console: Console) -> None:
    from sweep.tracking import check_address, without_password

    address = without_password(check_address(said.address))
    if left:
        why = f" ({tracker.trouble})" if tracker.trouble else ""
        console.print(
            f"warning: {left} records have not reached {address}{why}; they wait in "
            f"{said.folder / 'spool.jsonl'}, and the same command sends them",
            highlight=False,
            soft_wrap=True,
        )
    if tracker.refused:
        told = f"{len(tracker.refused)} records, the first: {tracker.refused[0]}"
        console.print(f"warning: MLflow refused {told}", highlight=False, soft_wrap=True)
    if address.startswith("http"):
        console.print(f"runs in MLflow: {address}", highlight=False, soft_wrap=True)
    else:
        console.print(
            f"runs in MLflow, experiment {said.name}:\n  mlflow ui --backend-store-uri {quote(address)}",
            highlight=False,
            soft_wrap=True,
        )


if __name__ == "__main__":
    command(main)
