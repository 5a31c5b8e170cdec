"""What the scores of a teacher say in words, read from its quality or from the metrics of a trial that it taught."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

CHANCE = 0.5  # AUROC of who knows nothing, whatever the number of classes
METRIC = re.compile(r"teacher/(?P<name>.+?)/(?P<score>(?:(?:val_)?auroc(?:_se)?|leak)(?:/.+)?|agreement|silent)")


def by_teacher(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The scores of each teacher, and of each member of an ensemble as `<ensemble>/<member>`, in a trial's metrics."""
    found: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        if match := METRIC.fullmatch(key):
            found.setdefault(match["name"], {})[match["score"]] = value
    return found


def at_chance(quality: Mapping[str, float]) -> list[str]:
    """The tasks on which a teacher's AUROC on validation is no more than 0.5 and its standard error; an empty name
    stands for all of them together."""

    def blind(below: str) -> bool:
        error = quality.get(f"val_auroc_se{below}", 0.0)
        return quality[f"val_auroc{below}"] - CHANCE <= (0.0 if math.isnan(error) else error)

    return _tasks("val_auroc", quality, blind)


def stated(quality: Mapping[str, float]) -> list[str]:
    """The tasks whose label a teacher all but states; an empty name stands for all of them together."""
    return _tasks("leak", quality, lambda below: bool(quality[f"leak{below}"]))


def _tasks(score: str, quality: Mapping[str, float], holds: Callable[[str], bool]) -> list[str]:
    """An empty name if something holds of all tasks together, else those of which it holds."""
    below = [key.removeprefix(score) for key in quality if key == score or key.startswith(f"{score}/")]
    return [""] if "" in below and holds("") else [name.removeprefix("/") for name in below if name and holds(name)]


def _on(tasks: Sequence[str]) -> str:
    return f" on {', '.join(tasks)}" if any(tasks) else ""


def score_in_words(name: str, quality: Mapping[str, float]) -> str:
    """'findings 0.912 ± 0.031': a teacher's AUROC on validation."""
    auroc, error = quality.get("val_auroc", math.nan), quality.get("val_auroc_se", math.nan)
    if math.isnan(auroc):
        return f"{name} not scored on validation"
    return f"{name} {auroc:.3f}" + ("" if math.isnan(error) or error < 1e-9 else f" ± {error:.3f}")


def in_words(name: str, quality: Mapping[str, float]) -> str:
    """'findings 0.512 ± 0.031, at chance': the same with what is the matter with it."""
    flaws = [f"at chance{_on(tasks)}"] if (tasks := at_chance(quality)) else []
    flaws += [f"all but states the label{_on(tasks)}"] if (tasks := stated(quality)) else []
    return ", ".join([score_in_words(name, quality), *flaws])


def warnings(name: str, quality: Mapping[str, float], remedy: str = "Leave out what states it") -> list[str]:
    """What the user should be told of a teacher of this kind whose scores are these."""
    lines = []
    if tasks := stated(quality):
        below = f"/{tasks[0]}" if tasks[0] else ""
        agreement = f", agreement {quality['agreement']:.1%}" if "agreement" in quality and not below else ""
        lines.append(
            f"teacher {name!r} all but states the label{_on(tasks)} (out of fold: AUROC {quality[f'auroc{below}']:.3f}"
            f"{agreement}), so it teaches little else; was what it reads written with the label in hand? "
            f"{remedy}"
        )
    if tasks := at_chance(quality):
        below = f"/{tasks[0]}" if tasks[0] else ""
        lines.append(
            f"teacher {name!r} is at chance{_on(tasks)} on validation (AUROC {quality[f'val_auroc{below}']:.3f}), so "
            "it has nothing to teach there: train it longer, give it other inputs, or leave it out"
        )
    return lines
