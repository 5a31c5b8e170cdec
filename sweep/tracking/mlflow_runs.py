"""Writes the runs of one sweep to an MLflow server: one parent run for the sweep, one nested run for each trial.

Every call may be repeated without harm: existing runs are found by their tags, and MLflow stores each point of a metric
once.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from mmpkd.machine.loading import loading
from mmpkd.types import UserError
from sweep.options import redact_passwords, sqlite_file
from sweep.tracking.mlflow_database import artifacts_uri, make_database, repoint_artifacts

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Metric, Param
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it prints the address with the password
# The tracker repeats failed calls itself, so MLflow need not repeat a request for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

# MLflow shows KILLED with the cross of a failure, and early stopping is none.
STATUS_BY_STATE: Final = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}
END_STATUSES: Final = (*STATUS_BY_STATE.values(), "KILLED")  # earlier versions gave KILLED to pruned trials
MAX_METRICS, MAX_PARAMS, MAX_TAG_LENGTH = 1000, 100, 5000  # MLflow's limits for one call
NOTE: Final = "mlflow.note.content"  # the tag with the description of a run or an experiment
PERMANENT_ERRORS: Final = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_STATE",
)


class MlflowRuns:
    """The MLflow runs of a sweep. The server is contacted first when `open` is called.

    Args:
        uri: address of the tracking server, or of an SQLite file.
        name: name of the sweep, which is also the name of its experiment.
        sweep_id: identity that distinguishes this sweep from others of the same name on the same server.
        artifacts: folder for files, used if the server has no artifact store of its own.

    Attributes:
        by_number: MLflow's run id of each trial, by the number of the trial.
        ended: numbers of trials with a run that has ended or was deleted by hand.
        refused: messages about records that the server will never accept.
        refused_metrics: names of metrics that the server will never accept.
    """

    def __init__(self, uri: str, name: str, sweep_id: str, artifacts: Path):
        self._uri, self._name, self._sweep_id, self._artifacts = uri, name, sweep_id, artifacts
        self._client: MlflowClient | None = None
        self._experiment = self._parent = ""
        self.by_number: dict[int, str] = {}
        self.ended: set[int] = set()
        self.refused: list[str] = []
        self.refused_metrics: set[str] = set()

    @property
    def is_open(self) -> bool:
        return self._client is not None

    @property
    def experiment(self) -> str:
        """MLflow's id of the experiment; empty before `open`."""
        return self._experiment

    def open(self, milliseconds: int | None = None) -> None:
        """Finds the experiment and the runs of the sweep. If they do not exist, creates the experiment and the parent
        run.

        Args:
            milliseconds: when the sweep began, since 1970; None if the parent run begins now.

        Raises:
            UserError: the experiment was deleted. Somebody may restore it.
            Exception: the server cannot be reached. The caller may call `open` again later.
        """
        with loading():
            from mlflow.tracking import MlflowClient  # this import takes seconds, while the first trials run
        # A full disk would otherwise fill the console with a traceback for each attempt. The tracker keeps the error.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        artifacts = (self._artifacts / self._name).absolute().as_uri()
        if urlsplit(self._uri).scheme == "sqlite":
            make_database(sqlite_file(self._uri), self._name, MlflowClient)
            repoint_artifacts(sqlite_file(self._uri))
            artifacts = artifacts_uri(sqlite_file(self._uri), self._name)
        client = MlflowClient(tracking_uri=self._uri)
        experiment = client.get_experiment_by_name(self._name)
        if experiment is None:
            is_remote = urlsplit(self._uri).scheme in ("http", "https", "databricks")
            place = None if is_remote else artifacts
            self._experiment = client.create_experiment(self._name, artifact_location=place)
        else:
            self._refuse_deleted(experiment)
            self._experiment = experiment.experiment_id
        parent = self._find_runs(client)
        if not parent:
            tags = {"sweep.id": self._sweep_id}
            run = client.create_run(self._experiment, start_time=milliseconds, tags=tags, run_name=self._name)
            parent = run.info.run_id
        self._parent, self._client = parent, client

    def _find_runs(self, client: MlflowClient) -> str:
        """Fills `by_number` and `ended`, and returns the run id of the parent run. The id is empty if there is no
        parent run.
        """
        from mlflow.entities import ViewType

        token, parent = None, ""
        while True:
            page = client.search_runs(
                [self._experiment],
                f"tags.`sweep.id` = '{self._sweep_id}'",
                run_view_type=ViewType.ALL,  # a run that was deleted by hand is not made again
                max_results=1000,
                page_token=token,
            )
            for run in page:
                number = run.data.tags.get("sweep.number")
                deleted = run.info.lifecycle_stage != "active"
                if number is None:
                    parent = parent if deleted else run.info.run_id
                elif not deleted or int(number) not in self.by_number:
                    self.by_number[int(number)] = run.info.run_id
                    has_ended = deleted or run.info.status in END_STATUSES
                    self.ended |= {int(number)} if has_ended else set()
            token = page.token
            if not token:
                return parent

    def run(self, number: int | None, arm: str = "", milliseconds: int | None = None, name: str = "") -> str:
        """Returns the run id of a trial, and creates the run if it does not exist. For `number` None returns the parent
        run. `name` is the name of a created run, which is its number and arm by default.
        """
        if number is None:
            return self._parent
        if number not in self.by_number:
            tags = {
                "sweep.id": self._sweep_id,
                "sweep.number": str(number),
                "arm": arm,
                "mlflow.parentRunId": self._parent,
            }
            name = name or f"{number} {arm}"
            try:
                run = self._opened.create_run(self._experiment, start_time=milliseconds, tags=tags, run_name=name)
            except Exception:
                self._refuse_deleted(self._opened.get_experiment(self._experiment))
                raise
            self.by_number[number] = run.info.run_id
        return self.by_number[number]

    def log_metrics(self, run: str, metrics: Sequence[Metric]) -> None:
        for start in range(0, len(metrics), MAX_METRICS):
            self._log_accepted(run, metrics=metrics[start : start + MAX_METRICS])

    def log_params(self, run: str, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in values.items()]
        for start in range(0, len(params), MAX_PARAMS):
            self._log_accepted(run, params=params[start : start + MAX_PARAMS])

    def log_data_set(self, run: str, name: str, fingerprint: str, profile: Mapping[str, object]) -> None:
        """Notes the data set that a run has used. It has no address, because a path would name places of a hospital."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        context = InputTag("mlflow.data.context", "training and validation")
        data = Dataset(name, fingerprint, "prepared cohort", json.dumps({"reader": name}), None, json.dumps(profile))
        self._call(lambda: self._opened.log_inputs(run, [DatasetInput(data, [context])]))

    def set_tags(self, run: str, values: Mapping[str, str]) -> None:
        """Sets the tags that are not empty."""
        for name, value in values.items():
            if value:
                self._set_tag(run, name, value)

    def set_experiment_tags(self, values: Mapping[str, str]) -> None:
        for name, value in values.items():
            self._call(partial(self._opened.set_experiment_tag, self._experiment, name, value))

    def describe_experiment(self, text: str, opening: str) -> None:
        """Sets the description of the experiment, unless it has one with another opening, written by a person."""
        present = self._opened.get_experiment(self._experiment).tags.get(NOTE, opening)
        if present.startswith(opening):
            self.set_experiment_tags({NOTE: text})

    def delete_tag(self, run: str, name: str) -> None:
        """Deletes a tag, which need not exist."""
        from mlflow.exceptions import MlflowException

        try:
            self._opened.delete_tag(run, name)
        except MlflowException as error:
            if error.error_code not in PERMANENT_ERRORS:
                raise

    def _set_tag(self, run: str, name: str, value: str) -> None:
        self._call(lambda: self._opened.set_tag(run, name, value[:MAX_TAG_LENGTH]))

    def set_running(self, run: str) -> None:
        self._call(lambda: self._opened.update_run(run, status="RUNNING"))

    def set_ended(self, run: str, status: str, milliseconds: int) -> None:
        self._call(lambda: self._opened.set_terminated(run, status=status, end_time=milliseconds))

    def log_text(self, run: str, text: str, name: str) -> None:
        """Stores a text as the artifact `name`."""
        self._call(lambda: self._opened.log_text(run, text, name))

    def log_file(self, run: str, path: Path) -> None:
        self._call(lambda: self._opened.log_artifact(run, str(path)))

    def delete_files(self, run: str, names: Sequence[str]) -> None:
        """Deletes artifacts of a run, which need not exist. An artifact store that deletes nothing keeps them."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        def delete() -> None:
            place = self._opened.get_run(run).info.artifact_uri
            artifacts = get_artifact_repository(place, tracking_uri=self._uri)
            for name in names:
                artifacts.delete_artifacts(name)  # type: ignore[no-untyped-call]

        try:
            self._call(delete)
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and getattr(error, "response", None) is None:
                raise  # the store is away
            self.refused.append(f"deletion of {', '.join(names)}: {type(error).__name__} {error}".rstrip())

    @property
    def _opened(self) -> MlflowClient:
        assert self._client is not None, "open it first"
        return self._client

    def _log_accepted(self, run: str, metrics: Sequence[Metric] = (), params: Sequence[Param] = ()) -> None:
        """Logs a batch of records. If the server refuses the batch, this function halves the batch again and again,
        until each refused record is isolated.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._opened.log_batch(run, metrics=metrics, params=params)
        except MlflowException as error:
            batch: list[Metric | Param] = [*metrics, *params]
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                self._note_refusal(error)
                return
            if len(batch) == 1:
                self._note_refusal(error, f"{batch[0].key!r}: ")
                self.refused_metrics |= {metric.key for metric in metrics}
                return
            half = (len(batch) + 1) // 2
            for part in (slice(half), slice(half, None)):
                self._log_accepted(run, metrics[part], params[part])

    def _call(self, call: Callable[[], object]) -> None:
        """Makes a call to the server. Notes a permanent error, such as the error for a run that was deleted by hand."""
        from mlflow.exceptions import MlflowException

        try:
            call()
        except MlflowException as error:
            self._note_refusal(error)

    def _refuse_deleted(self, experiment: Experiment) -> None:
        if experiment.lifecycle_stage != "active":
            restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
            server = f"MLFLOW_TRACKING_URI={quote(redact_passwords(self._uri))}"
            raise UserError(
                f"the experiment {self._name!r} was deleted in MLflow; this restores it: {server} {restore}"
            )

    def _note_refusal(self, error: MlflowException, subject: str = "") -> None:
        """Notes a record that the server will never accept.

        Raises:
            MlflowException: the error is perhaps temporary, so the caller must repeat the call.
            UserError: the experiment was deleted, and its runs with it. Somebody may restore them.
        """
        if error.error_code not in PERMANENT_ERRORS:
            raise error
        self._refuse_deleted(self._opened.get_experiment(self._experiment))
        self.refused.append(f"{subject}{str(error).splitlines()[0]}")
