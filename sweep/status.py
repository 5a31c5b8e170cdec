"""Shows all sweeps and their progress: `python -m sweep.status`. Its options are listed by `--help`."""

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

from mmpkd.command import command_line, plain_console, warn
from mmpkd.types import ConfigError, UserError
from sweep.options import DEFAULT_STORAGE, read_sweep_options, sqlite_uri
from sweep.reports.details import PLAIN, age, driver_as_json, show_driver
from sweep.storage.layout import Storage
from sweep.storage.lock import driver_of
from sweep.storage.reader import (
    END_STATES,
    Sweep,
    Trial,
    check_exists,
    continue_command,
    how_to_continue,
    read_sweep,
)
from sweep.tracking.links import as_lines, pages_of, server_of
from sweep.tracking.mlflow_database import repoint_artifacts, sweep_run
from sweep.transfer.views import refresh, view_of

HELP = """\
usage: python -m sweep.status [NAME] [key=value ...]

Shows every sweep: how many trials have ended in which way, what they cost, and the best value of each
goal. For a single sweep it also shows the arms, what the driver says of itself (last sign of life,
machines, running trials and the age of their reports, expected end), and the command that continues the
sweep. It only reads, with one exception: after the folder of all sweeps was moved, it points
STORAGE/mlflow.db to the artifacts beside it.

  NAME           one sweep; name=NAME means the same
  storage=runs   folder or address of all sweeps, as given to sweep.run
  json=true      prints the same as JSON, for a program

columns
  state          running: a driver runs it. stalled: its driver has given no sign of life for a minute.
                 finished: all its trials are done. stopped: the command that continues it goes on from
                 its checkpoints. starting: a driver has begun and runs no trials yet
  trials         by how they ended; open: begun and not ended, so they run now or wait to be
                 continued. Trials on further seeds (search.repeats) are added to the number planned
  device hours   wall time of epochs x the share of a GPU held, or cores where there is no GPU. The
                 sweep's value contains trials that extend=true has left behind; an arm's does not. Below
                 it stands the price by the plan
  best           observed, over complete trials; with search.repeats means over the seeds. Arms
                 that read another image at test (student.reads) count only in their own row

examples
  python -m sweep.status
  python -m sweep.status breast storage=/shared/runs
  python -m sweep.status json=true | jq '.sweeps[] | select(.state == "running") | .name'
"""
SHOWN_STATES: Final = (*END_STATES, "open")


def main(words: Sequence[str]) -> None:
    if {"--help", "-h", "help"} & set(words):
        print(HELP, end="")
        return
    options, mistakes = read_sweep_options(words, {"name": "", "storage": DEFAULT_STORAGE, "json": "false"})
    storage = view_of(options["storage"])
    folders = storage.sweeps()
    if options["name"]:
        mistakes += check_exists(options["name"], storage)
        folders = [folder for folder in folders if folder.name == options["name"]]
    if mistakes:
        raise ConfigError(mistakes)
    sweeps, unread = [], []
    for folder in folders:
        try:
            refresh(folder)
            sweeps.append(read_sweep(folder))
        except UserError as error:
            unread.append(str(error))
    if options["json"] == "true":
        print(json.dumps({"sweeps": [as_json(sweep) for sweep in sweeps], "unread": unread}, indent=2))
        return
    console = plain_console()
    show(sweeps, storage, console)
    warn(unread, console)


def count(trials: Sequence[Trial]) -> dict[str, Any]:
    """Returns the number of trials in each state, and the device-hours of the trials. The device-hours are None if the
    devices of a trial are unknown.
    """
    states = Counter(trial.state for trial in trials)
    seconds = [seconds for trial in trials for seconds in trial.device_seconds.values()]
    known = [value for value in seconds if value is not None]
    hours = sum(known) / 3600 if len(known) == len(seconds) else None
    return {**{state: states[state] for state in SHOWN_STATES}, "device_hours": hours}


def best(sweep: Sweep, numbers: Sequence[int]) -> dict[str, float]:
    """Returns the best value of each goal among the configurations with these numbers."""
    chosen = set(numbers)
    results = [values for number, values in sweep.results().items() if number in chosen]
    if not results:
        return {}
    return {goal: max(values) for goal, values in zip(sweep.goals, zip(*results, strict=True), strict=True)}


def as_json(sweep: Sweep) -> dict[str, Any]:
    """Returns everything that is known about a sweep, as plain values for JSON."""
    arms = {arm: [number for number, trial in sweep.trials.items() if trial.arm == arm] for arm in sweep.arms}
    return {
        "name": sweep.folder.name,
        "folder": str(sweep.folder.address or sweep.folder.path.absolute()),
        "space": sweep.plan.get("space"),
        "state": sweep.state,
        **count(list(sweep.trials.values())),
        # Device-hours of the whole sweep, counted in the same way as for search.budget_device_hours.
        "device_hours": count([*sweep.trials.values(), *sweep.left_behind.values()])["device_hours"],
        "left_behind": len(sweep.left_behind),
        "planned": sweep.search.get("trials"),
        "planned_device_hours": sweep.planned_hours,
        "budget_device_hours": sweep.search.get("budget_device_hours"),
        "best": best(sweep, [number for number, trial in sweep.trials.items() if trial.arm not in sweep.references]),
        "arms": {
            arm: {
                **count([sweep.trials[number] for number in numbers]),
                "planned_device_hours": sweep.planned_hours_of(arm),
                "best": best(sweep, numbers),
            }
            for arm, numbers in arms.items()
        },
        "seconds_since_last_event": None if sweep.last_event is None else max(time.time() - sweep.last_event, 0.0),
        "drivers": sweep.drivers,
        "driver": driver_as_json(sweep.status),
        "continue": continue_command(sweep),
    }


def show(sweeps: Sequence[Sweep], storage: Storage, console: Console) -> None:
    """Prints a table of sweeps. If there is only one sweep to show, prints its details, too."""
    if not sweeps:
        console.print(f"no sweeps under {storage}; start one, or name another folder with storage=DIR:", soft_wrap=True)
        words = [] if storage == Storage(Path(DEFAULT_STORAGE)) else [f"storage={storage}"]
        console.print("  " + " ".join(["python -m sweep.run", *map(quote, words)]), highlight=False, soft_wrap=True)
        return
    # One table column holds several values, so that the table fits a terminal 80 characters wide.
    table = Table("sweep\nits space", "state\nlast event", "trials", "device\nhours", "best", **PLAIN)
    table.columns[0].overflow = "fold"  # names are never cut off
    for sweep in sweeps:
        facts = as_json(sweep)
        counts = [f"{facts[state]} {state}" for state in SHOWN_STATES if facts[state]] or ["none"]
        trials = ", ".join(counts[:2]) + (f",\n{', '.join(counts[2:])}" if counts[2:] else "")
        planned = f" of {facts['planned']}" if facts["planned"] else ""
        name, state = f"{facts['name']}\n{facts['space'] or '-'}", f"{facts['state']}\n{_age(facts)}"
        table.add_row(name, state, f"{trials}{planned}", *_cost_and_best(facts))
    console.print(table)
    if len(sweeps) > 1:
        console.print("python -m sweep.status NAME shows the arms of a sweep and the command that continues it")
        return
    _show_details(sweeps[0], storage, console)


def _show_details(sweep: Sweep, storage: Storage, console: Console) -> None:
    facts = as_json(sweep)
    arms = Table("\narm", *SHOWN_STATES, "device\nhours", "best", **PLAIN)
    for arm, arm_facts in facts["arms"].items():
        arms.add_row(arm, *(str(arm_facts[state]) for state in SHOWN_STATES), *_cost_and_best(arm_facts))
    if facts["arms"]:
        console.print()
        console.print(arms)
    show_driver(sweep, console)
    lines = ["", *how_to_continue(sweep)]
    if sweep.running:
        stop = f"python -m sweep.stop {facts['name']} storage={quote(str(storage))}"
        driver = driver_of(sweep.folder) or "a driver"
        lines = ["", f"it is run by {driver}; these commands end it and continue it:"]
        lines += [f"  {stop}", *([f"  {facts['continue']}"] if facts["continue"] else [])]
    lines += _about_mlflow(storage.mlflow_database.absolute(), facts["name"], sweep.goals)
    lines += [
        f"warning: {sweep.folder.spool}: {place} is damaged and skipped; an event in it is not counted here"
        for place in sweep.damaged
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _about_mlflow(file: Path, name: str, goals: Sequence[str]) -> list[str]:
    """Returns lines that say how to view a sweep's runs in the MLflow file beside the sweeps. Returns no lines if there
    is no such file.
    """
    if not file.is_file():
        return []
    try:
        repoint_artifacts(file)
        ids = sweep_run(file, name)
    except sqlite3.Error as error:
        return [
            f"warning: {file}: MLflow may not find its artifacts ({error}); check whether it is damaged or read-only"
        ]
    uri = sqlite_uri(file)
    pages = as_lines(pages_of(*ids, goals, server_of(uri))) if ids else []
    return [f"runs in MLflow: mlflow ui --backend-store-uri {quote(uri)}", *pages]


def _cost_and_best(facts: Mapping[str, Any]) -> tuple[str, str]:
    hours = "?" if facts["device_hours"] is None else f"{facts['device_hours']:.3g}"
    hours += f"\nof {facts['planned_device_hours']:.3g}" if facts["planned_device_hours"] else ""
    return hours, "\n".join(f"{goal} {value:.3f}" for goal, value in facts["best"].items()) or "-"


def _age(facts: Mapping[str, Any]) -> str:
    seconds = facts["seconds_since_last_event"]
    return "-" if seconds is None else age(seconds)


if __name__ == "__main__":
    with command_line() as words:
        main(words)
