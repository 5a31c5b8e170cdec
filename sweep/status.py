"""What sweeps there are and how far they have come: `python -m sweep.status`; --help says the rest."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from mmpkd.command import plain_console, warn
from mmpkd.command import run as command
from mmpkd.types import ConfigError, UserError
from sweep.options import DEFAULT_STORAGE, read_sweep_options, sqlite_uri
from sweep.storage.database import follow_move
from sweep.storage.layout import Storage
from sweep.storage.lock import driver_of
from sweep.storage.reader import (
    ENDS,
    Sweep,
    Trial,
    continuing,
    how_to_continue,
    read_sweep,
    unknown,
)

HELP = """\
usage: python -m sweep.status [NAME] [key=value ...]

Shows every sweep: how many trials have come to what end, what they cost, the best value of each goal.
Of one sweep, or where there is only one, also its arms and the command that continues it. Only reads;
but where the folder of all sweeps was moved, it points STORAGE/mlflow.db to the artifacts beside it.

  NAME           one sweep; name=NAME says the same
  storage=runs   folder of all sweeps, as given to sweep.run
  json=true      the same for a program

what the columns say
  state          running: a driver is at it. finished: all its trials are done. stopped: the command
                 that continues it goes on from its checkpoints. starting: it has no plan yet
  trials         by how they ended; open: begun and not ended, so they run now or wait to be
                 continued. Those on further seeds (search.repeats) come on top of the number planned
  device hours   wall time of epochs x the share of a GPU held, or cores where there is no GPU; of the
                 sweep with, of its arms without trials that extend=true has left behind
  best           over complete trials; with search.repeats the mean over a configuration's seeds. Arms that
                 read another image at test (student.reads) count in their own row alone

examples
  python -m sweep.status
  python -m sweep.status breast storage=/shared/runs
  python -m sweep.status json=true | jq '.sweeps[] | select(.state == "running") | .name'
"""
COUNTED: Final = (*ENDS, "open")
PLAIN: Final[Mapping[str, Any]] = {"box": None, "padding": (0, 2, 0, 0), "pad_edge": False}


def main(words: Sequence[str]) -> None:
    if {"--help", "-h", "help"} & set(words):
        print(HELP, end="")
        return
    said, mistakes = read_sweep_options(words, {"name": "", "storage": DEFAULT_STORAGE, "json": "false"})
    storage = Storage(Path(said["storage"]))
    folders = storage.sweeps()
    if said["name"]:
        mistakes += unknown(said["name"], storage)
        folders = [folder for folder in folders if folder.name == said["name"]]
    if mistakes:
        raise ConfigError(mistakes)
    sweeps, unread = [], []
    for folder in folders:
        try:
            sweeps.append(read_sweep(folder))
        except UserError as error:
            unread.append(str(error))
    if said["json"] == "true":
        print(json.dumps({"sweeps": [as_json(sweep) for sweep in sweeps], "unread": unread}, indent=2))
        return
    console = plain_console()
    show(sweeps, storage, console)
    warn(unread, console)


def counted(trials: Sequence[Trial]) -> dict[str, Any]:
    """Of trials how many ended how, and what they cost; None where the devices are not known."""
    states = Counter(trial.state for trial in trials)
    spent = [seconds for trial in trials for seconds in trial.device_seconds.values()]
    known = [seconds for seconds in spent if seconds is not None]
    hours = sum(known) / 3600 if len(known) == len(spent) else None
    return {**{state: states[state] for state in (*ENDS, "open")}, "device_hours": hours}


def best(sweep: Sweep, numbers: Sequence[int]) -> dict[str, float]:
    """Of each goal the best value among these configurations."""
    among = set(numbers)
    found = [values for number, values in sweep.results().items() if number in among]
    if not found:
        return {}
    return {goal: max(column) for goal, column in zip(sweep.goals, zip(*found, strict=True), strict=True)}


def as_json(sweep: Sweep) -> dict[str, Any]:
    """Everything that is known of a sweep, in plain values."""
    arms = {arm: [number for number, trial in sweep.trials.items() if trial.arm == arm] for arm in sweep.arms}
    return {
        "name": sweep.folder.name,
        "folder": str(sweep.folder.path.absolute()),
        "space": sweep.plan.get("space"),
        "state": sweep.state,
        **counted(list(sweep.trials.values())),
        # Hours of the whole sweep, as search.budget_device_hours counts them.
        "device_hours": counted([*sweep.trials.values(), *sweep.left.values()])["device_hours"],
        "left_behind": len(sweep.left),
        "planned": sweep.search.get("trials"),
        "best": best(sweep, [number for number, one in sweep.trials.items() if one.arm not in sweep.references]),
        "arms": {
            arm: {**counted([sweep.trials[number] for number in own]), "best": best(sweep, own)}
            for arm, own in arms.items()
        },
        "seconds_since_last_event": None if sweep.heard is None else max(time.time() - sweep.heard, 0.0),
        "continue": continuing(sweep),
    }


def show(sweeps: Sequence[Sweep], storage: Storage, console: Console) -> None:
    if not sweeps:
        console.print(f"no sweeps under {storage}; start one, or name another folder with storage=DIR:", soft_wrap=True)
        where = [] if storage.path == Path(DEFAULT_STORAGE) else [f"storage={storage}"]
        console.print("  " + " ".join(["python -m sweep.run", *map(quote, where)]), highlight=False, soft_wrap=True)
        return
    # Several things to a column, so that a terminal of 80 columns holds it.
    table = Table("sweep\nits space", "state\nlast event", "trials", "device\nhours", "best", **PLAIN)
    table.columns[0].overflow = "fold"  # names are wanted whole
    for sweep in sweeps:
        told = as_json(sweep)
        counts = [f"{told[name]} {name}" for name in COUNTED if told[name]] or ["none"]
        trials = ", ".join(counts[:2]) + (f",\n{', '.join(counts[2:])}" if counts[2:] else "")
        planned = f" of {told['planned']}" if told["planned"] else ""
        name, state = f"{told['name']}\n{told['space'] or '-'}", f"{told['state']}\n{_age(told)}"
        table.add_row(name, state, f"{trials}{planned}", *_cost_and_best(told))
    console.print(table)
    if len(sweeps) > 1:
        console.print("name one (python -m sweep.status NAME) for its arms and the command that continues it")
        return
    told = as_json(sweeps[0])
    arms = Table("\narm", *COUNTED, "device\nhours", "best", **PLAIN)
    for arm, its in told["arms"].items():
        arms.add_row(arm, *(str(its[name]) for name in COUNTED), *_cost_and_best(its))
    if told["arms"]:
        console.print(arms)
    lines = how_to_continue(sweeps[0])
    if sweeps[0].running:
        end = f"python -m sweep.stop {told['name']} storage={quote(str(storage))}"
        lines = [f"run by {driver_of(sweeps[0].folder) or 'a driver'}; to end it cleanly, and go on later:", f"  {end}"]
        lines += [f"  {told['continue']}"] if told["continue"] else []
    lines += _about_mlflow(storage.mlflow_database.absolute())
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    for damaged in sweeps[0].damaged:
        spool = sweeps[0].folder.spool
        warning = f"warning: {spool}: {damaged} is damaged and passed over; what it told is not counted here"
        console.print(warning, highlight=False, soft_wrap=True)


def _about_mlflow(file: Path) -> list[str]:
    """How to look at the runs of the MLflow file beside the sweeps, if there is one."""
    if not file.is_file():
        return []
    try:
        follow_move(file)
    except sqlite3.Error as error:
        return [f"warning: {file}: artifacts may not be found from it ({error}); is it damaged, or read-only?"]
    return [f"runs in MLflow: mlflow ui --backend-store-uri {quote(sqlite_uri(file))}"]


def _cost_and_best(told: Mapping[str, Any]) -> tuple[str, str]:
    hours = "?" if told["device_hours"] is None else f"{told['device_hours']:.3g}"
    return hours, "\n".join(f"{goal} {value:.3f}" for goal, value in told["best"].items()) or "-"


def _age(told: Mapping[str, Any]) -> str:
    seconds = told["seconds_since_last_event"]
    if seconds is None:
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


if __name__ == "__main__":
    command(main)
