"""What a sweep shows: each arm against the arm without a teacher, and against what ignores the image.

A sweep compares the best of many trials on patients by whom they were chosen, so it can suggest a difference but not
prove it. The words say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from mmpkd.scoring.stats import Interval, logit_interval, normal_interval
from sweep.selection import error_of
from sweep.storage.records import IMAGE_BLIND, best_of, image_blind_scores_of
from sweep.types import Record

BASELINE: Final = "none"  # the arm without a teacher, with which the others are compared
CAUTION: Final = (
    "Each score is the best of several on the patients by whom it was chosen, so it is too high by luck. A sweep "
    "finds settings; whether arms differ needs further seeds and other patients."
)
INTERVALS: Final = (
    "Intervals are 95 % and come from the standard error over validation patients, and over seeds where there are "
    "several. Those of scores are symmetric on the logit scale, as in a student's model card. Those of differences are "
    "1.96 standard errors on each side and take both scores as independent; they are usually too wide, because the "
    "patients are the same. All leave out the luck of choosing the best of several trials."
)
VERDICT: Final = (
    "The verdict on an arm needs fresh seeds and the test part, which a sweep does not read: python -m sweep.confirm."
)
EMPTY: Final = "-"  # in a table
UNKNOWN: Final = "not known"


def best_of_arm(records: Sequence[Record], arm: str, goal: str) -> Record | None:
    """Returns the complete trial of an arm that is best by a goal, or None if no trial is complete."""
    return best_of([record for record in records if record.arm == arm], goal)


def sentences(records: Sequence[Record], arms: Sequence[str], goals: Sequence[str]) -> list[tuple[str, str]]:
    """Returns what a sweep shows of each arm and goal, as pairs of a goal and a sentence about it.

    The sentences state differences and no scores, which the tables beside them state with their intervals.
    """
    lines: list[tuple[str, str]] = []
    for goal in goals:
        best = {arm: best_of_arm(records, arm, goal) for arm in arms}
        complete = {arm: record for arm, record in best.items() if record is not None}
        baseline = complete.get(BASELINE)
        if baseline is None or len(complete) == 1:
            lines += [(goal, _alone(arm)) for arm in complete]
        else:
            others = {arm: record for arm, record in complete.items() if arm != BASELINE}
            lines += [(goal, line) for line in _compared(others, baseline, goal)]
        lines += [(goal, line) for line in _without_the_image(records, goal)]
    return lines


def _alone(arm: str) -> str:
    """Returns a sentence on an arm that cannot be compared."""
    other = "another arm" if arm == BASELINE else BASELINE
    return f"{arm} cannot be compared, because no trial of {other} is complete."


def _compared(best: Mapping[str, Record], baseline: Record, goal: str) -> list[str]:
    """Returns sentences that compare the best trial of each arm with the best trial of the baseline, one for all arms
    of which the same can be said.
    """
    luck = "the interval leaves out the luck of choosing the best, so that this is no claim"
    ends = {
        "above": f"above the best of {BASELINE}, and 0 is below the interval; {luck}",
        "below": f"below the best of {BASELINE}, and 0 is above the interval; {luck}",
        "equal": f"not told apart from the best of {BASELINE}, because their scores are the same",
        "unclear": f"not told apart from the best of {BASELINE}, because 0 is in the interval",
        "unknown": f"not told apart from the best of {BASELINE}, because a standard error is not known",
    }
    groups: dict[str, list[str]] = {name: [] for name in ends}
    for arm, record in best.items():
        difference = _difference(record, baseline, goal)
        if difference.mean == 0:
            groups["equal"].append(arm)
            continue
        if math.isnan(difference.low):
            groups["unknown"].append(f"{arm} ({difference.mean:+.3f})")
            continue
        group = "above" if difference.low > 0 else "below" if difference.high < 0 else "unclear"
        groups[group].append(f"{arm} ({difference.mean:+.3f}; 95 % interval {_in_words(difference, sign='+')})")
    return [
        f"the best of {_listed(arms)} {'is' if len(arms) == 1 else 'are'} {ends[group]}."
        for group, arms in groups.items()
        if arms
    ]


def _listed(words: Sequence[str]) -> str:
    return " and of ".join(filter(None, [", of ".join(words[:-1]), words[-1]]))


def _difference(record: Record, baseline: Record, goal: str) -> Interval:
    """Returns the difference of two scores, with an interval that takes them as independent."""
    errors = [error_of(each, goal) or math.nan for each in (record, baseline)]
    return normal_interval(record.metrics[goal] - baseline.metrics[goal], math.hypot(*errors))


def _without_the_image(records: Sequence[Record], goal: str) -> list[str]:
    """Returns a sentence that compares the best trial with the best score without the image, if there is one."""
    best = best_of(records, goal)
    if best is None or not (scores := image_blind_scores_of(best, goal)):
        return []
    name = max(scores, key=lambda name: scores[name])
    what = f"what is reached without looking at the image, {IMAGE_BLIND[name]}"
    if best.metrics[goal] <= scores[name]:
        return [f"no trial is above {what}."]
    low = _score_interval(best, goal).low
    reaches = "and so is its whole 95 % interval" if low > scores[name] else "but not its whole 95 % interval"
    return [f"the best trial is above {what}{'' if math.isnan(low) else f', {reaches}'}."]


def columns(goal: str, records: Sequence[Record]) -> list[str]:
    """Returns the heads of the table `rows`."""
    best = best_of(records, goal)
    blind = ["minus the best without the image"] if best and image_blind_scores_of(best, goal) else []
    return ["", "trial", goal, "95 % interval", *blind]


def rows(records: Sequence[Record], arms: Sequence[str], goal: str) -> list[list[str]]:
    """Returns a row for the best trial of each arm by a goal, the baseline first. Rows follow for what ignores the
    image, and for the best map that is possible.
    """
    overall = best_of(records, goal)
    scores = image_blind_scores_of(overall, goal) if overall else {}
    num_columns = len(columns(goal, records))
    lines = []
    for arm in sorted(arms, key=lambda arm: arm != BASELINE):
        best = best_of_arm(records, arm, goal)
        if best is None:
            lines.append([f"best of {arm}", EMPTY, "no complete trial"])
            continue
        above = [f"{best.metrics[goal] - max(scores.values()):+.3f}"] if scores else []
        interval = _in_words(_score_interval(best, goal))
        lines.append([f"best of {arm}", str(best.number), f"{best.metrics[goal]:.3f}", interval, *above])
    lines += [[f"no image: {IMAGE_BLIND[name]}", EMPTY, f"{score:.3f}"] for name, score in scores.items()]
    highest = overall.metrics.get(f"{goal}_max", math.nan) if overall else math.nan
    if math.isfinite(highest):
        lines.append(["best possible map on the student's patches", EMPTY, f"{highest:.3f}"])
    return [[*line, *[EMPTY] * (num_columns - len(line))] for line in lines]


def _score_interval(record: Record, goal: str) -> Interval:
    """Returns a score with its 95 % interval, as the model card of the student states it."""
    return logit_interval(record.metrics[goal], error_of(record, goal) or math.nan)


def _in_words(interval: Interval, sign: str = "") -> str:
    return UNKNOWN if math.isnan(interval.low) else f"{interval.low:{sign}.3f} to {interval.high:{sign}.3f}"
