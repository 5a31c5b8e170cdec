"""The end of a sweep on a console: who is on the front, and how far the ranking can be trusted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sweep.reports.teachers import teacher_warnings, teachers_in_words
from sweep.storage.records import best_of, front_of, picked
from sweep.types import Record

TEACHERS = "teacher, on validation"  # heads a column
SMALLEST = 1e-9  # standard error that is more than rounding


def print_summary(
    console: Console,
    records: Sequence[Record],
    arms: Sequence[str],
    goals: Sequence[str],
    select: str,
    folder: Path,
    auroc_error: float | None = None,
) -> None:
    """What a sweep came to: counts, failures, the front with its resolution, and where the files are.

    `auroc_error`: see `resolution`.
    """
    states = Counter(record.state for record in records)
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    console.print(f"\n{len(records)} trials: {told or 'none finished'}", highlight=False)
    for record in [one for one in records if one.state == "failed"][:3]:
        story = folder / "errors" / f"{record.number}.txt"
        where = f" ({story})" if story.exists() else ""
        console.print(f"  trial {record.number} failed: {record.error}{where}", highlight=False, soft_wrap=True)
    if states["complete"]:
        console.print(front_table(records, arms, goals, select))
    for line in yardsticks(records, goals):
        console.print(line, highlight=False)
    if states["complete"] and picked(records, select, goals) is None:
        console.print("no best.yaml: every complete trial reads another image at test", highlight=False)
    unresolved = resolution(records, goals, auroc_error)
    for warning in [*teacher_warnings(records, arms), *without_complete(records, arms), *unresolved]:
        console.print(f"warning: {warning}", highlight=False)
    names = ("report.html", "best.yaml", "trials.parquet", "epochs.parquet")
    console.print(f"files in {folder}: {', '.join(name for name in names if (folder / name).exists())}", soft_wrap=True)


def front_table(records: Sequence[Record], arms: Sequence[str], goals: Sequence[str], select: str) -> Table:
    """The front, best by `select` first, then the best of each arm that is not on it; with standard errors, and how
    good the teachers were."""
    table = Table("trial", "arm", *goals, TEACHERS, "sampled", title="Front", title_justify="left")
    order = [select, *(goal for goal in goals if goal != select)]
    for record in sorted(front_of(records, goals), key=lambda one: one.values(order), reverse=True):
        table.add_row(*cells(record, goals), sampled(record))
    table.add_section()
    for record in off_front(records, arms, goals, select):
        table.add_row(*cells(record, goals), f"({off_front_label(record)}) {sampled(record)}")
    return table


def cells(record: Record, goals: Sequence[str]) -> list[str]:
    """A trial's number and arm, its score on each goal, and how good its teachers were."""
    scores = [with_error(record, goal) for goal in goals]
    return [str(record.number), record.arm, *scores, teachers_in_words(record)]


def off_front(records: Sequence[Record], arms: Sequence[str], goals: Sequence[str], select: str) -> list[Record]:
    """Of each arm that has no trial on the front its best complete one by `select`: what the front is held against."""
    there = {record.arm for record in front_of(records, goals)}
    best = [best_of([one for one in records if one.arm == arm], select, goals) for arm in arms if arm not in there]
    return [record for record in best if record]


def off_front_label(record: Record) -> str:
    return f"best of {record.arm}, " + ("which reads another image at test" if record.reference else "not on the front")


def without_complete(records: Sequence[Record], arms: Sequence[str]) -> list[str]:
    """One line per arm of which nothing can be compared."""
    there = {record.arm for record in records if record.state == "complete"}
    return [f"arm {arm} has no complete trial, so nothing can be compared with it" for arm in arms if arm not in there]


def yardsticks(records: Sequence[Record], goals: Sequence[str]) -> list[str]:
    """One line per goal of localisation: what maps that ignore the image score on the same validation set, and what the
    best map on the student's patches could."""
    kinds = {"chance": "by chance", "centre": "by pointing at the centre", "prior": "by the mean training ROI"}
    lines = []
    for goal in goals:
        best = best_of(records, goal, goals)
        if best is None or f"{goal}_chance" not in best.metrics:
            continue
        scores = [
            f"{best.metrics[f'{goal}_{name}']:.3f} {how}"
            for name, how in kinds.items()
            if f"{goal}_{name}" in best.metrics
        ]
        highest = best.metrics.get(f"{goal}_max")
        bound = "" if highest is None else f"; no map on its patches can score above {highest:.3f}"
        lines.append(f"{goal} without looking: {', '.join(scores)}{bound}")
    return lines


def with_error(record: Record, goal: str) -> str:
    """'0.912 ± 0.031', the standard error over validation patients; '1.000 ± ?' where they are too few to tell it."""
    if f"{goal}_se" not in record.metrics:
        return f"{record.metrics[goal]:.3f}"
    error = error_of(record, goal)
    return f"{record.metrics[goal]:.3f} ± {'?' if error is None else f'{error:.3f}'}"


def error_of(record: Record, goal: str) -> float | None:
    """The standard error of a score over validation patients; None where they are too few to tell it.

    One of 0, but for rounding, is of a score that is the same whichever patients are drawn: that tells nothing.
    """
    error = record.metrics.get(f"{goal}_se", math.nan)
    return error if math.isfinite(error) and error > SMALLEST else None


def sampled(record: Record) -> str:
    """What was drawn, under the shortest names that tell it apart."""
    # That a maybe is there is plain from what it holds; that it is not is said under the leaf's own name.
    told = {name.removesuffix(".maybe"): value for name, value in record.sampled.items() if value != "present"}
    paths = {name: name.removeprefix(f"{record.arm}/") for name in told}
    short = shortest(list(paths.values()))
    control = [f"shuffled: {record.control}"] if record.control else []
    return ", ".join([*(f"{short[path]}={shown(told[name])}" for name, path in paths.items()), *control])


def shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def shortest(paths: Sequence[str]) -> Mapping[str, str]:
    """Each dotted path cut to the fewest last steps that no other path ends in."""
    cut: dict[str, str] = {}
    for path in paths:
        steps = path.split(".")
        for count in range(1, len(steps) + 1):
            tail = steps[-count:]
            if sum(other.split(".")[-count:] == tail for other in paths) == 1:
                break
        cut[path] = ".".join(tail)
    return cut


def resolution(records: Sequence[Record], goals: Sequence[str], auroc_error: float | None = None) -> list[str]:
    """One warning per goal on which the best cannot be told from others by the validation set.

    Two trials are told apart by more than the largest of their standard errors and, on AUROC, of `auroc_error`: that
    which the plan states for so many patients. A perfect score has none of its own.
    """
    complete = [record for record in records if record.state == "complete" and not record.reference]
    warnings = []
    for goal in goals:
        best = best_of(complete, goal, goals)
        if best is None or f"{goal}_se" not in best.metrics:
            continue
        error = error_of(best, goal)
        floor = max(error or 0.0, (auroc_error or 0.0) if goal.startswith("val/auroc") else 0.0)
        reaches = [(one, max(floor, error_of(one, goal) or 0.0)) for one in complete if one is not best]
        close = [reach for one, reach in reaches if best.metrics[goal] - one.metrics[goal] <= reach]
        others = f"{len(close)} of the {len(reaches)} other complete trials"
        within = f"lie within one standard error ({max(close, default=0.0):.3f}) of the best"
        if error is None:
            near = f"{others} {within if any(close) else 'score the same'}"
            warnings.append(
                f"on {goal} the best has no standard error, for its score is the same whichever validation patients "
                f"are drawn: they are too few to tell trials apart{f'; {near}' if close else ''}"
            )
        elif close:
            warnings.append(f"on {goal} {others} {within}: the validation set does not tell them apart")
    return warnings
