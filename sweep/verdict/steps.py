"""Runs a confirmation, step by step: freeze, choose, train, open, say. Each step continues after a kill, and none is
done twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp

from rich.console import Console

from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.command import warn
from mmpkd.export.student_file import source_of
from mmpkd.scoring.replicates import PartScorer
from mmpkd.types import ConfigError, UserError
from sweep.driver import run_sweep
from sweep.options import RunOptions, read_run_options
from sweep.picking.candidates import Candidates
from sweep.plan.plan import plan
from sweep.provenance import code_commit, library_versions
from sweep.search.studies import records_of
from sweep.space.space import load_space
from sweep.storage.journal import find_damage, load_studies
from sweep.storage.layout import SweepFolder
from sweep.transfer.addresses import Place
from sweep.transfer.preparing import prepare_shared
from sweep.types import Record
from sweep.verdict import finalists, phases
from sweep.verdict.answer import judge
from sweep.verdict.finalists import NoVerdictError
from sweep.verdict.folder import ConfirmationFolder, newest
from sweep.verdict.opening.external import ExternalCohort, external_of, keep
from sweep.verdict.opening.ledger import Ledger
from sweep.verdict.opening.scores import evaluation_of, patients_of, scores_of
from sweep.verdict.phases import Phase
from sweep.verdict.proposal import frozen, propose
from sweep.verdict.protocol import Protocol, Wanted, freeze, frozen_at
from sweep.verdict.results.page import page_of
from sweep.verdict.results.pictures import pictures
from sweep.verdict.results.record import Circumstances, External, content_of, dumped
from sweep.verdict.results.show import show_power, show_price, show_protocol, show_verdict
from sweep.verdict.results.tracked import event_of, track


@dataclass(frozen=True)
class Confirmation:
    """A confirmation whose protocol is frozen.

    Attributes:
        words: words of the command line that its sweeps take over, such as `storage=` and `cache=`.
        command: the whole command line.
    """

    trials: Candidates
    folder: ConfirmationFolder
    protocol: Protocol
    store: Store
    words: tuple[str, ...]
    command: str
    console: Console

    def options(self, phase: str) -> RunOptions:
        """Returns the options with which the sweep of a phase runs."""
        file, name = self.folder.space(phase), self.folder.sweep_name(phase)
        if not file.is_local:
            local = Path(mkdtemp(prefix="mmpkd-")) / file.name
            self.folder.place.download(file.name, local)
            file = Place("", str(local))
        return replace(_run_options([f"space={file}", f"name={name}", *self.words]), part_of=self.command)

    def train(self, phase: Phase) -> tuple[int, SweepFolder, list[Record]]:
        """Trains what is left of a phase. Returns the exit status of its sweep, its folder and its trials."""
        phases.write_space(phase, self.trials, self.folder)
        options = self.options(phase.name)
        records, status = _records(options.folder), 0
        phases.require_own(phase, records, options.folder)
        if not finalists.has_ended(records, list(phase.configs), len(phase.seeds)):
            space, mistakes = load_space(options.space, options.overrides)
            planned = plan(space, mistakes) if space else None
            if space is None or planned is None or planned.mistakes:
                raise ConfigError(planned.mistakes if planned else mistakes)
            warn(planned.warnings, self.console)
            status = run_sweep(space, planned, options, self.console)
            records = _records(options.folder)
            if not status and not finalists.has_ended(records, list(phase.configs), len(phase.seeds)):
                status = 130  # a limit such as search.deadline has stopped it
        return status, options.folder, records


def _run_options(words: Sequence[str]) -> RunOptions:
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


def confirm(
    trials: Candidates,
    wanted: Wanted,
    words: tuple[str, ...],
    options: Mapping[str, str],
    command: str,
    console: Console,
) -> int:
    """Runs a confirmation, or continues it, and returns the exit status of the command.

    Args:
        words: words of the command line that its sweeps take over.
        options: the values of the other options.
        command: the whole command line.

    Raises:
        UserError: the sweep cannot be confirmed so.
    """
    run_options = _run_options([f"name={trials.sweep.folder.name}", *words])
    store, cache = prepare_shared(prepare, trials.cohort, run_options)
    folder, again = newest(trials.sweep.folder), options["again"] == "true"
    if options["new"] == "true" and folder.protocol.exists():
        if _continues(folder, trials, wanted, options["external"], store, run_options):
            console.print(f"new=true continues {folder}, which has no verdict yet", soft_wrap=True)
        else:
            folder = folder.next
    folder.require_kinds((phases.CHOOSE, phases.TRAIN))
    protocol = frozen(trials, wanted, folder, store) or propose(trials, wanted, folder, store)
    evaluation = evaluation_of(trials, protocol)
    external = external_of(options["external"], protocol.external, folder, store, evaluation, run_options)
    if external and not folder.protocol.exists():
        protocol = protocol.model_copy(update={"external": external.store.fingerprint})
    ledgers = [ledger := Ledger.of(cache, source_of(store.manifest), run_options.all_sweeps)]
    if external:
        part = f"the external cohort {external.name}"
        ledgers.append(Ledger.of(cache, external.source, run_options.all_sweeps, part))
    warn([line for each in ledgers for line in each.warnings()], console)
    is_frozen, is_plan = folder.protocol.exists(), options["plan"] == "true"
    if not is_plan:
        for each in ledgers:
            each.refuse_second(protocol.hash, again)
    others = ledger.others(protocol.hash)
    if not (is_frozen or is_plan):
        protocol = freeze(protocol, folder)
    show_protocol(protocol, folder, others, is_frozen or not is_plan, console)
    show_price(protocol, trials, console)
    show_power(protocol, trials, store, console)
    if external:
        console.print(f"external cohort: {external.name}", *external.notes(protocol.localisation, store), sep="\n  ")
    if is_plan:
        return 0
    if external:
        keep(external, folder)
    confirmation = Confirmation(trials, folder, protocol, store, words, command, console)
    try:
        return _to_the_verdict(confirmation, external, ledgers, again)
    except NoVerdictError as error:
        folder.failure.write_bytes(f"{error}\n".encode())
        raise


def _to_the_verdict(
    confirmation: Confirmation, external: ExternalCohort | None, ledgers: Sequence[Ledger], again: bool
) -> int:
    """Chooses, trains, opens and says; returns the exit status of the command.

    Args:
        ledgers: those of the cohort and of the external cohort, if there is one.
        again: whether parts may be opened that another confirmation has opened.

    Raises:
        NoVerdictError: so many trainings have failed that there is no verdict.
        UserError: something is damaged, or another confirmation has opened a part.
    """
    trials, folder, protocol, store = (
        confirmation.trials,
        confirmation.folder,
        confirmation.protocol,
        confirmation.store,
    )
    ledger, evaluation, command = ledgers[0], evaluation_of(trials, protocol), confirmation.command
    choosing, arm_of = phases.choosing(protocol, trials)
    status, _, records = confirmation.train(choosing)
    if status:
        return status
    results = finalists.results_of(records, arm_of, protocol.goal)
    luck = {goal: finalists.luck_of(records, arm_of, goal, protocol) for goal in protocol.goals()}
    chosen = finalists.choose(results, len(protocol.choose_seeds))
    training = phases.training(protocol, trials, chosen, store.facts.tasks)
    status, trained, records = confirmation.train(training)
    if status:
        return status

    _require_all(training, records, trained)
    ledger.open(folder, protocol.hash, command, again)
    rows = store.rows("test")
    train_rows = store.rows("train", trials.cohort.fold)
    scorer = PartScorer(store, rows, evaluation, protocol.goals(), train_rows)
    scores = scores_of(folder, protocol, trained, records, "test", scorer)
    verdict = judge(protocol, scores, patients_of(store, rows), luck)
    versions = {**library_versions(), "commit": code_commit()}
    circumstances = Circumstances(frozen_at(folder), results, chosen, records, ledger.read(), command, versions)
    if external:
        ledgers[1].open(folder, protocol.hash, command, again)
        scorer = external.scorer(store, train_rows, evaluation, protocol.goals())
        scores = scores_of(folder, protocol, trained, records, external.part, scorer)
        elsewhere = judge(protocol, scores, patients_of(external.store, external.rows, external.labels), luck)
        notes = external.notes(protocol.localisation, store)
        outside = External(external.name, bool(protocol.external), elsewhere, notes, ledgers[1].read())
        circumstances = replace(circumstances, external=outside)
    drawn = pictures(store, trained, records, rows)
    folder.verdict_page.write_bytes(page_of(protocol, verdict, circumstances, trials, drawn))
    folder.verdict.write_bytes(dumped(content_of(protocol, verdict, circumstances)))
    show_verdict(protocol, verdict, circumstances.external, folder, confirmation.console)
    event, options = event_of(protocol, verdict, circumstances, folder), confirmation.options(training.name)
    track(event, options, confirmation.console)
    return 0


def _continues(
    folder: ConfirmationFolder, trials: Candidates, wanted: Wanted, external: str, store: Store, options: RunOptions
) -> bool:
    """Whether `new=true` continues a confirmation that it has begun before: one that was interrupted, and from whose
    protocol the command line does not differ.

    Args:
        external: the value of `external=`.
    """
    if folder.turn == 1 or folder.has_ended:
        return False
    try:
        protocol = frozen(trials, wanted, folder, store)
        if protocol is not None:
            external_of(external, protocol.external, folder, store, evaluation_of(trials, protocol), options)
    except UserError:  # another protocol is wanted, or this one cannot be continued
        return False
    return protocol is not None


def _require_all(phase: Phase, records: Sequence[Record], folder: SweepFolder) -> None:
    """Checks that every training of a phase is complete. Without those that failed, the mean of an arm would be that of
    its luckier seeds.

    Raises:
        NoVerdictError: a training has failed.
    """
    complete = Counter(record.arm for record in records if record.state == "complete")
    counts = {label: complete[label] for label in phase.configs}
    if lacking := {label: count for label, count in counts.items() if count < len(phase.seeds)}:
        listed = ", ".join(f"{label} {count} of {len(phase.seeds)}" for label, count in lacking.items())
        problem = f"trainings have failed, so there is no verdict; complete are: {listed}"
        raise NoVerdictError(f"{problem}\n  see {folder.errors}, and {finalists.NEW}")
