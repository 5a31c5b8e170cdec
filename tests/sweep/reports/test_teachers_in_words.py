"""How good a teacher was stands beside its arm: on the front, in the report and among the warnings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweep.reports.teachers import teacher_warnings, teachers_in_words
from sweep.types import Record
from tests.sweep.reports.test_html import ARMS, GOALS, front, record, reported, summed_up

NONE = record(1, 0.70, 0.20)


def taught(scores: Mapping[str, float], teachers: Mapping[str, Any], number: int = 2) -> Record:
    own = record(number, 0.75, 0.30, "tabular")
    metrics = {**own.metrics, **{f"teacher/{key}": value for key, value in scores.items()}}
    return replace(own, metrics=metrics, config=json.dumps({"teachers": teachers}))


def scored(auroc: float, error: float = 0.04, name: str = "findings") -> dict[str, float]:
    return {f"{name}/auroc": 0.6, f"{name}/val_auroc": auroc, f"{name}/val_auroc_se": error, f"{name}/leak": 0.0}


TEACHERS = {"findings": {"kind": "tabular"}}


def test_a_good_teacher_is_shown_and_not_warned_of(tmp_path: Path) -> None:
    good = taught(scored(0.912), TEACHERS)
    assert "findings 0.912 ± 0.040" in front([NONE, good], ARMS, GOALS, "val/auroc")
    assert "findings 0.912 ± 0.040" in reported(tmp_path, [NONE, good], ARMS)
    assert teacher_warnings([NONE, good], ARMS) == []


def test_a_teacher_without_a_standard_error_is_not_known_to_the_last_digit() -> None:
    assert teachers_in_words(taught(scored(1.0, float("nan")), TEACHERS)) == "findings 1.000 (all equal)"
    assert teachers_in_words(taught(scored(0.8, float("nan")), TEACHERS)) == "findings 0.800"


@pytest.mark.parametrize(("auroc", "error", "chance"), [(0.50, 0.03, True), (0.53, 0.04, True), (0.58, 0.04, False)])
def test_chance_is_half_and_a_standard_error(tmp_path: Path, auroc: float, error: float, chance: bool) -> None:
    records = [record(1, 0.4, 0.1), taught(scored(auroc, error), TEACHERS)]
    lines = teacher_warnings(records, ARMS)
    assert [line.startswith("arm tabular: teacher 'findings' is at chance on validation") for line in lines] == [
        True
    ] * chance
    assert ("at chance" in teachers_in_words(records[1])) == chance
    told = " ".join(summed_up(tmp_path, records, ARMS).split())
    assert ("warning: arm tabular: teacher 'findings' is at chance" in told) == chance
    assert ("is at chance on validation" in reported(tmp_path, records, ARMS)) == chance


def test_worse_than_the_best_student_without_a_teacher(tmp_path: Path) -> None:
    other = record(3, 0.60, 0.1)
    (line,) = teacher_warnings([NONE, other, taught(scored(0.65), TEACHERS)], ARMS)
    assert "arm tabular: teacher 'findings' is worse on validation (AUROC 0.650)" in line
    assert "(0.700, trial 1 of arm none)" in line
    assert teacher_warnings([other, taught(scored(0.65), TEACHERS)], ARMS) == [], "better than that one"
    reference = replace(NONE, config='{"student": {"reads": ["superior"]}}')
    assert teacher_warnings([reference, other, taught(scored(0.65), TEACHERS)], ARMS) == [], "reads more at test"


def test_the_best_setting_of_a_teacher_speaks_for_it() -> None:
    weak, strong = taught(scored(0.5), TEACHERS), taught(scored(0.9), TEACHERS, 3)
    assert teacher_warnings([NONE, weak, strong], ARMS) == []
    assert "at chance" in teachers_in_words(weak) and "at chance" not in teachers_in_words(strong)


def test_a_control_is_not_judged() -> None:
    shuffled = {"findings": {"kind": "tabular", "control": "shuffled"}}
    control = taught(scored(0.5), shuffled)
    assert teacher_warnings([NONE, control], ARMS) == []
    assert teachers_in_words(control) == "findings 0.500 ± 0.040, shuffled"


def test_a_task_that_a_teacher_does_not_know() -> None:
    scores = scored(0.8) | {"findings/val_auroc/grade": 0.51, "findings/val_auroc_se/grade": 0.05}
    scores |= {"findings/val_auroc/site": 0.95, "findings/val_auroc_se/site": 0.02}
    (line,) = teacher_warnings([NONE, taught(scores, TEACHERS)], ARMS)
    assert line.startswith("arm tabular: teacher 'findings' is at chance on grade on validation (AUROC 0.510)")


def test_members_of_an_ensemble_are_warned_of_by_name() -> None:
    scores = scored(0.9, name="both") | scored(0.9, name="both/findings") | scored(0.49, name="both/report")
    ensemble = taught(scores, {"both": {"kind": "ensemble"}})
    (line,) = teacher_warnings([NONE, ensemble], ARMS)
    assert line.startswith("arm tabular: teacher 'both/report' is at chance")
    assert teachers_in_words(ensemble) == "both 0.900 ± 0.040"


def test_who_states_the_label_is_advised_by_its_kind() -> None:
    scores = scored(0.9, name="both") | scored(0.9, name="both/findings") | scored(0.9, name="both/report")
    scores |= {f"both/{name}/{key}": 1.0 for name in ("findings", "report") for key in ("leak", "auroc")}
    members = {"findings": {"kind": "tabular"}, "report": {"kind": "text"}}
    ensemble = taught(scores, {"both": {"kind": "ensemble", "params": {"members": members}}})
    findings, report = teacher_warnings([NONE, ensemble], ARMS)
    assert "'both/findings' all but states the label" in findings and "the role near_label or forbidden" in findings
    assert "'both/report' all but states the label" in report and "(mask_labels)" in report
    assert "mask_labels" not in findings


def test_a_teacher_that_is_silent_on_validation() -> None:
    silent = taught(scored(math.nan, math.nan), TEACHERS)
    assert teacher_warnings([NONE, silent], ARMS) == [
        "arm tabular: teacher 'findings' could not be scored on the validation patients"
    ]
    assert teachers_in_words(silent) == "findings not scored on validation"
