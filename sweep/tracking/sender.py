"""Turns each event of a sweep into records of its runs in MLflow.

A run shows what people choose by. After every epoch it gets the goals and the terms of the loss. At its end it gets its
cost, and the goals with their standard errors as tags, because a table cuts a metric of 16 digits off. Baselines,
counters and the scores of labels stand in the tables and the report.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from sweep.selection import score_in_words
from sweep.space.search_config import SCORES
from sweep.storage.events import (
    DEVICE_HOURS,
    EpochEnded,
    Event,
    FilesWritten,
    SweepBegan,
    SweepClosed,
    SweepSummarized,
    TrialEnded,
    TrialFilesWritten,
    TrialStarted,
    VerdictWritten,
)
from sweep.storage.layout import SweepFolder
from sweep.tracking.links import (
    CONFIG,
    OPENING,
    as_markdown,
    experiment_description,
    experiment_tags,
    pages_of,
    with_addresses,
)
from sweep.tracking.mlflow_runs import MAX_TAG_LENGTH, NOTE, STATUS_BY_STATE, MlflowRuns
from sweep.tracking.names import ServerNames
from sweep.transfer.addresses import Place

if TYPE_CHECKING:
    from mlflow.entities import Metric

COLOUR, USER = "mlflow.runColor", "mlflow.user"  # MLflow's tags
COMMIT: Final = "mlflow.source.git.commit"
MAX_PARAM_LENGTH: Final = 6000  # characters that MLflow accepts
GRADIENT_SHARE: Final = "gradient_share/"  # a term that no loss has: how a stage begins, which the tables hold


class EventSender:
    """Sends events to the runs of a sweep, in the order of the spool: the records of an event, and its files."""

    def __init__(self, runs: MlflowRuns, folder: SweepFolder):
        self._runs, self._folder = runs, folder
        self._metric_names, self._param_names = ServerNames(), ServerNames()
        self._goals: tuple[str, ...] = tuple(SCORES)  # an earlier version does not name the sweep's goals
        self._last_goals: dict[int, dict[str, float]] = {}  # of the last epoch of each running trial
        self._files: dict[int, list[str]] = {}  # files of trials that the server has or will get, by trial
        self._deleted: set[int] = set()  # trials whose files this driver has deleted from the server
        self._marks: dict[str, Mapping[str, str]] = {}  # of the last summary, by the number of the trial

    def note(self, event: Event) -> None:
        """Notes what later events depend on: the goals, the marks of trials, and the server's names of metrics and
        parameters. An event that an earlier driver has sent is only noted, so that each name gets the same server name
        as before.
        """
        match event:
            case SweepBegan() if event.goals is not None:
                self._goals = tuple(event.goals)
            case EpochEnded():
                self._server_metrics(self._measurements(event))
                self._last_goals[event.number] = {goal: event.metrics[goal] for goal in self._goals_in(event)}
            case TrialStarted():
                self._server_params(event.params)
            case SweepSummarized():
                self._marks = dict(event.marks)
            case TrialFilesWritten():
                self._files[event.number] = [Path(name).name for name in event.paths]

    def pages(self, server: str = "") -> dict[str, str]:
        """Returns the links to MLflow's pages of the sweep; see `pages_of`. There are none before the runs are open."""
        sweep_run = self._runs.run(None)
        return pages_of(self._runs.experiment, sweep_run, self._goals, server) if sweep_run else {}

    def points(self, event: EpochEnded) -> list[Metric]:
        """Returns the goals and the terms of the loss of an epoch as MLflow metrics."""
        self.note(event)
        return self._metrics(self._measurements(event), event.time, event.epoch)

    def send(self, event: Event) -> None:
        """Sends the records of an event that is not the end of an epoch."""
        milliseconds, runs = int(event.time * 1000), self._runs
        sweep_run, marks = runs.run(None), self._marks
        self.note(event)
        match event:
            case SweepBegan():
                runs.set_running(sweep_run)
                runs.set_tags(sweep_run, {USER: event.user, COMMIT: event.commit})
                if event.goals is not None:
                    runs.set_experiment_tags(experiment_tags(sweep_run, event.goals, milliseconds))
                    runs.describe_experiment(experiment_description(self.pages()), OPENING)
                if event.data is not None:
                    profile = {"images": event.data["images"]}
                    runs.log_data_set(sweep_run, event.data["name"], event.data["fingerprint"], profile)
            case TrialStarted():
                run = runs.run(event.number, event.arm, milliseconds, event.name)
                runs.log_params(run, self._server_params(event.params))
                runs.set_tags(run, {**event.tags, COLOUR: event.colour})
            case TrialEnded():
                run = runs.run(event.number)
                cost = {name: value for name, value in (event.scores or {}).items() if name == DEVICE_HOURS}
                runs.log_metrics(run, self._metrics(cost, event.time, 0))
                runs.set_tags(run, {**self._scores(event), "outcome": event.state, "error": _shown_error(event)})
                runs.set_ended(run, STATUS_BY_STATE[event.state], milliseconds)
            case SweepSummarized():
                runs.log_metrics(sweep_run, self._metrics(event.metrics, event.time, event.ended))
                runs.set_tags(sweep_run, {NOTE: self._description(event.description)})
                self._change_marks(marks)
            case VerdictWritten():
                runs.log_metrics(sweep_run, self._metrics(event.metrics, event.time, 0))
                runs.set_tags(sweep_run, {NOTE: self._description(event.description), **event.tags})
            case SweepClosed():
                runs.set_ended(sweep_run, event.status, milliseconds)

    def send_files(self, event: Event) -> None:
        """Sends the files of an event. Files that no longer exist are left out. A summary sends none, but the files of
        trials that it does not mark are deleted from the server.
        """
        runs = self._runs
        match event:
            case TrialStarted() if event.config:
                runs.log_text(runs.run(event.number), yaml.safe_dump(json.loads(event.config), sort_keys=False), CONFIG)
            case FilesWritten():
                for path in map(self._folder.file, event.paths):  # the folder may have moved
                    if path.is_file():
                        runs.log_file(runs.run(None), path)
            case TrialFilesWritten():
                self._deleted.discard(event.number)
                for name in event.paths:
                    self._send_from(self._folder.shared, name, runs.run(event.number))
            case VerdictWritten():
                place = self._folder.shared
                for name in event.paths:
                    self._send_from(replace(place, path=str(Path(place.path).parent)), name, runs.run(None))
            case SweepSummarized():
                self._delete_files(self._files.keys() - set(map(int, event.marks)) - self._deleted)

    def _send_from(self, folder: Place, name: str, run: str) -> None:
        """Sends a file below a folder that may be in an object store. A file that no longer exists is left out."""
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / Path(name).name
            with suppress(FileNotFoundError):  # a trial that left the front keeps no student
                folder.download(name, path)
                self._runs.log_file(run, path)

    def _delete_files(self, numbers: Collection[int]) -> None:
        """Deletes the students and overlays of trials that have left the front. Their runs, and models that were
        registered, stay.
        """
        for number in sorted(numbers):
            self._runs.delete_files(self._runs.run(number), self._files[number])
            self._deleted.add(number)

    def _description(self, text: str) -> str:
        """Returns the description of the sweep's run with the addresses of the server's pages. The links to the views
        stand below its first paragraph, which is the answer. What the server cannot hold is left out line by line.
        """
        answer, _, further = text.partition("\n\n")
        parts = filter(None, (answer, as_markdown(self.pages()), further))
        lines = with_addresses("\n\n".join(parts), self._runs.experiment, self._runs.by_number.get).split("\n")
        while len("\n".join(lines)) > MAX_TAG_LENGTH:
            lines.pop()
        return "\n".join(lines)

    def _change_marks(self, before: Mapping[str, Mapping[str, str]]) -> None:
        """Gives trials the tags of the last summary, and takes away the tags of the summary before it."""
        for number in sorted({*before, *self._marks}, key=int):
            old, new = before.get(number, {}), self._marks.get(number, {})
            run = self._runs.run(int(number))
            self._runs.set_tags(run, {name: value for name, value in new.items() if old.get(name) != value})
            for name in old.keys() - new.keys():
                self._runs.delete_tag(run, name)

    def _scores(self, event: TrialEnded) -> dict[str, str]:
        """Returns the goals of an ended trial with their standard errors, as far as both are known."""
        errors = event.scores or {}
        goals = self._last_goals.pop(event.number, {})
        known = {goal: score for goal, score in goals.items() if f"{goal}_se" in errors and math.isfinite(score)}
        return {goal: score_in_words(score, errors[f"{goal}_se"]) for goal, score in known.items()}

    def _goals_in(self, event: EpochEnded) -> list[str]:
        return [goal for goal in event.metrics if goal in self._goals]

    def _measurements(self, event: EpochEnded) -> dict[str, float]:
        """Returns the goals and the terms of the loss by the names that people see."""
        goals = {goal: event.metrics[goal] for goal in self._goals_in(event)}
        terms = {name: value for name, value in event.terms.items() if not name.startswith(GRADIENT_SHARE)}
        return {**goals, **{f"loss/{name}": value for name, value in terms.items()}}

    def _metrics(self, values: Mapping[str, float], time: float, step: int) -> list[Metric]:
        """Returns the finite values as MLflow metrics. NaN means an undefined score; NaN is kept only in the tables."""
        from mlflow.entities import Metric

        return [
            Metric(name, float(value), int(time * 1000), step)
            for name, value in self._server_metrics(values).items()
            if math.isfinite(value) and name not in self._runs.refused_metrics
        ]

    def _server_metrics(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns the values by the server's names."""
        return {self._metric_names.of(name): value for name, value in values.items()}

    def _server_params(self, params: Mapping[str, object]) -> dict[str, str]:
        """Returns the parameters as text by the server's names."""
        return {self._param_names.of(name): _shortened(str(value)) for name, value in params.items()}


def has_files(event: Event) -> bool:
    """Returns whether `send_files` sends or deletes files because of the event."""
    return isinstance(event, FilesWritten | TrialFilesWritten | SweepSummarized | VerdictWritten) or (
        isinstance(event, TrialStarted) and bool(event.config)
    )


def _shown_error(event: TrialEnded) -> str:
    """Returns the error of a failed trial. Of a bug it returns only the kind, because the text of an exception may
    quote a table; the folder `errors` has the text.
    """
    is_bug = event.cause == "error" and ": " in event.error
    return event.error.partition(": ")[0] if is_bug else event.error


def _shortened(value: str) -> str:
    """Returns the value of a parameter in a form that databases accept. A value that is too long is cut and ends in
    '…'.
    """
    clean = value.replace("\0", "�").encode(errors="replace").decode()
    return clean if len(clean) <= MAX_PARAM_LENGTH else f"{clean[: MAX_PARAM_LENGTH - 1]}…"
