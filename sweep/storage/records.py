"""What happened in a sweep: the spool of events in their order, and the tables made from it.

A trial's state lies in the Optuna storage (`search.py`). The spool holds every event with its
time, one JSON line each; the tracking server is told from it, and `epochs.parquet` is made of it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import pandas as pd

from mmpkd.machine.files import write_atomically
from sweep.pareto import admit, dominates
from sweep.storage.events import Spool
from sweep.storage.layout import SweepFolder
from sweep.types import Record, Values

TRIAL_COLUMNS: Final = ("number", "arm", "control", "state", "repeat_of", "epochs", "seconds")


def runs_by_configuration(records: Iterable[Record]) -> dict[int, list[Record]]:
    """Groups trials by configuration: the number of its first trial, and its runs over seeds in the given order."""
    runs: dict[int, list[Record]] = {}
    for record in records:
        runs.setdefault(record.configuration, []).append(record)
    return runs


def mean_values(runs: Sequence[Record], goals: Sequence[str]) -> tuple[float, ...]:
    """Returns the mean of each goal over the runs of one configuration."""
    return tuple(statistics.fmean(run.metrics[goal] for run in runs) for goal in goals)


def over_seeds(records: Sequence[Record], repeats: int) -> list[Record]:
    """Configurations that completed on `repeats` seeds, as their first trial with metrics averaged.

    A metric's standard error over the seeds is beside it as `<metric>_seed_se`. It holds no sampling
    error of the validation images unless the seeds have different ones.
    """
    complete = [one for one in records if one.state == "complete"]
    if repeats == 1:
        return complete
    runs = runs_by_configuration(complete)
    return [_averaged(min(found, key=lambda one: one.turn), found) for found in runs.values() if len(found) >= repeats]


def judged(records: Sequence[Record], goals: Sequence[str], repeats: int) -> list[Record]:
    """Configurations as they may be compared: on the front means over seeds, behind it single runs.

    One that has not had all of its seeds is left out unless another of its arm dominates it anyway.
    """
    if repeats == 1:
        return list(records)
    means = {one.number: one for one in over_seeds(records, repeats)}
    behind = [
        one
        for one in records
        if one.repeat_of is None
        and one.number not in means
        and (one.state != "complete" or _dominated(one, means.values(), goals))
    ]
    return sorted([*behind, *means.values()], key=lambda one: one.number)


def _dominated(record: Record, others: Iterable[Record], goals: Sequence[str]) -> bool:
    values = record.values(goals)
    return any(one.arm == record.arm and dominates(one.values(goals), values) for one in others)


def _averaged(first: Record, runs: Sequence[Record]) -> Record:
    metrics = {}
    for name in first.metrics:
        values = [run.metrics[name] for run in runs if name in run.metrics]
        metrics[name] = statistics.fmean(values)
        if len(values) > 1:
            # A label without both classes in a validation part scores NaN, which stdev does not take.
            finite = all(map(math.isfinite, values))
            metrics[f"{name}_seed_se"] = statistics.stdev(values) / math.sqrt(len(values)) if finite else math.nan
    return replace(first, metrics=metrics)


def front_of(records: Sequence[Record], goals: Sequence[str]) -> list[Record]:
    """The front among complete trials but references, best by the first goal first; only equal budgets are compared."""
    front: dict[int, Values] = {}
    for record in records:
        if record.state == "complete" and not record.reference:
            admit(front, record.number, record.values(goals))
    on_it = [record for record in records if record.number in front]
    return sorted(on_it, key=lambda record: record.values(goals), reverse=True)


def best_of(records: Sequence[Record], goal: str, goals: Sequence[str]) -> Record | None:
    """The complete trial that is best by one goal; the others decide a tie, so it is on the front.

    A reference only where there is nothing else.
    """
    order = [goal, *(other for other in goals if other != goal)]
    complete = [record for record in records if record.state == "complete"]
    chosen = [record for record in complete if not record.reference] or complete
    return max(chosen, key=lambda record: record.values(order), default=None)


def picked(records: Sequence[Record], select: str, goals: Sequence[str]) -> Record | None:
    """The trial that best.yaml is of: the best, and never a reference."""
    best = best_of(records, select, goals)
    return None if best is None or best.reference else best


def trials_table(records: Sequence[Record]) -> pd.DataFrame:
    """One row a finished trial: what it was, what it cost, every sampled value, every metric.

    `repeat_of` is the number of the trial whose configuration it ran on a further seed, or missing.
    """
    rows = [
        {
            **{name: getattr(one, name) for name in TRIAL_COLUMNS},
            "device_hours": one.device_seconds / 3600,
            **one.sampled,
            **one.metrics,
            **{"cause": one.cause, "error": one.error},
        }
        for one in records
        if one.state != "running"
    ]
    table = pd.DataFrame(rows, columns=None if rows else [*TRIAL_COLUMNS, "device_hours", "cause", "error"])
    return _one_type_per_column(table).astype({"repeat_of": "Int64"})


def epochs_table(spool: Spool) -> pd.DataFrame:
    """One row per trial and epoch: number, arm, epoch, seconds, metrics, and terms as `loss/<term>`."""
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for _, event in spool.read():
        if event["event"] != "epoch":
            continue
        terms = {f"loss/{name}": value for name, value in event["terms"].items()}
        row = {name: event[name] for name in ("number", "arm", "epoch", "seconds")}
        rows.setdefault((event["number"], event["epoch"]), {**row, **event["metrics"], **terms})
    ordered = [rows[key] for key in sorted(rows)]
    return pd.DataFrame(ordered, columns=None if rows else ["number", "arm", "epoch", "seconds"])


def _one_type_per_column(table: pd.DataFrame) -> pd.DataFrame:
    """A choice may mix numbers and words, a parquet column may not: then all of it is text."""
    for name in filter(lambda name: pd.api.types.is_object_dtype(table[name]), table.columns):
        if len({type(value) for value in table[name].dropna()}) > 1:
            table[name] = [None if pd.isna(value) else str(value) for value in table[name]]
    return table


def write_tables(
    folder: SweepFolder, records: Sequence[Record], spool: Spool, left_behind: Collection[int] = ()
) -> None:
    """`left_behind`: trials that an extension of the space left out; the spool has their epochs too."""
    write_atomically(folder.trials, trials_table(records).to_parquet(index=False))
    path, epochs = folder.epochs, epochs_table(spool)
    with suppress(Exception):  # there is none yet, or it is damaged
        before = pd.read_parquet(path)
        lost = before[before["number"].isin({one.number for one in records} - set(epochs["number"]))]
        if len(lost):  # the spool was, and this is all that is left of it
            epochs = pd.concat([lost, epochs]).sort_values(["number", "epoch"])
    epochs = epochs[~epochs["number"].isin(left_behind)]
    write_atomically(path, epochs.to_parquet(index=False))
