"""The worker without Ray: epochs on demand, resumption, separate attempts, errors, and a clean process."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from mmpkd.cohort.prepare import prepare
from mmpkd.config import TrialConfig
from mmpkd.scoring.validation import GOALS as GOALS_OF_EPOCHS
from mmpkd.types import DivergedError, EpochReport
from sweep.space.search_config import SCORES
from sweep.storage.failures import failure_of
from sweep.storage.layout import SweepFolder
from sweep.transfer.attempts import attempts_in
from sweep.types import PlacedJob
from sweep.workers.training_thread import TrainingThread
from sweep.workers.worker import TRAINING, TrainingFunctions, TrialWorker, run_training
from tests.sweep.fake import FAKE_TRAINING

GOALS = ["val/auroc", "val/pointing"]


def job(folder: Path, number: int = 0, epochs: int = 3, decay: float = 0.5, seed: int = 0) -> dict[str, Any]:
    trial = {"cohort": {"reader": "synthetic"}, "epochs": epochs, "optimizer": {"weight_decay": decay}, "seed": seed}
    config = TrialConfig.model_validate(trial).model_dump_json()
    return {
        "number": number,
        "arm": "none",
        "trial": config,
        "goals": GOALS,
        "rungs": [2],
        "folder": str(folder),
        "cache": str(folder / "cache"),
        "store": str(folder / "cache" / "store"),
        "scratch": None,
        "shared": None,
    }


def worker_for(job: dict[str, Any], functions: TrainingFunctions = FAKE_TRAINING) -> TrialWorker:
    worker = TrialWorker.__new__(TrialWorker)  # Tune's own constructor wants a running Ray
    worker.config = job
    worker.setup(job, functions)
    return worker


def epochs_of(result: dict[str, Any]) -> list[int]:
    return [report["epoch"] for report in result["reports"]]


def training_threads() -> int:
    return sum(thread.name == "training" for thread in threading.enumerate())


def test_a_worker_trains_on_the_prepared_store_and_never_reads_raw_data(
    tmp_path: Path, cache: Path, tiny_trial: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = prepare(tiny_trial.cohort, cache)

    def scan(*args: Any) -> None:
        raise AssertionError("the raw data were read")

    monkeypatch.setattr("mmpkd.train.prepare", scan)
    reports: list[EpochReport] = []
    config = tiny_trial.model_copy(update={"epochs": 1, "teachers": {}, "objectives": {}})
    trial = {"trial": config.model_dump_json(), "cache": str(cache), "store": str(store.path)}
    run_training(cast(PlacedJob, job(tmp_path) | trial), tmp_path, None, reports.append)
    assert [report.epoch for report in reports] == [1]


def test_a_worker_enters_the_device_that_it_has_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr("sweep.workers.worker.enter_reserved_device", shares.append)
    worker_for(job(tmp_path)).setup({}, FAKE_TRAINING, gpus=0.25)
    assert shares == [0.25]


def test_a_rung_and_the_last_epoch_are_on_disk_before_they_are_reported(
    tmp_path: Path, cache: Path, tiny_trial: TrialConfig
) -> None:
    store = prepare(tiny_trial.cohort, cache)
    config = tiny_trial.model_copy(update={"epochs": 4, "teachers": {}, "objectives": {}})
    trial = {"trial": config.model_dump_json(), "cache": str(cache), "store": str(store.path), "rungs": [2]}
    saved: list[int] = []

    def look(report: EpochReport) -> None:
        last = tmp_path / "last.pt"
        saved.append(len(TRAINING.read_history(last, "")) if last.exists() else 0)

    run_training(cast(PlacedJob, job(tmp_path) | trial), tmp_path, None, look)
    assert saved == [0, 2, 2, 4]


def test_every_score_that_a_sweep_can_maximise_is_computed_after_every_epoch() -> None:
    of_questions = {
        "val/answer",
        "val/recall50",
    }  # each epoch of a student that answers has them, see test_vlm_training
    assert set(SCORES) == {*GOALS_OF_EPOCHS, *of_questions}


def test_a_step_is_an_epoch_and_the_last_step_is_done(tmp_path: Path) -> None:
    worker = worker_for(job(tmp_path))
    results = [worker.step() for _ in range(3)]
    assert [result["epoch"] for result in results] == [1, 2, 3]
    assert [result["done"] for result in results] == [False, False, True]
    assert [epochs_of(result) for result in results] == [[1], [2], [3]]
    assert set(GOALS) <= set(results[0])
    assert training_threads() == 0, "the thread ends after the last epoch"


def test_no_epoch_is_trained_before_its_step(tmp_path: Path) -> None:
    worker = worker_for(job(tmp_path))
    worker.step()
    assert (tmp_path / "trained.txt").read_text() == "0 attempt-1 1\n"
    worker.cleanup()
    assert (tmp_path / "trained.txt").read_text() == "0 attempt-1 1\n"


def test_a_stopped_trial_leaves_no_thread_and_the_next_starts_clean(tmp_path: Path) -> None:
    worker = worker_for(job(tmp_path, number=0))
    worker.step()
    assert training_threads() == 1
    worker.config = job(tmp_path, number=1)
    assert worker.reset_config(worker.config)
    assert training_threads() == 0
    assert worker.step()["epoch"] == 1
    worker.cleanup()


def test_a_resumed_trial_first_returns_the_reports_of_its_checkpoint(tmp_path: Path) -> None:
    first = worker_for(job(tmp_path))
    first.step()
    first.step()
    first.cleanup()  # the driver died before it received the second epoch
    second = worker_for(job(tmp_path))
    assert epochs_of(second.step()) == [1, 2]
    assert epochs_of(second.step()) == [3]
    assert (tmp_path / "trained.txt").read_text().splitlines() == ["0 attempt-1 1", "0 attempt-1 2", "0 attempt-2 3"]


def test_a_trial_that_had_finished_is_reported_and_not_trained_again(tmp_path: Path) -> None:
    first = worker_for(job(tmp_path))
    for _ in range(3):
        first.step()
    again = worker_for(job(tmp_path)).step()
    assert epochs_of(again) == [1, 2, 3]
    assert again["done"]
    assert len((tmp_path / "trained.txt").read_text().splitlines()) == 3


def test_a_trial_that_was_killed_before_its_export_runs_to_its_end(tmp_path: Path) -> None:
    """The last epoch is on disk before the student is exported."""
    exported: list[str] = []

    def run(*arguments: Any) -> None:
        FAKE_TRAINING.run(*arguments)
        exported.append(arguments[1].name)

    functions = replace(FAKE_TRAINING, run=run)
    first = worker_for(job(tmp_path), functions)
    first.step()
    first.step()
    assert first._training is not None and first._training.advance().epoch == 3  # and here its process is killed
    assert exported == []
    assert worker_for(job(tmp_path), functions).step()["done"] and exported == ["attempt-2"]
    first.cleanup()


def test_an_attempt_writes_only_its_own_folder(tmp_path: Path) -> None:
    orphan = worker_for(job(tmp_path))
    orphan.step()
    successor = worker_for(job(tmp_path))
    successor.step()
    before = (tmp_path / "checkpoints/0/attempt-2/last.pt").read_bytes() if successor.step() else b""
    orphan.step()  # the orphan goes on after its driver has died
    orphan.step()
    assert (tmp_path / "checkpoints/0/attempt-2/last.pt").read_bytes() == before
    assert [path.name for path in attempts_in(SweepFolder(tmp_path).checkpoints_of(0))] == ["attempt-1", "attempt-2"]
    orphan.cleanup()
    successor.cleanup()


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    first = worker_for(job(tmp_path))
    first.step()
    first.cleanup()
    torn = SweepFolder(tmp_path).checkpoints_of(0) / "attempt-2"
    torn.mkdir()
    (torn / "last.pt").write_text("[[1, 1")
    third = worker_for(job(tmp_path))
    assert epochs_of(third.step()) == [1]
    assert [path.name for path in attempts_in(SweepFolder(tmp_path).checkpoints_of(0))][-1] == "attempt-3"
    third.cleanup()


@pytest.mark.parametrize("longer", ["attempt-1", "attempt-2"])
def test_the_checkpoint_that_has_come_furthest_counts(tmp_path: Path, longer: str) -> None:
    """An orphaned worker may have trained more epochs than its successor, which was killed at once."""
    for name in ("attempt-1", "attempt-2"):
        epochs = range(1, 3 if name == longer else 2)
        (SweepFolder(tmp_path).checkpoints_of(0) / name).mkdir(parents=True)
        content = [[epoch, epoch, 0.5, {}, dict.fromkeys(GOALS, 0.5)] for epoch in epochs]
        own = [TrialConfig.model_validate_json(job(tmp_path)["trial"]).fingerprint(), content]
        (SweepFolder(tmp_path).checkpoints_of(0) / name / "last.pt").write_text(json.dumps(own))
    worker = worker_for(job(tmp_path))
    assert epochs_of(worker.step()) == [1, 2] and epochs_of(worker.step()) == [3]
    worker.cleanup()


def test_a_checkpoint_of_an_earlier_stage_counts_though_it_reports_nothing(tmp_path: Path) -> None:
    earlier = SweepFolder(tmp_path).checkpoints_of(0) / "attempt-1"
    earlier.mkdir(parents=True)
    owner = FAKE_TRAINING.checkpoint_owner(TrialConfig.model_validate_json(job(tmp_path)["trial"]), tmp_path)
    (earlier / "last.pt").write_text(json.dumps([owner, []]))
    resumed: list[Path | None] = []

    def run(*arguments: Any) -> None:
        resumed.append(arguments[2])
        FAKE_TRAINING.run(*arguments)

    worker = worker_for(job(tmp_path), replace(FAKE_TRAINING, run=run))
    assert epochs_of(worker.step()) == [1] and resumed == [earlier / "last.pt"]
    worker.cleanup()


def test_a_users_mistake_ends_the_trial_and_keeps_the_process(tmp_path: Path) -> None:
    worker = worker_for(job(tmp_path, number=4, decay=0.01))
    worker.step()
    result = worker.step()
    assert (result["done"], result["error"], result["cause"]) == (True, "term task is nan at step 7", "diverged")
    error_text = SweepFolder(tmp_path).error(4).read_text()
    assert error_text.startswith("diverged: term task is nan at step 7\n\nTraceback")
    assert failure_of(SweepFolder(tmp_path), 4, result) == ("diverged", "term task is nan at step 7")
    assert worker.reset_config(job(tmp_path, number=5))


def test_a_bug_is_raised_and_leaves_its_traceback(tmp_path: Path) -> None:
    worker = worker_for(job(tmp_path, decay=0.07))
    worker.step()
    with pytest.raises(ValueError, match="a bug"):
        worker.step()
    assert failure_of(SweepFolder(tmp_path), 0, {}) == ("error", "ValueError: a bug")
    assert failure_of(SweepFolder(tmp_path), 1, {}) == ("", ""), "without an error file the process died"


@pytest.mark.parametrize(
    ("error", "cause", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory", "CUDA out of memory"),
        (MemoryError("Unable to allocate 2 GiB"), "memory", "Unable to allocate"),
        (
            OSError(errno.ENOSPC, "No space left", "/runs/last.pt"),
            "storage",
            "/runs/last.pt: cannot be read or written",
        ),
        (OSError(errno.ENOSPC, "No space left"), "storage", "check the disks of"),
    ],
)
def test_a_lack_of_memory_or_disk_is_the_cause(tmp_path: Path, error: Exception, cause: str, message: str) -> None:
    def run(*arguments: Any) -> None:
        raise error

    worker = worker_for(job(tmp_path), replace(FAKE_TRAINING, run=run))
    result = worker.step()
    assert result["cause"] == cause and message in result["error"] and result["done"]
    worker.cleanup()


@pytest.mark.parametrize(
    ("metrics", "cause", "message"),
    [
        ({"val/auroc": float("nan"), "val/pointing": 0.5}, "diverged", "goal val/auroc is nan after epoch 1"),
        ({"val/auroc": 0.5}, "goal", "trainings do not report val/pointing; they report val/auroc"),
    ],
)
def test_a_goal_that_is_not_finite_ends_the_trial(
    tmp_path: Path, metrics: dict[str, float], cause: str, message: str
) -> None:
    saved: list[int] = []

    def run(*arguments: Any) -> None:
        try:
            arguments[-1](EpochReport(1, 1, 0.1, {}, metrics))
        finally:
            saved.append(1)  # a training that is stopped saves its last epoch

    worker = worker_for(job(tmp_path), replace(FAKE_TRAINING, run=run))
    result = worker.step()
    assert result["cause"] == cause and message in result["error"]
    assert saved == [1], "before the driver hears of the end and deletes the checkpoints"
    worker.cleanup()


def test_patients_without_an_agreed_label_are_no_divergence(tmp_path: Path) -> None:
    def run(*arguments: Any) -> None:
        counts = {"val/auroc_patient_undefined": 1.0, "val/auroc_patient_mixed": 7.0}
        arguments[-1](EpochReport(1, 1, 0.1, {}, {"val/auroc_patient": float("nan"), **counts}))

    worker = worker_for({**job(tmp_path), "goals": ["val/auroc_patient"]}, replace(FAKE_TRAINING, run=run))
    result = worker.step()
    assert result["cause"] == "goal" and "7 patients whose images disagree have no label" in result["error"]
    worker.cleanup()


def test_a_training_passes_on_its_exception() -> None:
    def diverges(report: Callable[[EpochReport], None]) -> None:
        raise DivergedError("term task is nan")

    with pytest.raises(DivergedError, match="nan"):
        TrainingThread(diverges).advance()


def test_a_training_that_ends_early_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="before its last epoch"):
        TrainingThread(lambda report: None).advance()
