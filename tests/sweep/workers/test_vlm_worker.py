"""A trial whose student answers: killed and continued it equals an uninterrupted one, and its student is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmpkd.cohort.prepare import prepare
from mmpkd.vlm import student
from sweep.picking.folder import PickedFolder
from sweep.storage.layout import SweepFolder
from sweep.transfer.attempts import kept_student
from sweep.workers.worker import TRAINING
from tests.mmpkd.vlm.test_vlm_training import TEACHER, config_with
from tests.sweep.workers.test_worker import job, worker_for


def test_a_killed_trial_of_a_student_that_answers_ends_as_if_it_had_not_been(tmp_path: Path, cache: Path) -> None:
    config = config_with(3, teacher=TEACHER, pseudo_labels={"use": True, "curriculum": 0.5})
    store = prepare(config.cohort, cache)

    def worker_in(folder: Path) -> Any:
        folder.mkdir(exist_ok=True)
        trial = {"trial": config.model_dump_json(), "cache": str(cache), "store": str(store.path)}
        return worker_for(job(folder) | trial | {"goals": ["val/answer", "val/recall50"]}, TRAINING)

    whole = worker_in(tmp_path / "whole")
    results = [whole.step() for _ in range(3)]
    assert not any(each.get("error") for each in results), results
    killed = worker_in(tmp_path / "killed")
    killed.step()
    killed.cleanup()
    continued = worker_in(tmp_path / "killed")
    reports = [report for _ in range(3) for report in continued.step()["reports"]]
    for mine, theirs in zip(reports, [each["reports"][0] for each in results], strict=True):
        assert (mine["epoch"], mine["step"], mine["terms"]) == (theirs["epoch"], theirs["step"], theirs["terms"])
        assert mine["metrics"] == pytest.approx(theirs["metrics"], nan_ok=True, abs=0)
    kept = kept_student(SweepFolder(tmp_path / "killed"), 0)
    assert kept is not None and (kept.attempt.name, kept.name) == ("attempt-2", "vlm.safetensors")
    assert student.read(Path(kept.file.path)).card.trial == config.fingerprint()
    assert PickedFolder.of(tmp_path, config).student == tmp_path / "vlm.safetensors"
