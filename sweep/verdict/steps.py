"""Runs a confirmation, step by step: freeze, choose, train, open, say. Each step continues after a kill, and none is
done twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from rich.console import Console

from mmpkd.cohort.prepare import prepare
from mmpkd.command import warn
from mmpkd.types import ConfigError, UserError
from sweep.driver import run_sweep
from sweep.options import RunOptions, read_run_options
from sweep.picking.candidates import Candidates
from sweep.plan.plan import Plan, plan
from sweep.provenance import code_commit, library_versions
from sweep.search.studies import records_of
from sweep.space.space import Space, load_space
from sweep.storage.journal import find_damage, load_studies
from sweep.storage.layout import SweepFolder
from sweep.transfer.addresses import Place
from sweep.transfer.preparing import prepare_shared
from sweep.types import Record
from sweep.verdict import finalists, phases
from sweep.verdict.answer import judge
from sweep.verdict.finalists import NoVerdictError
from sweep.verdict.folder import ConfirmationFolder, newest
from sweep.verdict.opening.external import ExternalCohort, external_of, keep, refuse_another
from sweep.verdict.opening.folds import Folds, folds_of, keep_folds
from sweep.verdict.opening.ledger import Ledger
from sweep.verdict.opening.scores import SealedPart, Trained, evaluation_of, patients_of, result_of, scores_of
from sweep.verdict.phases import Phase
from sweep.verdict.proposal import frozen, propose
from sweep.verdict.protocol import Protocol, Wanted, freeze, frozen_at
from sweep.verdict.results.page import page_of
from sweep.verdict.results.pictures import pictures
from sweep.verdict.results.record import Circumstances, External, content_of, dumped
from sweep.verdict.results.show import show_power, show_power_after_choice, show_price, show_protocol, show_verdict
from sweep.verdict.results.tracked import event_of, track


@dataclass(frozen=True)
class Confirmation:
    """A confirmation whose protocol is frozen.

    Attributes:
        own: the test part of the cohort of the search.
        tested: what is opened: this part, or the folds of another cohort.
        words: words of the command line that its sweeps take over, such as `storage=` and `cache=`.
        command: the whole command line.
    """

    trials: Candidates
    folder: ConfirmationFolder
    protocol: Protocol
    own: SealedPart
    tested: SealedPart | Folds
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
        of_search = phase in (phases.CHOOSE, phases.TRAIN)  # folds are of another cohort, which lies elsewhere
        words = [word for word in self.words if of_search or not word.startswith("cohort.root=")]
        return replace(_run_options([f"space={file}", f"name={name}", *words]), part_of=self.command)

    def train(self, phase: Phase) -> tuple[int, SweepFolder, list[Record]]:
        """Trains what is left of a phase. Returns the exit status of its sweep, its folder and its trials."""
        phases.write_space(phase, self.trials, self.folder.space(phase.name))
        options = self.options(phase.name)
        records, status = _records(options.folder), 0
        phases.require_own(phase, records, options.folder)
        if not finalists.has_ended(records, list(phase.configs), len(phase.seeds)):
            space, planned = _planned(options.space, options.overrides)
            warn(planned.warnings, self.console)
            status = run_sweep(space, planned, options, self.console)
            records = _records(options.folder)
            if not status and not finalists.has_ended(records, list(phase.configs), len(phase.seeds)):
                status = 130  # a limit such as search.deadline has stopped it
        return status, options.folder, records


def _planned(file: str, overrides: Sequence[str] = ()) -> tuple[Space, Plan]:
    """Plans the sweep of a phase.

    Raises:
        ConfigError: its configurations cannot be trained.
    """
    space, mistakes = load_space(file, overrides)
    planned = plan(space, mistakes) if space else None
    if space is None or planned is None or planned.mistakes:
        raise ConfigError(planned.mistakes if planned else mistakes)
    return space, planned


def _require_trainable(phase: Phase, trials: Candidates, overrides: Sequence[str] = ()) -> None:
    """Checks that all configurations of a phase can be trained on its cohort, before hours are spent.

    Args:
        overrides: keys of the command line that the sweep of the phase takes over.

    Raises:
        ConfigError: it lacks a column that a teacher reads, for example, or a key has a wrong value.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"{phase.name}.yaml"
        phases.write_space(phase, trials, Place("", str(file)))
        _planned(str(file), overrides)


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
    own = SealedPart(store, trials.cohort.fold)
    folder, again = newest(trials.sweep.folder), options["again"] == "true"
    if options["new"] == "true" and folder.protocol.exists():
        if _continues(folder, trials, wanted, options, own, run_options):
            console.print(f"new=true continues {folder}, which has no verdict yet", soft_wrap=True)
        else:
            folder = folder.next
    folder.require_kinds()
    protocol = frozen(trials, wanted, folder, store) or propose(trials, wanted, folder, store)
    is_frozen, is_plan = folder.protocol.exists(), options["plan"] == "true"
    if not is_frozen:
        _require_trainable(phases.choosing(protocol, trials)[0], trials, run_options.overrides)
    tested: SealedPart | Folds = own
    if count := protocol.folds or wanted.folds:
        tested = folds_of(count, options["cohort"], folder, own, run_options)
        protocol = tested.of(protocol, wanted, is_frozen)
        if not is_frozen:
            _require_trainable(tested.phases(phases.choosing(protocol, trials)[0], protocol.goals())[0], trials)
    evaluation = evaluation_of(trials, protocol)
    external = external_of(options["external"], protocol.external, folder, store, evaluation, run_options)
    if external and protocol.folds:
        raise ConfigError.at("external", "is scored by students of a whole cohort, not by those of folds; leave it out")
    if external and not is_frozen:
        protocol = protocol.model_copy(update={"external": external.store.fingerprint})
    opened, storage = tested.stores[0] if isinstance(tested, Folds) else store, run_options.all_sweeps
    ledgers = [ledger := Ledger.of(cache, tested.source, storage, tested.part, opened)]
    ledgers += [external.ledger(cache, storage)] if external else []
    refuse_another(ledgers, protocol.hash)
    warn([line for each in ledgers for line in each.warnings()], console)
    if not is_plan:
        for each in ledgers:
            each.refuse_second(protocol.hash, again)
    others = ledger.others(protocol.hash)
    if not (is_frozen or is_plan):
        protocol = freeze(protocol, folder)
    show_protocol(protocol, folder, others, is_frozen or not is_plan, console)
    show_price(protocol, trials, tested.cost, console)
    show_power(protocol, trials, store, console)
    if external:
        console.print(f"external cohort: {external.name}", *external.notes(protocol.localisation, store), sep="\n  ")
    for note in tested.notes:
        console.print(note, soft_wrap=True)
    if is_plan:
        return 0
    if external:
        keep(external, folder)
    if isinstance(tested, Folds):
        keep_folds(tested, folder)
    confirmation = Confirmation(trials, folder, protocol, own, tested, words, command, console)
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
    trials, folder, protocol = confirmation.trials, confirmation.folder, confirmation.protocol
    own, tested = confirmation.own, confirmation.tested
    ledger, evaluation, command = ledgers[0], evaluation_of(trials, protocol), confirmation.command
    choosing, arm_of = phases.choosing(protocol, trials)
    status, chosen_from, records = confirmation.train(choosing)
    if status:
        return status
    results = finalists.results_of(records, arm_of, protocol.goal)
    chosen = finalists.choose(results, len(protocol.choose_seeds))
    on_validation = own.of_choice(folder, protocol, (chosen_from, records), evaluation)
    luck = finalists.luck_of(results, on_validation, trials.records, protocol)
    patients = patients_of(own.store, own.val_rows)
    show_power_after_choice(protocol, on_validation, luck, patients, confirmation.console)
    parts = tested.phases(phases.training(protocol, trials, chosen, tested.tasks), protocol.goals())
    trained: list[Trained] = []
    for phase in parts:
        status, sweep, records = confirmation.train(phase)
        if status:
            return status
        finalists.require_all(records, list(phase.configs), len(phase.seeds), sweep.errors)
        trained.append((sweep, records))

    ledger.open(folder, protocol.hash, command, again)
    scores = tested.scores(folder, protocol, trained, evaluation)
    changes = ledger.note_result(folder, protocol.hash, result_of(scores, protocol))
    verdict = judge(protocol, scores, tested.patients(), luck)
    records, notes = [record for _, each in trained for record in each], [*changes, *tested.notes]
    versions = {**library_versions(), "commit": code_commit()}
    circumstances = Circumstances(frozen_at(folder), results, chosen, records, ledger.read(), command, versions, notes)
    if external:
        ledgers[1].open(folder, protocol.hash, command, again)
        scorer = external.scorer(own.store, own.train_rows, evaluation, protocol.goals())
        scores = scores_of(folder, protocol, *trained[0], external.part, scorer)
        changes = ledgers[1].note_result(folder, protocol.hash, result_of(scores, protocol))
        elsewhere = judge(protocol, scores, patients_of(external.store, external.rows, external.labels), luck)
        notes = [*changes, *external.notes(protocol.localisation, own.store)]
        outside = External(external.name, bool(protocol.external), elsewhere, notes, ledgers[1].read())
        circumstances = replace(circumstances, external=outside)
    drawn = pictures(*tested.shown, *trained[0])
    folder.verdict_page.write_bytes(page_of(protocol, verdict, circumstances, trials, drawn))
    folder.verdict.write_bytes(dumped(content_of(protocol, verdict, circumstances)))
    folder.failure.delete()  # of an earlier run
    show_verdict(protocol, verdict, circumstances, folder, confirmation.console)
    event, options = event_of(protocol, verdict, circumstances, folder), confirmation.options(parts[0].name)
    track(event, options, confirmation.console)
    return 0


def _continues(
    folder: ConfirmationFolder,
    trials: Candidates,
    wanted: Wanted,
    options: Mapping[str, str],
    own: SealedPart,
    run_options: RunOptions,
) -> bool:
    """Whether `new=true` continues a confirmation that it has begun before: one that was interrupted, and from whose
    protocol the command line does not differ.

    Args:
        options: as of `confirm`.
    """
    if folder.turn == 1 or folder.has_ended:
        return False
    try:
        if (protocol := frozen(trials, wanted, folder, own.store)) is None:
            return False
        if protocol.folds:
            folds_of(protocol.folds, options["cohort"], folder, own, run_options).of(protocol, wanted, True)
        evaluation = evaluation_of(trials, protocol)
        external_of(options["external"], protocol.external, folder, own.store, evaluation, run_options)
    except UserError:  # another protocol is wanted, or this one cannot be continued
        return False
    return True
