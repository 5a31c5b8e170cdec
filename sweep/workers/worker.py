"""Runs trainings in a Ray worker process: one training after another, each one epoch at a time."""

from __future__ import annotations

import gc
import math
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from ray import tune

from mmpkd.config import TrialConfig
from mmpkd.machine.errors import error_chain, machine_fault
from mmpkd.machine.loading import loading
from mmpkd.types import DivergedError, EpochReport, UserError
from sweep.storage.failures import GoalError, cause_of, message_of
from sweep.storage.layout import SweepFolder
from sweep.transfer.checkpoints import Attempt
from sweep.types import Job, PlacedJob
from sweep.workers.node_disk import NodeDisk, WorkerDisks
from sweep.workers.nodes import enter_reserved_device
from sweep.workers.training_thread import TrainingThread


def run_training(
    job: PlacedJob,
    folder: Path,
    resume: Path | None,
    report: Callable[[EpochReport], None],
) -> None:
    """Trains a trial on its prepared cohort; see `mmpkd.train.train`. All scores are computed where the trial may end,
    at its rungs and after its last epoch; the other epochs have the goals alone.

    Args:
        folder: folder for the checkpoints of this attempt.
    """
    with loading():
        from mmpkd.cohort.store import Store
        from mmpkd.train import train  # imports torch and timm, which only a training needs

    if not gc.get_freeze_count():
        gc.freeze()  # without this, each collection between trials takes 0.3 s to visit the objects of the libraries
    config, store = TrialConfig.model_validate_json(job["trial"]), Store.open(Path(job["store"]))
    cache, goals, rungs = Path(job["cache"]), job["goals"], job["rungs"]
    train(config, cache, folder, resume, report, store, goals, rungs, job["shared"])


def checkpoint_owner(config: TrialConfig, store: Path) -> str:
    """Returns a text, the "owner", that identifies this training on this prepared cohort. Every checkpoint of the
    training contains this text.
    """
    from mmpkd.checkpoint import owner
    from mmpkd.cohort.store import Store

    return owner(config, Store.open(store).fingerprint)


def read_history(checkpoint: Path, owner: str = "") -> list[EpochReport]:
    """Returns the reports of all epochs in a checkpoint.

    Raises:
        ConfigError: the checkpoint is damaged, or `owner` is given and the checkpoint names a different owner.
    """
    from mmpkd.checkpoint import history

    return history(checkpoint, owner)


@dataclass(frozen=True)
class TrainingFunctions:
    """The functions by which a worker trains and reads checkpoints. Tests and benchmarks pass in functions that train
    nothing.

    Attributes:
        use_teachers: whether trainings use the teachers of the plan, which a cluster then fits before the first trial.
    """

    run: Callable[[PlacedJob, Path, Path | None, Callable[[EpochReport], None]], None] = run_training
    checkpoint_owner: Callable[[TrialConfig, Path], str] = checkpoint_owner
    read_history: Callable[[Path, str], list[EpochReport]] = read_history
    use_teachers: bool = False


TRAINING = TrainingFunctions(use_teachers=True)


class TrialWorker(tune.Trainable):
    """Ray Tune Trainable that runs one trial after another until Ray ends its process."""

    def setup(self, config: dict[str, Any], functions: TrainingFunctions = TRAINING, gpus: float | None = None) -> None:
        """Prepares the worker. `gpus` is the share of a GPU that it has reserved; None leaves the process as it is."""
        if gpus is not None:
            enter_reserved_device(gpus)
        self._functions = functions
        self._disks = WorkerDisks()
        self._leaves = False  # whether this worker takes no trial any more
        self._node_disk: NodeDisk | None = None
        self._attempt: Attempt | None = None
        self._training: TrainingThread | None = None
        self._notes: list[str] = []  # lines for the user, sent with the next result

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end_training(ended=True)
        return True  # after False, Ray Tune (2.60) fails the new trial and tells no searcher, so it is lost

    def cleanup(self) -> None:
        self._end_training()

    def leave(self) -> None:
        """Makes the worker hand its trial back, saved after the current epoch, and take no other."""
        self._leaves = True

    def step(self) -> dict[str, Any]:
        """Trains the next epoch and returns its report. The first step of a resumed trial returns all reports in its
        checkpoint.

        A user's mistake, or a lack of memory, ends the trial but keeps the process. A disk that is full or away ends
        only this attempt: the driver hands the trial out again. Any other error may have damaged the process (CUDA).
        Such an error is raised, so that Ray starts a new process; its traceback is in the trial's error file. A failure
        without an error file means that the process itself died.
        """
        number, folder = self.config["number"], SweepFolder.at(self.config["folder"])
        if self._leaves:
            message = "" if self._disks.has_failed else f"{socket.gethostname()} is being drained; its trials move"
            self._disks.pause()  # holds its place, because Ray Tune (2.60) would give it the next trial at once
            self._disks.note_failure()
            self._end_training()
            return {"done": True, "error": message, "cause": "leaving", "reports": [], "notes": self._take_notes()}
        try:
            if self._training is None:
                self._disks.wait(folder.shared)
            reports = self._next_reports()
        except Exception as error:
            places = (folder.path, *(self._node_disk.places if self._node_disk else [Path(self.config["cache"])]))
            cause, message = cause_of(error, places), message_of(error, places)
            if cause == "storage":
                self._disks.note_failure()
            else:
                with suppress(OSError):  # the disk may be away by now
                    content = f"{cause}: {message}\n\n{traceback.format_exc()}"
                    folder.shared_error(number).write_bytes(content.encode())
            if cause == "error" and not isinstance(error, UserError):
                raise
            # The training may save its last epoch, which must come before the driver deletes checkpoints.
            self._end_training(ended=cause not in ("storage", "memory"))
            return {"done": True, "error": message, "cause": cause, "reports": [], "notes": self._take_notes()}
        self._disks.note_report()
        last = reports[-1]
        goals = {goal: last.metrics[goal] for goal in self.config["goals"]}
        plain = [{**asdict(report), "checkpoint": None} for report in reports]
        facts = {"done": last.epoch >= self._epochs, "has_trained": self._training and self._training.has_begun}
        return {"epoch": last.epoch, "reports": plain, "notes": self._take_notes(), **facts, **goals}

    def _take_notes(self) -> list[str]:
        notes, self._notes = self._notes + (self._node_disk.take_notes() if self._node_disk else []), []
        return notes

    def _next_reports(self) -> Sequence[EpochReport]:
        reports: Sequence[EpochReport] = () if self._training else self._begin_training()
        assert self._training is not None
        if not reports:
            reports = [self._training.advance()]
        _check_goals(reports[-1], self.config["goals"])
        if reports[-1].epoch >= self._epochs:
            assert self._attempt is not None
            self._training.finish()
            self._attempt.finish()
            self._attempt.close(ended=True)
        return reports

    def _begin_training(self) -> Sequence[EpochReport]:
        """Begins an attempt at the trial in a new folder, and returns the reports in the checkpoint from which it
        resumes.
        """
        self._node_disk = self._node_disk or NodeDisk(cast(Job, self.config))
        job = self._node_disk.placed(cast(Job, self.config))
        config, checkpoints = TrialConfig.model_validate_json(job["trial"]), self._node_disk.checkpoints
        self._epochs = config.epochs
        resume, reports = self._find_checkpoint(checkpoints.saved(job["number"]), config, Path(job["store"]))
        attempt = self._attempt = checkpoints.begin(job["number"])

        def run(report: Callable[[EpochReport], None]) -> None:
            def report_and_send(epoch: EpochReport) -> None:
                report(epoch)  # returns when the trial goes on
                if epoch.epoch in job["rungs"]:
                    attempt.send()

            self._functions.run(job, attempt.folder, resume, report_and_send)

        self._training = TrainingThread(run)
        return reports

    def _find_checkpoint(
        self, checkpoints: Sequence[Path], config: TrialConfig, store: Path
    ) -> tuple[Path | None, list[EpochReport]]:
        """Returns the checkpoint of exactly this training with the most epochs, and the reports in it. Returns None and
        an empty list if there is no such checkpoint.

        Damaged checkpoints and checkpoints of another training are skipped, with a note for the user.
        """
        best: tuple[Path | None, list[EpochReport]] = (None, [])
        owner = self._functions.checkpoint_owner(config, store) if checkpoints else ""
        problems = []
        for checkpoint in checkpoints:
            try:
                reports = self._functions.read_history(checkpoint, owner)
            except UserError as error:
                if machine_fault(error) or any(isinstance(cause, PermissionError) for cause in error_chain(error)):
                    raise  # the checkpoint may be intact; to skip it would train its epochs again
                problems.append(str(error))  # a full disk or a dying node damaged it, or a user put it there
                continue
            if len(reports) >= len(best[1]):  # a checkpoint from a stage before the last has no reports
                best = (checkpoint, reports)
        begins = f"is trained from epoch {len(best[1]) + 1} on" if len(best[1]) < config.epochs else "is complete"
        self._notes += [f"{problem}; without it trial {self.config['number']} {begins}" for problem in problems]
        return best

    def _end_training(self, ended: bool = False) -> None:
        """Ends the training, if there is one.

        Args:
            ended: whether the trial has ended. Otherwise another worker may continue it.
        """
        if self._training is not None:
            self._training.stop()
            self._training = None
        if self._attempt is not None:
            self._attempt.close(ended)
            self._attempt = None
        if self._node_disk is not None and self._node_disk.cache is not None:
            self._node_disk.cache.release()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _check_goals(report: EpochReport, goals: Sequence[str]) -> None:
    """Checks that an epoch reports a finite value for every goal.

    Raises:
        GoalError: trainings do not report a goal, or the goal is not defined on these validation patients.
        DivergedError: the value of a goal is not finite.
    """
    for goal in goals:
        value = report.metrics.get(goal)
        if value is None:
            reported = ", ".join(sorted(name for name in report.metrics if name.count("/") == 1))  # not of single tasks
            raise GoalError(f"search.maximize: trainings do not report {goal}; they report {reported}")
        if goal == "val/auroc_patient" and report.metrics.get("val/auroc_patient_undefined"):
            mixed = report.metrics["val/auroc_patient_mixed"]
            why = f"{mixed:.0f} patients whose images disagree have no label, and the rest do not hold both classes"
            if math.isnan(value):
                raise GoalError(f"search.maximize: {goal} is not defined on these validation patients: {why}")
        if not math.isfinite(value):
            raise DivergedError(f"goal {goal} is {value} after epoch {report.epoch}")
