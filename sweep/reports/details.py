"""The facts of a sweep for `python -m sweep.status`: its counts, costs and best scores, and what its driver has written
to its status file.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from sweep.driver_status import DriverStatus
from sweep.space.search_config import ANSWERED, SCORES
from sweep.storage.reader import END_STATES, Sweep, Trial, continue_command
from sweep.storage.records import IMAGE_BLIND, image_blind_means, mean_values

SHOWN_TRIALS: Final = 10  # open trials in the table
SHOWN_STATES: Final = (*END_STATES, "open")
LATE_SECONDS: Final = 30.0  # if Ray Tune's loop has given no numbers for so long, that is shown
PHASES: Final = {
    "starting": "prepares data and price before the first trial",
    "training": "runs trials",
    "ending": "writes the results",
}
PLAIN: Final[Mapping[str, Any]] = {"box": None, "padding": (0, 2, 0, 0), "pad_edge": False}


def count(trials: Sequence[Trial]) -> dict[str, Any]:
    """Returns the number of trials in each state, and the device-hours of the trials. The device-hours are None if the
    devices of a trial are unknown.
    """
    states = Counter(trial.state for trial in trials)
    seconds = [seconds for trial in trials for seconds in trial.device_seconds.values()]
    known = [value for value in seconds if value is not None]
    hours = sum(known) / 3600 if len(known) == len(seconds) else None
    return {**{state: states[state] for state in SHOWN_STATES}, "device_hours": hours}


def best(sweep: Sweep, numbers: Sequence[int]) -> dict[str, float]:
    """Returns the best value of each goal among the configurations with these numbers."""
    chosen = set(numbers)
    results = [values for number, values in sweep.results().items() if number in chosen]
    if not results:
        return {}
    return {goal: max(values) for goal, values in zip(sweep.goals, zip(*results, strict=True), strict=True)}


def best_trials(sweep: Sweep, numbers: Sequence[int]) -> dict[str, int]:
    """Returns for each goal which of the configurations with these numbers has its best value: the number of the
    configuration's first trial. Of equal configurations it is the earliest.
    """
    chosen = set(numbers)
    results = {number: values for number, values in sweep.results().items() if number in chosen}
    if not results:
        return {}
    return {goal: max(results, key=lambda number: results[number][at]) for at, goal in enumerate(sweep.goals)}


def as_json(sweep: Sweep) -> dict[str, Any]:
    """Returns everything that is known about a sweep, as plain values for JSON."""
    arms = {arm: [number for number, trial in sweep.trials.items() if trial.arm == arm] for arm in sweep.arms}
    compared = [number for number, trial in sweep.trials.items() if trial.arm not in sweep.references]
    return {
        "name": sweep.folder.name,
        "folder": str(sweep.folder.address or sweep.folder.path.absolute()),
        "space": sweep.plan.get("space"),
        "state": sweep.state,
        **count(list(sweep.trials.values())),
        # Device-hours of the whole sweep, counted in the same way as for search.budget_device_hours.
        "device_hours": count([*sweep.trials.values(), *sweep.left_behind.values()])["device_hours"],
        "left_behind": len(sweep.left_behind),
        "planned": sweep.search.get("trials"),
        "planned_device_hours": sweep.planned_hours,
        "budget_device_hours": sweep.search.get("budget_device_hours"),
        "best": best(sweep, compared),
        "best_trials": best_trials(sweep, compared),
        "arms": {
            arm: {
                **count([sweep.trials[number] for number in numbers]),
                "planned_device_hours": sweep.planned_hours_of(arm),
                "best": best(sweep, numbers),
                "best_trials": best_trials(sweep, numbers),
            }
            for arm, numbers in arms.items()
        },
        "seconds_since_last_event": None if sweep.last_event is None else max(time.time() - sweep.last_event, 0.0),
        "drivers": sweep.drivers,
        "driver": driver_as_json(sweep.status),
        "continue": continue_command(sweep),
    }


def driver_as_json(status: DriverStatus | None) -> dict[str, Any] | None:
    """Returns what a driver has said of itself as plain values for JSON, with ages in seconds beside its times."""
    if status is None:
        return None
    now = time.time()
    ages = {"last_sign": status.time, "observation": status.observed, "oldest_unsent_event": status.oldest_unsent}
    ages |= {"results": status.results}
    trials = [asdict(trial) | {"seconds_since_last_sign": _seconds(trial.last_sign, now)} for trial in status.trials]
    content = asdict(status) | {"trials": trials}
    return content | {f"seconds_since_{name}": at and _seconds(at, now) for name, at in ages.items()}


def show_driver(sweep: Sweep, console: Console) -> None:
    """Prints what the driver of a running sweep has said of itself, and its running trials; or that the driver is gone.
    Prints nothing if the sweep has ended, or if its driver has not written a status.
    """
    status = sweep.status
    if status is None or not (sweep.running or sweep.has_died):
        return
    for line in ("", *driver_lines(sweep, status)):
        console.print(line, highlight=False, soft_wrap=True)
    if sweep.running and status.trials:
        console.print("\nopen trials, and how long ago each has reported or was handed out:", highlight=False)
        console.print(trials_table(status))
        more = status.running + status.starting + status.waiting - SHOWN_TRIALS
        if more > 0:
            console.print(f"and {more} more, with later signs", highlight=False)


def driver_lines(sweep: Sweep, status: DriverStatus) -> list[str]:
    """Returns lines about a driver: its last sign of life, its cluster, its trials, what is spent, what is late."""
    sign = f"last sign of life {age(status.age)}"
    if sweep.has_died:
        return [f"its driver ({status.driver}) is gone; {sign}"]
    doing = PHASES.get(status.phase, status.phase)
    lines = [f"{status.driver}: {doing}; {sign}"]
    if sweep.state == "stalled":
        lines += ["it is stopped or hangs, or its machine or its storage is away; what follows is old"]
    if sweep.drivers > 1:
        lines += [f"the sweep's driver has been started {sweep.drivers} times"]
    if status.nodes:
        gpus = f", {status.gpus:g} GPUs" if status.gpus else ""
        machines = f"{status.nodes} machine{'s' * (status.nodes != 1)}"
        lines += [f"{machines}, {status.cpus:g} cores{gpus}; trials: {_trials(status)}"]
    lines += [_spent(sweep, status), _end(status), _late(status), _tracking(status), _results(status)]
    lines += [f"waits: {status.trouble['storage']}"] if "storage" in status.trouble else []
    return [lines[0], *(f"  {line}" for line in lines[1:] if line)]


def trials_table(status: DriverStatus) -> Table:
    """Returns a table of the `SHOWN_TRIALS` open trials with the oldest reports, the oldest first."""
    table = Table("trial", "arm", "epoch", "last sign", **PLAIN)
    for trial in status.trials[:SHOWN_TRIALS]:
        since = age(_seconds(trial.last_sign, time.time()))
        table.add_row(str(trial.number), trial.arm, f"{trial.epoch} of {trial.epochs}", since)
    return table


def image_blind_lines(sweep: Sweep) -> list[str]:
    """Returns a line for each localisation goal: whether a trial beats the maps that ignore the image. Arms that read
    another image at test do not count.
    """
    runs = {
        number: members
        for number, members in sweep.completed().items()
        if members[0].arm not in sweep.references and sweep.goals
    }
    lines = []
    for goal in sweep.goals:
        blind = {number: image_blind_means(members, goal) for number, members in runs.items()}
        lines += against_image_blind(goal, {number: mean_values(runs[number], [goal])[0] for number in runs}, blind)
    return lines


def against_image_blind(
    goal: str, score_of: Mapping[int, float], blind_of: Mapping[int, Mapping[str, float]], luck: float | None = None
) -> list[str]:
    """Returns a line that says whether a trial beats the maps, or answers, that ignore the image, and which trial is
    the best. Returns no line for a goal of classification.

    Args:
        score_of: the score of each trial, by its number.
        blind_of: what ignores the image and its score on the patients of each trial, by its name in `IMAGE_BLIND`.
        luck: by how much the best score is expected to exceed its mean, or None if that is unknown.
    """
    highest = {number: max(blind.values()) for number, blind in blind_of.items() if blind}
    if not highest:
        return []
    best = max(highest, key=lambda number: score_of[number])
    score, level = score_of[best], highest[best]
    name = max(blind_of[best], key=lambda name: blind_of[best][name])
    maps = f"the {'answers' if SCORES.get(goal) in ANSWERED else 'maps'} that ignore the image"
    count = sum(score_of[number] > highest[number] for number in highest)
    if score <= level:
        line = f"no trial beats {maps}: the best trial, {best}, has {score:.3f}, and {level:.3f} is reached"
        return [f"{goal}: {line} {IMAGE_BLIND[name]}"]
    who = f"{count} of {len(highest)} trials beat{'s' * (count == 1)}" if len(highest) > 1 else "the only trial beats"
    line = f"{who} {maps}; the best, trial {best}, has {score:.3f}, and {level:.3f} is reached {IMAGE_BLIND[name]}"
    if luck is not None and score - level <= luck:
        line += f"; the difference is within the luck in the best score ({luck:.3f})"
    return [f"{goal}: {line}"]


def score_of_trial(score: float, number: int) -> str:
    """Returns a score and the trial that has it, such as '0.600 (trial 1)'."""
    return f"{score:.3f} (trial {number})"


def age(seconds: float) -> str:
    """Returns an age for a person to read, such as '12 min ago'."""
    return f"{duration(seconds)} ago"


def duration(seconds: float) -> str:
    """Returns a duration for a person to read, such as '12 min'."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _seconds(since: float, now: float) -> float:
    return max(now - since, 0.0)


def _trials(status: DriverStatus) -> str:
    counts = {"running": status.running, "starting": status.starting, "waiting": status.waiting}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count or state == "running")


def _spent(sweep: Sweep, status: DriverStatus) -> str:
    planned, budget = sweep.planned_hours, sweep.search.get("budget_device_hours")
    bounds = [f"{planned:.3g} planned"] if planned else []
    bounds += [f"a budget of {budget:.3g}"] if budget else []
    return f"{status.device_hours:.3g} device-hours spent" + (f" of {' and '.join(bounds)}" if bounds else "")


def _end(status: DriverStatus) -> str:
    if status.expected_end is None:
        return ""
    left = status.expected_end - time.time()
    clock = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.expected_end))
    when = f"{clock}, in about {duration(left)}" if left > 0 else clock
    return f"expected end: {when}" + f" ({status.expected_by})" * bool(status.expected_by)


def _late(status: DriverStatus) -> str:
    if status.observed is None or status.time - status.observed < LATE_SECONDS:
        return ""
    return f"these numbers were noted {age(_seconds(status.observed, time.time()))}; since then the driver waits"


def _tracking(status: DriverStatus) -> str:
    if not status.unsent:
        return ""
    trouble = f": {status.trouble['tracking']}" if "tracking" in status.trouble else ""
    oldest = age(_seconds(status.oldest_unsent or status.time, time.time()))
    events = f"{status.unsent} event{'s' * (status.unsent != 1)}"
    return f"tracking: {events} not sent yet, the oldest from {oldest}{trouble}"


def _results(status: DriverStatus) -> str:
    trouble = f"not written at the last attempt ({status.trouble['results']})" if "results" in status.trouble else ""
    written = f"as of {age(_seconds(status.results, time.time()))}" if status.results else ""
    return f"tables and report: {'; '.join(filter(None, (trouble, written)))}" if trouble or written else ""
