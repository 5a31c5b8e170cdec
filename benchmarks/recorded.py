"""Recorded learning curves (see `record_curves.py`)."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.record_curves import FOLDER, GOALS
from mmpkd.types import ConfigError


@dataclass(frozen=True)
class Configuration:
    """A recorded configuration.

    Attributes:
        values: the drawn values by leaf name.
        curves_REG: the curve of each repeat, shape (repeats, epochs, goals).
    """

    values: Mapping[str, Any]
    curves_REG: NDArray[np.float64]


def recorded_path(space: str) -> Path:
    """Returns the table of a space's recorded curves.

    Raises:
        ConfigError: there is no such table.
    """
    path = FOLDER / f"{space}.csv"
    if not path.is_file():
        problem = f"{path} does not exist; record the curves with `python benchmarks/record_curves.py space={space}`"
        raise ConfigError.at("worlds", problem)
    return path


def read_recorded(path: Path, arm: str) -> list[Configuration]:
    """Reads the configurations of an arm from a table of recorded curves, in the order of the table."""
    values: dict[int, Mapping[str, Any]] = {}
    curves: dict[int, list[NDArray[np.float64]]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            if row["arm"] == arm:
                number = int(row["number"])
                values[number] = json.loads(row["sampled"])
                curves.setdefault(number, []).append(np.array([json.loads(row[goal]) for goal in GOALS]).T)
    return [Configuration(values[number], np.stack(curves[number])) for number in values]
