"""The files of a sweep's best trials, from its folder to their runs in MLflow."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient
from PIL import Image

from mmpkd.cohort.prepare import prepare
from mmpkd.config import CohortConfig, TrialConfig
from sweep.front_files import spool_files
from sweep.storage.events import Spool, SweepBegan, SweepSummarized, TrialFilesWritten, TrialStarted
from sweep.storage.layout import SweepFolder
from tests.sweep.picked_sweep import write_student
from tests.sweep.swept import events
from tests.sweep.tracking.test_mlflow import drain, runs


def test_students_and_overlays_reach_the_runs_once(tmp_path: Path, cache: Path) -> None:
    cohort = CohortConfig(reader="synthetic", image_size=8, params={"side": 32, "train": 12, "val": 9, "test": 3})
    store = prepare(cohort, cache)
    folder = SweepFolder(tmp_path / "runs" / "best")
    folder.path.mkdir(parents=True)
    spool = Spool(folder)
    spool.append(SweepBegan(id="x"))
    for number in range(3):
        spool.append(TrialStarted(number=number, arm="none", params={}, tags={}))
    write_student(folder.checkpoints_of(0) / "attempt-2", TrialConfig(cohort=cohort))
    (folder.checkpoints_of(1) / "attempt-1").mkdir(parents=True)  # its student is gone
    damaged = folder.checkpoints_of(2) / "attempt-1"
    write_student(damaged, TrialConfig(cohort=cohort))
    (damaged / "student.safetensors").write_bytes(b"no student")

    (problem,) = spool_files(spool, [0, 1, 2], store.path, 0)
    assert problem.startswith("MLflow gets neither student nor overlays of trial 2: ")
    paths = ["checkpoints/0/attempt-2/student.safetensors", "checkpoints/0/attempt-2/overlays.png"]
    assert [(event.number, event.paths) for event in events(folder.path, TrialFilesWritten)] == [(0, paths)]
    assert Image.open(folder.path / paths[1]).size == (8 * 160, 2 * 160)
    spool_files(spool, [0], store.path, 0)
    assert len(events(folder.path, TrialFilesWritten)) == 1, "an earlier driver has recorded them"
    spool.append(SweepSummarized(3, "", {}, {"0": {"front": "yes"}}))
    spool_files(spool, [0], store.path, 0)
    assert len(events(folder.path, TrialFilesWritten)) == 1, "it is still on the front"

    moved = (tmp_path / "runs").rename(tmp_path / "elsewhere")
    spool = Spool(SweepFolder(moved / "best"))
    address = f"sqlite:///{moved / 'mlflow.db'}"
    assert drain(address, "best", spool).left == 0  # type: ignore[attr-defined]
    run = runs(address, "best")[0].info.run_id

    def artifacts() -> list[str]:
        return [file.path for file in MlflowClient(address).list_artifacts(run)]

    assert artifacts() == ["overlays.png", "student.safetensors"]
    spool.append(SweepSummarized(3, "", {}, {"1": {"front": "yes"}}))  # another trial pushed it off the front
    assert drain(address, "best", spool).left == 0 and artifacts() == []  # type: ignore[attr-defined]
    spool.append(SweepSummarized(3, "", {}, {"0": {"front": "yes"}}))  # an estimate has changed
    spool_files(spool, [0], store.path, 0)
    assert drain(address, "best", spool).left == 0  # type: ignore[attr-defined]
    assert artifacts() == ["overlays.png", "student.safetensors"]
