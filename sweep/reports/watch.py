"""Lets people watch a sweep while it runs: keeps the status file of its driver fresh, and has tables, best.yaml and
report written at intervals.

Ray Tune's loop only notes what there is to show, in `tick`. A thread writes the status file and starts the process that
writes the results (`sweep/interim.py`), so that slow storage delays neither trials nor proposals.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any, Final, Self

from mmpkd.config import CohortConfig
from sweep import patience
from sweep.cluster import living_machines
from sweep.driver_status import HEARTBEAT_SECONDS, MAX_TRIALS, DriverStatus, TrialStatus, this_driver, write_status
from sweep.reports.progress import Progress, TimeLeft
from sweep.reports.results import Snapshot, snapshot_of
from sweep.search.searcher import Search
from sweep.storage.events import Spool, SweepSummarized
from sweep.tracking.mlflow import Tracker

STATUS_SECONDS: Final = 5.0  # least time between two writes of the status file
END_SECONDS: Final = 2.0  # time that the thread gets to end; it may wait for the storage
RESULTS_SECONDS: Final = 600.0  # least time between the starts of two writes of tables and report
RESULTS_SHARE: Final = 0.02  # largest share of a core's time that this takes; the interval grows with its cost


class ResultsWriter:
    """Has the results of a running sweep written at intervals, by a process of its own. One process runs at a time.

    Attributes:
        written: when the records were copied from which the results were last written, in seconds since 1970; None if
            they have not been written yet.
        trouble: why the results could not be written at the last attempt; empty if they could.
        summary: the summary of the results that were last written, for the tracking server.
    """

    def __init__(self) -> None:
        self.written: float | None = None
        self.trouble = ""
        self.summary: SweepSummarized | None = None
        self._lock = threading.Lock()
        self._waiting: Snapshot | None = None  # the copy that is written next
        self._process: subprocess.Popen[bytes] | None = None
        self._copied = 0.0  # when the records of the running process were copied
        self._began = time.monotonic()  # when the last process began; at first, when this driver did
        self._cpu_seconds = 0.0  # of the last process
        self._closed = False

    @property
    def interval(self) -> float:
        """Seconds from the start of one write to the start of the next."""
        return max(RESULTS_SECONDS, self._cpu_seconds / RESULTS_SHARE)

    @property
    def is_due(self) -> bool:
        is_idle = self._waiting is None and self._process is None and not self._closed
        return is_idle and time.monotonic() - self._began >= self.interval

    def write(self, snapshot: Snapshot) -> None:
        """Has the results of a copy of the records written. Returns at once."""
        self._waiting = snapshot

    def step(self) -> None:
        """Starts the process if there is a copy to be written, and notes how it ended."""
        with self._lock:
            if self._process is not None:
                if self._process.poll() is not None:
                    self._note_end(self._process)
                    self._process = None
            elif self._waiting is not None and not self._closed:
                try:
                    self._start(self._waiting)
                except OSError as error:
                    self.trouble = str(error)
                self._waiting = None

    def close(self) -> None:
        """Ends the process. What it has not written stays as it was."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()
                self._process.communicate()

    def _start(self, snapshot: Snapshot) -> None:
        self._began, self._copied = time.monotonic(), snapshot.time
        with tempfile.TemporaryFile() as copy:  # a pipe would hold up this process until the other has started
            pickle.dump(snapshot, copy)
            copy.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sweep.interim", str(os.getpid())],
                stdin=copy,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,  # both are a few lines, which are read when the process has ended
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C reaches the driver alone, which then ends this process
            )

    def _note_end(self, process: subprocess.Popen[bytes]) -> None:
        output, errors = process.communicate()
        if process.returncode == 0:
            content = json.loads(output.splitlines()[-1])
            self.summary = SweepSummarized(**content["summary"])
            self.written, self.trouble, self._cpu_seconds = self._copied, "", content["seconds"]
        else:
            lines = errors.decode(errors="replace").strip().splitlines()
            self.trouble = lines[-1] if lines else f"their process ended with status {process.returncode}"


class Watch:
    """Shows a running sweep to people who see its folder.

    As a context manager it keeps the status file fresh from its entry to its exit.
    """

    def __init__(self, search: Search, tracker: Tracker, spool: Spool, cohort: CohortConfig, command: str):
        self._search, self._tracker, self._cohort, self._command = search, tracker, cohort, command
        self._spool, self._folder = spool, spool.folder
        now = time.time()
        self._status = DriverStatus(this_driver(), began=now, time=now)
        self._written_status: DriverStatus | None = None  # what the file shows
        self._written_at = 0.0
        self._spent_before = search.state.ledger.total
        self._writer = ResultsWriter()
        self._writer_trouble = ""  # as it was last shown
        self._summary: SweepSummarized | None = None  # the last one in the spool, of this driver
        self._progress = (len(search.finished), search.state.ledger.total)  # of the results that were last written
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)
        self._time_left: Callable[[], TimeLeft | None] = lambda: None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._ending.set()
        self._thread.join(END_SECONDS)
        self._status = replace(self._status, phase="ended", running=0, starting=0, waiting=0, trials=(), nodes=0)
        if not self._thread.is_alive():  # otherwise this process would wait for the storage, too
            self._write()

    def follow(self, progress: Progress) -> None:
        """Begins to note what there is to show whenever the search changes, beside the display of progress."""
        self._time_left = progress.time_left

        def on_change() -> None:
            progress.tick()
            self.tick()

        self._search.on_change = on_change

    def tick(self) -> None:
        """Notes what there is to show. Ray Tune's loop calls this after every step; most calls return at once."""
        status, now = self._status, time.time()
        if status.observed is not None and now - status.observed < STATUS_SECONDS:
            return
        self._status = self._observed(now)
        progress = (len(self._search.finished), self._search.state.ledger.total)
        if self._writer.is_due and (progress != self._progress or self._writer.trouble):
            self._progress = progress
            search = self._search
            self._writer.write(snapshot_of(search, search.goals, self._folder, self._cohort, self._command))
        if (summary := self._writer.summary) and summary is not self._summary and summary.is_news(self._summary):
            self._summary = summary
            self._spool.append(summary)
        if (trouble := self._writer.trouble) and trouble != self._writer_trouble:
            minutes = self._writer.interval / 60
            self._search.warn(f"tables and report were not written: {trouble}; tried again every {minutes:.0f} min")
        self._writer_trouble = trouble

    def end_trials(self) -> None:
        """Notes that no trial runs any more, and ends the writing of results, which the driver will now write."""
        self._writer.close()
        self._status = replace(self._observed(time.time()), phase="ending", expected_end=None)

    def _observed(self, now: float) -> DriverStatus:
        search, ledger = self._search, self._search.state.ledger
        trials = [
            TrialStatus(trial.number, trial.proposal.arm, trial.reported.epoch, trial.config.epochs, trial.last_sign)
            for trial in search.running.values()
        ]
        trials.sort(key=lambda trial: trial.last_sign)
        machines = living_machines()
        return replace(
            self._status,
            phase="training",
            observed=now,
            nodes=len(machines),
            cpus=sum(machine.get("CPU", 0.0) for machine in machines),
            gpus=sum(machine.get("GPU", 0.0) for machine in machines),
            **asdict(search.placement),
            trials=trials[:MAX_TRIALS],
            ended=len(search.finished),
            remaining=search.remaining_trials,
            device_hours=ledger.total / 3600,
            arms={arm: seconds / 3600 for arm, seconds in ledger.spent.items()},
            **self._expectation(now),
        )

    def _expectation(self, now: float) -> dict[str, Any]:
        """Returns when the sweep ends, and on what this rests: with its last trial, when its budget is spent at the
        present pace, or at its deadline, whichever comes first.
        """
        config, ledger = self._search.space.search, self._search.state.ledger
        ends = [(config.deadline.timestamp(), "by its deadline")] if config.deadline else []
        if left := self._time_left():
            ends.append((now + left.seconds, left.basis))
        spent = ledger.total - self._spent_before
        if config.budget_device_hours is not None and spent > 0:
            unspent = max(config.budget_device_hours * 3600 - ledger.total, 0.0)
            ends.append((now + unspent / spent * (now - self._status.began), "when its budget is spent"))
        end, basis = min(ends, default=(None, ""))
        return {"expected_end": end, "expected_by": basis}

    def _work(self) -> None:
        while not self._ending.wait(1.0):
            self._writer.step()
            self._write_if_due()

    def _write_if_due(self) -> None:
        age = time.time() - self._written_at
        if age >= HEARTBEAT_SECONDS or (age >= STATUS_SECONDS and self._status is not self._written_status):
            self._write()

    def _write(self) -> None:
        noted, unsent, oldest = self._status, 0, None
        with suppress(OSError):  # the storage is away
            unsent, oldest = self._tracker.lag()
        trouble = {
            "storage": patience.current_problem(),
            "tracking": self._tracker.trouble,
            "results": self._writer.trouble,
        }
        status = replace(
            noted,
            time=time.time(),
            unsent=unsent,
            oldest_unsent=oldest,
            trouble={place: problem for place, problem in trouble.items() if problem},
            results=self._writer.written,
        )
        with suppress(OSError):  # tried again in the next second; a reader sees the age of the last file
            write_status(self._folder, status)
            self._written_status, self._written_at = noted, status.time
