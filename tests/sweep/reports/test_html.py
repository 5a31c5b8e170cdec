"""What a person sees at the end."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from mmpkd.command import plain_console
from sweep.reports.arms import totals_by_arm
from sweep.reports.choosing import image_blind_verdict, optimism
from sweep.reports.console import (
    few_patients,
    front_lines,
    image_blind_scores,
    print_summary,
    resolution,
    sampled,
    shortest,
    with_error,
)
from sweep.reports.final import planned_error
from sweep.reports.page.page import write_report
from sweep.reports.tables import trials_table
from sweep.reports.teachers import students_above_teachers, teacher_warnings
from sweep.search.budget import Ledger
from sweep.storage.layout import SweepFolder
from sweep.types import Record

GOALS = ("val/auroc", "val/pointing")
ARMS = ("none", "tabular")


def record(number: int, auroc: float, pointing: float, arm: str = "none", state: Any = "complete") -> Record:
    metrics = {"val/auroc": auroc, "val/auroc_se": 0.02, "val/pointing": pointing, "val/pointing_se": 0.05}
    metrics |= {"val/pointing_chance": 0.0625, "val/pointing_centre": 0.125}
    values = {f"{arm}/optimizer.lr": 10.0**-number, f"{arm}/objectives": "soft <b>"}
    return Record(number, arm, state, 4, 2.0, values, metrics, "{}", "a bug" if state == "failed" else "")


RECORDS = [
    record(1, 0.90, 0.20),
    record(2, 0.89, 0.30, "tabular"),
    record(3, 0.80, 0.24),
    record(4, 0.95, 0.90, "tabular", "pruned"),
    record(5, 0.95, 0.90, "tabular", "failed"),
]


def reported(folder: Path, records: Sequence[Record], arms: Sequence[str], goals: Sequence[str] = GOALS) -> str:
    epochs = [
        {"number": one.number, "arm": one.arm, "epoch": epoch, **one.metrics} for one in records for epoch in range(4)
    ]
    columns = None if epochs else ["number", "arm", "epoch", "seconds"]
    sweep = SweepFolder(folder / "my & sweep")
    sweep.path.mkdir(exist_ok=True)
    pd.DataFrame(epochs, columns=columns).to_parquet(sweep.epochs)
    write_report(sweep, records, arms, goals, "val/auroc")
    return cells_alone(sweep.report.read_text())


def cells_alone(page: str) -> str:
    """Returns a page without the names of columns that each cell carries for phones, and with ordinary spaces."""
    return re.sub(r'<td data-name="[^"]*">', "<td>", page).replace("&nbsp;", " ")


def summed_up(folder: Path, records: Sequence[Record], arms: Sequence[str]) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_summary(console, records, arms, GOALS, "val/auroc", SweepFolder(folder))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def front(records: Sequence[Record], arms: Sequence[str], goals: Sequence[str], select: str, width: int = 200) -> str:
    return "\n".join(front_lines(records, arms, goals, select, width))


def test_the_front_has_only_complete_trials_with_their_errors() -> None:
    text = front(RECORDS, ARMS, GOALS, "val/auroc")
    assert "0.900 ± 0.020" in text and "0.300 ± 0.050" in text
    assert "0.950" not in text and "0.800" not in text
    assert text.index("0.900") < text.index("0.890"), "best by the selecting goal first"
    text = front(RECORDS, ARMS, GOALS, "val/pointing")
    assert text.index("0.890") < text.index("0.900")


def test_console_and_report_say_what_each_arm_got(tmp_path: Path) -> None:
    """A further seed of trial 1 adds hours and no configuration; trial 9 runs and has spent 100 seconds so far."""
    ledger = Ledger({"none": 0.5, "tabular": 0.5}, "trials")
    for arm, spent in (("none", 3600.0), ("none", 1800.0), ("tabular", 36.0), ("tabular", 36.0), ("none", 36.0)):
        ledger.start(arm)
        ledger.spend(arm, spent)
    ledger.spend("tabular", 100.0)
    ledger.start("tabular")
    seed = replace(record(6, 0.9, 0.2), repeat_of=1)
    totals = totals_by_arm([*RECORDS[:2], *RECORDS[3:], seed], ledger)
    assert [arm.cells() for arm in totals] == [
        ["none", "3", "1", "0", "0", "1.51"],
        ["tabular", "3", "1", "1", "1", "0.0478"],
    ]
    console = Console(file=io.StringIO(), width=200)
    print_summary(console, RECORDS, ARMS, GOALS, "val/auroc", SweepFolder(tmp_path), totals=totals)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [re.findall(r"[\w.-]+", line) for line in text.splitlines()]
    assert ["arm", "started", "complete", "pruned", "failed", "device-hours"] in rows
    assert [arm.cells() for arm in totals] == [row for row in rows if len(row) == 6 and row[0] in ARMS]
    reported(tmp_path, RECORDS, ARMS)  # writes the table of epochs
    sweep = SweepFolder(tmp_path / "my & sweep")
    write_report(sweep, RECORDS, ARMS, GOALS, "val/auroc", totals=totals)
    assert "<td>tabular</td><td>3</td><td>1</td><td>1</td><td>1</td><td>0.0478</td>" in cells_alone(
        sweep.report.read_text()
    )


def test_an_arm_that_is_not_on_the_front_still_shows_its_best(tmp_path: Path) -> None:
    records = [record(1, 0.9, 0.5, "tabular"), record(2, 0.7, 0.3), record(3, 0.8, 0.2), record(4, 0.6, 0.4)]
    assert front(records, ARMS, GOALS, "val/auroc", width=50).splitlines() == [
        "Front",
        "trial  arm      val/auroc      val/pointing",
        "1      tabular  0.900 ± 0.020  0.500 ± 0.050",
        "       lr=0.1, objectives=soft <b>",
        "3      none     0.800 ± 0.020  0.200 ± 0.050",
        "       (best of none, not on the front)",
        "       lr=0.001, objectives=soft <b>",
    ]
    narrow = front(records, ARMS, GOALS, "val/auroc", width=24).split()
    assert narrow == front(records, ARMS, GOALS, "val/auroc").split(), "lines are broken between words only"
    assert "0.600" in front(records, ARMS, GOALS, "val/pointing"), "by the selecting goal"
    assert "not on the front" not in front(RECORDS, ARMS, GOALS, "val/auroc")

    page = reported(tmp_path, records, (*ARMS, "text"))
    assert re.search(r"best of the arm, not on the front</td><td>3</td><td>none</td><td>0\.800", page)
    line = "arm text has no complete trial, so it cannot be compared"
    assert line in page and line in summed_up(tmp_path, records, (*ARMS, "text"))
    assert "has no complete trial" not in summed_up(tmp_path, records, ARMS)


def test_the_picked_trial_is_shown_where_a_tie_keeps_it_off_the_front(tmp_path: Path) -> None:
    records = [record(1, 0.9, 0.2), record(2, 0.9, 0.5, "tabular"), record(3, 0.7, 0.3)]
    lines = front(records, ARMS, GOALS, "val/auroc").splitlines()
    rows = [number for number, line in enumerate(lines) if "±" in line]
    assert [lines[number].split()[0] for number in rows] == ["2", "1"]
    assert lines[rows[1] + 1].strip() == "(best.yaml: best val/auroc, not on the front)"
    page = reported(tmp_path, records, ARMS)
    assert "best.yaml: best val/auroc, best of the arm, not on the front</td><td>1</td>" in page
    assert "best val/pointing, on the front</td><td>2</td>" in page


def test_the_report_shows_estimates_where_they_are_compared(tmp_path: Path) -> None:
    extra = {"val/auroc_explained": 0.8, "val/auroc_estimate_error": 0.015, "val/auroc_luck": 0.01}
    records = []
    for each, estimate in ((record(1, 0.9, 0.2), 0.85), (record(2, 0.88, 0.1, "tabular"), 0.87)):
        estimates = {"val/auroc_estimate": estimate, "val/auroc_compared": estimate}
        records.append(replace(each, metrics={**each.metrics, **extra, **estimates}))
    page = reported(tmp_path, records, ARMS)
    scores = "0.880 ± 0.020, estimated 0.870 ± 0.015"
    assert f"best.yaml: best val/auroc, on the front</td><td>2</td><td>tabular</td><td>{scores}" in page
    assert "the score of a trial that is chosen in this way is on average 0.010 too high by luck" in page
    assert ">val/auroc, as compared</text>" in page and ">val/pointing, as compared" not in page


def test_what_reads_another_image_at_test_is_named_so(tmp_path: Path) -> None:
    reads = '{"student": {"reads": ["superior"]}}'
    reference = replace(record(1, 0.9, 0.5, "superior"), config=reads)
    records = [reference, record(2, 0.895, 0.3), record(3, 0.85, 0.2)]
    marked = "best of superior, which reads another image at test"
    assert marked in front(records, ("none", "superior"), GOALS, "val/auroc")
    page = reported(tmp_path, records, ("none", "superior"))
    assert "best of the arm, reads another image at test</td>" in page
    assert resolution(records, GOALS) == [], "it is not among the others, nor the best that they are held against"
    told = "no best.yaml: every complete trial reads another image at test"
    assert told in summed_up(tmp_path, [reference], ("superior",)) and told not in summed_up(tmp_path, records, ARMS)


def test_a_control_is_named_so(tmp_path: Path) -> None:
    config = '{"teachers": {"findings": {"control": "shuffled"}, "report": {"control": null}}}'
    records = [replace(RECORDS[0], config=config)]
    assert sampled(records[0]).endswith("shuffled: findings") and "shuffled" not in sampled(RECORDS[1])
    assert "shuffled: findings" in reported(tmp_path, records, ARMS)
    assert trials_table(records)["control"].tolist() == ["findings"]


def test_what_maps_score_that_do_not_look(tmp_path: Path) -> None:
    line = "val/pointing without looking at the image: 0.062 by chance, 0.125 by pointing at the centre"
    assert image_blind_scores(RECORDS, GOALS) == [line]
    assert image_blind_scores(RECORDS, GOALS[:1]) == [] == image_blind_scores([], GOALS)
    more = {"val/pointing_content": 0.1, "val/pointing_prior": 0.3, "val/pointing_max": 0.875}
    known = [replace(one, metrics={**one.metrics, **more}) for one in RECORDS]
    prior = ", 0.300 by the mean training ROI; with patches of this size, no map can score above 0.875"
    padding = line.replace("chance,", "chance, 0.100 by avoiding the padding,")
    assert image_blind_scores(known, GOALS) == [padding + prior]
    beaten = "val/pointing: 3 of 3 trials beat the maps that ignore the image; the best, trial 2, has 0.300, "
    beaten += "and 0.125 is reached by pointing at the centre"
    unbeaten = "val/pointing: no trial beats the maps that ignore the image: the best trial, 2, has 0.300, "
    unbeaten += "and 0.300 is reached by the mean training ROI"
    assert image_blind_verdict(RECORDS, GOALS) == [beaten] and image_blind_verdict(known, GOALS) == [unbeaten]
    close = [replace(one, metrics={**one.metrics, "val/pointing_prior": 0.29}) for one in RECORDS]
    assert "1 of 3 trials beats" in (verdict := image_blind_verdict(close, GOALS)[0])
    luck = optimism(close, "val/pointing")
    assert luck > 0.01 and verdict.endswith(f"; the difference is within the luck in the best score ({luck:.3f})")
    assert line in (text := summed_up(tmp_path, RECORDS, ARMS)) and beaten in text
    page = reported(tmp_path, RECORDS, ARMS)
    assert page.index(">The answer</h2>") < page.index(">Trials to pick from</h2>") and line not in page
    assert "<td>no image: by chance</td>" in page, "the page has a table of them"
    assert "<title>val/pointing 0.062 by chance</title>" in page and "<title>val/auroc 0" not in page


def test_the_resolution_of_the_validation_set() -> None:
    assert resolution(RECORDS, GOALS) == [
        "1 of the 2 other complete trials is within one standard error (0.020) of the best val/auroc. "
        "Do not read the ranking as a result."
    ]
    assert resolution([record(1, 0.9, 0.2), record(2, 0.5, 0.9)], GOALS) == []


@pytest.mark.parametrize("error", [0.0, 1e-17, math.nan])
def test_a_perfect_score_is_held_against_what_so_many_patients_can_tell(tmp_path: Path, error: float) -> None:
    """Differences from 1.000 of 0.016, 0.064 and 0.3, beside standard errors of 0.025, and 0.124 of the plan."""
    scores = ((1, 1.0, error), (2, 0.984, 0.025), (3, 0.936, 0.025), (4, 0.7, 0.025))
    records = [record(number, auroc, 0.2) for number, auroc, _ in scores]
    records = [
        replace(one, metrics=one.metrics | {"val/auroc_se": each[2]}) for one, each in zip(records, scores, strict=True)
    ]
    goal = GOALS[:1]
    (own,) = resolution(records, goal)
    assert "; 1 of the 3 other complete trials is within one standard error (0.025) of it." in own
    (planned,) = resolution(records, goal, auroc_error=0.124)
    assert "; 2 of the 3 other complete trials are within one standard error (0.124) of it." in planned
    (imperfect,) = resolution(records[1:], goal, auroc_error=0.05)
    assert imperfect.startswith("1 of the 2 other complete trials is within one standard error (0.050) of the best")
    page = reported(tmp_path, records, ARMS)
    assert "1.000 (all equal)" in front(records, ARMS, GOALS, "val/auroc") and "1.000 (all equal)" in page
    assert "1.000 ± 0.000" not in page


def test_the_plans_standard_error_is_that_of_its_price(tmp_path: Path) -> None:
    assert planned_error(SweepFolder(tmp_path)) is None, "there is no plan"
    SweepFolder(tmp_path).write_plan({"space": "a"})
    assert planned_error(SweepFolder(tmp_path)) is None, "nor a price"
    SweepFolder(tmp_path).write_plan({"space": "a", "price": {"auroc_error": 0.124}})
    assert planned_error(SweepFolder(tmp_path)) == 0.124
    (tmp_path / "plan.json").write_text("{")
    assert planned_error(SweepFolder(tmp_path)) is None, "damaged, which the next start says"


def test_the_larger_standard_error_of_two_decides() -> None:
    """0.10 apart, 0.02 the best's and 0.15 the other's."""
    wide = record(2, 0.8, 0.2)
    wide = replace(wide, metrics=wide.metrics | {"val/auroc_se": 0.15})
    (line,) = resolution([record(1, 0.9, 0.2), wide], GOALS[:1])
    assert line.startswith("the other complete trial is within one standard error (0.150) of the best")


def test_short_names_tell_apart() -> None:
    paths = ["optimizer.lr", "objectives.soft.logits.weight", "objectives.soft.features.weight"]
    assert list(shortest(paths).values()) == ["lr", "logits.weight", "features.weight"]
    assert shortest(["a.b", "b"]) == {"a.b": "a.b", "b": "b"}
    assert sampled(record(3, 0.5, 0.5)) == "lr=0.001, objectives=soft <b>"


def test_the_summary_names_failures_and_files(tmp_path: Path) -> None:
    (tmp_path / "errors").mkdir()
    (tmp_path / "errors" / "5.txt").write_text("a bug\n\nTraceback")
    (tmp_path / "best.yaml").write_text("x")
    text = summed_up(tmp_path, RECORDS, ARMS)
    assert "5 trials: 3 complete, 1 failed, 1 pruned" in text
    assert f"trial 5 failed: a bug ({tmp_path}/errors/5.txt)" in text
    assert f"files in {tmp_path}: best.yaml" in text


@pytest.mark.parametrize("goals", [GOALS, GOALS[:1]])
def test_the_report_is_one_file_that_shows_both_ways(tmp_path: Path, goals: tuple[str, ...]) -> None:
    page = reported(tmp_path, RECORDS, ARMS, goals)
    assert "<title>my &amp; sweep</title>" in page and "soft &lt;b&gt;" in page
    assert (
        page.count("best.yaml: best val/auroc") == 1 and page.count("<pre>python -m sweep.pick") == 2 * len(goals) - 1
    )
    assert ("best val/pointing" in page) == (len(goals) == 2)
    assert "Learning curves" in page and "What parameters do" not in page, "three trials do not show it"
    assert re.findall('href="#([^"]+)"', page) == re.findall('<h2 id="([^"]+)"', page)
    assert "<script" not in page and "http" not in page and "src=" not in page, "nothing is fetched"
    references = [replace(one, config='{"student": {"reads": ["superior"]}}') for one in RECORDS]
    page = reported(tmp_path, references, ARMS, goals)
    assert "best.yaml" not in page and "sweep.pick" not in page, "there is none"


def test_a_report_of_nothing(tmp_path: Path) -> None:
    assert "0 complete" in reported(tmp_path, [], ARMS)


def test_no_cell_shows_a_value_that_is_missing(tmp_path: Path) -> None:
    """Errors, baselines, a teacher and the goal of a trial are unknown, then all values of a goal."""
    unknown = dict.fromkeys(("auroc_se", "pointing_se", "pointing_chance", "pointing_max"), math.nan)
    records = [with_metric(each, **unknown) for each in RECORDS]
    records = [replace(each, metrics=each.metrics | {"teacher/t/val_auroc": math.nan}) for each in records]
    records.append(with_metric(record(6, 0.7, 0.1), pointing=math.nan))
    page = reported(tmp_path, records, ARMS)
    assert "these complete trials have no value of val/pointing and are left out: 6." in page
    without = [with_metric(each, pointing=math.nan) for each in RECORDS]
    alone = reported(tmp_path, without, ARMS)
    assert "val/pointing is left out, because no complete trial has a value" in alone and "Trials to pick" in alone
    nothing = reported(tmp_path, without, ARMS, GOALS[1:])
    assert "val/pointing is left out" in nothing and "Trials to pick" not in nothing
    for each in (page, alone, nothing):
        assert not re.search(r"\b(nan|NaN|inf|None)\b", each)


def test_a_teacher_that_states_the_label_is_named_in_summary_and_report(tmp_path: Path) -> None:
    leak = {"teacher/report/auroc": 0.997, "teacher/report/leak": 1.0, "teacher/findings/leak": 0.0}
    records = [replace(one, metrics=one.metrics | leak) if one.arm == "tabular" else one for one in RECORDS]
    assert teacher_warnings(RECORDS, ARMS) == []
    (line,) = teacher_warnings(records, ARMS)
    assert line.startswith("arm tabular: teacher 'report' all but states the label (out of fold: AUROC 0.997)")
    assert f"warning: {line}" in " ".join(summed_up(tmp_path, records, ARMS).split())
    assert escape(line) in reported(tmp_path, records, ARMS)


def test_a_student_above_its_teachers_is_remarked_upon(tmp_path: Path) -> None:
    def taught(number: int, auroc: float) -> Record:
        scores = {"teacher/a/val_auroc": 0.85, "teacher/b/val_auroc": 0.88}
        return replace(
            record(number, auroc, 0.3, "tabular"), metrics={**RECORDS[1].metrics, "val/auroc": auroc, **scores}
        )

    page = reported(tmp_path, [RECORDS[0], taught(2, 0.89)], ARMS)
    line = "arm tabular: the student of trial 2 has a higher val/auroc than its teachers 'a' (0.850) and 'b' (0.880)"
    assert escape(line) in page
    assert students_above_teachers([taught(2, 0.87)], ARMS) == [] == students_above_teachers(RECORDS, ARMS)


def test_names_in_brackets_are_printed_as_they_are(tmp_path: Path) -> None:
    quality = {"teacher/[/t]/auroc": 0.7, "teacher/[/t]/val_auroc": 0.7}
    one = record(1, 0.9, 0.2)
    one = replace(one, metrics=one.metrics | quality, config='{"teachers": {"[/t]": {"kind": "tabular"}}}')
    console = plain_console(file=io.StringIO(), width=200)
    print_summary(console, [one], ("none",), GOALS, "val/auroc", SweepFolder(tmp_path))
    assert "[/t] 0.700" in console.file.getvalue()  # type: ignore[attr-defined]


def with_metric(base: Record, **metrics: float) -> Record:
    return replace(base, metrics=base.metrics | {f"val/{name}": value for name, value in metrics.items()})


def test_a_score_without_a_standard_error_is_not_known_to_the_last_digit() -> None:
    perfect = [with_metric(record(number, 1.0, 0.2), auroc_se=math.nan) for number in (1, 2)]
    assert with_error(perfect[0], "val/auroc") == "1.000 (all equal)"
    assert with_error(with_metric(perfect[0], auroc=0.75), "val/auroc") == "0.750 ± ?"
    assert with_error(with_metric(perfect[0], auroc=0.75, auroc_se=1e-17), "val/auroc") == "0.750 (all equal)"
    assert with_error(Record(1, "none", "complete", 1, 1.0, {}, {"val/ap": 0.75}, "{}"), "val/ap") == "0.750"
    reason = "the best val/auroc has no standard error, because it is the same whichever validation patients are drawn"
    advice = "Do not read the ranking as a result."
    assert resolution(perfect, GOALS[:1]) == [f"{reason}; the other complete trial equals it. {advice}"]
    further = [*perfect, with_metric(record(3, 1.0, 0.2), auroc_se=math.nan)]
    assert resolution(further, GOALS[:1]) == [f"{reason}; all 2 other complete trials equal it. {advice}"]
    lone = f"{reason}. Its lead over the other trials cannot be judged."
    assert resolution([*perfect[:1], record(3, 0.8, 0.2)], GOALS[:1]) == [lone]
    assert resolution(perfect[:1], GOALS[:1]) == [f"{reason}."], "there is no ranking"


def test_few_patients_of_the_rarer_class_are_named_at_the_end(tmp_path: Path) -> None:
    rare = [with_metric(RECORDS[0], auroc_rarer_class=9.0), with_metric(RECORDS[1], auroc_rarer_class=12.0)]
    line = "a label has 9 validation patients of its rarer class: with fewer than about 10"
    assert f"warning: {line}" in summed_up(tmp_path, rare, ARMS) and line in reported(tmp_path, rare, ARMS)
    assert few_patients(rare[1:]) == [] == few_patients(RECORDS) == few_patients([])


def test_trials_that_the_validation_set_does_not_separate_are_named_in_every_case() -> None:
    advice = "Do not read the ranking as a result."
    few = [with_metric(record(number, 0.9, 0.2), auroc_se=math.nan) for number in (1, 2)]
    reason = "the best val/auroc has no standard error, because too few validation patients have this score"
    assert resolution(few, GOALS[:1]) == [f"{reason}; the other complete trial equals it. {advice}"]
    without = [Record(number, "none", "complete", 1, 1.0, {}, {"val/ap": 0.5}, "{}") for number in (1, 2, 3)]
    assert resolution(without, ["val/ap"]) == [f"all 2 other complete trials equal the best val/ap. {advice}"]
    ahead = [with_metric(without[0], ap=0.6), *without[1:]]
    assert resolution(ahead, ["val/ap"]) == []
    known = [record(1, 0.9, 0.2), with_metric(record(2, 0.9, 0.2), auroc_se=math.nan)]
    line = f"the other complete trial is within one standard error (0.020) of the best val/auroc. {advice}"
    assert resolution(known, GOALS[:1]) == resolution([known[0], record(2, 0.9, 0.2)], GOALS[:1]) == [line]
    assert resolution(known[:1], GOALS[:1]) == [] == resolution([], GOALS)


def test_the_resolution_is_that_of_the_estimates_by_which_trials_are_compared() -> None:
    """Trial 2 has the higher score, and is estimated to have been lucky."""
    estimates = {1: 0.81, 2: 0.70, 3: 0.80}
    records = [record(1, 0.806, 0.2), record(2, 0.844, 0.2), record(3, 0.75, 0.2)]
    records = [
        replace(trial, metrics={**trial.metrics, "val/auroc_se": 0.03, "val/auroc_compared": estimates[trial.number]})
        for trial in records
    ]
    (line,) = resolution(records, GOALS[:1])
    assert line.startswith("1 of the 2 other complete trials is within one standard error (0.030) of the best")
