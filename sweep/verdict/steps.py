"""Runs a confirmation, step by step: freeze, choose, train, open, say. Each step continues after a kill, and none is
done twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from mmpkd.cohort.prepare import prepare
from mmpkd.command import warn
from mmpkd.types import ConfigError, UserError
from sweep.options import RunOptions
from sweep.picking.candidates import Candidates
from sweep.provenance import code_commit, library_versions
from sweep.transfer.preparing import prepare_shared
from sweep.verdict import finalists
from sweep.verdict.answer import judge
from sweep.verdict.finalists import NoVerdictError
from sweep.verdict.folder import ConfirmationFolder, newest
from sweep.verdict.opening.external import ExternalCohort, external_of, keep, refuse_another
from sweep.verdict.opening.folds import Folds, folds_of, keep_folds
from sweep.verdict.opening.ledger import Ledger
from sweep.verdict.opening.patients import patients_of
from sweep.verdict.opening.scores import SealedPart, Trained, evaluation_of, result_of, scores_of
from sweep.verdict.proposal import frozen, propose, refuse_unfit_for_answers
from sweep.verdict.protocol import Protocol, Wanted, freeze, frozen_at
from sweep.verdict.results.page import page_of
from sweep.verdict.results.pictures import pictures
from sweep.verdict.results.record import Circumstances, External, content_of, dumped
from sweep.verdict.results.show import show_power, show_power_after_choice, show_price, show_protocol, show_verdict
from sweep.verdict.results.tracked import event_of, track
from sweep.verdict.training import phases
from sweep.verdict.training.choice import choose
from sweep.verdict.training.nested import OwnFolds, left_out, own_folds
from sweep.verdict.training.sweeps import (
    StoppedError,
    Sweeps,
    refuse_long_name,
    require_trainable,
    run_options,
    with_overrides,
)


@dataclass(frozen=True)
class Confirmation:
    """A confirmation whose protocol is frozen.

    Attributes:
        own: the test part of the cohort of the search.
        tested: what is opened: this part, or folds.
    """

    trials: Candidates
    protocol: Protocol
    own: SealedPart
    tested: SealedPart | Folds
    sweeps: Sweeps


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
    of_sweep = run_options([f"name={trials.sweep.folder.name}", *words])
    trials = replace(trials, cohort=with_overrides(trials.cohort, of_sweep.overrides))
    store, cache = prepare_shared(prepare, trials.cohort, of_sweep)
    refuse_unfit_for_answers(options, store)
    own = SealedPart(store, trials.cohort.fold)
    folder, again = newest(trials.sweep.folder), options["again"] == "true"
    if options["new"] == "true" and folder.protocol.exists():
        if _continues(folder, trials, wanted, options, own, of_sweep):
            console.print(f"new=true continues {folder}, which has no verdict yet", soft_wrap=True)
        else:
            folder = folder.next
    folder.require_kinds()
    refuse_long_name(folder, wanted.folds)
    protocol = frozen(trials, wanted, folder, store) or propose(trials, wanted, folder, store)
    is_frozen, is_plan = folder.protocol.exists(), options["plan"] == "true"
    if not is_frozen:
        require_trainable(phases.choosing(protocol, trials)[0], trials, of_sweep.overrides)
    tested: SealedPart | Folds = own
    if count := protocol.folds or wanted.folds:
        tested = _folds(count, protocol, trials, options, folder, own, of_sweep)
        finalists_run = phases.choosing(protocol, trials)[0]
        protocol = tested.of(protocol, wanted, is_frozen)
        if not (is_frozen or protocol.space):
            require_trainable(tested.phases(finalists_run, protocol.goals())[0], trials)
    evaluation = evaluation_of(trials)
    external = external_of(options["external"], protocol.external, folder, store, evaluation, of_sweep)
    if external and protocol.folds:
        raise ConfigError.at("external", "is scored by students of a whole cohort, not by those of folds; leave it out")
    if external and not is_frozen:
        protocol = protocol.model_copy(update={"external": external.store.fingerprint})
    storage = of_sweep.all_sweeps
    ledgers = [ledger := Ledger.of(cache, tested.source, storage, tested.part, tested.stores[0])]
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
    expected = tested.expected(protocol) if isinstance(tested, OwnFolds) else protocol
    show_power(expected, trials, store, console)
    if external:
        console.print(f"external cohort: {external.name}", *external.notes(protocol.localisation, store), sep="\n  ")
    for note in tested.notes:
        console.print(note, soft_wrap=True)
    if is_plan:
        was_opened = any(each.others(protocol.hash) for each in ledgers)
        console.print(_after_the_plan(is_frozen, was_opened and not again), soft_wrap=True)
        return 0
    if external:
        keep(external, folder)
    if protocol.folds and not protocol.space:
        assert isinstance(tested, Folds)
        keep_folds(tested, folder)
    sweeps = Sweeps(folder, words, command, bool(protocol.folds and not protocol.space), console)
    try:
        return _to_the_verdict(Confirmation(trials, protocol, own, tested, sweeps), external, ledgers, again)
    except StoppedError as stopped:
        return stopped.status
    except NoVerdictError as error:
        folder.failure.write_bytes(f"{error}\n".encode())
        raise


def _after_the_plan(is_frozen: bool, needs_again: bool) -> str:
    """Returns which command follows a plan.

    Args:
        needs_again: whether something is to be opened that another confirmation has opened.
    """
    words = "without plan=true and with again=true" if needs_again else "without plan=true"
    return f"the same command {words} {'continues' if is_frozen else 'freezes this protocol and begins'}"


def _folds(
    count: int,
    protocol: Protocol,
    trials: Candidates,
    options: Mapping[str, str],
    folder: ConfirmationFolder,
    own: SealedPart,
    of_sweep: RunOptions,
) -> Folds:
    """Prepares the folds of another cohort, or of the sweep's own if the command names no other.

    Args:
        options: as of `confirm`.

    Raises:
        UserError: they cannot be made, or a frozen protocol has folds of the other kind.
    """
    file = options["cohort"]
    if file and protocol.space:
        problem = "is another cohort, and this confirmation repeats the search in folds of the sweep's own"
        raise ConfigError.at("cohort", f"{problem}; leave it out, or begin a new confirmation with new=true")
    if file or folder.crossed.exists() or (protocol.folds and not protocol.space):
        return folds_of(count, file, folder, own, of_sweep)
    return own_folds(count, trials, own, of_sweep)


def _to_the_verdict(
    confirmation: Confirmation, external: ExternalCohort | None, ledgers: Sequence[Ledger], again: bool
) -> int:
    """Chooses, trains, opens and says; returns the exit status of the command.

    Args:
        ledgers: those of the cohort and of the external cohort, if there is one.
        again: whether parts may be opened that another confirmation has opened.

    Raises:
        StoppedError: some trainings are left.
        NoVerdictError: so many trainings have failed that there is no verdict.
        UserError: something is damaged, or another confirmation has opened a part.
    """
    trials, protocol, own, tested = confirmation.trials, confirmation.protocol, confirmation.own, confirmation.tested
    sweeps = confirmation.sweeps
    folder, command, console, ledger = sweeps.folder, sweeps.command, sweeps.console, ledgers[0]
    evaluation = evaluation_of(trials)
    if isinstance(tested, OwnFolds):
        choices = tested.choices(sweeps, protocol)
        luck = finalists.luck_over_folds([each.luck for each in choices])
        parts = tested.trainings(choices, protocol.goals())
    else:
        choices = [choice := choose(sweeps, protocol, trials, own)]
        luck = {**choice.luck}
        validated = patients_of(own.store, own.choice_rows(len(protocol.choose_seeds)), protocol.goal)
        show_power_after_choice(protocol, choice.scores, luck, validated, console)
        parts = tested.phases(phases.training(protocol, trials, choice.chosen, tested.tasks), protocol.goals())
    trained: list[Trained] = []
    for phase, store in zip(parts, tested.stores, strict=True):
        sweep, records = sweeps.train(phase, trials, store.fingerprint)
        finalists.require_all(records, list(phase.configs), len(phase.seeds), sweep.errors)
        trained.append((sweep, records))

    ledger.open(folder, protocol.hash, command, again)
    scores = tested.scores(folder, protocol, trained, evaluation)
    changes = ledger.note_result(folder, protocol.hash, result_of(scores, protocol))
    verdict = judge(protocol, scores, tested.patients(protocol.goal), luck)
    records, notes = [record for _, each in trained for record in each], [*changes, *tested.notes]
    versions = {**library_versions(), "commit": code_commit()}
    notes += left_out(protocol, parts) if protocol.space else []
    frozen_time = frozen_at(folder)
    circumstances = Circumstances(frozen_time, choices, records, ledger.read(), command, versions, notes=notes)
    if external:
        ledgers[1].open(folder, protocol.hash, command, again)
        scorer = external.scorer(own.store, own.train_rows, evaluation, protocol.goals())
        scores = scores_of(folder, protocol, *trained[0], external.part, lambda _: scorer)
        changes = ledgers[1].note_result(folder, protocol.hash, result_of(scores, protocol))
        patients = patients_of(external.store, external.rows, protocol.goal, external.labels)
        elsewhere = judge(protocol, scores, patients, luck)
        of_external = [*changes, *external.notes(protocol.localisation, own.store)]
        outside = External(external.name, bool(protocol.external), elsewhere, of_external, ledgers[1].read())
        circumstances = replace(circumstances, external=outside)
    drawn = pictures(*tested.shown, *trained[0])
    folder.verdict_page.write_bytes(page_of(protocol, verdict, circumstances, drawn))
    folder.verdict.write_bytes(dumped(content_of(protocol, verdict, circumstances)))
    folder.failure.delete()  # of an earlier run
    show_verdict(protocol, verdict, circumstances, folder, console)
    track(event_of(protocol, verdict, circumstances, folder), sweeps.options(parts[0].name), console)
    return 0


def _continues(
    folder: ConfirmationFolder,
    trials: Candidates,
    wanted: Wanted,
    options: Mapping[str, str],
    own: SealedPart,
    of_sweep: RunOptions,
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
            _folds(protocol.folds, protocol, trials, options, folder, own, of_sweep).of(protocol, wanted, True)
        external_of(options["external"], protocol.external, folder, own.store, evaluation_of(trials), of_sweep)
    except UserError:  # another protocol is wanted, or this one cannot be continued
        return False
    return True
