"""Turns each event of a sweep into records of its runs in MLflow.

A run shows what people choose by. After every epoch it gets the goals and the terms of the loss. At its end it gets the
standard errors of the goals and its cost. Baselines, counters and the scores of labels stand in the tables and the
report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from sweep.space.search_config import SCORES
from sweep.storage.events import (
    EpochEnded,
    Event,
    FilesWritten,
    SweepBegan,
    SweepClosed,
    TrialEnded,
    TrialStarted,
)
from sweep.storage.layout import SweepFolder
from sweep.tracking.mlflow_runs import STATUS_BY_STATE, MlflowRuns, shortened_param
from sweep.tracking.names import ServerNames

if TYPE_CHECKING:
    from mlflow.entities import Metric

COLOUR: Final = "mlflow.runColor"  # MLflow's tag


class EventSender:
    """Sends events to the runs of a sweep, in the order of the spool."""

    def __init__(self, runs: MlflowRuns, folder: SweepFolder):
        self._runs, self._folder = runs, folder
        self._metric_names, self._param_names = ServerNames(), ServerNames()
        self._goals: frozenset[str] = frozenset(SCORES)  # an earlier version does not name the sweep's goals

    def note(self, event: Event) -> None:
        """Notes what later events depend on: the goals, and the server's names of metrics and parameters. An event that
        an earlier driver has sent is only noted, so that each name gets the same server name as before.
        """
        match event:
            case SweepBegan() if event.goals is not None:
                self._goals = frozenset(event.goals)
            case EpochEnded():
                self._server_metrics(self._measurements(event))
            case TrialStarted():
                self._server_params(event.params)

    def points(self, event: EpochEnded) -> list[Metric]:
        """Returns the goals and the terms of the loss of an epoch as MLflow metrics."""
        return self._metrics(self._measurements(event), event.time, event.epoch)

    def send(self, event: Event) -> None:
        """Sends an event that is not the end of an epoch."""
        self.note(event)
        milliseconds, runs = int(event.time * 1000), self._runs
        sweep_run = runs.run(None)
        match event:
            case SweepBegan():
                runs.set_running(sweep_run)
            case TrialStarted():
                colour = {COLOUR: event.colour} if event.colour else {}
                run = runs.run(event.number, event.arm, milliseconds, event.name)
                runs.log_params(run, self._server_params(event.params))
                runs.set_tags(run, {**event.tags, **colour})
            case TrialEnded():
                run = runs.run(event.number)
                runs.log_metrics(run, self._metrics(event.scores or {}, event.time, 0))
                runs.set_tags(run, {"outcome": event.state, **_error_tag(event)})
                runs.set_ended(run, STATUS_BY_STATE[event.state], milliseconds)
            case FilesWritten():
                for path in map(self._folder.file, event.paths):  # the folder may have moved
                    if path.is_file():
                        runs.log_file(sweep_run, path)
            case SweepClosed():
                runs.set_ended(sweep_run, event.status, milliseconds)

    def _measurements(self, event: EpochEnded) -> dict[str, float]:
        goals = {name: value for name, value in event.metrics.items() if name in self._goals}
        return {**goals, **{f"loss/{name}": value for name, value in event.terms.items()}}

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
        return {self._param_names.of(name): shortened_param(str(value)) for name, value in params.items()}


def _error_tag(event: TrialEnded) -> dict[str, str]:
    """Returns the tag with the error of a failed trial. For a bug it holds only the kind, because the text of an
    exception may quote a table; the folder `errors` has the text.
    """
    if not event.error:
        return {}
    is_bug = event.cause == "error" and ": " in event.error
    return {"error": event.error.partition(": ")[0] if is_bug else event.error}
