"""What a sweep's run in MLflow says of the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mmpkd.config import CohortConfig
from sweep.provenance import code_commit, library_versions
from sweep.reports.arms import ArmTotals
from sweep.reports.results import Snapshot
from sweep.space.grammar import Tree
from sweep.storage.layout import SweepFolder
from sweep.summary import summarize
from sweep.types import Record

GOALS = ("val/auroc", "val/pointing")
COMMAND = "python -m sweep.run space=breast trials=8"


def record(number: int, arm: str, auroc: float, pointing: float, config: str = "{}") -> Record:
    metrics = {"val/auroc": auroc, "val/auroc_se": 0.02, "val/pointing": pointing, "val/pointing_se": 0.05}
    metrics |= {"val/pointing_chance": 0.05, "val/pointing_centre": 0.22, "val/pointing_prior": 0.582}
    return Record(number, arm, "complete", 4, 2.0, {f"{arm}/objectives": "soft|near"}, metrics, config)


RECORDS = [record(1, "none", 0.90, 0.20), record(2, "tabular", 0.93, 0.25), record(3, "tabular", 0.91, 0.40)]


def snapshot(tmp_path: Path, records: Sequence[Record], remaining: int = 0) -> Snapshot:
    folder = SweepFolder(tmp_path)
    folder.write_plan({"store": "7df6a475749447d6", "samples": 252})
    totals = [ArmTotals(arm, 2, 2, 0, 0, 0.75) for arm in ("none", "tabular")]
    arms = {arm: Tree("", {}) for arm in ("none", "tabular")}
    cohort = CohortConfig(reader="breast_lesions_usg", root=Path("/hospital/ann"))
    return Snapshot(folder, records, arms, GOALS, "val/auroc", 1, totals, [], cohort, remaining, 0.0, "", "", COMMAND)


def test_scores_and_marks_by_hand(tmp_path: Path) -> None:
    summary = summarize(snapshot(tmp_path, RECORDS), RECORDS)
    assert summary.ended == 3
    assert summary.metrics == {
        "best/val/auroc": 0.93,
        "best/val/auroc/none": 0.90,
        "best/val/auroc/tabular": 0.93,
        "best/val/pointing": 0.40,
        "best/val/pointing/none": 0.20,
        "best/val/pointing/tabular": 0.40,
        "device_hours": 1.5,
    }
    assert summary.marks == {
        "2": {"front": "yes", "best": "val/auroc, best.yaml"},
        "3": {"front": "yes", "best": "val/pointing"},
    }


def test_the_description_answers_and_cautions(tmp_path: Path) -> None:
    text = summarize(snapshot(tmp_path, RECORDS, remaining=5), RECORDS).description
    answer, progress, *_ = text.split("\n\n")
    trial = "[trial {0}](trial:{0}) of tabular ([config.yaml](trial:{0}/config.yaml))"
    none = "by none ([trial 1](trial:1))"
    assert answer.splitlines() == [
        f"- **val/auroc**: 0.930 ± 0.020 by {trial.format(2)}; 0.900 ± 0.020 {none}",
        f"- **val/pointing**: 0.400 ± 0.050 by {trial.format(3)}; 0.200 ± 0.050 {none}; "
        "0.582 without the image, by the mean training ROI",
    ]
    assert progress == "3 trials have ended (3 complete, 5 to go) in 1.5 device-hours."
    unclear = "is not told apart from the best of none, because 0 is in the interval."
    assert f"- **val/auroc**: the best of tabular (+0.030; 95 % interval -0.025 to +0.085) {unclear}" in text
    above = "is above the best of none, and 0 is below the interval; the interval leaves out the luck"
    assert f"- **val/pointing**: the best of tabular (+0.200; 95 % interval +0.061 to +0.339) {above}" in text
    blind = "no trial is above what is reached without looking at the image, by the mean training ROI"
    assert f"- **val/pointing**: {blind}." in text and "too high by luck" in text and "0.582 by the mean" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3 and all(row.replace("\\|", "").count("|") == 9 for row in rows)
    assert "| [2](trial:2) |" in rows[2] and "[config.yaml](trial:2/config.yaml)" in rows[2]
    assert "objectives=soft\\|near" in rows[2], "a bar in a value is no border of a cell"
    assert "data set breast_lesions_usg, prepared with fingerprint 7df6a475749447d6, 252 images." in text
    assert f"```\n{COMMAND}\n```" in text and "hospital" not in text


def test_unknown_errors_are_no_difference_and_no_trial_is_no_answer(tmp_path: Path) -> None:
    close = [RECORDS[0], record(2, "tabular", 0.91, 0.60)]
    text = summarize(snapshot(tmp_path, close), close).description
    assert (
        "the best trial is above what is reached without looking at the image, by the mean training ROI, but not"
        in text
    )
    unknown = [replace(one, metrics={"val/auroc": 0.9, "val/pointing": 0.1}) for one in close]
    text = summarize(snapshot(tmp_path, unknown), unknown).description
    reason = "because their scores are the same"
    assert f"the best of tabular is not told apart from the best of none, {reason}." in text
    assert "val/auroc: all 2 trials score 0.900: no difference is seen" in text and "0.000 too high" not in text
    unknown[1] = replace(unknown[1], metrics={"val/auroc": 0.92, "val/pointing": 0.1})
    text = summarize(snapshot(tmp_path, unknown), unknown).description
    reason = "because a standard error is not known"
    assert f"the best of tabular (+0.020) is not told apart from the best of none, {reason}." in text
    nothing = summarize(snapshot(tmp_path, []), [])
    assert nothing.description.startswith("No trial is complete.\n\n0 trials have ended (none has ended)")
    assert "|" not in nothing.description
    assert nothing.metrics == {"device_hours": 1.5} and nothing.marks == {}


def test_a_reference_is_neither_best_nor_on_the_front(tmp_path: Path) -> None:
    records = [*RECORDS, record(4, "tabular", 0.99, 0.9, config='{"student": {"reads": ["image", "mask"]}}')]
    summary = summarize(snapshot(tmp_path, records), records)
    assert set(summary.marks) == {"2", "3"} and summary.metrics["best/val/auroc"] == 0.93


def test_a_commit_is_that_of_this_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = code_commit().removesuffix("+changes")
    assert commit == "" or (len(commit) == 40 and int(commit, 16))
    assert {"python", "torch", "mlflow"} <= set(library_versions())
