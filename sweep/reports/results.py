"""Writes the results of a sweep: the tables of trials and epochs, best.yaml and the report.

The driver writes them when it ends. While it runs, it has them written at intervals by a process of its own; see
`sweep/interim.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmpkd.config import CohortConfig, TrialConfig, dump_trial
from mmpkd.machine.files import write_atomically
from mmpkd.types import UserError
from sweep.reports.arms import ArmTotals, totals_by_arm
from sweep.reports.choosing import with_estimates
from sweep.reports.page.commands import storage_of
from sweep.reports.page.ended import ended
from sweep.reports.page.page import write_report
from sweep.reports.tables import write_tables
from sweep.selection import Selection
from sweep.space.grammar import Node
from sweep.storage.layout import SweepFolder
from sweep.storage.records import comparable, picked
from sweep.types import Record

if TYPE_CHECKING:
    from sweep.search.searcher import Search  # needs torch and Ray, which the process at intervals does not load


@dataclass(frozen=True)
class Snapshot:
    """A copy of everything from which the results of a sweep are made.

    Attributes:
        records: the ended trials, ordered by number.
        arms: the search space of each arm.
        totals: what each arm got.
        left_behind: numbers of trials outside the extended space.
        cohort: the cohort as the driver was given it; the data may have been moved since a trial began.
        remaining: the number of trials that have not ended.
        time: when the copy was made, in seconds since 1970.
        store: folder of the prepared cohort.
        storage: folder or address of all sweeps, which commands in the report name.
        command: the command line that continues the sweep.
    """

    folder: SweepFolder
    records: Sequence[Record]
    arms: Mapping[str, Node]
    goals: Sequence[str]
    select: str | Selection
    repeats: int
    totals: Sequence[ArmTotals]
    left_behind: Sequence[int]
    cohort: CohortConfig
    remaining: int
    time: float
    store: str
    storage: str
    command: str = ""

    @property
    def progress(self) -> str:
        """How far a running sweep is, for the head of its report."""
        total = len(self.records) + self.remaining
        clock = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(self.time))
        return f"still running: {len(self.records)} of {total} trials have ended, as of {clock}"


@dataclass(frozen=True)
class Results:
    """Results as they were written.

    Attributes:
        shown: the configurations that may be compared, with means over seeds.
        best: the trial of best.yaml, or None if there is none.
    """

    shown: Sequence[Record]
    best: Record | None


def snapshot_of(
    search: Search, goals: Sequence[str], folder: SweepFolder, cohort: CohortConfig, command: str = ""
) -> Snapshot:
    """Copies the records of a search."""
    records = search.records()
    return Snapshot(
        folder=SweepFolder(folder.path),  # the results are written on this machine, whether they have an address or not
        records=records,
        arms=search.space.arms,
        goals=goals,
        select=search.space.search.select,
        repeats=search.space.search.repeats,
        totals=totals_by_arm(records, search.state.ledger),
        left_behind=search.state.left_behind,
        cohort=cohort,
        remaining=search.remaining_trials,
        time=time.time(),
        store=search.places["store"],
        storage=storage_of(folder if folder.address else SweepFolder(folder.path.absolute())),
        command=command,
    )


def write_results(snapshot: Snapshot, running: bool = False, check: Callable[[], None] = lambda: None) -> Results:
    """Writes tables, best.yaml and report, each atomically, so that a reader sees the old file or the new one.

    Args:
        running: whether the sweep still runs, which the report then says.
        check: function that is called before each file is written. It raises an exception if nothing more may be
            written.

    Raises:
        OSError: a file cannot be written.
    """
    folder, goals, select = snapshot.folder, snapshot.goals, snapshot.select
    records = snapshot.records
    if snapshot.repeats == 1:  # means over seeds are compared as they are
        records = with_estimates(records, snapshot.arms, goals)
    shown = comparable(records, goals, snapshot.repeats)
    check()
    write_tables(folder, records, snapshot.left_behind)
    best = picked(shown, select)
    check()
    if best:
        config = TrialConfig.model_validate_json(best.config).model_copy(update={"cohort": snapshot.cohort})
        write_atomically(folder.best, dump_trial(config))
    else:
        folder.best.unlink(missing_ok=True)  # best.yaml may hold a trial that an extension left behind
    note = snapshot.progress if running else ""
    error = planned_error(folder)
    check()
    arms = list(snapshot.arms)
    at_end = None if running else ended(folder, snapshot.store, shown, arms, goals, select)
    write_report(folder, shown, arms, goals, select, error, snapshot.totals, note, at_end, snapshot.storage)
    return Results(shown, best)


def planned_error(folder: SweepFolder) -> float | None:
    """Returns the expected standard error of AUROC on the validation patients, as the plan has stored it.
    Returns None if the plan has none.
    """
    with suppress(UserError):  # the plan is damaged, which the next start reports
        error: float | None = (folder.read_plan().get("price") or {}).get("auroc_error")
        return error
    return None
