"""The end of a driver's part: tables, report and tracking, whatever the trials came to."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Final

from rich.console import Console

from mmpkd.config import TrialConfig, dump_trial
from mmpkd.types import UserError
from sweep import interrupt
from sweep.options import RunOptions, check_tracking_uri, redact_passwords, sqlite_file
from sweep.plan.plan import Plan
from sweep.reports.console import print_summary
from sweep.reports.html import write_report
from sweep.reports.mlflow import Tracker
from sweep.search.searcher import Search
from sweep.storage.events import Spool, read_plan, write_whole
from sweep.storage.records import judged, picked, write_tables
from sweep.types import Record

LIMITS: Final = ("budget_device_hours=", "deadline=")


def finish(search: Search, planned: Plan, options: RunOptions, spool: Spool, tracker: Tracker, console: Console) -> int:
    """Leaves the sweep's files, sends what the tracking has not had, and says how it stands; the exit status."""
    with interrupt.deferred():
        records = search.records()
        shown = judged(records, planned.goals, search.space.search.repeats)
        best = _write_files(search, planned, options, spool, records, shown)
    config, done = search.space.search, not search.left or (search.halt is not None and search.halt.kind == "limit")
    for warning in search.take_warnings():
        console.print(f"warning: {warning}", highlight=False, markup=False, soft_wrap=True)
    error = planned_error(options.folder)
    print_summary(console, shown, list(search.space.arms), planned.goals, config.select, options.folder, error)
    if further := len(records) - len(shown):
        console.print(f"{further} further runs, of promising configurations on other seeds", highlight=False)
    _tell_tracking(_send_rest(tracker), tracker, options, console)
    for line in _why(search, _with_more(options.command, search)):
        console.print(line, highlight=False, soft_wrap=True)
    return 0 if best and done else 1 if search.hopeless or done else 130


def _write_files(
    search: Search, planned: Plan, options: RunOptions, spool: Spool, records: Sequence[Record], shown: Sequence[Record]
) -> bool:
    """Tables, best.yaml and report, and what the tracking is to be told of them; whether there is a best trial."""
    assert planned.example is not None
    config, folder, goals = search.space.search, options.folder, planned.goals
    write_tables(folder, records, spool, search.books.left_behind)
    best = picked(shown, config.select, goals)
    if best:
        here = {"cohort": planned.example.cohort}  # the data may have moved since
        write_whole(
            folder / "best.yaml", dump_trial(TrialConfig.model_validate_json(best.config).model_copy(update=here))
        )
    else:
        (folder / "best.yaml").unlink(missing_ok=True)  # of a trial that an extension left behind
    error = planned_error(folder)
    write_report(folder / "report.html", options.name, shown, list(search.space.arms), goals, config.select, error)
    kept = ["space.yaml", "plan.json", "best.yaml"]
    if planned.facts is not None and not planned.facts.credentialed:
        kept += ["trials.parquet", "report.html"]  # of a credentialed cohort nothing but settings leaves the store
    spool.append("files", paths=kept)
    spool.append("close", status="FAILED" if search.hopeless else "KILLED" if search.left else "FINISHED")
    return best is not None


def planned_error(folder: Path) -> float | None:
    """The standard error of AUROC that the price states for so many validation patients; None where it has none."""
    with suppress(UserError):  # the next start says so
        error: float | None = (read_plan(folder).get("price") or {}).get("auroc_error")
        return error
    return None


def _send_rest(tracker: Tracker) -> int:
    """Waits for the tracking server, less long once somebody asks for the end; how many records it has not had."""
    if not interrupt.requested():  # where it was never started, no server knows of this driver
        tracker.start()
    try:
        return tracker.close(interrupt.patience(60))
    except KeyboardInterrupt:
        if interrupt.insisted():
            raise
        return tracker.close(interrupt.patience(60))


def _why(search: Search, command: str) -> list[str]:
    """Why it ended, where that is not plain to see, and how it goes on."""
    config = search.space.search
    lines = [f"stopped: {search.halt.reason}"] if search.halt and search.halt.reason else []
    if search.hopeless:
        lines += ["stopped: every trial failed so far; mend that, then run the same command again"]
    elif search.left:
        lines += [f"{search.left} trials to go; this continues from their checkpoints:", f"  {command}"]
    elif search.books.plateau.reached(search.exhausted):
        lines += [
            f"stopped: the last {config.plateau} configurations of each arm added less than 1 % to its hypervolume; "
            "search.plateau=null goes on"
        ]
    for arm in sorted(search.exhausted):
        lines += [f"arm {arm}: nothing was left to try that no trial has had"]
    return lines


def _with_more(command: str, search: Search) -> str:
    """The command; where a limit has ended the sweep, without it and with twice the budget."""
    if search.halt is None or search.halt.kind != "limit":
        return command
    config = search.space.search
    words = [word for word in shlex.split(command) if not word.removeprefix("search.").startswith(LIMITS)]
    words += [f"budget_device_hours={2 * config.budget_device_hours:g}"] if config.budget_device_hours else []
    words += ["deadline=null"] if config.deadline else []
    return shlex.join(words)


def _tell_tracking(left: int, tracker: Tracker, options: RunOptions, console: Console) -> None:
    address = redact_passwords(check_tracking_uri(options.tracking_uri))
    if left:
        why = f" ({tracker.trouble})" if tracker.trouble else ""
        console.print(
            f"warning: {left} records have not reached {address}{why}; they wait in "
            f"{options.folder / 'spool.jsonl'}, and the same command sends them",
            highlight=False,
            soft_wrap=True,
        )
        if address.startswith("sqlite"):
            file = quote(str(sqlite_file(address)))
            told = f"if that file is damaged, move it away (mv {file} {file}.damaged): a new one is told everything"
            console.print(f"  {told}", highlight=False, soft_wrap=True)
    if tracker.refused:
        told = f"{len(tracker.refused)} records, the first: {tracker.refused[0]}"
        console.print(f"warning: MLflow refused {told}", highlight=False, soft_wrap=True)
    if address.startswith("http"):
        console.print(f"runs in MLflow: {address}", highlight=False, soft_wrap=True)
    else:
        console.print(
            f"runs in MLflow, experiment {options.name}:\n  mlflow ui --backend-store-uri {quote(address)}",
            highlight=False,
            soft_wrap=True,
        )
