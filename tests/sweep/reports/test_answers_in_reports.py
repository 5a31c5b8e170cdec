"""What reports say of students that answer: against answers that see no image, without words on regions and maps."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mmpkd.cohort.prepare import prepare
from mmpkd.config import TrialConfig
from mmpkd.train import train
from sweep.reports.choosing import image_blind_verdict
from sweep.reports.console import image_blind_scores
from sweep.reports.page.answer import rows, sentences
from sweep.reports.page.page import write_report
from sweep.reports.page.pictures import pictures
from sweep.reports.teachers import teachers_in_words
from sweep.storage.layout import SweepFolder
from sweep.students import read_answering_student
from sweep.types import Record

GOALS, ARMS = ("val/answer", "val/recall50"), ("none", "kd")
TAUGHT = json.dumps({"distillation": {"teacher": {"control": "shuffled"}, "kl": {"weight": 1.0}}})


def record(number: int, answer: float, recall: float, arm: str = "none", config: str = "{}") -> Record:
    metrics = {"val/answer": answer, "val/answer_se": 0.03, "val/answer_frequent": 0.4}
    metrics |= {"val/recall50": recall, "val/recall50_se": 0.02, "val/recall50_mean_box": 0.05}
    teacher = {"teacher/answer": 0.9, "teacher/answer_se": 0.02} if config != "{}" else {}
    return Record(
        number, arm, "complete", 2, 2.0, {f"{arm}/optimizer.lr": 10.0**-number}, metrics | teacher, config, ""
    )


RECORDS = [record(1, 0.6, 0.02), record(2, 0.5, 0.04, "kd", TAUGHT)]


def test_answers_are_compared_with_those_that_see_no_image() -> None:
    lines = sentences(RECORDS, ARMS, GOALS)
    above = (
        "the best trial is above what is reached without looking at the image, by the most frequent training answers"
    )
    assert ("val/answer", f"{above}, and so is its whole 95 % interval.") in lines
    below = "no trial is above what is reached without looking at the image, by the mean training box."
    assert ("val/recall50", below) in lines
    assert rows(RECORDS, ARMS, "val/recall50")[-1][:3] == ["no image: by the mean training box", "-", "0.050"]
    assert image_blind_scores(RECORDS, GOALS) == [
        "val/answer without looking at the image: 0.400 by the most frequent training answers",
        "val/recall50 without looking at the image: 0.050 by the mean training box",
    ]
    verdict = image_blind_verdict(RECORDS, GOALS)
    assert verdict[0].startswith("val/answer: 2 of 2 trials beat the answers that ignore the image; the best, trial 1")
    assert verdict[1].startswith("val/recall50: no trial beats the answers that ignore the image: the best trial, 2,")


def test_a_teacher_that_answers_is_shown_with_its_goals_and_control() -> None:
    assert teachers_in_words(RECORDS[1]) == "answer 0.900 ± 0.020, shuffled"
    assert teachers_in_words(RECORDS[0]) == "" and RECORDS[0].control == ""
    assert RECORDS[1].control == "distillation.teacher"


def test_the_report_speaks_of_no_region_or_map(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    epochs = [{"number": each.number, "arm": each.arm, "epoch": 1, **each.metrics} for each in RECORDS]
    pd.DataFrame(epochs).to_parquet(folder.epochs)
    write_report(folder, RECORDS, ARMS, GOALS, "val/answer", note="still running")
    page = folder.report.read_text()
    assert "Students see an image and a question" in page and "python -m sweep.confirm" in page
    assert "by the mean training box" in page and "<title>val/answer 0.400 by the most frequent" in page
    for absent in ("ROI", "regions of interest", "where the students look", "map"):
        assert absent not in page, absent


def test_answers_are_drawn_beside_the_true_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"depth": 1, "width": 16, "heads": 2}
    config = TrialConfig.model_validate(
        {
            "cohort": {
                "reader": "synthetic_vqa",
                "image_size": 32,
                "params": {"side": 32, "train": 12, "val": 8, "test": 8},
            },
            "student": {"kind": "vlm", "vision": small, "decoder": {**small, "mlp": 16}, "max_new_tokens": 3},
            "epochs": 1,
        }
    )
    folder = SweepFolder(tmp_path / "sweep")
    train(config, tmp_path / "cache", folder.checkpoints_of(1) / "attempt-1")
    store, trial = prepare(config.cohort, tmp_path / "cache"), record(1, 0.6, 0.02, config=config.model_dump_json())
    student = read_answering_student(folder, 1)
    answered = student.vlm.answer

    def answer_with_markup(*arguments: Any, **options: Any) -> Any:
        given = answered(*arguments, **options)
        return given._replace(texts=[f"<b>{number}" for number, _ in enumerate(given.texts)])

    monkeypatch.setattr("sweep.reports.page.pictures.read_answering_student", lambda *_: student)
    monkeypatch.setattr(student.vlm, "answer", answer_with_markup)
    shown = pictures(store, folder, [trial], ("none",), GOALS, "val/answer")
    table = store.questions[store.questions["row"].isin(store.rows("val"))]
    rows_shown = shown.split("<tbody>")[1].split("</tr>")[:-1]
    assert len(rows_shown) == len(table["row"].unique()) == 8
    assert shown.count("<img") == 2 * 8 and "trial 1: best of none by val/answer, best val/recall50" in shown
    assert [f"<p><strong>&lt;b&gt;{number}</strong></p>" in row for number, row in enumerate(rows_shown)] == [
        True
    ] * 8, "in their order"
    texts = [
        f"<p><strong>{escape(answer)}</strong></p><p>{escape(question)}</p>"
        for answer, question in zip(table["answer"], table["question"], strict=True)
    ]
    named = [table["task"].iloc[[text in row for text in texts].index(True)] for row in rows_shown]
    assert named == ["GC", "MII", "RO", "VG"] * 2, "a question of each task in turn"
