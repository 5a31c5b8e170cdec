"""Shows a protocol and a verdict on a console."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from rich.console import Console

from mmpkd.cohort.store import Store
from sweep.picking.candidates import Candidates
from sweep.verdict.answer import Verdict, needed, sentence
from sweep.verdict.folder import ConfirmationFolder
from sweep.verdict.opening.ledger import SHOWN_DIGITS, Opening
from sweep.verdict.power import USUAL_POWER, smallest_difference
from sweep.verdict.proposal import expected_design
from sweep.verdict.protocol import Protocol
from sweep.verdict.results.record import External

SPREADS: Final = (0.0, 0.02, 0.05)  # standard deviations over seeds for which the power is shown before any has run


def show_protocol(
    protocol: Protocol, folder: ConfirmationFolder, openings: Sequence[Opening], is_frozen: bool, console: Console
) -> None:
    """Prints what will be compared, and how."""
    reference, seeds = protocol.reference, protocol.seeds
    of_folds = f" of {protocol.crossed}, in {protocol.folds} folds of which each is sealed in turn"
    of_folds = of_folds if protocol.folds else ""
    state = f"frozen in {folder.protocol}" if is_frozen else "proposed; nothing is frozen yet"
    lines = [
        f"protocol {protocol.hash[:SHOWN_DIGITS]}, {state}",
        f"  question: does {' or '.join(protocol.arms)} change {' or '.join(protocol.goals())} against {reference}?",
        f"  finalists, by {protocol.goal} among the first {protocol.trials} complete trials of each arm:",
        *(f"    {arm}: trials {', '.join(map(str, numbers))}" for arm, numbers in protocol.finalists.items()),
        f"  choice: on seeds {_span(protocol.choose_seeds)}, the best mean of each arm by {protocol.goal}",
        f"  training: the chosen ones on seeds {_span(seeds)}{' in each fold' if protocol.folds else ''}",
        *([f"  controls: {', '.join(protocol.controls)}"] if protocol.controls else []),
        f"  test: {protocol.test_patients} patients{of_folds}; a difference of {protocol.difference:g} matters",
        *([f"  an earlier confirmation had protocol {protocol.after[:SHOWN_DIGITS]}"] if protocol.after else []),
        *(f"  {protocol.part} was opened before: {opening}" for opening in openings),
    ]
    console.print("\n".join(lines), soft_wrap=True)


def _span(seeds: Sequence[int]) -> str:
    return f"{seeds[0]} to {seeds[-1]}"


def show_price(protocol: Protocol, trials: Candidates, cost: float, console: Console) -> None:
    """Prints what the trainings cost, from the seconds of the sweep's own complete trials.

    Args:
        cost: what a training on the tested cohort costs, as a multiple of one of the sweep.
    """
    seconds = {arm: _device_seconds(trials, arm) for arm in protocol.finalists}
    of_controls = [seconds[arm] for arm in protocol.controls.values()]
    chosen = sum(len(numbers) * seconds[arm] for arm, numbers in protocol.finalists.items())
    folds = protocol.folds or 1
    trained = (sum(seconds.values()) + sum(of_controls)) * folds * cost
    choices = sum(map(len, protocol.finalists.values()))
    students, in_folds = len(protocol.finalists) + len(of_controls), f" in {folds} folds" if folds > 1 else ""
    phases = [
        (f"choice: {choices} configurations on {len(protocol.choose_seeds)} seeds", chosen, protocol.choose_seeds),
        (f"training: {students} configurations on {len(protocol.seeds)} seeds{in_folds}", trained, protocol.seeds),
    ]
    hours = [device_seconds * len(seeds) / 3600 for _, device_seconds, seeds in phases]
    console.print(f"price: about {sum(hours):.3g} device-hours, as the trials of the sweep took")
    for (words, _, _), of_phase in zip(phases, hours, strict=True):
        console.print(f"  {words}: {of_phase:.3g}", soft_wrap=True)


def show_power(protocol: Protocol, trials: Candidates, store: Store, console: Console) -> None:
    """Prints what difference the test part can show with the planned seeds."""
    seeds = len(protocol.seeds)
    console.print(
        f"{protocol.test_patients} test patients and {seeds} seeds show, in {USUAL_POWER:.0%} of tests, a difference of"
    )
    for goal in protocol.goals():
        cells = []
        for spread in SPREADS:
            design = expected_design(protocol, trials, store, goal, spread)
            cells += [] if design is None else [f"{smallest_difference(design):.3f} if seeds scatter by {spread:g}"]
        console.print(f"  {goal}: {', '.join(cells) or 'not known, as no trial has a standard error'}", soft_wrap=True)


def _device_seconds(trials: Candidates, arm: str) -> float:
    return statistics.fmean(
        record.device_seconds for record in trials.records if record.arm == arm and record.state == "complete"
    )


def show_verdict(
    protocol: Protocol, verdict: Verdict, external: External | None, folder: ConfirmationFolder, console: Console
) -> None:
    """Prints the answers on the test part and on the external cohort, if any, and where the verdict lies."""
    tested = f"{verdict.patients.all} test patients"
    if protocol.folds:
        tested = f"{verdict.patients.all} patients, each tested by students that were trained without the patient,"
    console.print(f"\nverdict on {tested} that neither search nor choice has seen", soft_wrap=True)
    _show_answers(protocol, verdict, console)
    if external is not None:
        console.print("\n".join(external.lines()), soft_wrap=True)
        _show_answers(protocol, external.verdict, console)
    console.print(f"files in {folder}: {folder.verdict_page.name}, {folder.verdict.name}, {folder.protocol.name}")


def _show_answers(protocol: Protocol, verdict: Verdict, console: Console) -> None:
    for answer in verdict.answers:
        console.print(f"  {sentence(answer, verdict, protocol)}", soft_wrap=True)
        for reason in answer.reasons:
            console.print(f"    {reason}", soft_wrap=True)
        if answer.outcome in ("cannot tell", "no difference shown"):
            patients = needed(answer, protocol, verdict.patients)
            if patients is not None:
                console.print(f"    About {patients} such patients would show a difference of {protocol.difference:g}.")
