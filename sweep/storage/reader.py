"""Reads a sweep from its folder, for the commands `sweep.status`, `sweep.stop` and `sweep.clean`.

Only the files of the folder are read. This works at any moment, also while a driver runs, and on any machine with
access to the folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from mmpkd.command import command_lines
from mmpkd.near_names import near
from mmpkd.types import Mistake, UserError
from sweep.driver_status import DriverStatus, read_status
from sweep.options import DEFAULT_STORAGE, redact_passwords, run_command
from sweep.storage.events import (
    EpochEnded,
    Event,
    SweepBegan,
    SweepClosed,
    TrialEnded,
    TrialStarted,
    read_events,
)
from sweep.storage.layout import Storage, SweepFolder
from sweep.storage.lock import driver_of, is_locked
from sweep.storage.records import mean_values, runs_by_configuration

END_STATES: Final = ("complete", "pruned", "failed")


@dataclass
class Trial:
    """A trial as the spool describes it.

    Attributes:
        devices: the share of a GPU that the trial holds, or its number of cores if it holds no GPU. None if an earlier
            version, which did not record this, wrote the spool.
        state: "open", or one of END_STATES.
        device_seconds: device-seconds by epoch. None for epochs on unknown devices.
        metrics: the metrics of the trial's last epoch.
    """

    number: int
    arm: str
    devices: float | None = None
    repeat_of: int | None = None
    state: str = "open"
    device_seconds: dict[int, float | None] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def configuration(self) -> int:
        """The number that identifies the trial's configuration: the number of the first trial that ran the
        configuration.
        """
        return self.number if self.repeat_of is None else self.repeat_of


@dataclass
class Sweep:
    """A sweep as the files of its folder describe it.

    Attributes:
        plan: content of the plan's file. It is empty until the first start has written the file.
        search: the section `search` of the space. It is empty until the first start has written the space.
        words: the command line with which a driver was last started.
        cluster: the address of the Ray cluster on which it was last started; empty for one machine.
        trials: the trials of the present space, by number.
        left_behind: trials of an earlier space that the present space does not contain.
        closed: how the last driver ended: FINISHED, KILLED or FAILED. It is empty while a driver runs, or if the last
            driver died.
        last_event: time of the last event, in seconds since 1970.
        drivers: number of drivers that have run the sweep, one after another.
        status: what the last driver has shown of itself, or None if it has shown nothing.
        damaged: places of the damaged lines of the spool, which were skipped.
        read_to: the byte of the spool up to which its events were read.
    """

    folder: SweepFolder
    running: bool
    plan: Mapping[str, Any]
    search: Mapping[str, Any]
    words: list[str] | None = None
    cluster: str = ""
    trials: dict[int, Trial] = field(default_factory=dict)
    left_behind: dict[int, Trial] = field(default_factory=dict)
    closed: str = ""
    last_event: float | None = None
    drivers: int = 0
    status: DriverStatus | None = None
    damaged: list[str] = field(default_factory=list)
    read_to: int = 0

    @property
    def goals(self) -> list[str]:
        return list(self.plan.get("goals") or self.search.get("maximize") or [])

    @property
    def arms(self) -> list[str]:
        planned = [branch["arm"] for branch in self.plan.get("branches", [])]
        return list(dict.fromkeys([*planned, *(trial.arm for trial in self.trials.values())]))

    @property
    def references(self) -> list[str]:
        """Names of the arms in which the student reads another image at test. Their values never count as the sweep's
        best.
        """
        return list(self.plan.get("references", []))

    @property
    def state(self) -> str:
        """running, stalled (its driver has not given a sign of life for a minute), starting, finished or stopped."""
        if not self.running:
            return "finished" if self.closed == "FINISHED" else "stopped"
        if self.status is None:  # an earlier version, which writes no status, may be running it
            return "running" if self.plan else "starting"
        if self.status.is_alive:
            return "starting" if self.status.phase == "starting" else "running"
        is_of_this_driver = self.status.driver == driver_of(self.folder)
        return "stalled" if is_of_this_driver and self.status.phase != "ended" else "starting"

    @property
    def has_died(self) -> bool:
        """Whether the last driver is gone without having ended in good order, as far as this machine can see."""
        return not self.running and self.status is not None and self.status.phase != "ended"

    @property
    def planned_hours(self) -> float | None:
        """The price of the sweep in device-hours, with early stopping, as the plan has it. None if it has no price."""
        return (self.plan.get("price") or {}).get("hours_halving")

    def planned_hours_of(self, arm: str) -> float | None:
        """Returns the price of an arm in device-hours. Returns None if the plan has none; earlier versions stored only
        the price of the whole sweep.
        """
        prices = (self.plan.get("price") or {}).get("arms", ())
        return next((price.get("hours_halving") for price in prices if price["arm"] == arm), None)

    def completed(self) -> dict[int, list[Trial]]:
        """Returns the runs of each configuration that completed on all its seeds, by the number of its first trial."""
        complete = [
            trial
            for trial in self.trials.values()
            if trial.state == "complete" and all(goal in trial.metrics for goal in self.goals)
        ]
        return dict(sorted(runs_by_configuration(complete, at_least=self.search.get("repeats", 1)).items()))

    def results(self) -> dict[int, tuple[float, ...]]:
        """Returns the values of the goals for each configuration that completed on all its seeds, as means over the
        seeds.
        """
        if not self.goals:
            return {}
        return {number: mean_values(members, self.goals) for number, members in self.completed().items()}


def check_exists(name: str, storage: Storage) -> list[Mistake]:
    """Returns a list with a mistake if the storage has no sweep of this name, or the name is empty, and an empty list
    otherwise.
    """
    names = [folder.name for folder in storage.sweeps()]
    if not name:
        return [Mistake("NAME", f"which sweep? under {storage}: {', '.join(names) or 'none'}")]
    if name in names:
        return []
    problem = f"no sweep {name!r} under {storage}{near(name, names)}"
    return [Mistake("name", problem if names else f"{problem}, nor any other; name another folder with storage=DIR")]


def is_running(folder: SweepFolder) -> bool:
    """Returns whether a driver runs the sweep.

    Usually the driver's lock says so. A lock on another machine may be invisible, and a copy of a folder has no lock.
    Then the driver runs if it has given a sign of life within the last minute.

    Raises:
        UserError: the lock file cannot be read.
    """
    if is_locked(folder.driver_lock):
        return True
    status = read_status(folder)
    lock_is_visible = status is not None and status.is_of_this_machine and folder.driver_lock.exists()
    return status is not None and status.is_alive and not lock_is_visible


def read_sweep(folder: SweepFolder, earlier: Sweep | None = None) -> Sweep:
    """Reads a sweep from its files. A driver may write to the files at the same time.

    Args:
        earlier: the sweep as it was read before. Of the spool only what was appended since then is read. The earlier
            sweep must not be used afterwards.

    Raises:
        UserError: a file cannot be read.
    """
    try:
        running = is_running(folder)
        plan = folder.read_plan()
        sweep = Sweep(folder, running, plan, folder.read_space().get("search") or {}, status=read_status(folder))
        size = folder.spool.stat().st_size if folder.spool.exists() else 0
        if earlier is not None and 0 < earlier.read_to <= size:  # a shorter spool is another one
            fresh, trials = sweep, dict(sorted({**earlier.trials, **earlier.left_behind}.items()))
            sweep = replace(earlier, running=running, plan=plan, search=fresh.search, status=fresh.status)
            sweep.trials, sweep.left_behind = trials, {}
        damaged: list[str] = []
        begin = sweep.read_to
        for end, event in read_events(folder.spool, begin, damaged):
            _add_event(sweep, event)
            sweep.read_to = end
        # Lines are counted from `begin`, so that only the first reading knows their numbers.
        places = [place.partition("(")[2].rstrip(")") if begin else place for place in damaged]
        sweep.damaged += [place for place in places if not any(place in known for known in sweep.damaged)]
        numbers = [number for number in plan.get("left_behind", ()) if number in sweep.trials]
        sweep.left_behind = {number: sweep.trials.pop(number) for number in numbers}
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror})") from error
    return sweep


def _add_event(sweep: Sweep, event: Event) -> None:
    sweep.last_event = event.time
    match event:
        case SweepBegan():
            sweep.closed = ""
            sweep.drivers += 1
            sweep.words = sweep.words if event.words is None else event.words
            sweep.cluster = event.cluster
        case TrialStarted():
            first = event.tags.get("repeat_of")
            trial = sweep.trials.setdefault(event.number, Trial(event.number, event.arm))
            trial.devices, trial.repeat_of = event.devices, None if first is None else int(first)
        case EpochEnded():
            trial = sweep.trials.setdefault(event.number, Trial(event.number, event.arm))
            devices = trial.devices if event.devices is None else event.devices
            trial.device_seconds.setdefault(event.epoch, None if devices is None else event.seconds * devices)
            trial.metrics = event.metrics
        case TrialEnded() if event.number in sweep.trials and event.state in END_STATES:
            sweep.trials[event.number].state = event.state
        case SweepClosed():
            sweep.closed = event.status


def continue_command(sweep: Sweep) -> str | None:
    """Returns the command that continues the sweep.

    The command repeats the words of the last start if these words still lead to the sweep's folder. Otherwise it names
    the file of the resolved space. Returns None if the sweep has neither such words nor this file.
    """
    folder, words = SweepFolder(sweep.folder.path.absolute()), sweep.words
    if sweep.folder.address:  # the command may have to run on another machine, so the space's file is not looked for
        return None if words is None else run_command(_at_address(words, sweep.folder), sweep.cluster)
    if words is None or not _leads_to(folder, words):
        if not sweep.search:
            return None
        kept = [word for word in words or () if _is_still_valid(word)]
        words = [f"space={folder.space}", f"name={folder.name}", f"storage={folder.path.parent}", *kept]
    return run_command(map(redact_passwords, words), sweep.cluster)


def _at_address(words: Sequence[str], folder: SweepFolder) -> list[str]:
    """Returns the words of an earlier command line for the address at which the sweep lies now."""
    assert folder.address
    storage = replace(folder.address, path=folder.address.path.removesuffix(f"/{folder.name}"))
    kept = [word for word in words if not word.startswith(("storage=", "name="))]
    return [*map(redact_passwords, kept), f"storage={storage}", f"name={folder.name}"]


def how_to_continue(sweep: Sweep) -> list[str]:
    """Returns lines that tell the user how to continue the sweep. The last ones are the command."""
    command = continue_command(sweep)
    num_open = sum(trial.state == "open" for trial in sweep.trials.values())
    if command is None:
        return ["it did not reach its first trial; start it again with the same command"]
    if sweep.closed == "FINISHED":
        return ["all its trials are done; this command, with a higher trials=N, adds more:", *command_lines(command)]
    num_ended = len(sweep.trials) - num_open
    ended = f"{num_ended} trials have ended, {num_open} are open; this command continues it:"
    return [ended, *command_lines(command)]


def _is_still_valid(word: str) -> bool:
    """Returns whether a word of an earlier command line still names the right cache or tracking server, which it may
    not do if the sweep's folder was moved.
    """
    key, _, value = word.partition("=")
    return (key == "cache" and Path(value).is_dir()) or (key == "tracking" and not value.startswith("sqlite"))


def _leads_to(folder: SweepFolder, words: Sequence[str]) -> bool:
    """Returns whether `python -m sweep.run` with these words, started in the working directory, would use this
    folder.
    """
    values = {"space": "demo", "storage": DEFAULT_STORAGE} | dict(word.split("=", 1) for word in words if "=" in word)
    space = Path(values["space"])
    has_space = not space.suffix or space.is_file()
    return has_space and (Path(values["storage"]) / values.get("name", space.stem)).absolute() == folder.path
