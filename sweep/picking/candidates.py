"""Reads the trials of a sweep among which a person picks, and says why a trial cannot be picked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmpkd.config import CohortConfig, TrialConfig, validate
from mmpkd.near_names import near
from mmpkd.types import ConfigError, Mistake, UserError
from sweep.reports.choosing import with_estimates
from sweep.search.studies import records_of
from sweep.selection import Selection, rule_of
from sweep.space.search_config import SCORES
from sweep.space.space import Space, load_space
from sweep.storage.integrity import losses_for_reader
from sweep.storage.journal import find_damage, load_studies
from sweep.storage.layout import SweepFolder
from sweep.storage.losses import listed, read_traces
from sweep.storage.reader import END_STATES, Sweep, continue_command, read_sweep
from sweep.storage.records import candidates, comparable
from sweep.transfer.views import fetch
from sweep.types import Record

NUM_NEAR = 3  # numbers of other trials in a message


@dataclass(frozen=True)
class Candidates:
    """The trials of a sweep as they are compared.

    Attributes:
        sweep: the sweep as its files describe it.
        records: every trial of the present space, ordered by number.
        shown: the configurations that may be compared, with estimates or with means over seeds.
        goals: the goals of the sweep, and further scores that every complete trial has.
        cohort: the cohort as the last driver was given it; the data may have been moved since a trial began.
        lost: lines on trials that the sweep's journal has lost, so that they are not among the records.
    """

    sweep: Sweep
    space: Space
    records: Sequence[Record]
    shown: Sequence[Record]
    goals: Sequence[str]
    cohort: CohortConfig
    lost: Sequence[str] = ()

    @property
    def rule(self) -> Selection:
        """The rule of the sweep itself, which chooses the trial of best.yaml."""
        return rule_of(self.space.search.select)

    def config_of(self, record: Record) -> TrialConfig:
        """Returns the configuration of a trial, as best.yaml would hold it."""
        return TrialConfig.model_validate_json(record.config).model_copy(update={"cohort": self.cohort})

    def unknown_goals(self, rule: Mapping[str, str]) -> list[Mistake]:
        """Returns a mistake for each goal of the command line that not every complete trial has, by its key."""
        mistakes = []
        for key, goal in rule.items():
            if goal and goal not in self.goals:
                lacking = {record.number for record in candidates(self.shown) if not _has(record, goal)}
                problem = f"the sweep has no score {goal!r}"
                if len(lacking) < len(candidates(self.shown)):
                    problem = f"not every complete trial has {goal} (trials {listed(lacking)} lack it)"
                mistakes.append(Mistake(key, f"{problem}{near(goal, self.goals)}"))
        return mistakes

    def refuse_losses(self) -> None:
        """Checks that the journal has lost no trial, because a rule that compares the others may choose another one.

        Raises:
            UserError: it has, and no driver runs that would know better.
        """
        if self.lost and not self.sweep.running:
            alone = "trial=N picks a complete trial by its number all the same"
            raise UserError(f"{_loss(self.sweep, self.lost)}\n{alone}")

    def trial(self, number: int) -> Record:
        """Returns a complete trial by its number.

        Raises:
            ConfigError: there is no such trial, or it cannot be picked; the message says why, and what to do.
        """
        by_number = {record.number: record for record in self.records}
        record = next((record for record in self.shown if record.number == number), by_number.get(number))
        if number in self.sweep.left_behind:
            problem = f"trial {number} lies outside the extended space (extend=true), so it is compared with no trial"
            raise ConfigError.at("trial", f"{problem}; pick another, such as {self._near(number)}")
        if record is None:
            numbers = sorted(by_number)
            there = f"{len(numbers)} trials, numbered {numbers[0]} to {numbers[-1]}" if numbers else "no trials yet"
            advice = f"; pick a complete trial, such as {self._near(number)}" if candidates(self.shown) else ""
            raise ConfigError.at("trial", f"{self.sweep.folder.name} has no trial {number}, but {there}{advice}")
        if problem := self._problem(record):
            raise ConfigError.at("trial", problem)
        return record

    def _problem(self, record: Record) -> str:
        """Returns why a trial cannot be picked, and what to do, or an empty text."""
        number, folder = record.number, self.sweep.folder
        other = f"pick a complete trial, such as {self._near(number)}" if candidates(self.shown) else ""
        if record.state == "pruned":
            return f"trial {number} was pruned after epoch {record.epochs}, so it has no student; {other}"
        if record.state == "failed":
            where = f" (see {folder.shared_error(number)})" if folder.shared_error(number).exists() else ""
            return f"trial {number} failed: {record.error}{where}; {other}"
        if record.state == "running":
            command = continue_command(self.sweep)
            wait = "wait for its end" if self.sweep.running or command is None else f"this continues it: {command}"
            return f"trial {number} has not ended; {wait}"
        if record.repeat_of is not None:
            first = record.repeat_of
            return f"trial {number} runs the configuration of trial {first} on another seed; write trial={first}"
        if record.reference:
            reads = "whose student reads another image at test, which the other commands do not give it"
            return f"trial {number} is of the reference arm {record.arm}, {reads}; {other}"
        return ""

    def _near(self, number: int) -> str:
        """Returns the complete trials whose numbers are nearest, in words."""
        numbers = sorted(
            (record.number for record in candidates(self.shown)), key=lambda near: (abs(near - number), near)
        )
        return " or ".join(map(str, sorted(numbers[:NUM_NEAR])))


def read_candidates(folder: SweepFolder) -> Candidates:
    """Reads the trials of a sweep, in a folder or at an address. A driver may be running it.

    Raises:
        UserError: a file is missing or damaged, or no trial is complete.
    """
    fetch(folder, folder.files)
    sweep = read_sweep(folder)
    space, mistakes = load_space(str(folder.space)) if folder.space.exists() else (None, [])
    if mistakes:
        raise ConfigError(mistakes)
    if space is None or not sweep.plan:
        raise UserError(f"{folder} has no plan yet, so no trial has begun; wait, or start the sweep again")
    journal = folder.shared.child(folder.journal.name)
    if not folder.journal.exists():
        raise UserError(f"{journal} is missing, and it holds the trials; put a copy of it back")
    known = {**sweep.trials, **sweep.left_behind}
    traces = read_traces(folder, {number: trial.state in END_STATES for number, trial in known.items()})
    if (damage := find_damage(folder.journal)) is not None:
        raise UserError(f"{journal}: {damage}; put an undamaged copy of it back{_or_repair(sweep)}")
    studies = load_studies(folder.journal)
    lost = losses_for_reader(folder, sweep.plan, studies, traces)
    records = records_of(studies, sweep.plan.get("generation", 0))
    complete = candidates(records)
    if lost and not complete:
        raise UserError(_loss(sweep, lost))
    if not complete:
        raise UserError(f"{folder} has no complete trial yet, so there is nothing to pick; {_how_many(sweep)}")
    further = [
        score for score in SCORES if all(math.isfinite(record.metrics.get(score, math.nan)) for record in complete)
    ]
    goals = list(dict.fromkeys([*sweep.goals, *further]))
    repeats = space.search.repeats
    compared = with_estimates(records, space.arms, goals) if repeats == 1 else records
    shown = comparable(compared, sweep.goals, repeats)
    cohort: Any = space.raw.get("cohort")
    return Candidates(sweep, space, records, shown, goals, validate(CohortConfig, cohort, "cohort"), lost)


def _has(record: Record, score: str) -> bool:
    return math.isfinite(record.metrics.get(score, math.nan))


def _loss(sweep: Sweep, lost: Sequence[str]) -> str:
    """Returns the message that a journal has lost trials, and what to do.

    Args:
        lost: lines on the lost trials.
    """
    journal = sweep.folder.shared.child(sweep.folder.journal.name)
    problem = f"{journal} has lost trials, and one of them may be the one to pick"
    lines = "".join(f"\n  {line}" for line in lost)
    return f"{problem}{lines}\nput the newest copy of it back{_or_repair(sweep)}"


def _or_repair(sweep: Sweep) -> str:
    """Returns the command that continues a sweep without what is lost, as the end of a message, if it is known."""
    command = continue_command(sweep)
    return (
        ""
        if command is None
        else f", or run this command, which continues without what is lost:\n  {command} repair=true"
    )


def _how_many(sweep: Sweep) -> str:
    """Returns how many trials have begun, and what to do."""
    command = continue_command(sweep)
    wait = (
        "wait until the first trial is complete" if sweep.running or command is None else f"continue it:\n  {command}"
    )
    return f"of {len(sweep.trials)} trials none is complete, so {wait}"
