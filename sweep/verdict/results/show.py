"""Shows a protocol and a verdict on a console."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from rich.console import Console

from mmpkd.cohort.store import Store
from sweep.picking.candidates import Candidates
from sweep.plan.price import clock
from sweep.verdict.answer import Verdict
from sweep.verdict.folder import ConfirmationFolder
from sweep.verdict.inference import SearchLuck, SeedScores
from sweep.verdict.opening.openings import SHOWN_DIGITS, Opening
from sweep.verdict.opening.patients import Patients, patients_of
from sweep.verdict.power import MIN_RARER, USUAL_POWER, Design, smallest_difference
from sweep.verdict.proposal import design_after_choice, expected_design
from sweep.verdict.protocol import Protocol, tested_name
from sweep.verdict.results.record import Circumstances
from sweep.verdict.results.wording import matters, sentence, subject, what_would_tell

LARGEST: Final = 1  # difference of two scores that lie between 0 and 1, as all goals do
SPREADS: Final = (0.0, 0.02, 0.05)  # standard deviations over seeds for which the power is shown before any has run


def show_protocol(
    protocol: Protocol, folder: ConfirmationFolder, openings: Sequence[Opening], is_frozen: bool, console: Console
) -> None:
    """Prints what will be compared, and how."""
    reference, seeds = protocol.reference, protocol.seeds
    of_folds = f" of {protocol.crossed}, in {protocol.folds} folds of which each is sealed in turn"
    of_folds = of_folds if protocol.folds else ""
    content = f"content {protocol.content_hash[:SHOWN_DIGITS]}"
    state = f"protocol with the {content}, proposed; its hash will cover the time as well; nothing is frozen yet"
    if is_frozen:
        state = f"protocol {protocol.hash[:SHOWN_DIGITS]}, frozen in {folder.protocol}; {content}"
    lines = [
        state,
        f"  question: does {' or '.join(protocol.arms)} change {' or '.join(protocol.goals())} against {reference}?",
        *_finalists(protocol),
        f"  choice: on seeds {_span(protocol.choose_seeds)}, the best mean of each arm by {protocol.goal}",
        f"  training: the chosen ones on seeds {_span(seeds)}{' in each fold' if protocol.folds else ''}",
        *([f"  controls: {', '.join(protocol.controls)}"] if protocol.controls else []),
        f"  test: {protocol.test_patients} patients{of_folds}; a difference of {matters(protocol)} matters",
        *([f"  an earlier confirmation had protocol {protocol.after[:SHOWN_DIGITS]}"] if protocol.after else []),
        *(f"  {protocol.part} was opened before: {opening}" for opening in openings),
    ]
    console.print("\n".join(lines), soft_wrap=True)


def _finalists(protocol: Protocol) -> list[str]:
    if not protocol.space:
        return [
            f"  finalists, by {protocol.goal} among the first {protocol.trials} complete trials of each arm:",
            *(f"    {arm}: trials {', '.join(map(str, numbers))}" for arm, numbers in protocol.finalists.items()),
        ]
    return [
        f"  search: again in each fold, on the patients of the others: {protocol.space['search']['trials']} trials",
        f"  finalists: {protocol.finalists_in_fold} of each arm in each fold, by {protocol.goal} (fewer if an arm has "
        "fewer complete trials)",
    ]


def _span(seeds: Sequence[int]) -> str:
    return f"{seeds[0]} to {seeds[-1]}"


def show_price(protocol: Protocol, trials: Candidates, cost: float, console: Console) -> None:
    """Prints what the trainings cost, from the seconds of the sweep's own complete trials.

    Args:
        cost: what a training on the tested cohort costs, as a multiple of one of the sweep.
    """
    arms, folds = (protocol.reference, *protocol.arms), protocol.folds or 1
    seconds = {arm: _device_seconds(trials, arm) for arm in arms}
    of_controls = [seconds[arm] for arm in protocol.controls.values()]
    counts = {arm: len(protocol.finalists.get(arm, ())) or protocol.finalists_in_fold for arm in arms}
    chosen, trained = sum(counts[arm] * seconds[arm] for arm in arms), sum(seconds.values()) + sum(of_controls)
    choices, students = sum(counts.values()), len(arms) + len(of_controls)
    in_folds = f" in {folds} folds" if folds > 1 else ""
    of_choice, of_test = len(protocol.choose_seeds), len(protocol.seeds) * folds
    if protocol.space:
        of_choice, chosen = of_choice * folds, chosen * cost
    parts = [
        (
            f"choice: {choices} configurations on {len(protocol.choose_seeds)} seeds"
            f"{in_folds if protocol.space else ''}",
            choices * of_choice,
            chosen * of_choice,
        ),
        (
            f"training: {students} configurations on {len(protocol.seeds)} seeds{in_folds}",
            students * of_test,
            trained * cost * of_test,
        ),
    ]
    if protocol.space:
        parts.insert(0, _search(protocol, trials, arms, cost))
    count, hours = sum(number for _, number, _ in parts), sum(device_seconds for *_, device_seconds in parts) / 3600
    console.print(
        f"price: about {hours:.3g} device-hours for {count} trainings, as the trials of the sweep took", soft_wrap=True
    )
    console.print(f"  {_wall(trials, hours)}", soft_wrap=True)
    for words, _, device_seconds in parts:
        console.print(f"  {words}: {device_seconds / 3600:.3g}", soft_wrap=True)


def _wall(trials: Candidates, hours: float) -> str:
    """Returns in words how long trainings take, at as many at a time as the plan of the sweep had."""
    price = trials.sweep.plan.get("price") or {}
    if not price.get("hours_halving"):
        return "how long they take is not known, as the sweep has no price"
    seconds, slots = hours * 3600 * price["wall_hours"] / price["hours_halving"], price["slots"]
    at_a_time = f"{slots} training{'s' * (slots != 1)} at a time"
    return f"about {clock(seconds)} with {at_a_time}, as in the sweep, and some seconds to start each"


def _search(protocol: Protocol, trials: Candidates, arms: Sequence[str], cost: float) -> tuple[str, int, float]:
    """Returns what is searched in all folds in words, the number of trainings, and their device-seconds. Trials that
    were stopped early and runs on further seeds count as they did in the sweep.
    """
    records = [record for record in trials.records if record.arm in arms]
    configurations = sum(record.repeat_of is None for record in records)
    begun = protocol.folds * protocol.space["search"]["trials"]
    count = round(begun * len(records) / configurations)
    seconds = sum(record.device_seconds for record in records) / configurations * begun * cost
    further = f", and {count - begun} runs of them on further seeds" if count > begun else ""
    return f"search: {begun} configurations in {protocol.folds} folds{further}", count, seconds


def show_power(protocol: Protocol, trials: Candidates, store: Store, console: Console) -> None:
    """Prints what differences the test part can show with the planned seeds, before anything has run."""
    validated = patients_of(store, store.rows("val", trials.cohort.fold), protocol.goal)
    designs = [partial(expected_design, protocol, trials, validated, spread) for spread in SPREADS]
    listed = " / ".join(f"{each:g}" for each in SPREADS)
    spreads = f", if scores vary over seeds with a standard deviation of {listed}"
    smallest = _show_differences(protocol, designs, "", spreads, console)
    design = designs[0](protocol.goal, protocol.arms[0])
    if design is not None and design.counted < MIN_RARER:
        problem = f"{protocol.part} has about {design.counted} patients of the rarer class, by the share in validation"
        if protocol.of_answers:
            problem = f"the patients of {protocol.part} count as about {design.counted}, by the share in validation"
        outcome = f"with fewer than {MIN_RARER}, the answer on {tested_name(protocol.goal)} is always 'cannot tell'"
        console.print(f"warning: {problem}; {outcome}", soft_wrap=True)
    for goal, shown in smallest.items():
        if shown > (matters := protocol.smallest(goal)):
            problem = f"a difference of {matters:g} of {tested_name(goal)} will probably not be shown"
            console.print(f"warning: {problem}; see 'Before it runs' in docs/verdict.md", soft_wrap=True)


def show_power_after_choice(
    protocol: Protocol,
    scores: Mapping[str, Mapping[str, SeedScores]],
    luck: Mapping[str, Mapping[str, SearchLuck]],
    patients: Patients,
    console: Console,
) -> None:
    """Prints the same from what the finalists have shown on validation patients.

    Args:
        scores: scores of the finalists' students, by finalist and score.
        luck: what the search adds, by score and arm.
        patients: the validation patients.
    """

    def design(goal: str, arm: str) -> Design | None:
        return design_after_choice(protocol, scores, luck[goal], patients, goal, arm)

    _show_differences(protocol, [design], "after the choice, ", "", console)


def _show_differences(
    protocol: Protocol,
    designs: Sequence[Callable[[str, str], Design | None]],
    when: str,
    spreads: str,
    console: Console,
) -> dict[str, float]:
    """Prints the smallest difference that is probably shown, of each score and arm.

    Args:
        designs: what is expected of a score and an arm, under one assumption each.
        spreads: the assumptions in words; empty if there is none.

    Returns:
        The smallest of these differences for each score. A score without any is left out.
    """
    patients = f"{protocol.test_patients} test patients and {len(protocol.seeds)} seeds"
    shown_in = f"smallest difference that {patients} show in {USUAL_POWER:.0%} of tests"
    console.print(f"{when}{shown_in}{spreads}:", soft_wrap=True)
    smallest: dict[str, float] = {}
    for goal in protocol.goals():
        for arm in protocol.arms:
            expected = [design for each in designs if (design := each(goal, arm)) is not None]
            differences = [smallest_difference(design) for design in expected]
            cells = [f"{each:.3f}" if each < LARGEST else f"more than {LARGEST}" for each in differences]
            shown = " / ".join(cells) or "not known, as no finalist has a standard error"
            console.print(f"  {tested_name(goal)} by {arm}: {shown}", soft_wrap=True)
            if differences:
                smallest[goal] = min(*differences, smallest.get(goal, differences[0]))
    return smallest


def _device_seconds(trials: Candidates, arm: str) -> float:
    return statistics.fmean(
        record.device_seconds for record in trials.records if record.arm == arm and record.state == "complete"
    )


def show_verdict(
    protocol: Protocol, verdict: Verdict, circumstances: Circumstances, folder: ConfirmationFolder, console: Console
) -> None:
    """Prints the answers on the test part and on the external cohort, if any, and where the verdict lies."""
    console.print(f"\nverdict on {subject(protocol, verdict)}", soft_wrap=True)
    _show_answers(protocol, verdict, console)
    for note in circumstances.notes:
        console.print(f"  {note}", soft_wrap=True)
    if (external := circumstances.external) is not None:
        console.print("\n".join(external.lines()), soft_wrap=True)
        _show_answers(protocol, external.verdict, console)
    files = ", ".join(file.name for file in (folder.verdict_page, folder.verdict, folder.protocol))
    console.print(f"files in {folder}: {files}", soft_wrap=True)


def _show_answers(protocol: Protocol, verdict: Verdict, console: Console) -> None:
    for answer in verdict.answers:
        console.print(f"  {sentence(answer, verdict, protocol)}", soft_wrap=True)
        for reason in answer.reasons:
            console.print(f"    {reason}", soft_wrap=True)
        for line in what_would_tell(answer, protocol):
            console.print(f"    {line}", soft_wrap=True)
