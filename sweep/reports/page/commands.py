"""The commands that take a student from a sweep, as the report and the console show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from shlex import quote

from sweep.selection import ONE_ERROR, Selection, rule_of
from sweep.storage.layout import BEST, SweepFolder
from sweep.storage.records import picked
from sweep.types import Record


def commands(name: str, storage: str, records: Sequence[Record], goals: Sequence[str], select: str | Selection) -> str:
    """Returns the commands that take a student from a sweep: the trial of best.yaml, the best by each goal, and those
    that the one-standard-error rule gives. A click selects a whole command.
    """
    trials: dict[int, list[str]] = {}
    for words, rule in [(BEST, select), *((f"best {goal}", goal) for goal in goals)]:
        if record := picked(records, rule):
            trials.setdefault(record.number, []).append(words)
    lines = [(f"Trial {number}, {' and '.join(words)}:", f"trial={number}") for number, words in trials.items()]
    of = rule_of(select).of or rule_of(select).maximize
    for limited in (Selection(maximize=goal, within=ONE_ERROR, of=of) for goal in goals if goal != of):
        if record := picked(records, limited):
            choice = f"by={limited.maximize} within={ONE_ERROR} of={of}"
            lines.append((f"Trial {record.number}, best {limited}:", choice))
    return "".join(
        f"<p>{escape(words)}</p><pre>{escape(pick_command(name, storage, choice))}</pre>" for words, choice in lines
    )


def pick_command(name: str, storage: str, choice: str) -> str:
    """Returns the command that takes a student from a sweep.

    Args:
        storage: the folder or address of all sweeps. From an object store, a student is copied to a folder that the
            user names.
        choice: the words that choose the trial, such as 'trial=3'.
    """
    out = " out=DIR" if "://" in storage else ""
    return f"python -m sweep.pick {quote(name)} storage={quote(storage)} {choice}{out}"


def storage_of(folder: SweepFolder) -> str:
    """Returns the folder or address of all sweeps, as `storage=` names it."""
    return str(replace(folder.shared, path=folder.shared.path.removesuffix(f"/{folder.name}")))
