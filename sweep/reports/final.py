"""Ends a driver's part of a sweep: writes tables and report, sends the unsent events to MLflow, prints the result."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Final

from rich.console import Console

from mmpkd.command import command_lines, warn
from sweep import interrupt
from sweep.front_files import spool_files
from sweep.options import DEFAULT_CACHE, RunOptions, check_tracking_uri, redact_passwords, sqlite_file
from sweep.patience import patiently
from sweep.plan.plan import Plan
from sweep.reports.console import print_files, print_states, print_summary
from sweep.reports.results import Snapshot, planned_error, snapshot_of, write_results
from sweep.search.searcher import Search
from sweep.storage.events import FilesWritten, Spool, SweepClosed, SweepSummarized
from sweep.storage.records import MIN_CONFIRMED, candidates
from sweep.summary import summarize
from sweep.tracking.links import as_lines, server_of
from sweep.tracking.mlflow import Tracker
from sweep.types import Record

LIMIT_OPTIONS: Final = ("budget_device_hours=", "deadline=")


def finish(search: Search, planned: Plan, options: RunOptions, spool: Spool, tracker: Tracker, console: Console) -> int:
    """Writes the files of the sweep, sends the unsent events to MLflow, prints the result, and returns the exit
    status.
    """
    assert planned.example is not None
    folder = options.folder
    with interrupt.deferred():
        snapshot = snapshot_of(search, planned.goals, folder, planned.example.cohort, options.command)
        results = patiently(lambda: write_results(snapshot), folder.report)
        _spool_end(search, planned, summarize(snapshot, results.shown), spool)
    at_limit = search.halt is not None and search.halt.kind == "limit"
    done = at_limit or not search.remaining_trials
    warn(search.take_warnings(), console)
    if options.part_of:  # its trials are no candidates: what is compared, and when, is not this sweep's to say
        print_states(console, snapshot.records, folder)
        print_files(console, folder)
    else:
        _print_comparison(snapshot, results.shown, search, console)
    print_tracking(send_rest(tracker), tracker, options, console, with_pages=not options.part_of)
    for line in _reasons(search, _with_more_budget(options.continuing, search), bool(options.part_of)):
        console.print(line, highlight=False, soft_wrap=True)
    is_complete = not (search.remaining_trials or options.part_of)
    if results.best and is_complete and len(search.space.arms) > 1:
        complete = Counter(record.arm for record in candidates(snapshot.records) if record.repeat_of is None)
        compared = {record.arm for record in snapshot.records if not (record.reference or record.control)}
        if min((complete[arm] for arm in compared), default=0) < MIN_CONFIRMED:
            line = f"whether a teacher helps can be asked once each arm has {MIN_CONFIRMED} complete trials"
            console.print(f"{line} (sweep.confirm); a higher trials=N adds more", highlight=False, soft_wrap=True)
        else:
            console.print("ask whether a teacher helps, on patients whom nothing has seen yet:", highlight=False)
            console.print(f"  {_confirm_command(options)}", highlight=False, soft_wrap=True)
    return 0 if results.best and done else 1 if search.all_failed or done else 130


def _confirm_command(options: RunOptions) -> str:
    """Returns the command that shows what a confirmation of the sweep would compare and cost."""
    words = ["python", "-m", "sweep.confirm", options.name, f"storage={options.storage}"]
    words += [f"cache={options.cache}"] if options.cache != DEFAULT_CACHE else []
    return shlex.join([*words, "plan=true"])


def _print_comparison(snapshot: Snapshot, shown: Sequence[Record], search: Search, console: Console) -> None:
    """Prints the best of the trials, and how far they can be compared.

    Args:
        shown: the configurations that may be compared, with means over seeds (see `results.Results`).
    """
    folder, arms = snapshot.folder, list(search.space.arms)
    select, error = search.space.search.select, planned_error(folder)
    print_summary(console, shown, arms, snapshot.goals, select, folder, error, snapshot.totals)
    if further := len(snapshot.records) - len(shown):
        note = f"{further} further runs repeat promising configurations on other seeds; the front has means over seeds"
        console.print(f"{note}, with errors over patients and seeds", highlight=False, soft_wrap=True)


def _spool_end(search: Search, planned: Plan, summary: SweepSummarized, spool: Spool) -> None:
    """Records in the spool what came of the sweep, which files the tracking server shall receive, and how this driver
    ended.
    """
    folder = spool.folder
    spool.append(summary)
    files = [folder.space, folder.plan, folder.best]
    if planned.facts is not None and not planned.facts.credentialed:
        assert planned.example is not None
        files += [folder.trials, folder.report]  # only settings and scores of a credentialed cohort may leave
        if not interrupt.requested():  # overlays take seconds, which a driver that shall end does not have
            store, fold = Path(search.places["store"]), planned.example.cohort.fold
            search.warnings += spool_files(spool, map(int, summary.marks), store, fold)
    spool.append(FilesWritten([path.name for path in files]))
    spool.append(SweepClosed("FAILED" if search.all_failed else "KILLED" if search.remaining_trials else "FINISHED"))


def send_rest(tracker: Tracker) -> int:
    """Waits for a limited time until the tracking server has received all events, and returns the number of events that
    are still unsent.

    After a request to end, the time limit is shorter.
    """
    if not interrupt.requested():  # if the driver ended before it started the tracker, nothing is sent
        tracker.start()
    try:
        return tracker.close(interrupt.allowed_seconds(60))
    except KeyboardInterrupt:
        if interrupt.repeated():
            raise
        return tracker.close(interrupt.allowed_seconds(60))


def _reasons(search: Search, command: str, is_part: bool) -> list[str]:
    """Returns lines that say how to continue the sweep and, where that is not obvious, why it ended.

    Args:
        is_part: whether it is a part of a confirmation, which has more to train than this sweep.
    """
    config = search.space.search
    lines = [f"stopped: {search.halt.reason}"] if search.halt and search.halt.reason else []
    if search.all_failed:
        lines += ["stopped: every trial failed so far; remove the cause, then run the same command again"]
    elif search.remaining_trials:
        to_go = f"{search.remaining_trials} trials to go; this continues the sweep"
        to_go = "the confirmation has not ended; this continues it" if is_part else to_go
        lines += [f"{to_go}, each trial from its last checkpoint:", *command_lines(command)]
    elif search.state.plateau.reached(search.exhausted):
        lines += [
            f"stopped: the last {config.plateau} configurations of each arm added less than 1 % to its hypervolume; "
            "search.plateau=null continues"
        ]
    for arm in sorted(search.exhausted):
        lines += [f"arm {arm}: every configuration has been tried"]
    return lines


def _with_more_budget(command: str, search: Search) -> str:
    """Returns the command that continues the sweep. If a limit ended the sweep, the command has twice the budget and no
    deadline.
    """
    if search.halt is None or search.halt.kind != "limit":
        return command
    config = search.space.search
    words = [word for word in shlex.split(command) if not word.removeprefix("search.").startswith(LIMIT_OPTIONS)]
    words += [f"search.budget_device_hours={2 * config.budget_device_hours:g}"] if config.budget_device_hours else []
    words += ["search.deadline=null"] if config.deadline else []
    return shlex.join(words)


def print_tracking(
    num_unsent: int, tracker: Tracker, options: RunOptions, console: Console, with_pages: bool = True
) -> None:
    """Prints what MLflow lacks, what it refused, and the links to its pages of the sweep.

    Args:
        with_pages: whether to print the links.
    """
    address = redact_passwords(check_tracking_uri(options.tracking_uri))
    if num_unsent:
        reason = f" ({tracker.trouble})" if tracker.trouble else ""
        console.print(
            f"warning: {num_unsent} records have not reached {address}{reason}. They are kept in "
            f"{options.folder.spool}, and the same command sends them.",
            highlight=False,
            soft_wrap=True,
        )
        if address.startswith("sqlite"):
            file = quote(str(sqlite_file(address)))
            advice = f"if that file is damaged, move it away (mv {file} {file}.damaged); a new one gets all records"
            console.print(f"  {advice}", highlight=False, soft_wrap=True)
    if tracker.refused:
        summary = f"{len(tracker.refused)} records, the first: {tracker.refused[0]}"
        console.print(f"warning: MLflow refused {summary}", highlight=False, soft_wrap=True)
    if not with_pages:
        return
    pages = as_lines(tracker.pages(server_of(address)))
    if address.startswith("http"):
        lines = [f"runs in MLflow: {address}", *pages]
    else:
        lines = [
            f"runs in MLflow, experiment {options.name}:",
            f"  mlflow ui --backend-store-uri {quote(address)}",
            *(["then open in a browser:"] if pages else []),
            *pages,
        ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
