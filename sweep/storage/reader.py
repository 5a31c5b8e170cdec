"""A sweep seen from outside: what `sweep.status`, `sweep.stop` and `sweep.clean` share, who are not its driver.

Everything is read from the files of its folder, at any moment and on any machine that sees them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mmpkd.near_names import near
from mmpkd.types import Mistake, UserError
from sweep.options import DEFAULT_STORAGE, redact_passwords, run_command
from sweep.storage.events import read_events
from sweep.storage.layout import Storage, SweepFolder
from sweep.storage.lock import is_locked

ENDS: Final = ("complete", "pruned", "failed")


@dataclass
class Trial:
    """A trial as the spool tells of it. `device_seconds` by epoch; None where nobody noted the devices."""

    arm: str
    devices: float | None = None
    repeat_of: int | None = None
    state: str = "open"  # or one of ENDS
    device_seconds: dict[int, float | None] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)  # of its last epoch


@dataclass
class Sweep:
    """A sweep as its folder tells of it; `plan` and `search` are empty before its first start is through."""

    folder: SweepFolder
    running: bool
    plan: Mapping[str, Any]
    search: Mapping[str, Any]  # of space.yaml
    words: list[str] | None = None  # that its driver was last started with
    trials: dict[int, Trial] = field(default_factory=dict)
    left: dict[int, Trial] = field(default_factory=dict)  # of an earlier space, which today's does not hold
    closed: str = ""  # how the last driver left it: FINISHED, KILLED, FAILED
    heard: float | None = None  # time of the last event, seconds since 1970
    damaged: list[str] = field(default_factory=list)  # lines of the spool that were passed over

    @property
    def goals(self) -> list[str]:
        return list(self.plan.get("goals") or self.search.get("maximize") or [])

    @property
    def arms(self) -> list[str]:
        planned = [branch["arm"] for branch in self.plan.get("branches", [])]
        return list(dict.fromkeys([*planned, *(trial.arm for trial in self.trials.values())]))

    @property
    def references(self) -> list[str]:
        """Arms that read another image at test; what they reach is nobody's best."""
        return list(self.plan.get("references", []))

    @property
    def state(self) -> str:
        if self.running:
            return "running" if self.plan else "starting"
        return "finished" if self.closed == "FINISHED" else "stopped"

    def results(self) -> dict[int, list[float]]:
        """Values of the goals of each configuration that completed on all its seeds, means over these."""
        runs: dict[int, list[Trial]] = {}
        for number, trial in self.trials.items():
            if trial.state == "complete" and self.goals and all(goal in trial.metrics for goal in self.goals):
                runs.setdefault(number if trial.repeat_of is None else trial.repeat_of, []).append(trial)
        needed = self.search.get("repeats", 1)
        return {
            number: [statistics.fmean(run.metrics[goal] for run in found) for goal in self.goals]
            for number, found in sorted(runs.items())
            if len(found) >= needed
        }


def unknown(name: str, storage: Storage) -> list[Mistake]:
    """That there is no such sweep, if so."""
    known = [folder.name for folder in storage.sweeps()]
    if name in known:
        return []
    has = f"no sweep {name!r} under {storage}{near(name, known)}"
    return [Mistake("name", has if known else f"{has}, nor any other; another folder is named with storage=DIR")]


def read_sweep(folder: SweepFolder) -> Sweep:
    """A sweep from its files; one that runs may be written to meanwhile.

    Raises:
        UserError: a file cannot be read.
    """
    try:
        running = is_locked(folder.driver_lock)
        plan = folder.read_plan()
        sweep = Sweep(folder, running, plan, folder.read_space().get("search") or {})
        for _, event in read_events(folder.spool, damaged=sweep.damaged):
            _take_in(sweep, event)
        known = [number for number in plan.get("left_behind", ()) if number in sweep.trials]
        sweep.left = {number: sweep.trials.pop(number) for number in known}
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror})") from error
    return sweep


def _take_in(sweep: Sweep, event: Mapping[str, Any]) -> None:
    """What this knows nothing of, it passes over: a newer sweep.run may say more."""
    sweep.heard = event.get("time", sweep.heard)
    match event:
        case {"event": "sweep"}:
            sweep.closed, sweep.words = "", event.get("words", sweep.words)
        case {"event": "start", "number": number, "arm": arm}:
            first = event.get("tags", {}).get("repeat_of")
            trial = sweep.trials.setdefault(number, Trial(arm))
            trial.devices, trial.repeat_of = event.get("devices"), None if first is None else int(first)
        case {"event": "epoch", "number": number, "arm": arm, "epoch": epoch, "seconds": seconds, "metrics": metrics}:
            trial = sweep.trials.setdefault(number, Trial(arm))
            devices = event.get("devices", trial.devices)
            trial.device_seconds.setdefault(epoch, None if devices is None else seconds * devices)
            trial.metrics = metrics
        case {"event": "end", "number": number, "state": state} if number in sweep.trials and state in ENDS:
            sweep.trials[number].state = state
        case {"event": "close", "status": status}:
            sweep.closed = status


def continuing(sweep: Sweep) -> str | None:
    """The command that continues a sweep: as it was started where that leads here, else from its resolved
    space; None where a start got as far as neither."""
    folder, words = SweepFolder(sweep.folder.path.absolute()), sweep.words
    if words is None or not _leads_to(folder, words):
        if not sweep.search:
            return None
        kept = [word for word in words or () if _holds_here(word)]
        words = [f"space={folder.space}", f"name={folder.name}", f"storage={folder.path.parent}", *kept]
    return run_command(map(redact_passwords, words))


def how_to_continue(sweep: Sweep) -> list[str]:
    """Lines for a person, the last of them the command."""
    again = continuing(sweep)
    waiting = sum(trial.state == "open" for trial in sweep.trials.values())
    if again is None:
        return ["it never came to its first trial; start it again as it was started"]
    if sweep.closed == "FINISHED":
        return ["all its trials are done; this with a higher trials=N adds more:", f"  {again}"]
    return [f"{len(sweep.trials) - waiting} trials have ended, {waiting} wait; this continues it:", f"  {again}"]


def _holds_here(word: str) -> bool:
    """Whether it still says where the cache is, or the tracking server, though the sweep was moved."""
    key, _, value = word.partition("=")
    return (key == "cache" and Path(value).is_dir()) or (key == "tracking" and not value.startswith("sqlite"))


def _leads_to(folder: SweepFolder, words: Sequence[str]) -> bool:
    """Whether sweep.run, given these words here, keeps its sweep in `folder`."""
    said = {"space": "demo", "storage": DEFAULT_STORAGE} | dict(word.split("=", 1) for word in words if "=" in word)
    space = Path(said["space"])
    there = not space.suffix or space.is_file()
    return there and (Path(said["storage"]) / said.get("name", space.stem)).absolute() == folder.path
