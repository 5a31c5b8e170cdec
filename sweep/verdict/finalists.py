"""Which trials of a sweep are confirmed: the finalists of each arm, and the one that is chosen among them.

The best score of many trials is too high by luck, and more so the more trials there are. So every arm sends the same
number of finalists, chosen among the same number of complete trials, and they run again on fresh seeds. No score of
ROIs chooses: localisation would be supervised by the ROIs that judge it.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from mmpkd.types import ConfigError, UserError
from sweep.selection import best_first
from sweep.storage.records import MIN_CONFIRMED, candidates, runs_by_configuration
from sweep.types import Record
from sweep.verdict.inference import SearchLuck, SeedScores, satterthwaite, search_luck
from sweep.verdict.protocol import Protocol

FINALISTS: Final = 3  # of each arm
NEW: Final = "begin a new confirmation with new=true"


class NoVerdictError(UserError):
    """A confirmation cannot end with a verdict any more."""


def finalists_of(
    records: Sequence[Record], arms: Sequence[str], goal: str, wanted: int | None, most: int = FINALISTS
) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Returns the finalists of each arm by their numbers, best first, and the number of trials of each arm among which
    they are chosen.

    Every arm is judged by its first complete trials, by number, as many as the arm with the fewest has. Of equal trials
    the lowest number comes first.

    Args:
        wanted: the number of finalists of each arm; None for `most`, or for as many as every arm has.

    Raises:
        ConfigError: an arm has too few complete trials.
    """
    by_arm = {arm: _complete(records, arm, goal) for arm in arms}
    counts = {arm: len(of_arm) for arm, of_arm in by_arm.items()}
    fewest = min(counts.values())
    count = wanted or max(min(most, fewest), MIN_CONFIRMED)
    if fewest < max(count, MIN_CONFIRMED):
        listed = ", ".join(f"{arm} {number}" for arm, number in counts.items())
        problem = f"every arm needs at least {max(count, MIN_CONFIRMED)} complete trials; there are: {listed}"
        fewer = f", or confirm with finalists={fewest}" if MIN_CONFIRMED <= fewest < count else ""
        raise ConfigError.at("finalists", f"{problem}; continue the sweep with more trials{fewer}")
    ranked = {arm: best_first(of_arm[:fewest], goal)[:count] for arm, of_arm in by_arm.items()}
    return fewest, {arm: tuple(record.number for record in of_arm) for arm, of_arm in ranked.items()}


def _complete(records: Sequence[Record], arm: str, goal: str) -> list[Record]:
    """Returns the complete trials of an arm that have a score, by number."""
    own = [record for record in candidates(records) if record.arm == arm and record.repeat_of is None]
    scored = [record for record in own if math.isfinite(record.metrics.get(goal, math.nan))]
    return sorted(scored, key=lambda record: record.number)


def searched(records: Sequence[Record], arm: str, protocol: Protocol) -> list[Record]:
    """Returns the trials of an arm among which its finalists were chosen, best first by the primary score."""
    return best_first(_complete(records, arm, protocol.goal)[: protocol.trials], protocol.goal)


@dataclass(frozen=True)
class Finalist:
    """A finalist with its scores on the fresh seeds.

    Attributes:
        number: the number of its trial in the sweep.
        values: the primary score on each seed that completed.
        failed: how many seeds failed.
    """

    arm: str
    number: int
    values: tuple[float, ...]
    failed: int

    @property
    def label(self) -> str:
        """The name of the finalist as an arm of the choice."""
        return label_of(self.arm, self.number)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)


def label_of(arm: str, number: int) -> str:
    """Returns the name of a finalist as an arm of the choice."""
    return f"{arm}-{number}"


def labels_of(arm: str, protocol: Protocol) -> list[str]:
    """Returns the names of the finalists of an arm as arms of the choice."""
    return [label_of(arm, number) for number in protocol.finalists[arm]]


def results_of(records: Sequence[Record], arm_of: Mapping[str, tuple[str, int]], goal: str) -> list[Finalist]:
    """Returns the finalists with their scores, in the order of `arm_of`.

    Args:
        records: the trials of the phase, in which every finalist is an arm.
        arm_of: the arm and the number in the sweep that each arm of the phase stands for.
    """
    results = []
    for label, (arm, number) in arm_of.items():
        own = [record for record in records if record.arm == label]
        values = [record.metrics[goal] for record in own if record.state == "complete"]
        failed = sum(record.state == "failed" for record in own)
        results.append(Finalist(arm, number, tuple(values), failed))
    return results


def choose(results: Sequence[Finalist], seeds: int) -> dict[str, int]:
    """Returns the number of the chosen finalist of each arm: the highest mean, and of equal ones the lowest number. A
    finalist that failed on a seed is not chosen.

    Raises:
        NoVerdictError: every finalist of an arm has failed on a seed.
    """
    chosen: dict[str, int] = {}
    for arm in dict.fromkeys(result.arm for result in results):
        whole = [result for result in results if result.arm == arm and len(result.values) == seeds]
        if not whole:
            raise NoVerdictError(
                f"every finalist of arm {arm} has failed on a fresh seed, so none can be confirmed; {NEW}"
            )
        chosen[arm] = min(whole, key=lambda result: (-result.mean, result.number)).number
    return chosen


def luck_of(
    results: Sequence[Finalist],
    scores: Mapping[str, Mapping[str, SeedScores]],
    records: Sequence[Record],
    protocol: Protocol,
) -> dict[str, dict[str, SearchLuck]]:
    """Returns what the search adds to the variance of each primary score, by score and arm, from the finalists on the
    seeds of the choice, and from the other trials. A finalist that failed on a seed is left out.

    Args:
        scores: scores of the finalists' students on validation patients, by finalist (`Finalist.label`) and score.
        records: the trials of the sweep.
    """
    luck: dict[str, dict[str, SearchLuck]] = {goal: {} for goal in protocol.goals()}
    for arm, numbers in protocol.finalists.items():
        able = [each for each in results if each.arm == arm and len(each.values) == len(protocol.choose_seeds)]
        others = [record for record in searched(records, arm, protocol) if record.number not in numbers]
        for goal, of_arms in luck.items():
            other_N = np.array([record.metrics.get(goal, math.nan) for record in others])
            chosen_by = None if goal == protocol.goal else np.array([each.mean for each in able])
            of_goal = [scores[each.label][goal] for each in able]
            of_arms[arm] = search_luck(of_goal, other_N[np.isfinite(other_N)], chosen_by)
    return luck


def luck_over_folds(lucks: Sequence[Mapping[str, Mapping[str, SearchLuck]]]) -> dict[str, dict[str, SearchLuck]]:
    """Returns what the searches of several folds add to the variance of a mean over the folds, each of which has a
    search of its own. That the searches share patients is a part of `inference.overlap`.

    Args:
        lucks: what the search of each fold adds, by score and arm.
    """
    return {
        goal: {arm: averaged([luck[goal][arm] for luck in lucks]) for arm in of_arms}
        for goal, of_arms in lucks[0].items()
    }


def averaged(lucks: Sequence[SearchLuck]) -> SearchLuck:
    """Returns what several independent searches add to the variance of the mean of their scores."""
    parts = np.array([each.variance for each in lucks])
    variance = float(parts.sum()) / len(lucks) ** 2
    if not variance > 0:  # or it is unknown
        return SearchLuck(variance, 1.0)
    return SearchLuck(variance, satterthwaite(parts, np.array([each.degrees for each in lucks])))


def has_ended(records: Sequence[Record], labels: Sequence[str], seeds: int) -> bool:
    """Returns whether no training of a phase is left: every arm has run on all its seeds, or its first run failed."""
    for label in labels:
        runs = runs_by_configuration(record for record in records if record.arm == label)
        if not runs:
            return False
        of_arm = next(iter(runs.values()))
        ended = [record for record in of_arm if record.state != "running"]
        first_failed = any(record.repeat_of is None and record.state != "complete" for record in ended)
        if len(ended) < seeds and not first_failed:
            return False
    return True


def require_all(records: Sequence[Record], labels: Sequence[str], seeds: int, errors: Path) -> None:
    """Checks that every training of a phase is complete. Without those that failed, the mean of an arm would be that of
    its luckier seeds.

    Args:
        errors: the folder with an error file for each failed training.

    Raises:
        NoVerdictError: a training has failed.
    """
    complete = Counter(record.arm for record in records if record.state == "complete")
    counts = {label: complete[label] for label in labels}
    if lacking := {label: count for label, count in counts.items() if count < seeds}:
        listed = ", ".join(f"{label} {count} of {seeds}" for label, count in lacking.items())
        problem = f"trainings have failed, so there is no verdict; complete are: {listed}"
        raise NoVerdictError(f"{problem}\n  see {errors}, and {NEW}")
