"""What a sweep shows: each arm against the arm without a teacher, and against maps that ignore the image.

A sweep compares the best of many trials on patients by whom they were chosen, so it can suggest a difference but not
prove it. The words say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from sweep.reports.console import with_error
from sweep.selection import error_of
from sweep.storage.records import IMAGE_BLIND, best_of, image_blind_scores_of
from sweep.types import Record

BASELINE: Final = "none"  # the arm without a teacher, with which the others are compared
NORMAL_95: Final = 1.96  # standard errors of a normal distribution on each side of a 95 % interval
CAUTION: Final = (
    "Each score is the best of several on the patients by whom it was chosen, so it is too high by luck. A sweep "
    "finds settings; whether arms differ needs further seeds and other patients."
)
INTERVALS: Final = (
    "Intervals are 95 % (1.96 standard errors over validation patients, and over seeds where there are several). Those "
    "of differences take both scores as independent; they are usually too wide, because the patients are the same. "
    "They leave out the luck of choosing the best of several trials."
)
VERDICT: Final = "The verdict on an arm needs fresh seeds and the test part, which a sweep does not read."
EMPTY: Final = "-"  # in a table


def best_of_arm(records: Sequence[Record], arm: str, goal: str) -> Record | None:
    """Returns the complete trial of an arm that is best by a goal, or None if no trial is complete."""
    return best_of([record for record in records if record.arm == arm], goal)


def sentences(records: Sequence[Record], arms: Sequence[str], goals: Sequence[str]) -> list[tuple[str, str]]:
    """Returns what a sweep shows of each arm and goal, as pairs of a goal and a sentence about it."""
    lines: list[tuple[str, str]] = []
    for goal in goals:
        best = {arm: best_of_arm(records, arm, goal) for arm in arms}
        complete = {arm: record for arm, record in best.items() if record is not None}
        baseline = complete.get(BASELINE)
        lines += [(goal, _compared(record, baseline, goal)) for arm, record in complete.items() if arm != BASELINE]
        if baseline is not None and len(complete) == 1:
            lines.append((goal, _compared(baseline, None, goal)))
        lines += [(goal, line) for line in _without_the_image(records, goal)]
    return lines


def _compared(record: Record, baseline: Record | None, goal: str) -> str:
    """Returns a sentence on the best trial of an arm, compared with the best trial of the baseline."""
    subject = f"the best of {record.arm} is {with_error(record, goal)} (trial {record.number})"
    if baseline is None:
        return f"{subject}."
    difference = record.metrics[goal] - baseline.metrics[goal]
    errors = [error for error in (error_of(record, goal), error_of(baseline, goal)) if error is not None]
    verdict = "and its error is not known"
    if errors:
        size = "within" if abs(difference) <= max(errors) else "more than"
        verdict = f"{size} one standard error"
    return (
        f"{subject}, that of {BASELINE} {with_error(baseline, goal)} (trial {baseline.number}): {difference:+.3f}, "
        f"{verdict}."
    )


def _without_the_image(records: Sequence[Record], goal: str) -> list[str]:
    best = best_of(records, goal)
    if best is None or not (scores := image_blind_scores_of(best, goal)):
        return []
    name = max(scores, key=lambda name: scores[name])
    what = f"the best map that ignores the image ({scores[name]:.3f} {IMAGE_BLIND[name]})"
    return [f"{'the best trial is above' if best.metrics[goal] > scores[name] else 'no trial is above'} {what}."]


def columns(goal: str, records: Sequence[Record]) -> list[str]:
    """Returns the heads of the table `rows`."""
    best = best_of(records, goal)
    blind = ["minus the best map that ignores the image"] if best and image_blind_scores_of(best, goal) else []
    return ["", "trial", goal, "95 % interval", f"minus {BASELINE}, 95 % interval", *blind]


def rows(records: Sequence[Record], arms: Sequence[str], goal: str) -> list[list[str]]:
    """Returns a row for the best trial of each arm by a goal, the baseline first, and for a goal of localisation a row
    for each kind of map that ignores the image.
    """
    baseline = best_of_arm(records, BASELINE, goal)
    overall = best_of(records, goal)
    scores = image_blind_scores_of(overall, goal) if overall else {}
    lines = []
    for arm in sorted(arms, key=lambda arm: arm != BASELINE):
        best = best_of_arm(records, arm, goal)
        if best is None:
            lines.append([f"best of {arm}", EMPTY, "no complete trial", *[EMPTY] * (3 if scores else 2)])
            continue
        score, error = best.metrics[goal], error_of(best, goal)
        against = EMPTY if best is baseline or baseline is None else _difference(best, baseline, goal)
        above = [f"{score - max(scores.values()):+.3f}"] if scores else []
        interval = _interval(score, error, most=1.0)
        lines.append([f"best of {arm}", str(best.number), f"{score:.3f}", interval, against, *above])
    lines += [
        [f"no image: {IMAGE_BLIND[name]}", EMPTY, f"{score:.3f}", EMPTY, EMPTY, EMPTY] for name, score in scores.items()
    ]
    return lines


def _difference(record: Record, baseline: Record, goal: str) -> str:
    difference = record.metrics[goal] - baseline.metrics[goal]
    errors = [error_of(record, goal), error_of(baseline, goal)]
    known = [error for error in errors if error is not None]
    total = math.hypot(*known) if len(known) == len(errors) else None
    return f"{difference:+.3f}, {_interval(difference, total, sign='+')}"


def _interval(value: float, error: float | None, sign: str = "", most: float = math.inf) -> str:
    if error is None:
        return "not known"
    low, high = value - NORMAL_95 * error, min(value + NORMAL_95 * error, most)  # no score exceeds 1
    return f"{low:{sign}.3f} to {high:{sign}.3f}"
