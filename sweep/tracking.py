"""MLflow, and the only file that knows it: one run per sweep, one nested run per trial.

The driver alone writes, from the spool, in a thread of its own: a server that is slow or away
neither holds up the sweep nor loses a point. How far the server has been told stands in a file
beside the spool, so that the next driver goes on from there. Saying a thing twice does no harm:
runs are found again by their tags, and a point keeps its first time.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mmpkd.config import fingerprint
from mmpkd.types import ConfigError
from sweep.records import Spool, write_whole

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
# Tried again by us, so no single call needs to try for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
MOST_METRICS, MOST_PARAMS, LONGEST_PARAM = 1000, 100, 6000  # MLflow's limits per call
PATIENCE = 30.0  # longest pause between two tries, seconds


def check_address(uri: str) -> str:
    """A tracking address as MLflow takes it, a SQLite file made absolute.

    Raises:
        ConfigError: not one that MLflow knows.
    """
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme not in SCHEMES:
        wanted = f"sqlite:///{uri}/mlflow.db" if not scheme else "sqlite:///FILE or http://HOST:PORT"
        raise ConfigError.one("tracking", f"{uri!r} is no address of a tracking server; write {wanted}")
    if scheme == "sqlite":
        path = Path(uri.removeprefix("sqlite:///")).absolute()
        return f"sqlite:///{path}"
    return uri


def without_password(text: str) -> str:
    """The text with the password of every address in it struck out."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", text)


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
        self._offset_file = spool.path.with_suffix(".sent")
        self._sent = self._read_offset()
        self._runs: dict[int, str] = {}
        self._client: MlflowClient | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self.trouble = ""  # the last thing that went wrong, empty when all is well
        self.refused: list[str] = []  # what the server will never take

    def _read_offset(self) -> int:
        """How far into the spool this server was told; another server is told everything."""
        try:
            reached, server = self._offset_file.read_text().split()
            return int(reached) if server == fingerprint(self._uri) else 0
        except (FileNotFoundError, ValueError):
            return 0  # sending twice does no harm: same run, same timestamps

    def start(self) -> None:
        if self._thread.ident is None:
            self._thread.start()

    def close(self, seconds: float) -> int:
        """Sends what is left, for at most so long.

        Returns:
            How many events the server has not been told of.
        """
        self._ending.set()
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
                self.trouble = without_password(f"{type(error).__name__}: {told}")
                caught_up, pause = False, min(pause * 2, PATIENCE)
            if ending and caught_up:
                return
            if ending and self.trouble:
                time.sleep(1)
            elif caught_up or self.trouble:
                self._ending.wait(pause)

    def _send(self) -> bool:
        """Sends a portion of the spool; whether that was all of it."""
        metrics: dict[int, list[Metric]] = {}
        count = 0
        reached = self._sent
        for end, event in self._spool.read(self._sent):
            reached = end
            number = event.get("number", -1)
            if event["event"] == "epoch":
                points = metrics.setdefault(number, [])
                points += _points(event)
                count += 1
                if len(points) > MOST_METRICS // 2:
                    break
                continue
            if number in metrics:
                self._log(number, metrics.pop(number))
            self._tell(event)
            count += 1
            if count >= 200:
                break
        for number, points in metrics.items():
            self._log(number, points)
        if reached == self._sent:
            return True
        self._sent = reached
        write_whole(self._offset_file, f"{reached} {fingerprint(self._uri)}\n")
        return False

    def _tell(self, event: Mapping[str, Any]) -> None:
        kind, milliseconds = event["event"], int(event["time"] * 1000)
        if kind == "sweep":
            self._open()
            self._set(self._parent, "RUNNING", None)
        elif kind == "start":
            run = self._run(event["number"], event["arm"], milliseconds)
            self._params(run, event["params"])
            for key, value in event["tags"].items():
                self._tag(run, key, value)
        elif kind == "end":
            run = self._run(event["number"])
            self._tag(run, "outcome", event["state"])
            if event["error"]:
                # Of a bug only its kind: the text of any exception may quote a table. It is in errors/, with the rest.
                bug = event.get("cause") == "error" and ": " in event["error"]
                self._tag(run, "error", event["error"].partition(": ")[0] if bug else event["error"])
            self._set(run, STATUS[event["state"]], milliseconds)
        elif kind == "files":
            for path in map(Path, event["paths"]):
                if path.exists():
                    self._try(lambda path=path: self._open().log_artifact(self._parent, str(path)))
        elif kind == "close":
            self._open()
            self._set(self._parent, event["status"], milliseconds)

    # --- each of these may be said twice ---

    def _open(self) -> MlflowClient:
        """The client, with the sweep's runs looked up or its own made."""
        if self._client is not None:
            return self._client
        from mlflow.tracking import MlflowClient  # six seconds of imports, beside the first trials

        self._make_file(MlflowClient)
        client = MlflowClient(tracking_uri=self._uri)
        experiment = client.get_experiment_by_name(self._name)
        if experiment is None:
            remote = urlsplit(self._uri).scheme in ("http", "https", "databricks")
            place = None if remote else (self._artifacts / self._name).absolute().as_uri()
            self._experiment = client.create_experiment(self._name, artifact_location=place)
        else:
            self._experiment = experiment.experiment_id
        token, parent = None, ""
        while True:
            page = client.search_runs(
                [self._experiment], f"tags.`sweep.id` = '{self._id}'", max_results=1000, page_token=token
            )
            for run in page:
                number = run.data.tags.get("sweep.number")
                if number is None:
                    parent = run.info.run_id
                else:
                    self._runs[int(number)] = run.info.run_id
            token = page.token
            if not token:
                break
        if not parent:
            tags = {"sweep.id": self._id}
            parent = client.create_run(self._experiment, tags=tags, run_name=self._name).info.run_id
        self._parent: str = parent
        self._client = client
        return client

    def _make_file(self, connect: Callable[[str], object]) -> None:
        """A new SQLite file, made beside and put there whole.

        MLflow makes one in dozens of steps, and one that a kill left halfway it never opens again (3.17).
        """
        path = Path(self._uri.removeprefix("sqlite:///"))
        if urlsplit(self._uri).scheme != "sqlite" or path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{self._name}.partial")
        beside.unlink(missing_ok=True)
        connect(f"sqlite:///{beside}")
        try:
            os.link(beside, path)
        except FileExistsError:
            pass  # another sweep was quicker
        except OSError:  # a file system without links
            os.replace(beside, path)
        beside.unlink(missing_ok=True)

    def _run(self, number: int, arm: str = "", milliseconds: int | None = None) -> str:
        client = self._open()
        if number not in self._runs:
            tags = {"sweep.id": self._id, "sweep.number": str(number), "arm": arm, "mlflow.parentRunId": self._parent}
            run = client.create_run(self._experiment, start_time=milliseconds, tags=tags, run_name=f"{number} {arm}")
            self._runs[number] = run.info.run_id
        return self._runs[number]

    def _log(self, number: int, points: Sequence[Metric]) -> None:
        run, client = self._run(number), self._open()
        for start in range(0, len(points), MOST_METRICS):
            self._try(lambda start=start: client.log_batch(run, metrics=points[start : start + MOST_METRICS]))

    def _params(self, run: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        client = self._open()
        said = [Param(_name(key), str(value)[:LONGEST_PARAM]) for key, value in params.items()]
        for start in range(0, len(said), MOST_PARAMS):
            self._try(lambda start=start: client.log_batch(run, params=said[start : start + MOST_PARAMS]))

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
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"):
                raise
            self.refused.append(str(error).splitlines()[0])


def _points(event: Mapping[str, Any]) -> list[Metric]:
    """An epoch's finite numbers; NaN means 'no such case' and stays in the tables."""
    from mlflow.entities import Metric

    terms = {f"loss/{name}": value for name, value in event["terms"].items()}
    said = {**event["metrics"], **terms, "seconds": event["seconds"]}
    milliseconds = int(event["time"] * 1000)
    return [
        Metric(_name(key), float(value), milliseconds, event["epoch"])
        for key, value in said.items()
        if math.isfinite(value)
    ]


def _name(key: str) -> str:
    """A name that MLflow takes; label names of a cohort may hold anything."""
    return re.sub(r"[^\w\-. :/]", "_", key)[:250]
