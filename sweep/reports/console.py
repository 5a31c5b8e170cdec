"""Prints the result of a sweep on a console: its Pareto front, and how far the ranking of its trials can be trusted."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any

from rich.console import Console

from mmpkd.command import command_lines, table_lines, wrapped
from mmpkd.scoring.patients import FEW_PATIENTS, few_in_words
from mmpkd.scoring.stats import is_all_equal
from sweep.reports.arms import ArmTotals, arms_table
from sweep.reports.choosing import choices_in_words, how_to_read, image_blind_verdict, supervision, with_estimate
from sweep.reports.details import duration
from sweep.reports.page.commands import pick_command, storage_of
from sweep.reports.teachers import teacher_warnings, teachers_in_words
from sweep.selection import Selection, best_first, error_of, rule_of, score_in_words
from sweep.storage.layout import BEST, SweepFolder
from sweep.storage.records import (
    IMAGE_BLIND,
    best_of,
    compared_metric,
    front_of,
    image_blind_scores_of,
    picked,
)
from sweep.types import Record

TEACHER_COLUMN = "teacher, on validation"
ALL_EQUAL = "the score is the same whichever validation patients are drawn, so it has no standard error"


def print_summary(
    console: Console,
    records: Sequence[Record],
    arms: Sequence[str],
    goals: Sequence[str],
    select: str | Selection,
    folder: SweepFolder,
    auroc_error: float | None = None,
    totals: Sequence[ArmTotals] = (),
) -> None:
    """Prints the number of trials by state, the failures, the arms, the front, warnings about close scores, and the
    files.

    Args:
        auroc_error: standard error of AUROC that the plan states, or None; `resolution` uses it.
        totals: what each arm got. Without it the table of arms is left out.
    """
    print_states(console, records, folder)
    if totals:
        console.print(arms_table(totals))
    any_complete = any(record.state == "complete" for record in records)
    if any_complete:
        for line in front_lines(records, arms, goals, select, console.width):
            console.print(line, highlight=False, soft_wrap=True)
    blind = [*image_blind_scores(records, goals), *image_blind_verdict(records, goals)]
    choices = choices_in_words(records, goals)
    for line in [*choices, *([how_to_read(auroc_error)] if choices else []), *blind]:
        console.print(line, highlight=False)
    best = picked(records, select)
    if any_complete and best is None:
        console.print(f"no {folder.best.name}: every complete trial reads another image at test", highlight=False)
    is_estimated = best and any(f"{goal}_estimate" in best.metrics for goal in rule_of(select).goals)
    if best and is_estimated and not folder.keeps_checkpoints(best.number):
        # A trial keeps its student only if its observed scores are among the best when it ends.
        console.print(
            f"the student of trial {best.number} is not kept, because better scores were observed; to train it again "
            f"({duration(best.seconds)} in the sweep): python -m mmpkd.train config={quote(str(folder.best))}",
            highlight=False,
            soft_wrap=True,
        )
    unresolved = resolution(records, goals, auroc_error)
    general = [*teacher_warnings(records, arms), *without_complete(records, arms), *few_patients(records)]
    general += supervision(select) if best else []
    for warning in [*general, *unresolved]:
        console.print(f"warning: {warning}", highlight=False)
    print_files(console, folder)
    if best:
        take = pick_command(folder.name, storage_of(folder), f"trial={best.number}")
        lines = ["take a student, with its model card:", *command_lines(take)]
        console.print("\n".join(lines), highlight=False, soft_wrap=True)


def print_states(console: Console, records: Sequence[Record], folder: SweepFolder) -> None:
    """Prints the number of trials by state, and the first failures."""
    states = Counter(record.state for record in records)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    console.print(f"\n{len(records)} trials: {counts or 'none finished'}", highlight=False)
    for record in [record for record in records if record.state == "failed"][:3]:
        error_file = folder.shared_error(record.number)
        where = f" ({error_file})" if error_file.exists() else ""
        console.print(f"  trial {record.number} failed: {record.error}{where}", highlight=False, soft_wrap=True)


def print_files(console: Console, folder: SweepFolder) -> None:
    """Prints the files of results that a sweep has written."""
    written = [path.name for path in (folder.report, folder.best, folder.trials, folder.epochs) if path.exists()]
    console.print(f"files in {folder}: {', '.join(written)}", soft_wrap=True)


def front_lines(
    records: Sequence[Record], arms: Sequence[str], goals: Sequence[str], select: str | Selection, width: int
) -> list[str]:
    """Returns a table of the trials on the Pareto front. Below them are the picked trial, if a tie has kept it off the
    front, and the best trial of each arm that has no trial on the front. The trials on the front are ordered by the
    goal `select`, best first.

    The row of a trial has its scores with their standard errors. Lines below it, of at most `width` characters
    and broken between words, say why it is shown, its estimated means, its teachers' scores and its settings.
    """
    chosen = picked(records, select)
    front = best_first(front_of(records, goals), compared_metric(records, rule_of(select).maximize))
    is_marked = bool(rule_of(select).of)  # without a limit it is the first row
    marks = {record.number: BEST if record is chosen and is_marked else "" for record in front}
    others = off_front(records, arms, goals, select)
    marks |= {record.number: off_front_label(record, records, select) for record in others}
    shown = [*front, *others]
    rows = [[str(record.number), record.arm, *(with_error(record, goal) for goal in goals)] for record in shown]
    head, *table = table_lines(["trial", "arm", *goals], rows, sys.maxsize)
    lines = ["Front", *wrapped(head, width)]
    for record, row in zip(shown, table, strict=True):
        estimates = [f"{goal} {with_estimate(record, goal, '')}" for goal in goals]
        teachers = teachers_in_words(record)
        below = [
            f"({marks[record.number]})" if marks[record.number] else "",
            ", ".join(text.replace(" , ", " ") for text in estimates if "estimated" in text),
            f"{TEACHER_COLUMN}: {teachers}" if teachers else "",
            sampled(record),
        ]
        lines += [*wrapped(row, width), *(line for text in below if text for line in wrapped(text, width, " " * 7))]
    footnote = f"all equal: {ALL_EQUAL}"
    return lines + wrapped(footnote, width) * any("(all equal)" in line for line in lines)


def cells(record: Record, goals: Sequence[str]) -> list[str]:
    """Returns the cells of one row: number and arm of a trial, its score on each goal, and the scores of its
    teachers.
    """
    scores = [with_estimate(record, goal, with_error(record, goal)) for goal in goals]
    return [str(record.number), record.arm, *scores, teachers_in_words(record)]


def off_front(
    records: Sequence[Record], arms: Sequence[str], goals: Sequence[str], select: str | Selection
) -> list[Record]:
    """Returns the picked trial if it is not on the front, and the best complete trial, by `select`, of each further arm
    that has no trial on the front.
    """
    front, best = front_of(records, goals), picked(records, select)
    chosen = [best] if best and best not in front else []
    shown = {record.arm for record in [*front, *chosen]}
    by_arm = {arm: [record for record in records if record.arm == arm] for arm in arms if arm not in shown}
    best_of_arms = [best_of(of_arm, select) for of_arm in by_arm.values()]
    return [*chosen, *(record for record in best_of_arms if record)]


def off_front_label(record: Record, records: Sequence[Record], select: str | Selection) -> str:
    """Returns why a trial that is not on the front is shown."""
    if record is picked(records, select):
        return f"{BEST}: best {select}, not on the front"
    return f"best of {record.arm}, " + ("which reads another image at test" if record.reference else "not on the front")


def without_complete(records: Sequence[Record], arms: Sequence[str]) -> list[str]:
    """Returns a warning for each arm without a complete trial."""
    with_complete = {record.arm for record in records if record.state == "complete"}
    return [f"arm {arm} has no complete trial, so it cannot be compared" for arm in arms if arm not in with_complete]


def image_blind_scores(records: Sequence[Record], goals: Sequence[str]) -> list[str]:
    """Returns a line for each goal of localisation or of answers, with reference scores on the same validation set.

    The line states two kinds of reference scores: the scores of what ignores the image, and the highest score that a
    map with one value for each patch of the student can reach.
    """
    lines = []
    for goal in goals:
        best = best_of(records, goal)
        scores = image_blind_scores_of(best, goal) if best else {}
        if best is None or not scores:
            continue
        shown = ", ".join(f"{score:.3f} {IMAGE_BLIND[name]}" for name, score in scores.items())
        highest = best.metrics.get(f"{goal}_max")
        bound = "" if highest is None else f"; with patches of this size, no map can score above {highest:.3f}"
        lines.append(f"{goal} without looking at the image: {shown}{bound}")
    return lines


def with_error(record: Record, goal: str) -> str:
    """Returns a score with its standard error, if it can have one; see `score_in_words`.

    The standard error of a trial is over validation patients, and that of a mean over seeds is over patients and seeds
    (see `records.error_of_mean`).
    """
    score, error = record.metrics[goal], record.metrics.get(f"{goal}_se")
    return f"{score:.3f}" if error is None else score_in_words(score, error)


def _is_all_equal(record: Record, goal: str) -> bool:
    return is_all_equal(record.metrics[goal], record.metrics.get(f"{goal}_se", math.nan))


def sampled(record: Record) -> str:
    """Returns the sampled values of a trial as text. Each value is shown under the shortest name that is unique."""
    # A present `maybe` shows through the values below it. An absent `maybe` is listed under the name of its leaf.
    values = {name.removesuffix(".maybe"): value for name, value in record.sampled.items() if value != "present"}
    paths = {name: name.removeprefix(f"{record.arm}/") for name in values}
    short = shortest(list(paths.values()))
    control = [f"shuffled: {record.control}"] if record.control else []
    return ", ".join([*(f"{short[path]}={as_text(values[name])}" for name, path in paths.items()), *control])


def as_text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def shortest(paths: Sequence[str]) -> Mapping[str, str]:
    """Returns a mapping of each dotted path to its shortest ending that no other path has, such as 'lr' for
    'optimizer.lr'.
    """
    shortened: dict[str, str] = {}
    for path in paths:
        steps = path.split(".")
        for count in range(1, len(steps) + 1):
            tail = steps[-count:]
            if sum(other.split(".")[-count:] == tail for other in paths) == 1:
                break
        shortened[path] = ".".join(tail)
    return shortened


def few_patients(records: Sequence[Record]) -> list[str]:
    """Returns a warning if a label has few validation patients of its rarer class (see `scoring.patients`)."""
    counts = [record.metrics.get("val/auroc_rarer_class", math.inf) for record in records]
    fewest = min(counts, default=math.inf)
    return [few_in_words("a label", round(fewest), "validation patients")] if fewest < FEW_PATIENTS else []


def resolution(records: Sequence[Record], goals: Sequence[str], auroc_error: float | None = None) -> list[str]:
    """Returns a warning for each goal on which the validation set does not separate the best trial from other trials.

    Two trials are separated if their scores, or the estimated means by which they are compared, differ by more than the
    larger of their standard errors. On AUROC the difference must exceed `auroc_error` too. Equal trials are never
    separated. A best score without a standard error gets a warning even if no other trial is close.

    Args:
        auroc_error: the standard error of AUROC that the plan states for this number of patients. It is needed because
            a perfect score has no standard error of its own.
    """
    complete = [record for record in records if record.state == "complete" and not record.reference]
    warnings = []
    for goal in goals:
        best = best_of(complete, goal)
        if best is None:
            continue
        error = error_of(best, goal)
        floor = max(error or 0.0, (auroc_error or 0.0) if goal.startswith("val/auroc") else 0.0)
        margins = [(record, max(floor, error_of(record, goal) or 0.0)) for record in complete if record is not best]
        metric = compared_metric(complete, goal)
        close = [margin for record, margin in margins if best.metrics[metric] - record.metrics[metric] <= margin]
        verdict = " Do not read the ranking as a result." if close else ""
        if error is None and f"{goal}_se" in best.metrics:
            few = "too few validation patients have this score"
            reason = "it is the same whichever validation patients are drawn" if _is_all_equal(best, goal) else few
            ties = f"; {_close_in_words(close, len(margins))} it" if close else ""
            if margins and not close:
                verdict = " Its lead over the other trials cannot be judged."
            warnings.append(f"the best {goal} has no standard error, because {reason}{ties}.{verdict}")
        elif close:
            warnings.append(f"{_close_in_words(close, len(margins))} the best {goal}.{verdict}")
    return warnings


def _close_in_words(close: Sequence[float], num_others: int) -> str:
    """Returns, for example, '2 of the 3 other complete trials are within one standard error (0.025) of'.

    Args:
        close: the margin of each trial that is not separated from the best one. A margin of 0 is that of an equal trial
            without a standard error.
        num_others: the number of complete trials besides the best one.
    """
    which = "all" if len(close) == num_others else f"{len(close)} of the"
    who = f"{which} {num_others} other complete trials" if num_others > 1 else "the other complete trial"
    if not any(close):
        return f"{who} equal{'s' if len(close) == 1 else ''}"
    return f"{who} {'is' if len(close) == 1 else 'are'} within one standard error ({max(close):.3f}) of"
