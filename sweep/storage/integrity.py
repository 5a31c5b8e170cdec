"""Checks that the files of a sweep's folder belong to one sweep, are undamaged, and that none is older than the others.

The Optuna journal decides what is true about a sweep's trials. Before anything is written, the other files of the
folder are compared with the journal. The journal may be missing, damaged, from another sweep, or older than the spool,
the tables or the checkpoints. Without this check, such a journal would assign the numbers of earlier trials again, and
the files of the earlier trials would be mistaken for files of the new trials.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpkd.machine.files import write_atomically
from mmpkd.types import UserError
from sweep.storage.events import SweepBegan, TrialEnded, TrialEvent, read_events
from sweep.storage.journal import BELONGS, arm_and_generation, find_damage, load_studies
from sweep.storage.layout import SweepFolder
from sweep.storage.losses import Traces, begun_after_the_last_copy, find_losses, listed, read_traces


@dataclass(frozen=True)
class CheckedFolder:
    """What the files of a folder say about the sweep as a whole.

    Attributes:
        sweep_id: the sweep's identity. It is empty before the sweep's first start.
        store: fingerprint of the prepared cohort with which the sweep began. It is empty if no file states it.
        lost: numbers of trials that the journal has lost. These numbers are never given to other trials.
        notes: lines for the user.
    """

    sweep_id: str
    store: str
    lost: tuple[int, ...]
    notes: tuple[str, ...]


def check_folder(folder: SweepFolder, repair: bool, command: str) -> CheckedFolder:
    """Checks a folder before a driver continues the sweep in it.

    Args:
        repair: whether to continue without lost content. Files that the repair changes are first copied into a folder
            beside them.
        command: the command line that continues the sweep with a repair, for error messages.

    Raises:
        UserError: a file that the sweep needs to continue is damaged or missing. The message names the remedy.
    """
    _refuse_obstacles(folder)
    plan, notes = folder.read_plan(), list[str]()
    journal = folder.journal
    if (damage := find_damage(journal)) is not None:
        loss = f"{damage.lost} lines from there on are lost" if damage.lost else "nothing is lost by mending it"
        if not repair:
            raise UserError(
                f"{journal}: line {damage.line} (byte {damage.offset}) {damage.problem}; {loss}\n"
                "  put an undamaged copy of the journal in its place; or run this command, which mends the file and "
                f"continues:\n  {command}"
            )
        copies = folder.set_aside(_changed_by_repair(folder))
        write_atomically(journal, damage.kept)
        notes.append(f"{journal}: line {damage.line} {damage.problem}; {loss} (the file as it was: {copies})")
    studies = load_studies(journal)
    has_begun = any(study.get_trials(deepcopy=False) for study in studies)
    damaged = list[str]()
    events = [event for _, event in read_events(folder.spool, damaged=damaged)]
    notes += _notes_on_spool(folder, damaged, has_begun)
    sweep_id = _identity(folder, plan, studies, {event.id for event in events if isinstance(event, SweepBegan)})
    _refuse_lost_plan(folder, plan, studies, has_begun)
    if has_begun and not plan:
        notes.append(f"{folder.plan} is missing, and is written anew")
    lost_before = set(plan.get("lost", ()))
    in_spool = {event.number: False for event in events if isinstance(event, TrialEvent)}
    in_spool |= {event.number: True for event in events if isinstance(event, TrialEnded)}
    losses = find_losses(studies, read_traces(folder, in_spool))
    lost = losses.unknown | lost_before
    losses = losses.without(lost_before - losses.reopened)
    if uncopied := begun_after_the_last_copy(folder, losses):
        notes.append(
            f"{folder}: trials {listed(uncopied)} began after the last copy of the journal, whose machine was lost; "
            "others take their place"
        )
        losses = losses.without(uncopied)
        for number in uncopied:
            folder.delete_checkpoints(number)
    if lines := losses.lines():
        if not repair:
            problem = "is older than other files of the sweep, or belongs to another sweep"
            raise UserError(
                "\n".join(
                    [
                        f"{journal} {problem if journal.exists() else 'is missing'}",
                        *(f"  {line}" for line in lines),
                        "  put the newest copy of the journal back;",
                        f"  or start another sweep with name={folder.name}-2 (or any new name);",
                        "  or continue without the results of these trials; their numbers are not used again:",
                        f"  {command}",
                    ]
                )
            )
        copies = folder.set_aside(_changed_by_repair(folder))
        notes += [f"{journal}: {line}" for line in lines]
        notes.append(f"the sweep continues without the results of these trials; the files as they were: {copies}")
    stores = [study.user_attrs[BELONGS]["store"] for study in studies if BELONGS in study.user_attrs]
    store = plan.get("store") or next(iter(stores), "")
    return CheckedFolder(sweep_id, store, tuple(sorted(lost)), tuple(notes))


def _refuse_obstacles(folder: SweepFolder) -> None:
    """Checks that every path of the sweep that exists is of the right type.

    Raises:
        UserError: there is a folder at the path of a file, or a file at the path of a folder.
    """
    for path in (*folder.files, *folder.errors.glob("*.txt")):
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: the sweep needs a file there, and this is none; move it away")
    checkpoints = [path for path in folder.checkpoints.glob("*") if path.name.isdecimal()]
    for path in (folder.checkpoints, folder.errors, *checkpoints):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: the sweep needs a folder there, and this is none; move it away")


def _notes_on_spool(folder: SweepFolder, damaged: Sequence[str], has_begun: bool) -> list[str]:
    """Returns lines about events that the spool has lost. The spool is only a record, so the sweep continues without
    them.
    """
    if not folder.spool.exists():
        loss = f"epochs that {folder.epochs.name} lacks are lost, and MLflow receives only the end of each trial"
        return [f"{folder.spool} is missing, and is begun anew; {loss}"] if has_begun else []
    loss = f"if it held an epoch, that epoch is lost to {folder.epochs.name} and MLflow; no trial is lost"
    return [f"{folder.spool}: {place} is damaged and skipped; {loss}" for place in damaged]


def losses_for_reader(
    folder: SweepFolder, plan: Mapping[str, Any], studies: Sequence[Any], traces: Traces
) -> list[str]:
    """Returns lines on the trials that the journal has lost, without those that a repair has given up. A command that
    only reads calls this, also while a driver runs.

    Args:
        studies: the Optuna studies of the journal.
        traces: what the other files hold of trials, read before the journal.

    Raises:
        UserError: journal and plan belong to different sweeps, or the plan is older than the journal.
    """
    _identity(folder, plan, studies, set())
    _refuse_lost_plan(folder, plan, studies, has_begun=True)
    losses = find_losses(studies, traces).without(set(plan.get("lost", ())))
    return losses.without(begun_after_the_last_copy(folder, losses)).lines()


def _identity(folder: SweepFolder, plan: Mapping[str, Any], studies: Sequence[Any], spooled: set[str]) -> str:
    """Returns the sweep's identity. It is empty if no file has an identity yet.

    Args:
        spooled: the identities in the spool.

    Raises:
        UserError: two files belong to different sweeps.
    """
    identities: dict[Path, set[str]] = {
        folder.journal: {study.user_attrs[BELONGS]["sweep"] for study in studies if BELONGS in study.user_attrs},
        folder.plan: {plan["sweep"]} if "sweep" in plan else set(),
        folder.spool: spooled,
    }
    named = [(path, identity) for path, members in identities.items() for identity in sorted(members)]
    votes = Counter(identity for _, identity in named)
    # Two of the three files outvote the third. Without a majority the first file, the journal, decides.
    first, sweep_id = max(named, key=lambda pair: votes[pair[1]], default=(folder.journal, ""))
    for path, identity in named:
        if identity != sweep_id:
            files = f"{path} and {first} are" if path != first else f"parts of {path} are"
            remedy = "the sweep continues without the spool" if path == folder.spool else "put the right one back"
            raise UserError(
                f"{files} of different sweeps ({identity} and {sweep_id}); move away the one that was put there "
                f"(mv {path} ...); then {remedy}"
            )
    return sweep_id


def _refuse_lost_plan(folder: SweepFolder, plan: Mapping[str, Any], studies: Sequence[Any], has_begun: bool) -> None:
    """Checks that the files of plan and space are not lost, and that the plan's file is not older than the journal.

    Raises:
        UserError: no file states any more from which space the trials were drawn.
    """
    other_sweep = f"start another sweep with name={folder.name}-2 (or any new name)"
    if has_begun and not plan and not folder.space.exists():
        raise UserError(
            f"{folder}: {folder.plan.name} and {folder.space.name} are both missing, so no file says which space the "
            f"trials were drawn from; put one of them back, or {other_sweep}"
        )
    states: dict[int, dict[int, Any]] = {}  # of the trials of each generation
    for study in studies:
        generation = arm_and_generation(study.study_name)[1]
        for trial in study.get_trials(deepcopy=False):
            states.setdefault(generation, {})[trial.user_attrs["number"]] = trial.state
    for generation in sorted(states):
        if generation <= plan.get("generation", 0):
            continue
        earlier: dict[int, Any] = {}
        for before in range(generation):
            earlier |= states.get(before, {})
        was_used = any(earlier.get(number) != state for number, state in states[generation].items())
        if was_used or not plan:  # otherwise a kill cut off the extension, and its copies of earlier trials are deleted
            raise UserError(
                f"{folder.plan} is {'older than the journal' if plan else 'missing'}: the sweep was extended "
                f"{generation} times, and this file says which space it is in; put the newest copy back, or "
                f"{other_sweep}"
            )


def _changed_by_repair(folder: SweepFolder) -> tuple[Path, ...]:
    return folder.journal, folder.plan, folder.trials, folder.epochs, folder.best
