"""Writes the tables of a sweep: trials.parquet from the Optuna storage, and epochs.parquet from the spool of events."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pandas as pd

from mmpkd.machine.files import write_atomically
from sweep.storage.events import EpochEnded, read_events
from sweep.storage.layout import SweepFolder
from sweep.types import Record

TRIAL_COLUMNS: Final = ("number", "arm", "control", "state", "repeat_of", "epochs", "seconds")
EPOCH_COLUMNS: Final = ("number", "arm", "epoch", "seconds")


def trials_table(records: Sequence[Record]) -> pd.DataFrame:
    """Returns a table with one row for each ended trial: its identity, its cost, every sampled value and every metric.

    If a trial runs the configuration of an earlier trial on a further seed, `repeat_of` is the number of the earlier
    trial. Otherwise `repeat_of` is missing.
    """
    rows = [
        {
            **{name: getattr(record, name) for name in TRIAL_COLUMNS},
            "device_hours": record.device_seconds / 3600,
            **record.sampled,
            **record.metrics,
            **{"cause": record.cause, "error": record.error},
        }
        for record in records
        if record.state != "running"
    ]
    table = pd.DataFrame(rows, columns=None if rows else [*TRIAL_COLUMNS, "device_hours", "cause", "error"])
    return _with_uniform_columns(table).astype({"repeat_of": "Int64"})


def epochs_table(spool: Path) -> pd.DataFrame:
    """Returns a table with one row for each epoch of a trial: `EPOCH_COLUMNS`, metrics, and terms as `loss/<term>`.

    The spool is only read, so that this works while a driver appends to it.
    """
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for _, event in read_events(spool):
        if isinstance(event, EpochEnded):
            row = {name: getattr(event, name) for name in EPOCH_COLUMNS}
            rows.setdefault((event.number, event.epoch), {**row, **event.measurements})
    ordered = [rows[key] for key in sorted(rows)]
    return pd.DataFrame(ordered, columns=None if rows else list(EPOCH_COLUMNS))


def write_tables(folder: SweepFolder, records: Sequence[Record], left_behind: Collection[int] = ()) -> None:
    """Writes the table of trials and the table of epochs.

    Args:
        left_behind: numbers of trials outside the extended space. Their epochs are in the spool, but not in the
            table of epochs.
    """
    write_atomically(folder.trials, trials_table(records).to_parquet(index=False))
    epochs = epochs_table(folder.spool)
    with suppress(Exception):  # there is no table yet, or it is damaged
        before = pd.read_parquet(folder.epochs)
        reached = {record.number: record.epochs for record in records}
        in_spool = set(zip(epochs["number"], epochs["epoch"], strict=True))
        pairs = zip(before["number"], before["epoch"], strict=True)
        lost = before[[pair not in in_spool and pair[1] <= reached.get(pair[0], 0) for pair in pairs]]
        if len(lost):  # the spool, or a part of it, was lost, and only the old table still holds these epochs
            epochs = pd.concat([lost, epochs]).sort_values(["number", "epoch"])
    epochs = epochs[~epochs["number"].isin(left_behind)]
    write_atomically(folder.epochs, epochs.to_parquet(index=False))


def _with_uniform_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Converts columns of mixed types to text. A `choice` may mix numbers and words, but a Parquet column may not."""
    for name in filter(lambda name: pd.api.types.is_object_dtype(table[name]), table.columns):
        if len({type(value) for value in table[name].dropna()}) > 1:
            table[name] = [None if pd.isna(value) else str(value) for value in table[name]]
    return table
