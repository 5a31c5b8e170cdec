"""Keeps the state of a sweep: its trials, the budget that they have spent, and what the samplers have learned from
them.

The Optuna storage decides what is true. The spool, the file of events, holds the same facts and also every epoch. Both
are written as soon as something happens. The order of the writes lets the next driver complete the missing ones if this
driver is killed between two writes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmpkd.config import TrialConfig
from sweep.arm_styles import arm_styles
from sweep.pareto import Contenders
from sweep.search.budget import Ledger, Plateau
from sweep.search.imputation import Imputation
from sweep.search.proposals import ArmSampler, Proposal, SamplerThread
from sweep.search.repeats import PendingRepeat, Repeats
from sweep.search.studies import Studies
from sweep.selection import rule_of
from sweep.space.space import Space
from sweep.storage.events import EpochEnded, Spool, TrialEnded, TrialStarted
from sweep.storage.layout import SweepFolder
from sweep.tracking.trial_run import params_of, run_name, tags_of
from sweep.types import Ending, Record, State, Values


@dataclass
class Reported:
    """What a trial has reported so far, in all its attempts. Each epoch counts once, as it was first reported.

    Attributes:
        metrics: the metrics of the last reported epoch, or None if no epoch was reported.
    """

    epoch: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0
    metrics: Mapping[str, float] | None = None

    def add(self, epoch: int, seconds: float, devices: float, metrics: Mapping[str, float]) -> None:
        self.epoch, self.metrics = epoch, metrics
        self.seconds += seconds
        self.device_seconds += seconds * devices


@dataclass
class RunningTrial:
    """A trial that was given to a worker.

    Attributes:
        last_sign: when it last reported or, if it has not, when it was handed out; in seconds since 1970.
    """

    number: int
    proposal: Proposal
    config: TrialConfig
    reported: Reported
    last_sign: float = field(default_factory=time.time)


class SweepState:
    """The state of a sweep. It is rebuilt from storage and spool when a driver starts; from then on it records every
    event.

    Attributes:
        finished: the finished trials, by number.
        interrupted: numbers of the trials that were running when a driver ended. They are handed out again.
        awaiting_seeds: complete configurations with unfinished runs on further seeds, by number.

    Args:
        known: results of another sweep, which are used only to teach the samplers.
        lost: numbers of trials that the Optuna journal has lost; see `storage/integrity.py`.
    """

    def __init__(
        self,
        space: Space,
        goals: Sequence[str],
        studies: Studies,
        spool: Spool,
        folder: SweepFolder,
        known: Iterable[tuple[Proposal, Values]] = (),
        lost: Collection[int] = (),
    ):
        arms = list(space.arms)
        self._colours = {arm: style.colour for arm, style in arm_styles(arms).items()}
        self.goals, self.studies, self._spool, self._folder = tuple(goals), studies, spool, folder
        self.ledger = Ledger(space.shares, space.search.equal)
        self.plateau = Plateau(arms, goals, space.search.plateau)
        self.repeats = Repeats(arms, goals, space.search.repeats)
        self.samplers = SamplerThread({arm: ArmSampler(space, arm, goals) for arm in arms})
        self._imputation = Imputation(arms)
        self.finished: dict[int, Record] = {}
        self.interrupted: list[int] = []
        self.awaiting_seeds: dict[int, Proposal] = {}
        # References have a front of their own, so that none of them displaces a trial that can be chosen.
        select = [self.goals.index(goal) for goal in rule_of(space.search.select).goals]
        self._contenders = {is_reference: Contenders(select) for is_reference in (False, True)}
        self._reported: dict[int, Reported] = defaultdict(Reported)  # by number, as the spool has it
        self._announced: set[int] = set()  # numbers of trials with a TrialStarted event in the spool
        self._lost = set(lost)
        self._keeps_all = space.search.keep == "all"
        for proposal, values in known:  # before this sweep's own trials, as when the sweep began
            self.samplers.add_trial(proposal, values)
        self._restore()

    def _restore(self) -> None:
        """Rebuilds the state from storage and spool, and makes the writes that a killed driver left undone."""
        ended = self._read_spool()
        records = {record.number: record for record in self.studies.records()}
        # If an older journal was put back, the spool may hold the end of a trial that runs in the journal.
        # Such a trial runs again.
        ended = [number for number in ended if number not in records or records[number].state != "running"]
        known_ends = set(ended)
        self._restore_left_behind(known_ends)
        reported = self._reported.items()
        self.ledger.left_behind = sum(trial.device_seconds for number, trial in reported if number not in records)
        finished = [number for number, record in records.items() if record.state != "running"]
        missing = [number for number in finished if number not in known_ends]
        settled: dict[int, Values | None] = {}
        for number in [*(number for number in ended if number in records), *missing]:
            settled |= self._settle(records[number])
        for number in missing:
            if number not in self._announced:  # the spool was lost
                record, proposal = records[number], self.studies.proposal(number)
                self.hand_out(number, proposal, TrialConfig.model_validate_json(record.config), 0.0)
            self.spool_end(records[number])
        for number in sorted(self._lost & (self._announced - known_ends)):
            self._spool.append(TrialEnded(number, "failed", error="the journal has lost it", cause="lost"))
        for number, record in records.items():
            self.ledger.spend(record.arm, max(self._reported[number].device_seconds, record.device_seconds))
            if record.state == "running":
                self.interrupted.append(number)
            if record.repeat_of is not None:
                self.repeats.mark_started(PendingRepeat(record.repeat_of, record.turn))
                continue
            self.ledger.start(record.arm)
            proposal, unsettled = self.studies.proposal(number), record.state == "running"
            if number in self.repeats.unsettled:
                self.awaiting_seeds[number], unsettled = proposal, True
            learned = None if unsettled else settled.get(number) or self.studies.learned(number)
            self.samplers.add_trial(proposal, learned, unsettled)
        self._next = max([self.studies.next_number, *(number + 1 for number in self._lost)])

    def _read_spool(self) -> list[int]:
        """Reads starts and epochs from the spool, and returns the numbers of the trials that have ended, in order."""
        ended = []
        for _, event in self._spool.read():
            match event:
                case EpochEnded():
                    self._reported[event.number].add(event.epoch, event.seconds, event.devices or 0.0, event.metrics)
                case TrialStarted():
                    self._announced.add(event.number)
                case TrialEnded():
                    ended.append(event.number)
        return ended

    def _restore_left_behind(self, ended: Collection[int]) -> None:
        """Ends the trials of earlier spaces that the present space does not contain."""
        for record in self.studies.end_left_behind():
            if record.number in self._announced and record.number not in ended:
                self.spool_end(record)
            if record.state != "complete":  # another extension may bring a complete trial back, onto the front
                self._folder.delete_checkpoints(record.number)

    def start(self, proposal: Proposal, config: TrialConfig, repeat: PendingRepeat | None = None) -> int:
        """Records a new trial as running, and returns its number."""
        number, self._next = self._next, self._next + 1
        if repeat is None:
            self.studies.start(number, proposal, config)
            self.ledger.start(proposal.arm)
        else:
            self.studies.start(number, proposal, config, repeat.configuration, repeat.turn)
        return number

    @property
    def num_started(self) -> int:
        """The number of configurations that have been started."""
        return sum(self.ledger.started.values())

    @property
    def left_behind(self) -> list[int]:
        """Numbers of trials that no longer belong to the sweep, because the extended space does not contain them or
        because the journal lost them.
        """
        return sorted({*self.studies.left_behind, *self._lost})

    @property
    def next_number(self) -> int:
        return self._next

    def hand_out(self, number: int, proposal: Proposal, config: TrialConfig, devices: float) -> RunningTrial:
        """Returns a trial that begins to run now. The start is written to the spool only if the trial has never run
        before.
        """
        if number not in self._announced:
            self._announced.add(number)
            arm, drawn, record = proposal.arm, proposal.drawn, self.studies.record(number)
            self._spool.append(
                TrialStarted(
                    number,
                    arm,
                    params_of(drawn, config),
                    tags_of(config, record.repeat_of),
                    devices,
                    run_name(number, arm, drawn, record.repeat_of, record.turn),
                    self._colours.get(arm, ""),
                    record.config,
                )
            )
        return RunningTrial(number, proposal, config, self._reported[number])

    def record_epochs(self, trial: RunningTrial, reports: Sequence[Mapping[str, Any]], devices: float) -> None:
        """Records new epochs of a trial.

        An epoch that the trial has reported before is neither recorded nor charged again: a trial that continues from a
        checkpoint reports its earlier epochs again, and trains those again that the checkpoint does not hold.
        """
        trial.last_sign = time.time()
        for report in reports:
            epoch, seconds, metrics = report["epoch"], report["seconds"], report["metrics"]
            if epoch > trial.reported.epoch:
                trial.reported.add(epoch, seconds, devices, metrics)
                self.ledger.spend(trial.proposal.arm, seconds * devices)
                event = {"epoch": epoch, "seconds": seconds, "metrics": metrics, "terms": report["terms"]}
                self._spool.append(EpochEnded(number=trial.number, arm=trial.proposal.arm, devices=devices, **event))

    def end(self, trial: RunningTrial, state: State, error: str = "", cause: str = "") -> None:
        """Records the end of a trial. If the driver is killed between two of these writes, the next driver's `_restore`
        completes them.
        """
        reported, metrics = trial.reported, dict(trial.reported.metrics or {})
        values = tuple(metrics[goal] for goal in self.goals) if metrics else None
        by_rung = self.studies.values_by_rung(trial.number) or ({reported.epoch: values} if values else {})
        learned = self._imputation.learned(trial.proposal.arm, state, cause, by_rung)
        spent = reported.epoch, reported.seconds, reported.device_seconds, metrics
        self.studies.end(trial.number, Ending(state, *spent, error, cause, learned))
        record = self.studies.record(trial.number)
        self.spool_end(record)
        if record.repeat_of is None:
            self.awaiting_seeds[record.number] = trial.proposal
        for number, settled_values in self._settle(record).items():
            self.samplers.learn(self.awaiting_seeds.pop(number), settled_values)

    def spool_end(self, record: Record) -> None:
        """Writes the end of a trial to the spool."""
        errors = {name: record.metrics[name] for name in map("{}_se".format, self.goals) if name in record.metrics}
        scores = {**errors, "device_hours": record.device_seconds / 3600}
        self._spool.append(TrialEnded(record.number, record.state, record.error, record.cause, scores))

    def _settle(self, record: Record) -> dict[int, Values | None]:
        """Adds a finished trial to the sweep's results, and deletes the checkpoints that are no longer needed.

        A trial keeps its checkpoints if it is on the front or near the choice of `search.select` (see
        `pareto.Contenders`), or may become so. With `search.keep=all` every complete trial keeps them.

        Returns:
            The number of the configuration that the trial settles, mapped to the values that the sampler learns from
            it, or to None if the sampler learns nothing. The mapping is empty if the trial settles no configuration,
            for example because runs of its configuration on further seeds have not ended.
        """
        number, arm, configuration = record.number, record.arm, record.configuration
        is_repeat, complete = record.repeat_of is not None, record.state == "complete"
        self.finished[number] = record
        self.ledger.add_finished(record)
        settled: dict[int, Values | None] = {}
        needless = [number] if is_repeat or not complete else []
        if is_repeat and configuration not in self.repeats.unsettled:
            pass  # an extension has brought back better trials, which dominate the configuration
        elif complete or is_repeat:
            if complete and not is_repeat:
                self._imputation.add_complete(arm, self.studies.values_by_rung(number), record.values(self.goals))
            if (settlement := self.repeats.add(record)) is not None:
                _, means = settlement
                settled[configuration] = means
                self.plateau.add(arm, configuration, means)
                contenders = self._contenders[record.reference]
                needless += [configuration] if means is None else contenders.add(configuration, means)
        else:
            learned = settled[number] = self.studies.learned(number)
            if learned is not None:
                self._imputation.add_values(arm, learned)
        for needless_number in needless:
            if not (self._keeps_all and self.finished[needless_number].state == "complete"):
                self._folder.delete_checkpoints(needless_number)
        return settled
