"""Pure functions that decide which trials are compared, which trials are on the Pareto front, and which trial is best.

All averaging of the runs of one configuration over seeds is done in this module.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol, TypeVar

from mmpkd.scoring.stats import SMALLEST_ERROR
from sweep.pareto import admit
from sweep.selection import Choice, Selection, best_first, choose, rule_of
from sweep.types import Record, Values

# What ignores the image, by the ending of its score's name, such as `val/pointing_chance`: localisation maps, and the
# answers and boxes of `mmpkd.vlm.scores.yardsticks`.
MIN_CONFIRMED: Final = 2  # complete trials of an arm, below which nothing was searched that could be confirmed
IMAGE_BLIND: Final = {
    "chance": "by chance",
    "content": "by avoiding the padding",
    "centre": "by pointing at the centre",
    "prior": "by the mean training ROI",
    "frequent": "by the most frequent training answers",
    "mean_box": "by the mean training box",
}


class Run(Protocol):
    """Interface of a trial with the properties from which means over seeds are computed. `Record` and `reader.Trial`
    implement it.
    """

    @property
    def configuration(self) -> int:
        """The number that identifies the trial's configuration: the number of the first trial that ran the
        configuration.
        """

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics of the trial's last epoch."""


RunT = TypeVar("RunT", bound=Run)


def runs_by_configuration(trials: Iterable[RunT], at_least: int = 1) -> dict[int, list[RunT]]:
    """Groups trials by configuration.

    Returns a mapping of the number of each configuration's first trial to the runs of the configuration on all its
    seeds, in the given order.

    Args:
        at_least: the minimal number of runs. Configurations with fewer runs are left out.
    """
    runs: dict[int, list[RunT]] = {}
    for trial in trials:
        runs.setdefault(trial.configuration, []).append(trial)
    return {number: members for number, members in runs.items() if len(members) >= at_least}


def mean_values(runs: Sequence[Run], goals: Sequence[str]) -> tuple[float, ...]:
    """Returns the mean of each goal over the runs of one configuration."""
    return tuple(statistics.fmean(run.metrics[goal] for run in runs) for goal in goals)


def over_seeds(records: Sequence[Record], repeats: int) -> list[Record]:
    """Returns the configurations that completed on `repeats` seeds. Each is represented by its first trial, with
    averaged metrics.

    For a metric with a standard error over patients, `<metric>_se` is the standard error of the mean (see
    `error_of_mean`). The standard error over the seeds alone is added as `<metric>_seed_se`. The latter contains the
    sampling error of the validation patients only if the seeds have different validation patients. The number of seeds
    is added as `seeds`.
    """
    complete = [record for record in records if record.state == "complete"]
    if repeats == 1:
        return complete
    return [
        _averaged(min(runs, key=lambda run: run.turn), runs)
        for runs in runs_by_configuration(complete, at_least=repeats).values()
    ]


def comparable(records: Sequence[Record], goals: Sequence[str], repeats: int) -> list[Record]:
    """Returns the configurations that may be compared: means over seeds, and single runs that cannot be chosen.

    A configuration that has not completed on all its seeds is left out, unless the mean of another configuration of its
    arm is better in every goal. It could otherwise be chosen in a tie.
    """
    if repeats == 1:
        return list(records)
    means = {record.number: record for record in over_seeds(records, repeats)}
    single_runs = [
        record
        for record in records
        if record.repeat_of is None
        and record.number not in means
        and (record.state != "complete" or _is_worse(record, means.values(), goals))
    ]
    return sorted([*single_runs, *means.values()], key=lambda record: record.number)


def _is_worse(record: Record, others: Iterable[Record], goals: Sequence[str]) -> bool:
    """Returns whether another record of the same arm is better in every goal."""
    of_arm = [other for other in others if other.arm == record.arm]
    return any(all(other.metrics[goal] > record.metrics[goal] for goal in goals) for other in of_arm)


def _averaged(first: Record, runs: Sequence[Record]) -> Record:
    metrics = {"seeds": float(len(runs))}
    folds = [json.loads(run.config).get("cohort", {}).get("fold", 0) for run in runs]
    for name in first.metrics:
        values = [run.metrics[name] for run in runs if name in run.metrics]
        if (scored := name.removesuffix("_se")) != name and scored in first.metrics:
            metrics[name] = error_of_mean([run.metrics[scored] for run in runs], values, folds)
            continue
        metrics[name] = statistics.fmean(values)
        if len(values) > 1:
            metrics[f"{name}_seed_se"] = math.sqrt(_variance(values) / len(values))
    return replace(first, metrics=metrics)


def error_of_mean(values: Sequence[float], errors: Sequence[float], folds: Sequence[int]) -> float:
    """Returns the standard error of the mean of a score over the runs of one configuration, each on another seed.

    Let k be the number of runs, v the mean of their squared errors over patients, and s the standard deviation of the
    score over the runs. The variance of the mean has two sources, patients and seeds:

    - If all runs have the same validation patients, the variance is v + s²/k. More seeds do not reduce the error over
      patients. This is an upper bound, because the errors of two seeds on the same patients are not fully correlated.
    - If every run has other validation patients (its own fold), the errors over patients are independent, and s already
      contains them. The variance is s²/k, but at least v/k, because s of a few runs may be small by luck.
    - If some runs share a fold, it is v times the sum of (runs of a fold / k)² over the folds, plus s²/k. This is an
      upper bound too.

    Args:
        values: the score of each run.
        errors: the standard error over patients of each run. Errors that are 0 or NaN are unknown and do not enter v.
        folds: the validation fold of each run.

    Returns:
        The standard error. It is NaN if the error of every run is unknown, or if a score is NaN.
    """
    known = [error for error in errors if error > SMALLEST_ERROR]
    if not known:
        return math.nan
    over_patients = statistics.fmean(error**2 for error in known)
    over_seeds = _variance(values) / len(values)
    runs_of_fold = Counter(folds).values()
    if len(values) > 1 and max(runs_of_fold) == 1:
        return math.sqrt(max(over_patients / len(values), over_seeds))
    return math.sqrt(over_patients * sum((count / len(values)) ** 2 for count in runs_of_fold) + over_seeds)


def _variance(values: Sequence[float]) -> float:
    """Returns the sample variance, which is 0 for a single value.

    It is NaN if a value is not finite. The score of a label without both classes in a validation part is not, and
    `statistics.variance` does not accept it.
    """
    if not all(map(math.isfinite, values)):
        return math.nan
    return statistics.variance(values) if len(values) > 1 else 0.0


def candidates(records: Iterable[Record]) -> list[Record]:
    """Returns the trials that can be chosen: the complete trials, because they have equal budgets, without references
    (`Record.reference`).
    """
    return [record for record in records if record.state == "complete" and not record.reference]


def compared_metric(records: Iterable[Record], goal: str) -> str:
    """Returns the metric by which the candidates are compared in a goal: `<goal>_compared`, which is made of estimated
    means (see `reports.choosing`), if they have it, and otherwise the observed scores.
    """
    compared = f"{goal}_compared"
    return compared if any(compared in record.metrics for record in candidates(records)) else goal


def front_of(records: Sequence[Record], goals: Sequence[str]) -> list[Record]:
    """Returns the Pareto front of the candidates, ordered by the first goal, best first. Trials that are equal in this
    goal are ordered by number. Estimates are compared if there are any (see `compared_metric`).
    """
    metrics = [compared_metric(records, goal) for goal in goals]
    front: dict[int, Values] = {}
    for record in candidates(records):
        admit(front, record.number, record.values(metrics))
    return best_first([record for record in records if record.number in front], metrics[0])


def choice_of(records: Sequence[Record], select: str | Selection) -> Choice | None:
    """Returns the complete trial that a rule chooses, with the reasons, or None if no trial is complete.

    The trial may be off the front: a tie is decided by the lowest number, and an equal trial may be better in another
    goal. Estimates are compared if there are any (see `compared_metric`). A reference is chosen only if all complete
    trials are references.

    Args:
        select: the rule, or a goal, which stands for the rule that maximises it.
    """
    complete = [record for record in records if record.state == "complete"]
    return choose(candidates(records) or complete, rule_of(select), lambda goal: compared_metric(records, goal))


def best_of(records: Sequence[Record], select: str | Selection) -> Record | None:
    """Returns the complete trial that is best by one goal or that a rule chooses; see `choice_of`."""
    choice = choice_of(records, select)
    return None if choice is None else choice.trial


def picked(records: Sequence[Record], select: str | Selection) -> Record | None:
    """Returns the trial to be written to best.yaml: the trial that `select` chooses, or None if that trial is a
    reference.
    """
    best = best_of(records, select)
    return None if best is None or best.reference else best


def image_blind_scores_of(record: Run, goal: str) -> dict[str, float]:
    """Returns the scores that maps, answers and boxes which ignore the image reach by a goal on the same patients, by
    their name in `IMAGE_BLIND`. There are none for a goal of classification. A map that avoids the padding is left out
    where it scores as chance does, because the images have no padding.
    """
    return image_blind_means([record], goal)


def image_blind_means(runs: Sequence[Run], goal: str) -> dict[str, float]:
    """Returns what `image_blind_scores_of` returns, as means over the runs of one configuration."""
    scores = {
        name: statistics.fmean(run.metrics.get(f"{goal}_{name}", math.nan) for run in runs) for name in IMAGE_BLIND
    }
    known = {name: score for name, score in scores.items() if math.isfinite(score)}
    if known.get("content") == known.get("chance"):
        known.pop("content", None)
    return known
