"""MLflow, and the only file that knows it: one run per sweep, one nested run per trial.

The driver alone writes, from the spool, in a thread of its own: a server that is slow or away
neither holds up the sweep nor loses a point. How far the server has been told stands in a file
beside the spool, so that the next driver goes on from there. Saying a thing twice does no harm:
runs are found again by their tags, and a point keeps its first time.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mmpkd.machine.checksums import fingerprint
from mmpkd.machine.files import write_atomically
from sweep.options import redact_passwords, sqlite_file
from sweep.reports.names import ServerNames
from sweep.storage.events import (
    EpochEnded,
    Event,
    FilesWritten,
    Spool,
    SweepBegan,
    SweepClosed,
    TrialEnded,
    TrialEvent,
    TrialStarted,
)
from sweep.storage.mlflow_database import artifacts_uri, make_database, repoint_artifacts

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
# Tried again by us, so no single call needs to try for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
MOST_METRICS, MOST_PARAMS, LONGEST_PARAM = 1000, 100, 6000  # MLflow's limits per call
FOR_GOOD = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")  # of no use to retry
PATIENCE = 30.0  # longest pause between two tries, seconds


class Tracker:
    """Tells the tracking server what the spool holds.

    Args:
        name: of the sweep, which names its experiment.
        sweep_id: tells this sweep from others of the same name on the same server.
        artifacts: where files go unless the server has a place of its own.
    """

    def __init__(self, uri: str, name: str, sweep_id: str, spool: Spool, artifacts: Path):
        self._uri, self._name, self._id = uri, name, sweep_id
        self._spool, self._artifacts = spool, artifacts
        self._offset_file = spool.folder.spool_sent
        self._sent = self._read_offset()
        self._runs: dict[int, str] = {}
        self._metric_names, self._param_names = ServerNames(), ServerNames()
        self._unwelcome: set[str] = set()  # names of metrics that the server will never take
        self._client: MlflowClient | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self.trouble = ""  # the last thing that went wrong, empty when all is well
        self.refused: list[str] = []  # what the server will never take

    def _read_offset(self) -> int:
        """How far into the spool this server was told; another server is told everything."""
        try:
            reached, server = self._offset_file.read_text().split()
            with self._spool.path.open("rb") as file:
                file.seek(max(int(reached) - 1, 0))
                ends_a_line = file.read(1) == b"\n"
        except (OSError, ValueError):
            return 0  # sending twice does no harm: same run, same timestamps
        same = server == fingerprint([self._uri, int(reached)])
        return int(reached) if same and ends_a_line else 0

    def start(self) -> None:
        if self._thread.ident is None:
            self._thread.start()

    def close(self, seconds: float) -> int:
        """Sends what is left, for at most so long.

        Returns:
            How many events the server has not been told of.
        """
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return sum(1 for _ in self._spool.read(self._sent))

    def _work(self) -> None:
        pause = 0.5
        while True:
            ending = self._ending.is_set()  # read first: what was said before it is sent below
            try:
                caught_up = self._send()
                self.trouble, pause = "", 0.5
            except Exception as error:
                told = str(error).partition("\n")[0]
                self.trouble = redact_passwords(f"{type(error).__name__}: {told}")
                caught_up, pause = False, min(pause * 2, PATIENCE)
            if ending and caught_up:
                return
            if ending and self.trouble:
                time.sleep(1)
            elif caught_up or self.trouble:
                self._ending.wait(pause)

    def _send(self) -> bool:
        """Sends a portion of the spool; whether that was all of it."""
        self._open()
        metrics: dict[int, list[Metric]] = {}
        count = 0
        reached = self._sent
        for end, event in self._spool.read(self._sent):
            reached = end
            if isinstance(event, EpochEnded):
                points = metrics.setdefault(event.number, [])
                points += self._points(event)
                count += 1
                if len(points) > MOST_METRICS // 2:
                    break
                continue
            if isinstance(event, TrialEvent) and event.number in metrics:
                self._log(event.number, metrics.pop(event.number))
            self._tell(event)
            count += 1
            if count >= 200:
                break
        for number, points in metrics.items():
            self._log(number, points)
        if reached == self._sent:
            return True
        self._sent = reached
        write_atomically(self._offset_file, f"{reached} {fingerprint([self._uri, reached])}\n")
        return False

    def _tell(self, event: Event) -> None:
        milliseconds = int(event.time * 1000)
        match event:
            case SweepBegan():
                self._open()
                self._set(self._parent, "RUNNING", None)
            case TrialStarted():
                run = self._run(event.number, event.arm, milliseconds)
                self._params(run, event)
                for key, value in event.tags.items():
                    self._tag(run, key, value)
            case TrialEnded():
                run = self._run(event.number)
                self._tag(run, "outcome", event.state)
                if event.error:
                    # Of a bug only the kind is sent, because the text of an exception may quote a table; see errors/.
                    bug = event.cause == "error" and ": " in event.error
                    self._tag(run, "error", event.error.partition(": ")[0] if bug else event.error)
                self._set(run, STATUS[event.state], milliseconds)
            case FilesWritten():
                for path in map(self._spool.folder.file, event.paths):  # the folder may have moved
                    if path.is_file():
                        self._try(lambda path=path: self._open().log_artifact(self._parent, str(path)))
            case SweepClosed():
                self._open()
                self._set(self._parent, event.status, milliseconds)

    # --- each of these may be said twice ---

    def _open(self) -> MlflowClient:
        """The client, with the sweep's runs looked up or its own made."""
        if self._client is not None:
            return self._client
        from mlflow.entities import ViewType
        from mlflow.tracking import MlflowClient  # six seconds of imports, beside the first trials

        place = (self._artifacts / self._name).absolute().as_uri()
        if urlsplit(self._uri).scheme == "sqlite":
            make_database(sqlite_file(self._uri), self._name, MlflowClient)
            repoint_artifacts(sqlite_file(self._uri))
            place = artifacts_uri(sqlite_file(self._uri), self._name)
        client = MlflowClient(tracking_uri=self._uri)
        experiment = client.get_experiment_by_name(self._name)
        if experiment is None:
            remote = urlsplit(self._uri).scheme in ("http", "https", "databricks")
            self._experiment = client.create_experiment(self._name, artifact_location=None if remote else place)
        else:
            self._experiment = experiment.experiment_id
        token, parent, ended = None, "", set[int]()
        while True:
            page = client.search_runs(
                [self._experiment],
                f"tags.`sweep.id` = '{self._id}'",
                run_view_type=ViewType.ALL,  # what was deleted by hand is not missing
                max_results=1000,
                page_token=token,
            )
            for run in page:
                number = run.data.tags.get("sweep.number")
                deleted = run.info.lifecycle_stage != "active"
                if number is None:
                    parent = parent if deleted else run.info.run_id
                elif not deleted or int(number) not in self._runs:
                    self._runs[int(number)] = run.info.run_id
                    ended |= {int(number)} if deleted or run.info.status in STATUS.values() else set()
            token = page.token
            if not token:
                break
        if not parent:
            tags = {"sweep.id": self._id}
            parent = client.create_run(self._experiment, tags=tags, run_name=self._name).info.run_id
        if [event for event in self._told() if isinstance(event, TrialEnded) and event.number not in ended]:
            self._sent = 0  # another server, or an older copy of its file, under this address
        self._parent: str = parent
        self._client = client
        return client

    def _told(self) -> Iterator[Event]:
        """What this server was told of by earlier drivers, by whom names were given in the same order."""
        for end, event in self._spool.read():
            if end > self._sent:
                return
            self._given_names(event)
            yield event

    def _run(self, number: int, arm: str = "", milliseconds: int | None = None) -> str:
        client = self._open()
        if number not in self._runs:
            tags = {"sweep.id": self._id, "sweep.number": str(number), "arm": arm, "mlflow.parentRunId": self._parent}
            run = client.create_run(self._experiment, start_time=milliseconds, tags=tags, run_name=f"{number} {arm}")
            self._runs[number] = run.info.run_id
        return self._runs[number]

    def _given_names(self, event: Event) -> dict[str, str]:
        """The server's name for each number of an epoch, or each parameter of a start."""
        if isinstance(event, EpochEnded):
            return {key: self._metric_names.of(key) for key in _numbers(event)}
        return {key: self._param_names.of(key) for key in event.params} if isinstance(event, TrialStarted) else {}

    def _points(self, event: EpochEnded) -> list[Metric]:
        """An epoch's finite numbers; NaN means 'no such case' and stays in the tables."""
        from mlflow.entities import Metric

        names, milliseconds = self._given_names(event), int(event.time * 1000)
        return [
            Metric(names[key], float(value), milliseconds, event.epoch)
            for key, value in _numbers(event).items()
            if math.isfinite(value) and names[key] not in self._unwelcome
        ]

    def _log(self, number: int, points: Sequence[Metric]) -> None:
        run = self._run(number)
        for start in range(0, len(points), MOST_METRICS):
            self._log_what_is_taken(run, metrics=points[start : start + MOST_METRICS])

    def _params(self, run: str, event: TrialStarted) -> None:
        from mlflow.entities import Param

        names = self._given_names(event)
        params = [Param(names[key], _shortened(str(value))) for key, value in event.params.items()]
        for start in range(0, len(params), MOST_PARAMS):
            self._log_what_is_taken(run, params=params[start : start + MOST_PARAMS])

    def _log_what_is_taken(self, run: str, metrics: Sequence[Metric] = (), params: Sequence[Param] = ()) -> None:
        """Logs a batch; one that the server refuses is halved until what it will not take stands alone."""
        from mlflow.exceptions import MlflowException

        try:
            self._open().log_batch(run, metrics=metrics, params=params)
        except MlflowException as error:
            batch: list[Metric | Param] = [*metrics, *params]
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                self._note(error)
                return
            if len(batch) == 1:
                self._note(error, f"{batch[0].key!r}: ")
                self._unwelcome |= {one.key for one in metrics}
                return
            half = (len(batch) + 1) // 2
            for part in (slice(half), slice(half, None)):
                self._log_what_is_taken(run, metrics[part], params[part])

    def _tag(self, run: str, key: str, value: str) -> None:
        self._try(lambda: self._open().set_tag(run, key, value[:5000]))

    def _set(self, run: str, status: str, milliseconds: int | None) -> None:
        if milliseconds is None:
            self._try(lambda: self._open().update_run(run, status=status))
        else:
            self._try(lambda: self._open().set_terminated(run, status=status, end_time=milliseconds))

    def _try(self, call: Any) -> None:
        """A call that fails for good (a run deleted by hand) is noted; anything else is raised, and tried again."""
        from mlflow.exceptions import MlflowException

        try:
            call()
        except MlflowException as error:
            self._note(error)

    def _note(self, error: MlflowException, about: str = "") -> None:
        """Notes what the server will never take; any other error is raised, and the call tried again.

        Raises:
            MlflowException: another may come through.
        """
        if error.error_code not in FOR_GOOD:
            raise error
        self.refused.append(f"{about}{str(error).splitlines()[0]}")


def _numbers(event: EpochEnded) -> dict[str, float]:
    """Everything that an epoch has measured, terms of the loss under `loss/`."""
    return {**event.measurements, "seconds": event.seconds}


def _shortened(value: str) -> str:
    """A value as a database takes it, and marked where it is too long."""
    clean = value.replace("\0", "�").encode(errors="replace").decode()
    return clean if len(clean) <= LONGEST_PARAM else f"{clean[: LONGEST_PARAM - 1]}…"
