"""How good the teachers of a sweep were, said beside the arms that they taught."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmpkd.scoring.teacher_scores import by_teacher, in_words, score_in_words, warnings
from sweep.types import Record

AUROC = "val/auroc"
OWN = "val_auroc"  # a teacher's, on the same validation patients


def teachers_in_words(record: Record) -> str:
    """'findings 0.912 ± 0.031' of each teacher that a trial listened to, on the validation patients of its student."""
    own = json.loads(record.config).get("teachers", {})
    told = []
    for name, quality in by_teacher(record.metrics).items():
        if own.get(name, {}).get("control"):  # it was made to know nothing of the single sample
            told.append(f"{score_in_words(name, quality)}, shuffled")
        elif name in own or not own:
            told.append(in_words(name, quality))
    return "; ".join(told)


def teacher_warnings(records: Sequence[Record], arms: Sequence[str]) -> list[str]:
    """One line for each teacher of an arm, or member of one, that states the label, is at chance, is not better than
    the best student that had no teacher, or could not be scored.

    Of a teacher with several settings the best speaks for all; a control is not judged.
    """
    alone = max((record for record in records if _untaught(record)), key=lambda one: one.metrics[AUROC], default=None)
    told = []
    for arm in arms:
        for name, (quality, kind) in _best_of(arm, records).items():
            told += [f"arm {arm}: {line}" for line in warnings(name, quality, kind)]
            auroc = quality.get(OWN, math.inf)
            if math.isnan(auroc):
                told.append(f"arm {arm}: teacher {name!r} could not be scored on the validation patients")
            elif alone is not None and auroc < alone.metrics[AUROC] and "/" not in name:  # of members their mean counts
                told.append(
                    f"arm {arm}: teacher {name!r} is worse on validation (AUROC {auroc:.3f}) than the best student "
                    f"without a teacher ({alone.metrics[AUROC]:.3f}, trial {alone.number} of arm {alone.arm}): what is "
                    "gained with it, if anything, is not what it knows"
                )
    return told


def _best_of(arm: str, records: Sequence[Record]) -> Mapping[str, tuple[Mapping[str, float], str]]:
    """Scores and kind of each teacher of an arm that is no control, where its AUROC on validation is highest."""
    found: dict[str, tuple[Mapping[str, float], str]] = {}
    for record in records:
        teachers = json.loads(record.config).get("teachers", {})
        controls = {name for name, one in teachers.items() if one.get("control")}
        for name, quality in by_teacher(record.metrics).items() if record.arm == arm else ():
            if name.partition("/")[0] in controls:
                continue
            before = found[name][0].get(OWN, math.nan) if name in found else math.nan
            if math.isnan(before) or quality.get(OWN, math.nan) > before:
                found[name] = quality, _kind(teachers, name)
    return found


def _kind(teachers: Mapping[str, Any], name: str) -> str:
    """Of a teacher, or of a member of an ensemble as `<ensemble>/<member>`; empty where the configuration lacks it."""
    own, _, member = name.partition("/")
    found = teachers.get(own, {})
    if member:
        found = found.get("params", {}).get("members", {}).get(member, {})
    kind: str = found.get("kind", "")
    return kind


def _untaught(record: Record) -> bool:
    taught = by_teacher(record.metrics)
    return record.state == "complete" and not record.reference and not taught and AUROC in record.metrics
