"""Prints the result of a sweep on a console: its Pareto front, and how far the ranking of its trials can be trusted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from sweep.reports.arms import ARM_COLUMNS, ArmTotals
from sweep.reports.teachers import teacher_warnings, teachers_in_words
from sweep.storage.layout import SweepFolder
from sweep.storage.records import best_of, front_of, picked
from sweep.types import Record

TEACHER_COLUMN = "teacher, on validation"
SMALLEST_ERROR = 1e-9  # a smaller standard error is only rounding and counts as 0


def print_summary(
    console: Console,
    records: Sequence[Record],
    arms: Sequence[str],
    goals: Sequence[str],
    select: str,
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
    states = Counter(record.state for record in records)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    console.print(f"\n{len(records)} trials: {counts or 'none finished'}", highlight=False)
    for record in [record for record in records if record.state == "failed"][:3]:
        error_file = folder.error(record.number)
        where = f" ({error_file})" if error_file.exists() else ""
        console.print(f"  trial {record.number} failed: {record.error}{where}", highlight=False, soft_wrap=True)
    if totals:
        console.print(arms_table(totals))
    if states["complete"]:
        console.print(front_table(records, arms, goals, select))
    for line in image_blind_scores(records, goals):
        console.print(line, highlight=False)
    if states["complete"] and picked(records, select, goals) is None:
        console.print(f"no {folder.best.name}: every complete trial reads another image at test", highlight=False)
    unresolved = resolution(records, goals, auroc_error)
    for warning in [*teacher_warnings(records, arms), *without_complete(records, arms), *unresolved]:
        console.print(f"warning: {warning}", highlight=False)
    written = [path.name for path in (folder.report, folder.best, folder.trials, folder.epochs) if path.exists()]
    console.print(f"files in {folder}: {', '.join(written)}", soft_wrap=True)


def arms_table(totals: Sequence[ArmTotals]) -> Table:
    """Returns a table of what each arm got: configurations by how they ended, and device-hours."""
    table = Table(*ARM_COLUMNS, title="Arms", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for arm in totals:
        table.add_row(*arm.cells())
    return table


def front_table(records: Sequence[Record], arms: Sequence[str], goals: Sequence[str], select: str) -> Table:
    """Returns a table of the trials on the Pareto front, and of the best trial of each arm that has no trial on the
    front. The trials on the front are ordered by the goal `select`, best first.

    The table shows each score with its standard error, and for each trial the scores of its teachers.
    """
    table = Table("trial", "arm", *goals, TEACHER_COLUMN, "sampled", title="Front", title_justify="left")
    order = [select, *(goal for goal in goals if goal != select)]
    for record in sorted(front_of(records, goals), key=lambda record: record.values(order), reverse=True):
        table.add_row(*cells(record, goals), sampled(record))
    table.add_section()
    for record in off_front(records, arms, goals, select):
        table.add_row(*cells(record, goals), f"({off_front_label(record)}) {sampled(record)}")
    return table


def cells(record: Record, goals: Sequence[str]) -> list[str]:
    """Returns the cells of one row: number and arm of a trial, its score on each goal, and the scores of its
    teachers.
    """
    scores = [with_error(record, goal) for goal in goals]
    return [str(record.number), record.arm, *scores, teachers_in_words(record)]


def off_front(records: Sequence[Record], arms: Sequence[str], goals: Sequence[str], select: str) -> list[Record]:
    """Returns the best complete trial, by `select`, of each arm that has no trial on the front."""
    on_front = {record.arm for record in front_of(records, goals)}
    by_arm = {arm: [record for record in records if record.arm == arm] for arm in arms if arm not in on_front}
    best = [best_of(of_arm, select, goals) for of_arm in by_arm.values()]
    return [record for record in best if record]


def off_front_label(record: Record) -> str:
    return f"best of {record.arm}, " + ("which reads another image at test" if record.reference else "not on the front")


def without_complete(records: Sequence[Record], arms: Sequence[str]) -> list[str]:
    """Returns a warning for each arm without a complete trial."""
    with_complete = {record.arm for record in records if record.state == "complete"}
    return [f"arm {arm} has no complete trial, so it cannot be compared" for arm in arms if arm not in with_complete]


def image_blind_scores(records: Sequence[Record], goals: Sequence[str]) -> list[str]:
    """Returns a line for each localisation goal, with reference scores on the same validation set.

    The line states two kinds of reference scores: the scores of localisation maps that ignore the image, and the
    highest score that a map with one value for each patch of the student can reach.
    """
    kinds = {"chance": "by chance", "centre": "by pointing at the centre", "prior": "by the mean training ROI"}
    lines = []
    for goal in goals:
        best = best_of(records, goal, goals)
        if best is None or f"{goal}_chance" not in best.metrics:
            continue
        scores = [
            f"{best.metrics[f'{goal}_{name}']:.3f} {source}"
            for name, source in kinds.items()
            if f"{goal}_{name}" in best.metrics
        ]
        highest = best.metrics.get(f"{goal}_max")
        bound = "" if highest is None else f"; no map on its patches can score above {highest:.3f}"
        lines.append(f"{goal} without looking at the image: {', '.join(scores)}{bound}")
    return lines


def with_error(record: Record, goal: str) -> str:
    """Returns a score and its standard error over validation patients, such as '0.912 ± 0.031', or '1.000 ± ?' if the
    standard error is unknown.
    """
    if f"{goal}_se" not in record.metrics:
        return f"{record.metrics[goal]:.3f}"
    error = error_of(record, goal)
    return f"{record.metrics[goal]:.3f} ± {'?' if error is None else f'{error:.3f}'}"


def error_of(record: Record, goal: str) -> float | None:
    """Returns the standard error of a score over validation patients, or None if too few patients allow no estimate.

    A standard error of 0, up to rounding, means that every resampling of the patients gives the same score. The
    standard error is then unknown, not small.
    """
    error = record.metrics.get(f"{goal}_se", math.nan)
    return error if math.isfinite(error) and error > SMALLEST_ERROR else None


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


def resolution(records: Sequence[Record], goals: Sequence[str], auroc_error: float | None = None) -> list[str]:
    """Returns a warning for each goal on which the validation set does not separate the best trial from other trials.

    Two trials are separated if their scores differ by more than the larger of their standard errors. On AUROC the
    difference must exceed `auroc_error` too.

    Args:
        auroc_error: the standard error of AUROC that the plan states for this number of patients. It is needed because
            a perfect score has no standard error of its own.
    """
    complete = [record for record in records if record.state == "complete" and not record.reference]
    warnings = []
    for goal in goals:
        best = best_of(complete, goal, goals)
        if best is None or f"{goal}_se" not in best.metrics:
            continue
        error = error_of(best, goal)
        floor = max(error or 0.0, (auroc_error or 0.0) if goal.startswith("val/auroc") else 0.0)
        margins = [(record, max(floor, error_of(record, goal) or 0.0)) for record in complete if record is not best]
        close = [margin for record, margin in margins if best.metrics[goal] - record.metrics[goal] <= margin]
        count = f"all {len(margins)}" if len(close) == len(margins) > 1 else f"{len(close)} of the {len(margins)}"
        within = f"are within one standard error ({max(close, default=0.0):.3f}) of" if any(close) else "equal"
        if error is None:
            ties = f"; {count} other complete trials {within} it" if close else ""
            warnings.append(
                f"the best {goal} has no standard error, because it is the same whichever validation patients are "
                f"drawn{ties}. There are too few validation patients for a ranking."
            )
        elif close:
            warnings.append(
                f"{count} other complete trials {within} the best {goal}. Do not read the ranking as a result."
            )
    return warnings
