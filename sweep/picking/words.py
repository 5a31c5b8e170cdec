"""Shows a picked trial beside its neighbours, and says why it was picked and how optimistic its scores are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table

from mmpkd.export.model_card import BASELINE_NAMES
from sweep.picking.candidates import Candidates
from sweep.reports.choosing import choices_in_words, optimism, supervision
from sweep.reports.console import with_error
from sweep.reports.details import PLAIN
from sweep.selection import ONE_ERROR, ROUNDING, Choice, Selection, best_first, error_of
from sweep.storage.losses import listed
from sweep.storage.records import best_of, candidates, choice_of, compared_metric
from sweep.types import Record

NUM_BESIDE = 2  # trials before and after the picked trial in the table
BASELINE_ARM = "none"


@dataclass(frozen=True)
class Pick:
    """A picked trial.

    Attributes:
        rule: the rule by which trials are ordered. It has chosen the trial, unless a person named its number.
        choice: what the rule chooses.
        by_number: whether a person named the number of the trial.
    """

    trial: Record
    rule: Selection
    choice: Choice
    by_number: bool


def pick(trials: Candidates, rule: Selection, number: int | None) -> Pick:
    """Returns the trial of this number or, if it is None, the trial that the rule chooses.

    Raises:
        ConfigError: the trial cannot be picked.
    """
    choice = choice_of(trials.shown, rule)
    assert choice is not None, "read_candidates has found a complete trial"
    return Pick(choice.trial if number is None else trials.trial(number), rule, choice, number is not None)


def neighbours(trials: Candidates, picked: Pick) -> Table:
    """Returns a table of the picked trial and its neighbours by the goal that the rule maximises, best first.

    The neighbours are the trials before and after it, the best trial of each goal of the rule, and the best trial of
    the arm without a teacher. Each score has its standard error and, where there is one, the estimate of its mean.
    """
    metric = compared_metric(trials.shown, picked.rule.maximize)
    ordered = best_first(candidates(trials.shown), metric)
    position = next((place for place, record in enumerate(ordered) if record.number == picked.trial.number), 0)
    marks: dict[int, list[str]] = {}
    for record in ordered[max(position - NUM_BESIDE, 0) : position + NUM_BESIDE + 1]:
        marks[record.number] = []
    for goal in picked.rule.goals:
        best = best_of(trials.shown, goal)
        assert best is not None
        marks.setdefault(best.number, []).append(f"best {goal}")
    baseline = best_of([record for record in ordered if record.arm == BASELINE_ARM], picked.rule)
    if baseline is not None:
        marks.setdefault(baseline.number, []).append(f"best of arm {BASELINE_ARM}")
    marks.setdefault(picked.trial.number, []).insert(0, "the pick")
    eligible = {record.number for record in picked.choice.eligible}
    goals = [*dict.fromkeys([*picked.rule.goals, *trials.sweep.goals])]
    table = Table("trial", "arm", *goals, "", **PLAIN)
    shown = ordered if picked.trial in ordered else [*ordered, picked.trial]
    for record in [record for record in shown if record.number in marks]:
        scores = [_score(record, goal) for goal in goals]
        outside = [] if record.number in eligible else ["outside the limit"]
        style = "bold" if record.number == picked.trial.number else None
        remarks = ", ".join([*marks[record.number], *outside])
        table.add_row(str(record.number), record.arm, *scores, remarks, style=style)
    return table


def _score(record: Record, goal: str) -> str:
    """Returns a score with its standard error and, in a second line, the estimate of its mean, if there is one."""
    estimate = record.metrics.get(f"{goal}_estimate")
    return with_error(record, goal) + ("" if estimate is None else f"\nestimated {estimate:.3f}")


def reasons(trials: Candidates, picked: Pick) -> list[str]:
    """Returns lines that say why the trial is picked, whether that makes localisation supervised, and how far its
    scores are expected to be too high.
    """
    trial, rule, choice = picked.trial, picked.rule, picked.choice
    name, num_compared = f"trial {trial.number} of arm {trial.arm}", len(candidates(trials.shown))
    lines, because = [], f"{name} is picked because it"
    if picked.by_number:
        same = choice.trial.number == trial.number
        picks = "picks it too" if same else f"picks trial {choice.trial.number}"
        lines.append(f"{name} is picked because its number is given; the rule of the sweep ({rule}) {picks}")
    elif num_compared == 1:
        lines.append(f"{because} is the only complete trial")
    elif choice.best is None:
        lines.append(f"{because} has the best {rule.maximize} of {num_compared} complete trials")
    else:
        assert rule.of is not None
        limit = f"{rule.of} is within {choice.tolerance:.3f} of the best, {with_error(choice.best, rule.of)} of trial "
        limit += str(choice.best.number)
        if len(choice.eligible) == 1:
            alone = f"and no other of {num_compared} complete trials is within {choice.tolerance:.3f} of it"
            lines.append(f"{because} has the best {rule.of}, {with_error(trial, rule.of)}, {alone}")
        else:
            within = f"the {len(choice.eligible)} of" if len(choice.eligible) < num_compared else "all"
            lines.append(
                f"{because} has the best {rule.maximize} of {within} {num_compared} complete trials whose {limit}"
            )
        if rule.within == ONE_ERROR and choice.tolerance:
            lines.append(f"{choice.tolerance:.3f} is {_kind_of_error(choice.best)} of that best score")
        elif rule.within == ONE_ERROR:
            lines.append("the standard error of that best score is unknown, so only trials that equal it are compared")
        lines += _small_limit(trials, picked)
    if compared_metric(trials.shown, rule.maximize) != rule.maximize:
        lines.append("estimated means are compared where there are any, and not the observed scores")
    lines += [f"warning: the sweep's journal has lost trials, and {line}" for line in trials.lost]
    lines += [f"warning: {line}" for line in [*not_told_apart(trials, picked), *supervision(rule)]]
    if trial.control:
        lines.append(f"warning: the outputs of its teachers {trial.control} are shuffled: it is a control")
    return [*lines, *luck(trials, picked)]


def not_told_apart(trials: Candidates, picked: Pick) -> list[str]:
    """Returns a line that names the trials whose scores do not differ from that of the picked trial by more than a
    standard error, in the goal that has decided. The error is that of `console.resolution`.
    """
    trial, choice = picked.trial, picked.choice
    alone = picked.by_number or choice.best is None or len(choice.eligible) == 1
    others = candidates(trials.shown) if alone else choice.eligible
    goal = (not picked.by_number and len(choice.eligible) == 1 and picked.rule.of) or picked.rule.maximize
    metric = compared_metric(trials.shown, goal)
    floor = max(error_of(trial, goal) or 0.0, _planned_error(trials, goal), ROUNDING)
    near = {
        other.number
        for other in others
        if abs(other.metrics[metric] - trial.metrics[metric]) <= max(floor, error_of(other, goal) or 0.0)
    } - {trial.number}
    if not near:
        return []
    who, differ = (f"trials {listed(near)}", "differ") if len(near) > 1 else (f"trial {listed(near)}", "differs")
    return [f"{goal} does not tell trial {trial.number} from {who}, which {differ} by no more than a standard error"]


def _small_limit(trials: Candidates, picked: Pick) -> list[str]:
    """Returns a line if one standard error of the best score is much smaller than the error that the plan states for
    this number of patients, as it is near a score of 1.
    """
    rule, planned = picked.rule, _planned_error(trials, picked.rule.of or "")
    if rule.within != ONE_ERROR or 2 * picked.choice.tolerance >= planned:
        return []
    why = f"by the plan, so few patients give a standard error of {planned:.3f}, and less only near a score of 1"
    return [f"{why}; within={planned:.3f} also compares trials that may be as good on other patients"]


def _planned_error(trials: Candidates, goal: str) -> float:
    """Returns the standard error of an AUROC that the plan states, or 0 if it states none or the goal is another."""
    price = trials.sweep.plan.get("price") or {}
    return (price.get("auroc_error") or 0.0) if goal.startswith("val/auroc") else 0.0


def _kind_of_error(best: Record) -> str:
    over = "patients and seeds" if best.metrics.get("seeds", 1) > 1 else "validation patients"
    return f"the standard error (over {over})"


def luck(trials: Candidates, picked: Pick) -> list[str]:
    """Returns lines that say how far the scores of the picked trial are expected to be too high, because it was picked
    by them.
    """
    if picked.by_number:
        amounts = [
            f"{max(optimism(trials.shown, goal), 0.0):.3f} for {goal}"
            for goal in trials.sweep.goals
            if len({record.metrics[goal] for record in candidates(trials.shown)}) > 1
        ]
        text = "its scores are too high by luck as far as they led to the choice: up to " + ", ".join(amounts)
        return [f"{text}, the expected luck of the best trial by that goal"] if amounts else []
    goal, limit, eligible = picked.rule.maximize, picked.rule.of, picked.choice.eligible
    if len(eligible) == 1 or limit is None:  # a single goal has chosen it
        return choices_in_words(trials.shown, [limit or goal])
    is_bound = not {f"{goal}_luck", f"{goal}_seed_se"} & set(picked.trial.metrics)
    amount = f"{'up to ' * is_bound}{max(optimism(eligible, goal), 0.0):.3f}"
    return [
        f"its {goal}, the best of {len(eligible)}, is expected to be {amount} too high by luck; its {limit}, which is "
        f"nearly the best, up to {max(optimism(trials.shown, limit), 0.0):.3f}, as the best"
    ]


def without_lead(trial: Record, goals: Iterable[str]) -> list[str]:
    """Returns a line for each goal in which a map that has not looked at the image scores as high as the trial."""
    lines = []
    for goal in goals:
        scores = {name: trial.metrics[f"{goal}_{name}"] for name in BASELINE_NAMES if f"{goal}_{name}" in trial.metrics}
        if scores and (highest := max(scores.values())) >= trial.metrics[goal]:
            name = max(scores, key=lambda name: scores[name])
            where = f"the {highest:.3f} that a map reaches without looking at the image ({BASELINE_NAMES[name]})"
            lines.append(f"{goal} {trial.metrics[goal]:.3f} is not above {where}")
    return lines
