"""Whether what lies in a sweep's folder belongs together: one sweep's, undamaged, and nothing older than the rest.

The journal is the truth about a sweep's trials. Everything else in the folder is held against it before anything is
written: a journal that is missing, damaged, another sweep's, or older than the spool, the tables or the
checkpoints beside it would otherwise begin the numbers of trials anew, and take what lies under them for theirs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from mmpkd.machine.files import write_atomically
from mmpkd.types import UserError
from sweep.storage.events import read_events
from sweep.storage.journal import BELONGS, arm_and_generation, damage_of, stored_studies
from sweep.storage.layout import SweepFolder

MOST_SHOWN: Final = 10


@dataclass(frozen=True)
class Known:
    """What the folder says of the sweep as a whole.

    Attributes:
        sweep_id: empty: it has not begun.
        store: fingerprint of the prepared cohort that it began with; empty: nobody says.
        lost: numbers of trials that the journal does not know any more; they are never given again.
        notes: what the user should know, in lines.
    """

    sweep_id: str
    store: str
    lost: tuple[int, ...]
    notes: tuple[str, ...]


def examined(folder: SweepFolder, repair: bool, command: str) -> Known:
    """Looks through a folder before a driver goes on in it.

    Args:
        repair: goes on without what is lost; the files that this changes are copied beside first.
        command: that goes on so.

    Raises:
        UserError: something is damaged or missing that the sweep cannot go on without; what, and what to do.
    """
    _refuse_obstacles(folder)
    plan, notes = folder.read_plan(), list[str]()
    journal = folder.journal
    if (damage := damage_of(journal)) is not None:
        harm = f"{damage.lost} lines from there on are lost" if damage.lost else "nothing is lost by mending it"
        if not repair:
            raise UserError(
                f"{journal}: line {damage.line} (byte {damage.offset}) {damage.problem}; {harm}\n"
                f"  put an undamaged copy in its place, or let this mend the file and go on:\n  {command}"
            )
        kept = folder.set_aside(_changed_by_repair(folder))
        write_atomically(journal, damage.kept)
        notes.append(f"{journal}: line {damage.line} {damage.problem}; {harm} (as it was: {kept})")
    studies = stored_studies(journal)
    of_trial = {
        frozen.user_attrs["number"]: frozen.state.is_finished()
        for study in sorted(studies, key=lambda study: arm_and_generation(study.study_name)[1])
        for frozen in study.get_trials(deepcopy=False)
    }
    damaged = list[str]()
    events = [event for _, event in read_events(folder.spool, damaged=damaged)]
    notes += _about_spool(folder.spool, damaged, bool(of_trial))
    sweep_id = _identity(folder, plan, studies, events)
    _refuse_lost_plan(folder, plan, studies, bool(of_trial))
    if of_trial and not plan:
        notes.append(f"{folder.plan} is missing, and made anew")
    before = set(plan.get("lost", ()))
    traces = _traces(folder, events)
    lost = {number for number in traces if number not in of_trial} | before
    again = {event["number"] for event in events if event["event"] == "end"} & {
        number for number, finished in of_trial.items() if not finished
    }
    if (lost - before or again) and not repair:
        what = "is missing" if not journal.exists() else "is older than what lies beside it, or not of this sweep"
        raise UserError(
            "\n".join([f"{journal} {what}", *_unknown(lost - before, again, traces), *_ways(folder, command)])
        )
    if lost - before or again:
        kept = folder.set_aside(_changed_by_repair(folder))
        notes += [f"{journal}: {line.strip()}" for line in _unknown(lost - before, again, traces)]
        notes.append(f"the sweep goes on without what they came to; the files as they were: {kept}")
    stores = [study.user_attrs[BELONGS]["store"] for study in studies if BELONGS in study.user_attrs]
    store = plan.get("store") or next(iter(stores), "")
    return Known(sweep_id, store, tuple(sorted(lost)), tuple(notes))


def _refuse_obstacles(folder: SweepFolder) -> None:
    for path in folder.files:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: a file of the sweep belongs there, and this is none; move it away")
    for path in (folder.checkpoints, folder.errors):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: a folder of the sweep belongs there, and this is none; move it away")
    for path in folder.checkpoints.glob("*"):
        if path.name.isdecimal() and not path.is_dir():
            raise UserError(f"{path}: a folder of checkpoints belongs there, and this is none; move it away")
    for path in folder.errors.glob("*.txt"):
        if not path.is_file():
            raise UserError(f"{path}: a file of the sweep belongs there, and this is none; move it away")


def _about_spool(path: Path, damaged: Sequence[str], begun: bool) -> list[str]:
    """What is lost of the spool, which is a record: the sweep goes on without it."""
    if not path.exists():
        told = "epochs that epochs.parquet lacks are lost, and MLflow is told of each trial's end only"
        return [f"{path} is missing, and begun anew; {told}"] if begun else []
    lost = "an epoch that it told of is lost to epochs.parquet and MLflow, no trial is"
    return [f"{path}: {where} is damaged and passed over; {lost}" for where in damaged]


def _identity(
    folder: SweepFolder, plan: Mapping[str, Any], studies: Sequence[Any], events: Sequence[Mapping[str, Any]]
) -> str:
    """The sweep's; empty where nothing says it yet.

    Raises:
        UserError: two files are of different sweeps.
    """
    said: dict[Path, set[str]] = {
        folder.journal: {study.user_attrs[BELONGS]["sweep"] for study in studies if BELONGS in study.user_attrs},
        folder.plan: {plan["sweep"]} if "sweep" in plan else set(),
        folder.spool: {event["id"] for event in events if event["event"] == "sweep" and "id" in event},
    }
    known = [(path, one) for path, ids in said.items() for one in sorted(ids)]
    votes = Counter(one for _, one in known)
    # Two of three are right against one; of equally many, the first: the journal.
    first, its = max(known, key=lambda named: votes[named[1]], default=(folder.journal, ""))
    for path, one in known:
        if one != its:
            who = f"{path} and {first} are" if path != first else f"parts of {path} are"
            remedy = "without the spool the sweep goes on too" if path == folder.spool else "put the right one back"
            raise UserError(
                f"{who} of different sweeps ({one} and {its}); move the one away that was put there "
                f"(mv {path} ...), and {remedy}"
            )
    return its


def _refuse_lost_plan(folder: SweepFolder, plan: Mapping[str, Any], studies: Sequence[Any], begun: bool) -> None:
    """
    Raises:
        UserError: which space the trials were drawn from is known to nobody any more.
    """
    if begun and not plan and not folder.space.exists():
        raise UserError(
            f"{folder}: {folder.plan.name} and {folder.space.name} are both missing, so nothing says which space its "
            f"trials were drawn from; put one of them back, or start another sweep with name={folder.name}-2 (or any "
            "new name)"
        )
    own: dict[int, dict[int, Any]] = {}
    for study in studies:
        generation = arm_and_generation(study.study_name)[1]
        for frozen in study.get_trials(deepcopy=False):
            own.setdefault(generation, {})[frozen.user_attrs["number"]] = frozen.state
    for generation in sorted(own):
        if generation <= plan.get("generation", 0):
            continue
        earlier: dict[int, Any] = {}
        for before in range(generation):
            earlier |= own.get(before, {})
        went_on = any(earlier.get(number) != state for number, state in own[generation].items())
        if went_on or not plan:  # else an extension was cut off, and its copies go again
            raise UserError(
                f"{folder.plan} is {'older than the journal' if plan else 'missing'}: the sweep was extended "
                f"{generation} times, and plan.json says which space it is in; put the newest one back, or start "
                f"another sweep with name={folder.name}-2 (or any new name)"
            )


def _traces(folder: SweepFolder, events: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Numbers of trials that anything beside the journal tells of, and what does."""
    found: dict[int, str] = {}
    for place in (folder.checkpoints, folder.errors):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if match := re.fullmatch(r"(\d+)(\.txt)?", path.name):
                found[int(match[1])] = f"{place.name}/{path.name}"
    try:
        table = pd.read_parquet(folder.trials, columns=["number"])
        found |= {int(number): folder.trials.name for number in table["number"]}
    except Exception:  # there is none yet, or it is damaged: it is written anew
        pass
    return found | {event["number"]: folder.spool.name for event in events if "number" in event}


def _unknown(lost: set[int], again: set[int], traces: Mapping[int, str]) -> list[str]:
    told = []
    if lost:
        where = ", ".join(sorted({traces[number] for number in lost})[:3])
        told.append(f"  it knows nothing of trials {_listed(lost)}, of which {where} tell")
    if again:
        told.append(f"  trials {_listed(again)} have ended by spool.jsonl, and run by the journal")
    return told


def _ways(folder: SweepFolder, command: str) -> list[str]:
    return [
        "  put the newest copy of the journal back;",
        f"  or start another sweep with name={folder.name}-2 (or any new name);",
        "  or go on without these trials' results, their numbers given to nobody else:",
        f"  {command}",
    ]


def _listed(numbers: set[int]) -> str:
    shown = ", ".join(map(str, sorted(numbers)[:MOST_SHOWN]))
    return f"{shown} and {len(numbers) - MOST_SHOWN} more" if len(numbers) > MOST_SHOWN else shown


def _changed_by_repair(folder: SweepFolder) -> tuple[Path, ...]:
    return folder.journal, folder.plan, folder.trials, folder.epochs, folder.best
