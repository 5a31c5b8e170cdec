"""Finds trials that the Optuna journal of a sweep has lost, by the traces that they left in the sweep's other files.

The journal decides what is true about a sweep's trials. A copy that was cut short, or an older one that was put back,
reads like the journal of a shorter sweep, and only the other files show that trials are missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from sweep.storage.journal import arm_and_generation
from sweep.storage.layout import SweepFolder

MAX_LISTED_TRIALS: Final = 10


@dataclass(frozen=True)
class Traces:
    """What the files of a sweep other than the journal hold of its trials.

    Attributes:
        files: the name of a file that mentions the trial, by the number of the trial.
        ended: the name of a file by which the trial has ended, by the number of the trial.
    """

    files: Mapping[int, str]
    ended: Mapping[int, str]


@dataclass(frozen=True)
class Losses:
    """Trials that the journal has lost.

    Attributes:
        unknown: numbers of the trials that the journal does not know.
        reopened: numbers of the trials that run by the journal, although they have ended.
    """

    unknown: frozenset[int]
    reopened: frozenset[int]
    traces: Traces

    def without(self, numbers: set[int]) -> Losses:
        """Returns these losses without the trials of these numbers."""
        return Losses(self.unknown - numbers, self.reopened - numbers, self.traces)

    def lines(self) -> list[str]:
        """Returns up to two lines: one on trials that the journal does not know, and one on ended trials that the
        journal has as running.
        """
        lines = []
        if self.unknown:
            files = ", ".join(sorted({self.traces.files[number] for number in self.unknown})[:3])
            lines.append(f"it does not know trials {listed(self.unknown)}, which are in {files}")
        if self.reopened:
            files = ", ".join(sorted({self.traces.ended[number] for number in self.reopened}))
            lines.append(f"trials {listed(self.reopened)} have ended by {files}, and still run by the journal")
        return lines


def read_traces(folder: SweepFolder, in_spool: Mapping[int, bool]) -> Traces:
    """Finds trials in files other than the journal. While a driver runs, this is called before the journal is read:
    the driver writes the journal first, so that the journal knows every trial of the traces.

    Args:
        in_spool: whether the trial has ended by the spool, by the number of each trial in the spool.
    """
    files: dict[int, str] = {}
    for place in (folder.checkpoints, folder.errors):
        for name in folder.shared.child(place.name).names():
            if match := re.fullmatch(r"(\d+)(\.txt)?", name):
                files[int(match[1])] = f"{place.name}/{name}"
    try:
        table = pd.read_parquet(folder.trials, columns=["number"])
        ended = {int(number): folder.trials.name for number in table["number"]}  # it has no trial that runs
    except Exception:  # the table does not exist yet, or is damaged; it will be written again
        ended = {}
    files |= ended | {number: folder.spool.name for number in in_spool}
    ended |= {number: folder.spool.name for number, has_ended in in_spool.items() if has_ended}
    return Traces(files, ended)


def find_losses(studies: Sequence[Any], traces: Traces) -> Losses:
    """Returns the trials of the traces that the Optuna studies of all generations lack.

    Args:
        studies: the Optuna studies of the journal.
    """
    in_order = sorted(studies, key=lambda study: arm_and_generation(study.study_name)[1])  # the last generation decides
    is_finished = {
        trial.user_attrs["number"]: trial.state.is_finished()
        for study in in_order
        for trial in study.get_trials(deepcopy=False)
    }
    running = {number for number, finished in is_finished.items() if not finished}
    return Losses(frozenset(set(traces.files) - set(is_finished)), frozenset(running & set(traces.ended)), traces)


def begun_after_the_last_copy(folder: SweepFolder, losses: Losses) -> set[int]:
    """Returns the lost trials that only workers have written of. If a sweep lies in an object store, its journal is a
    copy and may lack them; see `transfer/mirror.py`.
    """
    by_workers = (f"{folder.checkpoints.name}/", f"{folder.errors.name}/")
    return {
        number
        for number in losses.unknown
        if folder.address and losses.traces.files.get(number, "").startswith(by_workers)
    }


def listed(numbers: frozenset[int] | set[int]) -> str:
    """Returns numbers of trials in words, the first of them if they are many."""
    shown = ", ".join(map(str, sorted(numbers)[:MAX_LISTED_TRIALS]))
    return f"{shown} and {len(numbers) - MAX_LISTED_TRIALS} more" if len(numbers) > MAX_LISTED_TRIALS else shown
