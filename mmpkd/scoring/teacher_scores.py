"""Sentences about the scores of a teacher, from its quality or from the metrics of a trial that it teaches."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from mmpkd.scoring.stats import is_all_equal

CHANCE = 0.5  # AUROC without any information, whatever the number of classes
METRIC = re.compile(r"teacher/(?P<name>.+?)/(?P<score>(?:(?:val_)?auroc(?:_se)?|leak)(?:/.+)?|agreement|silent)")


def by_teacher(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Returns the scores of each teacher by its name, taken from the metrics of a trial. A member of an ensemble has
    the name `<ensemble>/<member>`."""
    scores: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        if match := METRIC.fullmatch(key):
            scores.setdefault(match["name"], {})[match["score"]] = value
    return scores


def at_chance(quality: Mapping[str, float]) -> list[str]:
    """Returns the tasks on which a teacher's AUROC on validation is at most 0.5 plus its standard error. An empty name
    stands for all tasks together."""

    def is_at_chance(suffix: str) -> bool:
        error = quality.get(f"val_auroc_se{suffix}", 0.0)
        return quality[f"val_auroc{suffix}"] - CHANCE <= (0.0 if math.isnan(error) else error)

    return _tasks("val_auroc", quality, is_at_chance)


def stated(quality: Mapping[str, float]) -> list[str]:
    """Returns the names of tasks with a label that the inputs of a teacher nearly state. An empty name stands for all
    tasks together."""
    return _tasks("leak", quality, lambda suffix: bool(quality[f"leak{suffix}"]))


def _tasks(score: str, quality: Mapping[str, float], holds: Callable[[str], bool]) -> list[str]:
    """Returns an empty name if a condition holds for all tasks together, else the names of tasks for which it holds."""
    suffixes = [key.removeprefix(score) for key in quality if key == score or key.startswith(f"{score}/")]
    if "" in suffixes and holds(""):
        return [""]
    return [suffix.removeprefix("/") for suffix in suffixes if suffix and holds(suffix)]


def _on(tasks: Sequence[str]) -> str:
    return f" on {', '.join(tasks)}" if any(tasks) else ""


def score_in_words(name: str, quality: Mapping[str, float]) -> str:
    """Returns, for example, 'findings 0.912 ± 0.031': a teacher's AUROC on validation. It is 'findings 1.000 (all
    equal)' if every resampling of the patients gives this AUROC."""
    auroc, error = quality.get("val_auroc", math.nan), quality.get("val_auroc_se", math.nan)
    if math.isnan(auroc):
        return f"{name} not scored on validation"
    if "val_auroc_se" in quality and is_all_equal(auroc, error):
        return f"{name} {auroc:.3f} (all equal)"
    return f"{name} {auroc:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")


def in_words(name: str, quality: Mapping[str, float]) -> str:
    """Returns, for example, 'findings 0.512 ± 0.031, at chance': the AUROC of a teacher and its flaws."""
    flaws = [f"at chance{_on(tasks)}"] if (tasks := at_chance(quality)) else []
    flaws += [f"all but states the label{_on(tasks)}"] if (tasks := stated(quality)) else []
    return ", ".join([score_in_words(name, quality), *flaws])


def warnings(name: str, quality: Mapping[str, float], remedy: str = "Leave out the inputs that state it") -> list[str]:
    """Returns the warnings about a teacher with these scores.

    Args:
        remedy: what the user can do if the teacher's inputs state the label.
    """
    lines = []
    if tasks := stated(quality):
        suffix = f"/{tasks[0]}" if tasks[0] else ""
        agreement = f", agreement {quality['agreement']:.1%}" if "agreement" in quality and not suffix else ""
        lines.append(
            f"teacher {name!r} all but states the label{_on(tasks)} (out of fold: AUROC {quality[f'auroc{suffix}']:.3f}"
            f"{agreement}), so it teaches little else; were its inputs written by someone who knew the label? "
            f"{remedy}"
        )
    if tasks := at_chance(quality):
        suffix = f"/{tasks[0]}" if tasks[0] else ""
        lines.append(
            f"teacher {name!r} is at chance{_on(tasks)} on validation (AUROC {quality[f'val_auroc{suffix}']:.3f}), so "
            "it has nothing to teach there: train it longer, give it other inputs, or leave it out"
        )
    return lines
