"""Writes and prints the tables of `mmpkd.evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmpkd import command
from mmpkd.machine.files import write_atomically
from mmpkd.scoring.stats import MIN_REPLICATES
from mmpkd.scoring.subgroups import REPLICATES

RECORD = "evaluation.json"
TITLES = {  # each title states how the numbers differ from those of a training under the same name
    "labels": "labels: balanced_accuracy at the student's thresholds, chosen on its validation (in training: at 0.5)",
    "labels_by_patient": "labels_by_patient: from the mean probability over a patient's images; otherwise as labels",
    "regions": "regions: in the frame of the original images (in training: in the stored squares)",
    "groups": "groups: pointing is the mean over images of the mean over their labels (in regions: over labels)",
    "tasks": "tasks: answer is the score by which the task is judged; _frequent, _mean_box: answers without the image",
}
FITTED_HERE = (
    "The student was chosen on these patients, and its temperatures and thresholds were fitted on them: its scores on "
    "other patients are lower as a rule, above all balanced_accuracy and brier."
)
NO_INTERVAL = (
    "no interval: resampling the patients always gives the same value, as where all positive samples score above all "
    f"negative ones, or fewer than {MIN_REPLICATES} of {REPLICATES:,} resamplings define a value."
)
UNDEFINED = "-: not defined, as for a label without both classes, or without a sample that has a region."
NAMES = (
    *("labels", "labels_by_patient", "predictions", "predictions_by_patient", "images", "regions", "groups"),
    *("tasks", "modalities", "answers"),
)


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame], record: Mapping[str, Any]) -> None:
    """Writes every table as CSV, and the record of the evaluation last: a folder with evaluation.json is complete.

    Tables of an earlier evaluation are deleted first; other files in the folder are left alone.

    Args:
        tables: tables by name, each one of `NAMES`.
    """
    assert tables.keys() <= set(NAMES), f"NAMES lacks some of {list(tables)}"
    command.make_folder(folder)
    for old in (RECORD, *(f"{name}.csv" for name in NAMES)):
        (folder / old).unlink(missing_ok=True)
    for name, table in tables.items():
        write_atomically(folder / f"{name}.csv", table.to_csv(index=False))
    write_atomically(folder / RECORD, json.dumps(record, indent=1))


def print_tables(
    tables: Mapping[str, pd.DataFrame],
    title: str,
    regions: Mapping[str, str],
    notes: Sequence[str],
    no_interval: str = NO_INTERVAL,
    undefined: str = UNDEFINED,
) -> None:
    """Prints the tables of scores, and what cells without a value or without an interval mean.

    Args:
        regions: the options `within` and `roi` of EvaluationConfig.
        notes: sentences about all scores, which are printed above them.
        no_interval, undefined: what a cell without an interval, or without a value, means.
    """
    console = command.plain_console(highlight=False)
    console.print(title, soft_wrap=True)
    for note in notes:
        console.print(note)
    options = ", ".join(f"{key}={value}" for key, value in regions.items())
    titles = {**TITLES, "regions": f"{TITLES['regions']}; {options}"}
    shown: list[str] = []
    for name, heading in titles.items():
        if name not in tables:
            continue
        table = tables[name]
        columns = [str(column) for column in table if not str(column).endswith(("_low", "_high"))]
        rows = [[_cell(row, column) for column in columns] for _, row in table.iterrows()]
        shown += [cell for row in rows for cell in row]
        num_keys = sum(isinstance(table[column].iloc[0], str) for column in columns)
        lines = command.table_lines(columns, rows, console.width, num_keys)
        console.print("\n".join(["", *command.wrapped(heading, console.width), *lines]), soft_wrap=True)
    explained = [no_interval] if any("[no interval]" in cell for cell in shown) else []
    for line in [*explained, *([undefined] if "-" in shown else [])]:
        console.print(line)


def _cell(row: pd.Series, name: str) -> str:
    value = row[name]
    if not isinstance(value, float):
        return str(value)
    if np.isnan(value):
        return "-"
    if f"{name}_low" not in row:
        return f"{value:.3f}"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{value:.3f} [no interval]" if np.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"
