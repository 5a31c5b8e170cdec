"""Describes the scores of a sweep's teachers, and warns about teachers that are of little use."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmpkd.scoring.teacher_scores import by_teacher, in_words, score_in_words, stated, warnings
from sweep.selection import score_in_words as score_with_error
from sweep.types import Record

AUROC = "val/auroc"
TEACHER_AUROC = "val_auroc"  # names of a teacher's scores on the validation patients of its student


def teachers_in_words(record: Record) -> str:
    """Returns the score of each teacher of a trial on the validation patients, such as 'findings 0.912 ± 0.031'. Scores
    are AUROCs, and those of the goals for a teacher that answers.
    """
    configs = json.loads(record.config).get("teachers", {})
    scores = []
    for name, quality in by_teacher(record.metrics).items():
        if configs.get(name, {}).get("control"):  # a shuffled teacher has the outputs of other patients
            scores.append(f"{score_in_words(name, quality)}, shuffled")
        elif name in configs or not configs:
            scores.append(in_words(name, quality))
    return "; ".join([*scores, *_teacher_that_answers(record)])


def _teacher_that_answers(record: Record) -> list[str]:
    """Returns the goals of the teacher of a student that answers, such as 'answer 0.912 ± 0.031, recall50 0.750 ±
    0.040'; nothing if the trial has none.
    """
    metrics = record.metrics
    names = [name for name in ("answer", "recall50") if f"teacher/{name}" in metrics]
    goals = [
        f"{name} {score_with_error(metrics[f'teacher/{name}'], metrics.get(f'teacher/{name}_se', math.nan))}"
        for name in names
    ]
    return [", ".join([*goals, *(["shuffled"] if record.control else [])])] if goals else []


def teacher_warnings(records: Sequence[Record], arms: Sequence[str]) -> list[str]:
    """Returns warnings about teachers, and members of ensembles, that are of little use.

    A teacher gets a warning if its inputs state the label, if its score is at chance level, if it is worse than the
    best student without a teacher, or if it could not be scored. A teacher with several settings is judged by its best
    setting. Teachers of controls, whose outputs are shuffled, are not judged.
    """
    without_teacher = (record for record in records if _has_no_teacher(record))
    baseline = max(without_teacher, key=lambda record: record.metrics[AUROC], default=None)
    lines = []
    for arm in arms:
        for name, (quality, kind) in _best_of(arm, records).items():
            lines += [
                f"arm {arm}: {line}" for line in warnings(name, quality, _remedy(kind) if stated(quality) else "")
            ]
            auroc = quality.get(TEACHER_AUROC, math.inf)
            if math.isnan(auroc):
                lines.append(f"arm {arm}: teacher {name!r} could not be scored on the validation patients")
            elif baseline is not None and auroc < baseline.metrics[AUROC] and "/" not in name:  # no single member
                lines.append(
                    f"arm {arm}: teacher {name!r} is worse on validation (AUROC {auroc:.3f}) than the best "
                    f"student without a teacher ({baseline.metrics[AUROC]:.3f}, trial {baseline.number} of arm "
                    f"{baseline.arm}), so a gain with it would not come from its knowledge"
                )
    return lines


def students_above_teachers(records: Sequence[Record], arms: Sequence[str]) -> list[str]:
    """Returns a remark for each arm whose best trial by AUROC scores above all its teachers on the same validation
    patients. Arms with shuffled teachers are left out.
    """
    lines = []
    for arm in arms:
        of_arm = [each for each in records if each.arm == arm and each.state == "complete" and not each.control]
        best = max(of_arm, key=lambda each: each.metrics.get(AUROC, -math.inf), default=None)
        if best is None or best.reference:
            continue
        scores = {name: quality.get(TEACHER_AUROC, math.nan) for name, quality in by_teacher(best.metrics).items()}
        below = [name for name, auroc in scores.items() if auroc < best.metrics.get(AUROC, math.nan)]
        if below and len(below) == len(scores):
            names = " and ".join(f"{name!r} ({scores[name]:.3f})" for name in below)
            lines.append(
                f"arm {arm}: the student of trial {best.number} has a higher {AUROC} than its "
                f"teacher{'s' * (len(below) > 1)} {names}; it also "
                "learns from images and labels, so this may be true, but it may be the luck of the best of several"
            )
    return lines


def _best_of(arm: str, records: Sequence[Record]) -> Mapping[str, tuple[Mapping[str, float], str]]:
    """Returns the scores and the kind of each teacher of an arm. For each teacher they come from the trial of the arm
    in which this teacher has its highest validation AUROC.
    """
    best: dict[str, tuple[Mapping[str, float], str]] = {}
    for record in records:
        teachers = json.loads(record.config).get("teachers", {})
        controls = {name for name, config in teachers.items() if config.get("control")}
        for name, quality in by_teacher(record.metrics).items() if record.arm == arm else ():
            if name.partition("/")[0] in controls:
                continue
            before = best[name][0].get(TEACHER_AUROC, math.nan) if name in best else math.nan
            if math.isnan(before) or quality.get(TEACHER_AUROC, math.nan) > before:
                best[name] = quality, _kind(teachers, name)
    return best


def _kind(teachers: Mapping[str, Any], name: str) -> str:
    """Returns the kind of a teacher, or of a member of an ensemble, which is named `<ensemble>/<member>`. The kind is
    empty if the name is not configured.
    """
    teacher, _, member = name.partition("/")
    config = teachers.get(teacher, {})
    if member:
        config = config.get("params", {}).get("members", {}).get(member, {})
    kind: str = config.get("kind", "")
    return kind


def _remedy(kind: str) -> str:
    """Returns advice for the user if the inputs of a teacher of this kind state the label."""
    from mmpkd.teachers import leakage_remedy  # loads torch, which a report without such a teacher does not need

    return leakage_remedy(kind)


def _has_no_teacher(record: Record) -> bool:
    teachers = by_teacher(record.metrics)
    return record.state == "complete" and not record.reference and not teachers and AUROC in record.metrics
