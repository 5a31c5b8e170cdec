"""The parts of the report: its answer, its charts and its pictures."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmpkd.export.model_card import _scores
from mmpkd.scoring.pictures import outline
from sweep.arm_styles import arm_styles
from sweep.reports.page.answer import columns, rows, sentences
from sweep.reports.page.charts import Axis, Chart, legend, parallel
from sweep.reports.page.commands import commands
from sweep.reports.page.ended import ended
from sweep.reports.page.figures import _staircase, effect_figures, front_figures, parallel_figure
from sweep.reports.page.importance import importances
from sweep.reports.page.pictures import _students, pictures
from sweep.reports.page.sections import trials_table
from sweep.storage.layout import SweepFolder
from tests.sweep.reports.test_html import ARMS, GOALS, RECORDS, cells_alone, record

SIDES = (("above", "below"), ("below", "above"))
PRIOR = {"val/pointing_prior": 0.5, "val/pointing_max": 0.875}
BLIND = [replace(each, metrics={**each.metrics, **PRIOR}) for each in RECORDS]
MANY = [
    replace(record(number, 0.5 + 0.04 * number, 0.3), sampled={"none/lr": 10.0**-number, "none/kind": "ab"[number % 2]})
    for number in range(8)
]


def test_the_answer_compares_each_arm_with_none_and_with_maps_that_ignore_the_image() -> None:
    """Differences: 0.89 - 0.90 and 0.30 - 0.24. 1.96 x the root of 0.02² + 0.02² is 0.0554, of 0.05² + 0.05² 0.1386.
    On the logit scale, 0.30 is -0.847, and 1.96 x 0.05 / 0.21 is 0.467: -1.314 and -0.381, which are 0.212 and 0.406.
    """
    assert rows(RECORDS, ("tabular", "none"), "val/auroc") == [
        ["best of none", "1", "0.900", "0.853 to 0.933"],
        ["best of tabular", "2", "0.890", "0.844 to 0.924"],
    ]
    table = rows(BLIND, ARMS, "val/pointing")
    assert table[1] == ["best of tabular", "2", "0.300", "0.212 to 0.406", "-0.200"]
    assert [row[:3] for row in table[2:]] == [
        ["no image: by chance", "-", "0.062"],
        ["no image: by pointing at the centre", "-", "0.125"],
        ["no image: by the mean training ROI", "-", "0.500"],
        ["best possible map on the student's patches", "-", "0.875"],
    ]
    for records, goal in ((RECORDS, "val/auroc"), (BLIND, "val/pointing"), ([], "val/pointing")):
        assert {len(row) for row in rows(records, ARMS, goal)} == {len(columns(goal, records))}, "one cell a column"
    unclear = "is not told apart from the best of none, because 0 is in the interval."
    assert sentences(RECORDS, ARMS, GOALS)[:2] == [
        ("val/auroc", f"the best of tabular (-0.010; 95 % interval -0.065 to +0.045) {unclear}"),
        ("val/pointing", f"the best of tabular (+0.060; 95 % interval -0.079 to +0.199) {unclear}"),
    ]
    many = [*RECORDS[:2], record(7, 0.80, 0.3, "b"), record(8, 0.97, 0.3, "c"), record(9, 0.91, 0.3, "d")]
    luck = "the interval leaves out the luck of choosing the best, so that this is no claim."
    both = "tabular (-0.010; 95 % interval -0.065 to +0.045) and of d (+0.010; 95 % interval -0.045 to +0.065)"
    above, below = (f"{where} the best of none, and 0 is {other} the interval" for where, other in SIDES)
    assert [line for _, line in sentences(many, ("none", "tabular", *"bcd"), GOALS[:1])] == [
        f"the best of c (+0.070; 95 % interval +0.015 to +0.125) is {above}; {luck}",
        f"the best of b (-0.100; 95 % interval -0.155 to -0.045) is {below}; {luck}",
        f"the best of {both} are {unclear.removeprefix('is ')}",
    ]


def test_the_answer_says_where_no_student_beats_what_ignores_the_image() -> None:
    line = "no trial is above what is reached without looking at the image, by the mean training ROI."
    assert ("val/pointing", line) in sentences(BLIND, ARMS, GOALS)
    line = "the best trial is above what is reached without looking at the image, by pointing at the centre, and so is"
    assert sentences(RECORDS, ARMS, GOALS)[2] == ("val/pointing", f"{line} its whole 95 % interval.")
    assert sentences([], ARMS, GOALS) == []


def test_report_and_model_card_give_one_interval_of_a_score() -> None:
    scores = {"val/auroc": 0.89, "val/auroc_se": 0.02}
    origin: Any = SimpleNamespace(scores=scores, patients={"val": 50})
    assert "| AUROC | 0.890 | 0.844 to 0.924 |" in _scores(origin)
    assert rows(RECORDS, ARMS, "val/auroc")[1][3] == "0.844 to 0.924"


def test_the_best_without_a_teacher_always_has_a_row_and_commands_pick_the_best() -> None:
    records = [record(1, 0.7, 0.5), record(2, 0.8, 0.1), record(3, 0.9, 0.6, "tabular"), record(4, 0.6, 0.7)]
    for page in (trials_table(records, ARMS, GOALS, "val/auroc"), trials_table(RECORDS, ARMS, GOALS, "val/auroc")):
        assert len(re.findall(r"<td>[^<]*best of the arm[,<][^/]*/td><td>\d</td><td>none<", cells_alone(page))) == 1
        assert "no image" not in page, "the answer has these rows"
    page = commands("a b", "/runs", RECORDS, GOALS, "val/auroc")
    assert re.findall("<p>(.*?)</p><pre>(.*?)</pre>", page) == [
        ("Trial 1, best.yaml and best val/auroc:", "python -m sweep.pick &#x27;a b&#x27; storage=/runs trial=1"),
        ("Trial 2, best val/pointing:", "python -m sweep.pick &#x27;a b&#x27; storage=/runs trial=2"),
        (
            "Trial 2, best val/pointing within one standard error of the best val/auroc:",
            "python -m sweep.pick &#x27;a b&#x27; storage=/runs by=val/pointing within=1se of=val/auroc",
        ),
    ]
    assert commands("a", "s3://b/runs", RECORDS, GOALS, "val/auroc").count(" out=DIR</pre>") == 3


def test_arms_differ_in_marker_and_dash_and_pruned_trials_are_grey() -> None:
    styles = arm_styles(ARMS)
    page = front_figures(RECORDS, GOALS, styles)
    markers = re.findall(r'scale\(1\.6\)" d="([^"]+)" fill="(#\w+)"', page)
    assert len(set(markers)) == 2, "trials 1 and 2 are on the front"
    assert re.search(r'fill="#c4c4c4"[^>]*><title>trial 4, tabular, pruned', page)
    assert "trial 5" not in page, "which failed"
    for goals in (GOALS[:1], (*GOALS, "val/auroc_se")):
        assert front_figures(RECORDS, goals, styles).count("<figure>") == {1: 1, 3: 3}[len(goals)]
    key = legend([("a", "#000", "dash", "")])
    assert 'stroke-dasharray="7 4"' in key


def test_effects_are_drawn_only_from_enough_trials() -> None:
    style = arm_styles(ARMS)["none"]
    page = effect_figures(MANY, "none", GOALS, style, {})
    assert page.count("<figure>") == 4 and ">1e-05</text>" in page, "the rate has a logarithmic axis"
    assert effect_figures(MANY[:7], "none", GOALS, style, {}) == "" == parallel_figure(MANY[:7], "none", GOALS, style)
    few = effect_figures(MANY * 40, "none", GOALS, style, {"none/lr": 1.0}, num_arms=30)
    assert few.count("<figure>") == 2 and few.count("<title>trial") == 2 * 32, "which keeps the page small"
    assert "The effects of 1 of 2 parameters. At most 33 trials a chart" in few and ">lr</text>" in few
    lines = parallel_figure([*MANY, replace(MANY[0], number=9, state="pruned")], "none", GOALS, style)
    assert "trial 9, pruned" in lines and lines.count('class="title"') == 4


def test_importances_are_those_of_optuna() -> None:
    shares = importances(MANY, "none", "val/auroc")
    assert list(shares) == ["none/lr", "none/kind"] and sum(shares.values()) == pytest.approx(1), (
        "the score falls with the rate"
    )
    assert importances(MANY[:7], "none", "val/auroc") == {} == importances(MANY, "none", "val/pointing")


def test_axes() -> None:
    assert Axis("score", [0.0, 1.0]).ticks() == [
        (pytest.approx(0.05 / 1.1 + share / 1.1), label) for share, label in ((0, "0"), (0.5, "0.5"), (1, "1"))
    ]
    assert not Axis("score", [0.01, 1.0]).is_log and Axis("rate", [0.01, 1.0], is_parameter=True).is_log
    assert Axis("kind", ["a", 2, "a"]).categories == ["a", "2"] and Axis("kind", ["a", "b"]).share("b") == 0.75
    assert Axis("equal", [3.0, 3.0]).ticks() == [(0.5, "3")] and Axis("none", []).ticks()
    chart = Chart(Axis("<x>", [1, 2]), Axis("y", [1.0, float("nan")]))
    chart.line([1, 2], [1.0, float("nan")], "#000", "solid", "a <line>", 1)
    assert "nan" not in chart.svg() and "&lt;x&gt;" in chart.svg() and "a &lt;line&gt;" in chart.svg()
    assert "<x>" not in parallel([Axis("<x>", [1, 2])], [([1], "#000", 1.0, "a")])


def test_the_line_of_the_front_bounds_what_it_dominates() -> None:
    assert _staircase([(1.0, 5.0), (2.0, 3.0)]) == [(1.0, 5.0), (1.0, 3.0), (2.0, 3.0)]
    assert _staircase([]) == []


def test_a_region_is_outlined_where_it_touches_its_outside() -> None:
    roi = np.zeros((5, 5), bool)
    roi[1:4, 1:4] = True
    edge = roi.copy()
    edge[2, 2] = False
    assert (outline(roi) == edge).all()
    assert (outline(np.ones((3, 3), bool)).sum()) == 8, "the border of the image counts as outside"


def test_no_picture_of_a_credentialed_cohort_and_a_reason_where_students_are_gone(tmp_path: Path) -> None:
    def store(credentialed: bool) -> Any:
        return SimpleNamespace(facts=SimpleNamespace(credentialed=credentialed))

    folder = SweepFolder(tmp_path)
    shown = pictures(store(True), folder, RECORDS, ARMS, GOALS, "val/auroc")
    assert "credentialed" in shown and "<img" not in shown
    shown = pictures(store(False), folder, RECORDS, (*ARMS, "text"), GOALS, "val/auroc")
    for title in ("best of none by val/auroc", "best of tabular by val/auroc", "best val/pointing"):
        assert f"No student of {title} is kept." in shown
    assert "No trial of text is complete." in shown


def test_pictures_are_of_the_best_kept_student_of_each_arm_and_of_the_best_pointing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.reports.page.pictures.kept_student", lambda _, number: number if number != 1 else None)
    records = [*RECORDS, record(7, 0.7, 0.6, "tabular")]
    students, notes = _students(SweepFolder(tmp_path), records, ARMS, GOALS, "val/auroc")
    assert [(trial.number, title) for trial, title in students] == [
        (3, "trial 3: best of none by val/auroc"),
        (2, "trial 2: best of tabular by val/auroc"),
        (7, "trial 7: best val/pointing"),
    ]
    assert notes == ["The student of trial 1, best of none by val/auroc, is not kept; the next best stands for it."]
    students, notes = _students(SweepFolder(tmp_path), RECORDS, (*ARMS, *"bcdefg"), GOALS, "val/auroc")
    assert notes[0] == "Only the first 7 of 8 arms have pictures."
    assert students[1][1] == "trial 2: best of tabular by val/auroc, best val/pointing"


def test_a_report_is_written_where_pictures_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "sweep").mkdir()
    shown = ended(SweepFolder(tmp_path / "sweep"), str(tmp_path / "store"), RECORDS, ARMS, GOALS, "val/auroc")
    assert "could not be read" in shown.pictures and str(tmp_path) not in shown.pictures
