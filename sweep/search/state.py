"""What a sweep knows of its trials, what it has spent on them, and what its samplers were told.

The Optuna storage is the truth; the spool has the same with every epoch. Both are written at the
moment that something happens, in an order that lets the next driver do whatever is missing, should
this one be killed between two lines.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpkd.config import TrialConfig
from sweep.pareto import admit
from sweep.search.budget import Ledger, Plateau
from sweep.search.imputation import Outcomes
from sweep.search.repeats import Due, Seeds
from sweep.search.samplers import Proposal, Sampling, Sight
from sweep.search.studies import Studies, resolved
from sweep.space.space import Space
from sweep.storage.events import Spool
from sweep.types import Ending, Record, State, Values
from sweep.workers.worker import checkpoints_of


@dataclass
class Live:
    """A trial in flight, and what its last epoch said."""

    number: int
    proposal: Proposal
    config: TrialConfig
    device_seconds: float = 0.0
    epoch: int = 0
    seconds: float = 0.0
    metrics: Mapping[str, float] | None = None


class Books:
    """Takes up where the last driver stopped, at whichever line it was killed.

    Attributes:
        finished: trials by number.
        orphans: numbers of those that were running, to be started again.
        started: configurations.
        waiting: complete configurations whose further seeds are not all in, as they were proposed.

    Args:
        known: another sweep's results, for the samplers only.
        lost: numbers of trials that the journal has lost; see `belonging.py`.
    """

    def __init__(
        self,
        space: Space,
        goals: Sequence[str],
        studies: Studies,
        spool: Spool,
        folder: Path,
        known: Iterable[tuple[Proposal, Values]] = (),
        lost: Collection[int] = (),
    ):
        arms = list(space.arms)
        self.goals, self.studies, self._spool, self._folder = tuple(goals), studies, spool, folder
        self.ledger = Ledger(space.shares)
        self.plateau = Plateau(arms, goals, space.search.plateau)
        self.seeds = Seeds(arms, goals, space.search.repeats)
        self.sampling = Sampling({arm: Sight(space, arm, goals) for arm in arms})
        self._outcomes = Outcomes(arms)
        self.finished: dict[int, Record] = {}
        self.orphans: list[int] = []
        self.waiting: dict[int, Proposal] = {}
        self._front: dict[int, Values] = {}
        self._heard: dict[int, tuple[int, float]] = {}  # number -> last epoch in the spool, device-seconds
        self._announced: set[int] = set()
        self._lost = set(lost)
        for proposal, values in known:  # before our own, as they were when the sweep began
            self.sampling.recall(proposal, values)
        self._catch_up()

    def _catch_up(self) -> None:
        ended: list[int] = []
        for _, event in self._spool.read():
            if event["event"] == "epoch":
                epoch, seconds = self._heard.get(event["number"], (0, 0.0))
                spent = seconds + event["seconds"] * event["devices"]
                self._heard[event["number"]] = max(event["epoch"], epoch), spent
            elif event["event"] == "start":
                self._announced.add(event["number"])
            elif event["event"] == "end":
                ended.append(event["number"])
        records = {record.number: record for record in self.studies.records()}
        # None that runs has ended, unless the journal is an older one put back, in which it runs again.
        ended = [number for number in ended if number not in records or records[number].state != "running"]
        said = set(ended)
        for record in self.studies.settle_earlier():
            if record.number in self._announced - said:
                self._say_end(record)
            if record.state != "complete":  # it might return with another extension, to the front
                shutil.rmtree(checkpoints_of(self._folder, record.number), ignore_errors=True)
        self.ledger.before = sum(spent for number, (_, spent) in self._heard.items() if number not in records)
        unsaid = [number for number, record in records.items() if record.state != "running" and number not in said]
        settled: dict[int, Values | None] = {}
        for number in [*(number for number in ended if number in records), *unsaid]:
            settled |= self._file(records[number])
        for number in unsaid:
            if number not in self._announced:  # the spool was lost
                record, proposal = records[number], self.studies.proposal(number)
                self.announce(number, proposal, TrialConfig.model_validate_json(record.config), 0.0)
            self._say_end(records[number])
        for number in sorted(self._lost & (self._announced - said)):
            self._spool.append("end", number=number, state="failed", error="the journal has lost it", cause="lost")
        for number, record in records.items():
            self.ledger.spend(record.arm, max(self._heard.get(number, (0, 0.0))[1], record.device_seconds))
            if record.state == "running":
                self.orphans.append(number)
            if record.repeat_of is not None:
                self.seeds.started(Due(record.repeat_of, record.turn))
                continue
            proposal, unsettled = self.studies.proposal(number), record.state == "running"
            if number in self.seeds.waited_for:
                self.waiting[number], unsettled = proposal, True
            learned = None if unsettled else settled.get(number) or self.studies.learned(number)
            self.sampling.recall(proposal, learned, unsettled)
        self.started = sum(record.repeat_of is None for record in records.values())
        self._next = max([self.studies.next_number, *(number + 1 for number in self._lost)])

    def start(self, proposal: Proposal, config: TrialConfig, due: Due | None = None) -> int:
        """Records a new trial, and gives it its number."""
        number, self._next = self._next, self._next + 1
        if due is None:
            self.studies.start(number, proposal, config)
            self.started += 1
        else:
            self.studies.start(number, proposal, config, due.number, due.turn)
        return number

    @property
    def left_behind(self) -> list[int]:
        """Numbers that are no trials of today's: an extension left them out, or the journal has lost them."""
        return sorted({*self.studies.left_behind, *self._lost})

    @property
    def next_number(self) -> int:
        return self._next

    def announce(self, number: int, proposal: Proposal, config: TrialConfig, devices: float) -> Live:
        """A trial is handed out; only the first time is worth telling."""
        if number not in self._announced:
            self._announced.add(number)
            tags = _tags(config, self.studies.record(number).repeat_of)
            params = resolved(proposal.drawn)
            self._spool.append("start", number=number, arm=proposal.arm, params=params, tags=tags, devices=devices)
        return Live(number, proposal, config, device_seconds=self._heard.get(number, (0, 0.0))[1])

    def hear(self, live: Live, reports: Sequence[Mapping[str, Any]], devices: float) -> None:
        """Takes in epochs; those that an earlier driver heard of are not told, nor paid, twice."""
        for report in reports:
            if report["epoch"] <= live.epoch:
                continue
            live.epoch = report["epoch"]
            live.seconds += report["seconds"]
            live.metrics = report["metrics"]
            if report["epoch"] > self._heard.get(live.number, (0, 0.0))[0]:
                live.device_seconds += report["seconds"] * devices
                self.ledger.spend(live.proposal.arm, report["seconds"] * devices)
                self._heard[live.number] = report["epoch"], live.device_seconds
                told = {key: report[key] for key in ("epoch", "seconds", "metrics", "terms")}
                self._spool.append("epoch", number=live.number, arm=live.proposal.arm, devices=devices, **told)

    def close(self, live: Live, state: State, error: str = "", cause: str = "") -> None:
        """In this order: should the driver die between two lines, `_catch_up` does the rest."""
        values = tuple(live.metrics[goal] for goal in self.goals) if live.metrics else None
        reached = self.studies.reached(live.number) or ({live.epoch: values} if values else {})
        learned = self._outcomes.learned(live.proposal.arm, state, cause, reached)
        spent = live.epoch, live.seconds, live.device_seconds, dict(live.metrics or {})
        self.studies.close(live.number, Ending(state, *spent, error, cause, learned))
        record = self.studies.record(live.number)
        self._say_end(record)
        if record.repeat_of is None:
            self.waiting[record.number] = live.proposal
        for number, told in self._file(record).items():
            self.sampling.learn(self.waiting.pop(number), told)

    def _say_end(self, record: Record) -> None:
        self._spool.append("end", number=record.number, state=record.state, error=record.error, cause=record.cause)

    def _file(self, record: Record) -> dict[int, Values | None]:
        """Takes a finished trial in; the configurations that are settled by it, and what their sampler is told.

        A trial leaves its checkpoints if it is on the front, or may come to be; whoever is not loses them.
        """
        number, arm = record.number, record.arm
        self.finished[number] = record
        self.ledger.finish(record)
        first = number if record.repeat_of is None else record.repeat_of
        leaving = [number] if first != number or record.state != "complete" else []
        told: dict[int, Values | None] = {}
        if record.state == "complete" and first == number:
            self._outcomes.complete(arm, self.studies.reached(number), record.values(self.goals))
        if first != number and first not in self.seeds.waited_for:
            told = {}  # an extension has brought back what is better than its configuration
        elif record.state == "complete" or first != number:
            told = dict([settled]) if (settled := self.seeds.finish(record)) else {}
            for settled_first, means in told.items():
                self.plateau.add(arm, settled_first, means)
                leaving += [settled_first] if means is None else admit(self._front, settled_first, means)
        else:
            told = {number: self.studies.learned(number)}
            if (learned := told[number]) is not None:
                self._outcomes.see(arm, learned)
        for one in leaving:
            shutil.rmtree(checkpoints_of(self._folder, one), ignore_errors=True)
        return told


def _tags(config: TrialConfig, repeat_of: int | None) -> dict[str, str]:
    """What a run is marked with in the tracking: whose seed it repeats, the names of columns and sections
    that nearly state the label, if taught from, and the teachers whose answers are shuffled."""
    columns = {name for one in config.active_teachers() for name in _near_label(config.teachers[one].params)}
    tags = {"near_label": ", ".join(sorted(columns))} if columns else {}
    if shuffled := [name for name in config.active_teachers() if config.teachers[name].control]:
        tags["shuffled"] = ", ".join(shuffled)
    return tags if repeat_of is None else tags | {"repeat_of": str(repeat_of)}


def _near_label(params: Mapping[str, Any]) -> list[str]:
    """Of a teacher or, in an ensemble, of its members."""
    members = [name for one in params.get("members", {}).values() for name in _near_label(one.get("params", {}))]
    return [*params.get("near_label", ()), *members]
