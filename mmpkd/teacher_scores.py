"""What the scores of a teacher say in words, read from its quality or from the metrics of a trial that it taught."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

CHANCE = 0.5  # AUROC of who knows nothing, whatever the number of classes
METRIC = re.compile(r"teacher/(?P<name>.+?)/(?P<score>(?:val_)?auroc(?:_se)?(?:/.+)?|leak|silent)")


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
    names = [key.removeprefix("val_auroc").removeprefix("/") for key in quality if re.match("val_auroc(/|$)", key)]

    def blind(name: str) -> bool:
        below = f"/{name}" if name else ""
        error = quality.get(f"val_auroc_se{below}", 0.0)
        return quality[f"val_auroc{below}"] - CHANCE <= (0.0 if math.isnan(error) else error)

    return [""] if "" in names and blind("") else [name for name in names if name and blind(name)]


def score_in_words(name: str, quality: Mapping[str, float]) -> str:
    """'findings 0.912 ± 0.031': a teacher's AUROC on validation."""
    auroc, error = quality.get("val_auroc", math.nan), quality.get("val_auroc_se", math.nan)
    if math.isnan(auroc):
        return f"{name} not scored on validation"
    return f"{name} {auroc:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")


def in_words(name: str, quality: Mapping[str, float]) -> str:
    """'findings 0.512 ± 0.031, at chance': the same with what is the matter with it."""
    flaws = []
    if chance := at_chance(quality):
        flaws.append("at chance" + (f" on {', '.join(chance)}" if chance != [""] else ""))
    if quality.get("leak"):
        flaws.append("all but states the label")
    return ", ".join([score_in_words(name, quality), *flaws])


def warnings(name: str, quality: Mapping[str, float]) -> list[str]:
    """What the user should be told of a teacher whose scores are these."""
    told = []
    if quality.get("leak"):
        agreement = f", agreement {quality['agreement']:.1%}" if "agreement" in quality else ""
        told.append(
            f"teacher {name!r} all but states the label (out of fold: AUROC {quality['auroc']:.3f}{agreement}), so it "
            "teaches little else; was what it reads written with the label in hand? Take that column or section away, "
            "or hide the labels' names from a text teacher (mask_labels)"
        )
    if chance := at_chance(quality):
        of = f" on {', '.join(chance)}" if chance != [""] else ""
        key = f"val_auroc/{chance[0]}" if chance[0] else "val_auroc"
        told.append(
            f"teacher {name!r} is at chance{of} on validation (AUROC {quality[key]:.3f}), so it has nothing to teach "
            "there: train it longer, give it other inputs, or leave it out"
        )
    return told
