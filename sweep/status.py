"""Shows all sweeps and their progress: `python -m sweep.status`. Its options are listed by `--help`."""

from __future__ import annotations

import io
import json
import re
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from shlex import quote
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mmpkd.command import asks_for_help, command_line, command_lines, plain_console, warn
from mmpkd.types import ConfigError, Mistake, UserError
from sweep.options import DEFAULT_STORAGE, read_sweep_options, sqlite_uri
from sweep.reports.details import (
    PLAIN,
    SHOWN_STATES,
    age,
    as_json,
    image_blind_lines,
    score_of_trial,
    show_driver,
)
from sweep.storage.layout import Storage, SweepFolder
from sweep.storage.lock import driver_of
from sweep.storage.reader import Sweep, check_exists, how_to_continue, read_sweep
from sweep.tracking.links import as_lines, pages_of, server_of
from sweep.tracking.mlflow_database import repoint_artifacts, sweep_run
from sweep.transfer.views import refresh, view_of

HELP = """\
usage: python -m sweep.status [NAME] [key=value ...]

Shows every sweep: how many trials have ended in which way, what they cost, and
the best value of each goal. For a single sweep it also shows the arms, what the
driver says of itself (last sign of life, machines, running trials and the age
of their reports, expected end), and the command that continues the sweep. It
only reads, with one exception: after the folder of all sweeps was moved, it
points STORAGE/mlflow.db to the artifacts beside it.

  NAME           one sweep; name=NAME means the same
  storage=runs   folder or address of all sweeps, as given to sweep.run
  json=true      prints the same as JSON, for a program
  watch=true     shows the same until Ctrl-C, refreshed every 2 s (30 s for an
                 address); where the output is no terminal, prints a line when
                 something has changed

columns
  state          running: a driver runs it. stalled: its driver has given no
                 sign of life for a minute. finished: all its trials are done.
                 stopped: the command that continues it goes on from its
                 checkpoints. starting: a driver has begun and runs no trials
                 yet
  trials         by how they ended; open: begun and not ended, so they run now
                 or wait to be continued. Trials on further seeds
                 (search.repeats) are added to the number planned
  device hours   wall time of epochs x the share of a GPU held, or cores where
                 there is no GPU. The sweep's value contains trials left behind
                 by extend=true; an arm's does not. Below it stands the price by
                 the plan
  best           of each goal, with the trial that has it; observed, over
                 complete trials; with search.repeats means over the seeds. Arms
                 that read another image at test (student.reads) count only in
                 their own row

examples
  python -m sweep.status
  python -m sweep.status breast storage=/shared/runs
  python -m sweep.status json=true | jq '.sweeps[].state'
"""
WATCH_SECONDS: Final = 2.0  # between two readings with watch=true
NAME_WIDTH: Final = 14  # of sweeps and arms in a table of 80 columns
REMOTE_WATCH_SECONDS: Final = 30.0  # the same for an address, where a driver leaves copies as seldom


def main(words: Sequence[str]) -> None:
    if asks_for_help(words):
        print(HELP, end="")
        return
    defaults = {"name": "", "storage": DEFAULT_STORAGE, "json": "false", "watch": "false"}
    options, mistakes = read_sweep_options(words, defaults)
    storage = view_of(options["storage"])
    folders = storage.sweeps()
    if options["name"]:
        mistakes += check_exists(options["name"], storage)
        folders = [folder for folder in folders if folder.name == options["name"]]
    if options["json"] == options["watch"] == "true":
        mistakes.append(Mistake("watch", "shows a page for people; leave out json=true, or call it without watch=true"))
    if mistakes:
        raise ConfigError(mistakes)
    console = plain_console()
    if options["watch"] == "true":
        watch(storage, options["name"], console)
        return
    sweeps, unread = read_sweeps(folders)
    if options["json"] == "true":
        print(json.dumps({"sweeps": [as_json(sweep) for sweep in sweeps], "unread": unread}, indent=2))
        return
    show(sweeps, storage, console, _about_mlflow(storage.mlflow_database.absolute(), sweeps))
    warn(unread, console)


def read_sweeps(folders: Sequence[SweepFolder], earlier: Mapping[str, Sweep] = {}) -> tuple[list[Sweep], list[str]]:
    """Returns the sweeps in these folders, and a line for each that cannot be read.

    Args:
        earlier: sweeps by name as they were read before, see `read_sweep`.
    """
    sweeps, unread = [], []
    for folder in folders:
        try:
            refresh(folder)
            sweeps.append(read_sweep(folder, earlier.get(folder.name)))
        except UserError as error:
            unread.append(str(error))
    return sweeps, unread


def watch(storage: Storage, name: str, console: Console) -> None:
    """Shows all sweeps, or the sweep of this name, until Ctrl-C: as a page that is refreshed or, where the output is no
    terminal, as a line for each sweep that has changed.
    """
    about_mlflow = _about_mlflow(storage.mlflow_database.absolute())
    earlier: dict[str, Sweep] = {}
    shown: list[str] = []
    live = Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext()
    with suppress(KeyboardInterrupt), live:
        while True:
            folders = [folder for folder in storage.sweeps() if name in ("", folder.name)]
            sweeps, unread = read_sweeps(folders, earlier)
            earlier = {sweep.folder.name: sweep for sweep in sweeps}
            if isinstance(live, Live):
                running_first = sorted(sweeps, key=lambda sweep: not sweep.running)
                live.update(_page(running_first, unread, storage, about_mlflow, console), refresh=True)
            else:
                lines = [*map(_line, sweeps), *unread]
                for line in lines:
                    if line not in shown:
                        console.print(f"{time.strftime('%H:%M:%S')} {line}", highlight=False, soft_wrap=True)
                shown = lines
            is_remote = any(folder.address for folder in folders)
            time.sleep(REMOTE_WATCH_SECONDS if is_remote else WATCH_SECONDS)


def _page(
    sweeps: Sequence[Sweep], unread: Sequence[str], storage: Storage, about_mlflow: Sequence[str], console: Console
) -> Text:
    """Returns what `python -m sweep.status` prints, for a terminal of the size of `console`. If it has too many lines,
    the last line says how many are left out.
    """
    page = plain_console(file=io.StringIO(), width=console.width, force_terminal=True)
    show(sweeps, storage, page, about_mlflow)
    warn(unread, page)
    assert isinstance(page.file, io.StringIO)
    lines = list(Text.from_ansi(page.file.getvalue()).wrap(console, console.width))
    if (left_out := len(lines) - (console.height - 1)) > 0:  # a row is the cursor's
        note = f"{left_out + 1} more lines: use a taller terminal, or leave out watch=true"
        lines[console.height - 2 :] = [Text(note)]
    return Text("\n").join(lines)


def _line(sweep: Sweep) -> str:
    """Returns a sweep in one line: its state, its trials by how they ended, and the best score of each goal."""
    facts = as_json(sweep)
    counts = ", ".join(f"{facts[state]} {state}" for state in SHOWN_STATES if facts[state]) or "no trials"
    planned = f" of {facts['planned']}" if facts["planned"] else ""
    return "; ".join([f"{facts['name']}: {facts['state']}", f"{counts}{planned}", *map("best {}".format, _best(facts))])


def show(sweeps: Sequence[Sweep], storage: Storage, console: Console, about_mlflow: Sequence[str] = ()) -> None:
    """Prints a table of sweeps. If there is only one sweep to show, prints its details and `about_mlflow`, too."""
    if not sweeps:
        console.print(f"no sweeps under {storage}; start one, or name another folder with storage=DIR:", soft_wrap=True)
        words = [] if storage == Storage(Path(DEFAULT_STORAGE)) else [f"storage={storage}"]
        console.print("  " + " ".join(["python -m sweep.run", *map(quote, words)]), highlight=False, soft_wrap=True)
        return
    # One table column holds several values, so that the table fits a terminal 80 characters wide.
    table = Table("sweep\nits space", "state\nlast event", "trials", "device\nhours", "best", **PLAIN)
    table.columns[0].overflow = "fold"  # names are never cut off
    table.columns[4].no_wrap = True
    for sweep in sweeps:
        facts = as_json(sweep)
        trials = ",\n".join(_counts(facts))
        planned = f" of {facts['planned']}" if facts["planned"] else ""
        name = f"{_broken(facts['name'])}\n{_broken(facts['space'] or '-')}"
        state = f"{facts['state']}\n{_age(facts)}"
        table.add_row(name, state, f"{trials}{planned}", *_cost_and_best(facts))
    console.print(table)
    if len(sweeps) > 1:
        console.print("python -m sweep.status NAME shows the arms of a sweep and the command that continues it")
        return
    _show_details(sweeps[0], storage, console, about_mlflow)


def _show_details(sweep: Sweep, storage: Storage, console: Console, about_mlflow: Sequence[str]) -> None:
    facts = as_json(sweep)
    arms = Table("\narm", "\ntrials", "device\nhours", "\nbest", **PLAIN)
    arms.columns[3].no_wrap = True
    for arm, arm_facts in facts["arms"].items():
        arms.add_row(_broken(arm), ",\n".join(_counts(arm_facts)), *_cost_and_best(arm_facts))
    if facts["arms"]:
        console.print()
        console.print(arms)
    for line in image_blind_lines(sweep):
        console.print(line, highlight=False)
    show_driver(sweep, console)
    lines = ["", *how_to_continue(sweep)]
    if sweep.running:
        stop = f"python -m sweep.stop {facts['name']} storage={quote(str(storage))}"
        driver = driver_of(sweep.folder) or "a driver"
        lines = ["", f"it is run by {driver}; these commands end it and continue it:"]
        lines += [*command_lines(stop), *(command_lines(facts["continue"]) if facts["continue"] else [])]
    lines += about_mlflow
    lines += [
        f"warning: {sweep.folder.spool}: {place} is damaged and skipped; an event in it is not counted here"
        for place in sweep.damaged
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _about_mlflow(file: Path, sweeps: Sequence[Sweep] = ()) -> list[str]:
    """Returns lines that say how to view the runs in the MLflow file beside the sweeps, with links if there is one
    sweep. Returns no lines if there is no such file.
    """
    if not file.is_file():
        return []
    try:
        repoint_artifacts(file)
        ids = sweep_run(file, sweeps[0].folder.name) if len(sweeps) == 1 else None
    except sqlite3.Error as error:
        return [
            f"warning: {file}: MLflow may not find its artifacts ({error}); check whether it is damaged or read-only"
        ]
    uri = sqlite_uri(file)
    pages = as_lines(pages_of(*ids, sweeps[0].goals, server_of(uri))) if ids else []
    return [f"runs in MLflow: mlflow ui --backend-store-uri {quote(uri)}", *pages]


def _counts(facts: Mapping[str, Any]) -> list[str]:
    return [f"{facts[state]} {state}" for state in SHOWN_STATES if facts[state]] or ["none"]


def _broken(name: str) -> str:
    """Returns a name in lines of at most `NAME_WIDTH` characters where its signs allow that: they end in - _ . or /."""
    lines = [""]
    for piece in re.split(r"(?<=[-_./])", name):
        if lines[-1] and len(lines[-1] + piece) > NAME_WIDTH:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _cost_and_best(facts: Mapping[str, Any]) -> tuple[str, str]:
    hours = "?" if facts["device_hours"] is None else f"{facts['device_hours']:.3g}"
    hours += f"\nof {facts['planned_device_hours']:.3g}" if facts["planned_device_hours"] else ""
    return hours, "\n".join(_best(facts)) or "-"


def _best(facts: Mapping[str, Any]) -> list[str]:
    return [f"{goal} {score_of_trial(value, facts['best_trials'][goal])}" for goal, value in facts["best"].items()]


def _age(facts: Mapping[str, Any]) -> str:
    seconds = facts["seconds_since_last_event"]
    return "-" if seconds is None else age(seconds)


if __name__ == "__main__":
    with command_line() as words:
        main(words)
