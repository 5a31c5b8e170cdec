"""A finished sweep of fake trainings in which the kept trials have students, for tests of `sweep.pick`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mmpkd.cohort.decode import Depth
from mmpkd.config import StudentConfig, TrialConfig
from mmpkd.export import student_file
from mmpkd.export.student_file import Card
from mmpkd.student import build_student
from mmpkd.types import Task, lay_out
from sweep.search.searcher import Search
from sweep.search.studies import records_of
from sweep.storage.journal import load_studies
from sweep.storage.layout import SweepFolder
from sweep.tracking.mlflow import Tracker
from tests.sweep.swept import swept

TASKS = lay_out([("malignant", "binary", ("benign", "malignant"))])
TINY = StudentConfig(pretrained=False, patch_size=4, embed_dim=8, depth=1, num_heads=2)


def write_student(folder: Path, config: TrialConfig, image_size: int = 8, tasks: tuple[Task, ...] = TASKS) -> None:
    """Writes a tiny student with the card of a configuration."""
    card = Card(
        model=TINY.model_dump(mode="json", exclude={"reads"}),
        mean=(0.5,),
        std=(0.25,),
        tasks=tasks,
        channels=1,
        image_size=image_size,
        depth=Depth(),
        map="cls_attention",
        temperature={task.name: 1.0 for task in tasks},
        threshold={f"{task.name}/{task.labels[1]}": 0.5 for task in tasks if task.kind == "binary"},
        map_threshold={},
        source="s",
        cohort="c",
        fold=0,
        trial=config.fingerprint(),
        credentialed=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    student_file.write(
        folder,
        build_student(TINY, image_size, 1, sum(task.num_logits for task in tasks)),
        card,
        torch.zeros(3, dtype=torch.int64).numpy(),
    )


def picked_sweep(tmp_path: Path) -> Path:
    """Runs a sweep of eight trials, and returns the folder of all sweeps. The sweep is called `fake`."""
    run_sweep(tmp_path)
    folder = SweepFolder(tmp_path / "runs" / "fake")
    for record in records_of(load_studies(folder.journal), 0):
        if folder.keeps_checkpoints(record.number):
            attempt = folder.checkpoints_of(record.number) / "attempt-1"
            write_student(attempt, TrialConfig.model_validate_json(record.config))
    return tmp_path / "runs"


def run_sweep(tmp_path: Path, *words: str) -> tuple[Search, str]:
    """Runs a sweep of fake trainings without a report and without MLflow; see `swept`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sweep.reports.results.write_report", lambda *args: None)
        patch.setattr(os, "fsync", lambda file: None)
        patch.setattr(Tracker, "start", lambda self: None)
        patch.setattr(Tracker, "close", lambda self, seconds: 0)
        return swept(tmp_path, *words)
