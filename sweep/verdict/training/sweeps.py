"""Runs the sweeps of a confirmation: those of fixed configurations, and those that repeat the search. Each continues
after a kill, and no training is done twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import yaml
from rich.console import Console

from mmpkd.command import warn
from mmpkd.config import CohortConfig, validate
from mmpkd.machine.files import overridden
from mmpkd.types import ConfigError, UserError
from sweep.driver import run_sweep
from sweep.options import RunOptions, read_run_options
from sweep.picking.candidates import Candidates, read_candidates
from sweep.plan.plan import Plan, plan
from sweep.search.studies import records_of
from sweep.space.space import Space, load_space
from sweep.storage.continuation import refuse_other_space
from sweep.storage.journal import find_damage, load_studies
from sweep.storage.layout import SweepFolder
from sweep.storage.reader import read_sweep
from sweep.transfer.addresses import Place
from sweep.types import Record
from sweep.verdict import finalists
from sweep.verdict.folder import ConfirmationFolder
from sweep.verdict.opening.scores import Trained
from sweep.verdict.training import phases
from sweep.verdict.training.phases import CHOOSE, MOVE, TRAIN, Phase


class StoppedError(Exception):
    """A sweep of a confirmation has stopped before its end.

    Attributes:
        status: the exit status of the command.
    """

    def __init__(self, status: int):
        super().__init__(f"a sweep of the confirmation has stopped with status {status}")
        self.status = status


@dataclass(frozen=True)
class Sweeps:
    """The sweeps of a confirmation whose protocol is frozen.

    Attributes:
        words: words of the command line that they take over, such as `storage=` and `cache=`.
        command: the whole command line.
        are_elsewhere: whether the folds are of another cohort than the search, whose `cohort.root` does not concern
            them.
    """

    folder: ConfirmationFolder
    words: tuple[str, ...]
    command: str
    are_elsewhere: bool
    console: Console

    def options(self, phase: str) -> RunOptions:
        """Returns the options with which the sweep of a phase runs."""
        file, name = self.folder.space(phase), self.folder.sweep_name(phase)
        if not file.is_local:
            local = Path(mkdtemp(prefix="mmpkd-")) / file.name
            self.folder.place.download(file.name, local)
            file = Place("", str(local))
        of_search = phase in (CHOOSE, TRAIN) or not self.are_elsewhere
        words = [word for word in self.words if of_search or not word.startswith("cohort.root=")]
        return replace(run_options([f"space={file}", f"name={name}", *words]), part_of=self.command)

    def train(self, phase: Phase, trials: Candidates, store: str) -> Trained:
        """Trains what is left of a phase. Returns its sweep with its trials.

        Args:
            trials: those of the search from which the configurations come.
            store: fingerprint of the prepared cohort.

        Raises:
            StoppedError: some of it is still left.
            UserError: it was trained on another prepared cohort, or trainings of another phase lie in its folder.
        """
        phases.write_space(phase, trials, self.folder.space(phase.name))
        options = self.options(phase.name)
        records, labels, seeds = _records(options.folder), list(phase.configs), len(phase.seeds)
        phases.require_own(phase, records, options.folder)
        if not finalists.has_ended(records, labels, seeds):
            self._run(options)
            records = _records(options.folder)
            if not finalists.has_ended(records, labels, seeds):
                raise StoppedError(130)  # a limit such as search.deadline has stopped it
        _refuse_other_store(options.folder, store)
        return options.folder, records

    def search(self, name: str, content: Mapping[str, Any], store: str) -> Candidates:
        """Searches a space, or continues. Returns the trials.

        Args:
            name: the name of the phase.
            content: the space.
            store: fingerprint of the prepared cohort.

        Raises:
            StoppedError: the search has not ended.
            UserError: another search lies in its folder.
        """
        write_search_space(content, self.folder.space(name))
        options = self.options(name)
        folder = options.folder
        space, mistakes = load_space(options.space, options.overrides)
        if space is None or mistakes:
            raise ConfigError(mistakes)
        try:
            refuse_other_space(folder, space)
        except UserError:
            raise UserError(f"{folder} holds the search of another confirmation; {MOVE}") from None
        if read_sweep(folder).closed != "FINISHED":
            self._run(options)
            if read_sweep(folder).closed != "FINISHED":
                raise StoppedError(130)
        _refuse_other_store(folder, store)
        return read_candidates(folder)

    def _run(self, options: RunOptions) -> None:
        space, planned = planned_sweep(options.space, options.overrides)
        warn(planned.warnings, self.console)
        if status := run_sweep(space, planned, options, self.console):
            raise StoppedError(status)


def _refuse_other_store(folder: SweepFolder, store: str) -> None:
    """Checks that a phase has run on the cohort as it was prepared for the test. If the data have changed between, its
    patients were dealt into other parts.

    Raises:
        UserError: it has run on another one.
    """
    if (prepared := read_sweep(folder).plan.get("store")) != store:
        raise UserError(f"{folder} was trained on the prepared cohort {prepared}, which is now {store}; {MOVE}")


def write_search_space(content: Mapping[str, Any], file: Place) -> None:
    """Writes the space of a search."""
    header = "# Written by sweep.confirm: the space of the sweep, searched again inside a fold.\n"
    file.write_bytes((header + yaml.safe_dump(dict(content), sort_keys=False)).encode())


def planned_sweep(file: str, overrides: Sequence[str] = ()) -> tuple[Space, Plan]:
    """Plans a sweep of a confirmation.

    Raises:
        ConfigError: its configurations cannot be trained.
    """
    space, mistakes = load_space(file, overrides)
    planned = plan(space, mistakes) if space else None
    if space is None or planned is None or planned.mistakes:
        raise ConfigError(planned.mistakes if planned else mistakes)
    return space, planned


def refuse_long_name(folder: ConfirmationFolder, folds: int | None) -> None:
    """Checks that the sweeps of a confirmation can have their names, before anything is frozen.

    Raises:
        ConfigError: a name would be too long.
    """
    name = folder.sweep_name(f"fold{folds - 1}-search" if folds else CHOOSE)
    if read_run_options([f"name={name}"])[1]:
        problem = f"a sweep of the confirmation would have the name {name}, and a name has at most 100 characters"
        raise ConfigError.at("name", f"{problem}; give {folder.sweep.path} a shorter name")


def require_trainable(phase: Phase, trials: Candidates, overrides: Sequence[str] = ()) -> None:
    """Checks that all configurations of a phase can be trained on its cohort, before hours are spent.

    Args:
        overrides: keys of the command line that the sweep of the phase takes over.

    Raises:
        ConfigError: it lacks a column that a teacher reads, for example, or a key has a wrong value.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"{phase.name}.yaml"
        phases.write_space(phase, trials, Place("", str(file)))
        planned_sweep(str(file), overrides)


def with_overrides(cohort: CohortConfig, overrides: Sequence[str]) -> CohortConfig:
    """Returns a cohort with the keys of the command line, such as `cohort.root`, where its data lie now.

    Raises:
        ConfigError: a value is wrong.
    """
    of_cohort = [word for word in overrides if word.startswith("cohort.")]
    content = overridden({"cohort": cohort.model_dump(mode="json")}, of_cohort)["cohort"]
    changed = validate(CohortConfig, content, "cohort")
    return changed.model_copy(update={"root": changed.root and changed.root.absolute()})


def run_options(words: Sequence[str]) -> RunOptions:
    """Returns the options of a sweep.

    Raises:
        ConfigError: a word is wrong.
    """
    options, mistakes = read_run_options(words)
    if mistakes:
        raise ConfigError(mistakes)
    return options


def _records(folder: SweepFolder) -> list[Record]:
    """Returns the trials of a phase. There are none before it has begun, and none of a damaged journal: the driver of
    the phase says what to do about it.
    """
    if not folder.journal.is_file() or find_damage(folder.journal) is not None:
        return []
    return records_of(load_studies(folder.journal), folder.read_plan().get("generation", 0))
