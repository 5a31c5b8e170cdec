"""A sweep of fake trainings on a real tiny cohort, and its confirmation, whose students are real and untrained."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from mmpkd.cohort.prepare import prepare
from mmpkd.config import TrialConfig
from mmpkd.types import lay_out
from sweep import confirm, driver
from sweep.picking.candidates import read_candidates
from sweep.search.searcher import Search
from sweep.search.studies import records_of
from sweep.storage.events import Spool, SweepClosed
from sweep.storage.journal import load_studies
from sweep.storage.layout import SweepFolder
from sweep.tracking.mlflow import Tracker
from tests.sweep import fake
from tests.sweep.fake_sweep import FAKE
from tests.sweep.picked_sweep import run_sweep, write_student

SMALL = "{side: 32, train: 60, val: 30, test: 60}"
WORDS = ("cohort.image_size=32", f"cohort.params={SMALL}", "student.patch_size=8", "student.embed_dim=24")
WORDS = (*WORDS, "student.depth=2", "student.num_heads=2", "name=fake", "trials=8")
ENTROPY = 0.4
TASKS = lay_out([("pattern", "multiclass", ("lamellar", "columnar", "reticular"))])  # of the synthetic cohort


def make_sweep(tmp_path: Path) -> None:
    """Runs the sweep that is confirmed. Its trials have no students, which a confirmation does not need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake, "metrics_of", with_entropy(fake.metrics_of))
        run_sweep(tmp_path, *WORDS)
    folder = SweepFolder(tmp_path / "runs" / "fake")
    store = prepare(read_candidates(folder).cohort, tmp_path / "cache")
    folder.add_to_plan({"store": store.fingerprint})  # fake sweeps prepare nothing


def with_entropy(metrics_of: Any) -> Any:
    """Adds the entropy of a teacher's predictions to metrics, as a real training does."""

    def metrics(config: TrialConfig, epoch: int) -> dict[str, float]:
        content: dict[str, float] = metrics_of(config, epoch)
        return content | {f"teacher/{name}/entropy": ENTROPY for name in config.teachers}

    return metrics


@contextmanager
def fake_trainings() -> Iterator[None]:
    """Lets the sweeps of a confirmation play their trials without Ray, and leave an untrained student of each."""

    def run_trials(search: Search, planned: Any, functions: Any, folder: SweepFolder, *rest: Any) -> None:
        search.max_running, search._wait = 1, True
        fake.play_all(search)
        for record in records_of(load_studies(folder.journal), 0):
            config = TrialConfig.model_validate_json(record.config)
            with torch.random.fork_rng():
                torch.manual_seed(int(config.fingerprint()[:8], 16))
                write_student(folder.checkpoints_of(record.number) / "attempt-1", config, 32, TASKS)

    def finish(search: Search, planned: Any, options: Any, spool: Spool, *rest: Any) -> int:
        spool.append(SweepClosed("KILLED" if search.remaining_trials else "FINISHED"))
        return 0

    def run(space: Any, planned: Any, options: Any, console: Any) -> int:
        return driver.run_sweep(space, planned, options, console, replace(FAKE, prepare=prepare))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sweep.reports.results.write_report", lambda *args: None)
        patch.setattr("sweep.verdict.training.sweeps.run_sweep", run)
        patch.setattr(driver, "run_trials", run_trials)
        patch.setattr(driver, "finish", finish)
        patch.setattr(Tracker, "start", lambda self: None)
        patch.setattr(Tracker, "close", lambda self, seconds: 0)
        patch.setattr(fake, "metrics_of", with_entropy(fake.metrics_of))
        yield


def confirmed(tmp_path: Path, *words: str, sweep: str = "fake") -> str:
    """Runs `sweep.confirm`, and returns what it prints."""
    console = Console(file=io.StringIO(), width=500, markup=False, emoji=False, highlight=False)
    places = (f"storage={tmp_path / 'runs'}", f"cache={tmp_path / 'cache'}")
    with fake_trainings(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(confirm, "plain_console", lambda **options: console)
        patch.setattr(confirm, "exit_process", lambda status: None)
        confirm.main([sweep, "finalists=2", *places, *words])
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text
