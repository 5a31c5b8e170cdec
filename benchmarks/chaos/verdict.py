"""What must be true of a sweep after a fault campaign, counted from the workers' own log, Optuna's journal, the tables
and MLflow."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from benchmarks.attempts import Kill, Line, attempts_of
from benchmarks.chaos.training import COPY_SECONDS, NAN, RAISE
from benchmarks.interrupted import disagreements
from benchmarks.witness import events_of, faults
from sweep.transfer.checkpoints import CHECK_SECONDS, LONGEST_PAUSE

CAUSES: Final = {RAISE: "error", NAN: "diverged"}  # of a trial that fails, by the order to fail
GOAL: Final = "val/auroc"


def lost_trials(folder: Path, orders: Path, trials: int) -> list[str]:
    """Returns what became of trials that are neither complete, nor stopped early, nor failed by order."""
    table = pd.read_parquet(folder / "trials.parquet")
    names = [path.name.partition("-") for path in orders.iterdir()]
    ordered = {int(number): CAUSES[order] for order, _, number in names if order in CAUSES}
    lost = [f"trial {number} is in no table" for number in sorted(set(range(trials)) - set(table["number"]))]
    for row in table.to_dict("records"):
        number, cause = row["number"], ordered.get(row["number"])
        if row["state"] == "failed" and (cause is None or row["cause"] != cause):
            lost.append(f"trial {number} failed: {row['error']}")
        elif row["state"] not in ("complete", "pruned", "failed"):
            lost.append(f"trial {number} is {row['state']}")
    return lost


def trained_twice(folder: Path, lines: Sequence[Line], epochs: Mapping[int, int]) -> list[str]:
    """Returns the trials of which an epoch began after the trial had ended, or whose last epoch ended twice."""
    ended_at = {event["number"]: event["time"] for event in events_of(folder) if event["event"] == "end"}
    last = Counter(line.number for line in lines if line.word == "ends" and line.epoch == epochs.get(line.number))
    again = {
        line.number for line in lines if line.word == "begins" and line.time > ended_at.get(line.number, line.time)
    }
    twice = {number for number, count in last.items() if count > 1}
    return [f"trial {number} was trained to its end more than once" for number in sorted(twice | again)]


def wrong_epochs(
    folder: Path,
    tracking: str,
    lines: Sequence[Line],
    kills: Sequence[Kill],
    damaged: set[int],
    trials: int,
    troubles: Sequence[tuple[float, float]] = (),
) -> list[str]:
    """Returns what the workers' log, Optuna, the tables and MLflow do not say alike.

    Args:
        damaged: numbers of the trials whose newest checkpoint was damaged.
        troubles: intervals in which the storage could not be written, as `time.time()`.
    """
    without_copies = [
        (begin, end + min(LONGEST_PAUSE, CHECK_SECONDS + end - begin)) for begin, end in troubles
    ]  # each pause between two tries is twice as long as the one before
    table = pd.read_parquet(folder / "trials.parquet")
    epochs = dict(zip(table["number"], table["epochs"], strict=True))
    wrong = disagreements(folder, tracking, trials) + faults(
        folder, lines, kills, epochs, COPY_SECONDS, damaged, copied=True, without_copies=without_copies
    )
    for number, count in _epochs_in_journal(folder):
        if count != epochs.get(number):
            wrong.append(f"trial {number}: the journal has {count} epochs, the table {epochs.get(number)}")
    for number, steps in _steps_in_mlflow(tracking, folder.name):
        if steps != list(range(1, epochs.get(number, 0) + 1)):
            wrong.append(f"trial {number}: MLflow has epochs {steps}, the table {epochs.get(number)}")
    return wrong


def _epochs_in_journal(folder: Path) -> Iterator[tuple[int, int]]:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    for name in optuna.get_all_study_names(storage):
        for trial in optuna.load_study(study_name=name, storage=storage).trials:
            yield trial.user_attrs["number"], trial.user_attrs.get("ending", {}).get("epochs", 0)


def _steps_in_mlflow(tracking: str, name: str) -> Iterator[tuple[int, list[int]]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        if "sweep.number" in run.data.tags:
            history = client.get_metric_history(run.info.run_id, GOAL)
            yield int(run.data.tags["sweep.number"]), sorted(metric.step for metric in history)


def extra_by_kind(lines: Sequence[Line], faults: Sequence[Any]) -> Counter[str]:
    """Returns how many epochs were begun a second time after faults of each kind. A repetition is counted for the
    latest fault that disturbed the trial; `before every fault` holds those without such a fault.
    """
    extra: Counter[str] = Counter()
    for number, attempts in attempts_of(lines).items():
        begun: defaultdict[int, int] = defaultdict(int)
        for line in (line for attempt in attempts for line in attempt if line.word == "begins"):
            begun[line.epoch] += 1
            if begun[line.epoch] > 1:
                causes = [fault.kind for fault in faults if number in fault.hit and fault.at < line.time]
                extra[causes[-1] if causes else "before every fault"] += 1
    return extra
