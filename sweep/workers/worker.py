"""Runs trainings in a Ray worker process: one training after another, each one epoch at a time.

`mmpkd.train.train` is a loop with a callback, but Ray Tune asks for one epoch per call. The loop therefore runs in its
own thread, which waits inside the callback until Tune asks for the next epoch. If a trial is stopped, the callback
raises an exception that ends the thread, and the process serves the next trial.
"""

from __future__ import annotations

import gc
import math
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from ray import tune

from mmpkd.config import TrialConfig
from mmpkd.machine.errors import error_chain, machine_fault
from mmpkd.types import DivergedError, EpochReport, UserError
from sweep.storage.failures import GoalError, cause_of, message_of
from sweep.storage.layout import SweepFolder
from sweep.types import Job
from sweep.workers.disks import WorkerDisks
from sweep.workers.nodes import enter_reserved_device


def run_training(
    job: Job,
    folder: Path,
    resume: Path | None,
    report: Callable[[EpochReport], None],
) -> None:
    """Trains a trial on its prepared cohort; see `mmpkd.train.train`. All scores are computed where the trial may end,
    at its rungs and after its last epoch; the other epochs have the goals alone.

    Args:
        folder: folder for the checkpoints of this attempt.
    """
    from mmpkd.cohort.store import Store
    from mmpkd.train import train  # imports torch and timm, which only a training needs

    if not gc.get_freeze_count():
        gc.freeze()  # without this, each collection between trials takes 0.3 s to visit the objects of the libraries
    config, store = TrialConfig.model_validate_json(job["trial"]), Store.open(Path(job["store"]))
    cache, goals, rungs = Path(job["cache"]), job["goals"], job["rungs"]
    train(config, cache, folder, resume, report, store, goals=goals, complete=rungs)


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
    """

    run: Callable[[Job, Path, Path | None, Callable[[EpochReport], None]], None] = run_training
    checkpoint_owner: Callable[[TrialConfig, Path], str] = checkpoint_owner
    read_history: Callable[[Path, str], list[EpochReport]] = read_history


TRAINING = TrainingFunctions()


class TrialWorker(tune.Trainable):
    """Ray Tune Trainable that runs one trial after another until Ray ends its process."""

    def setup(self, config: dict[str, Any], functions: TrainingFunctions = TRAINING, gpus: float | None = None) -> None:
        """Prepares the worker. `gpus` is the share of a GPU that it has reserved; None leaves the process as it is."""
        if gpus is not None:
            enter_reserved_device(gpus)
        self._functions = functions
        self._disks = WorkerDisks()
        self._training: TrainingThread | None = None
        self._notes: list[str] = []  # lines for the user, sent with the next result

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end_training()
        return True  # after False, Ray Tune (2.60) fails the new trial and tells no searcher, so it is lost

    def cleanup(self) -> None:
        self._end_training()

    def step(self) -> dict[str, Any]:
        """Trains the next epoch and returns its report. The first step of a resumed trial returns all reports in its
        checkpoint.

        A user's mistake, or a lack of memory, ends the trial but keeps the process. A disk that is full or away ends
        only this attempt: the driver hands the trial out again. Any other error may have damaged the process (CUDA).
        Such an error is raised, so that Ray starts a new process; its traceback is in
        the trial's error file. A failure without an error file means that the process itself died.
        """
        number, folder = self.config["number"], SweepFolder(Path(self.config["folder"]))
        try:
            if self._training is None:
                self._disks.wait(folder.path)
            reports = self._next_reports()
        except Exception as error:
            places = (folder.path, Path(self.config["cache"]))
            cause, message = cause_of(error, places), message_of(error, places)
            with suppress(OSError):  # the error file may be unwritable, because the disk itself may be the problem
                path = folder.error(number)
                path.parent.mkdir(exist_ok=True)
                path.write_text(f"{cause}: {message}\n\n{traceback.format_exc()}")
            if cause == "error" and not isinstance(error, UserError):
                raise
            if cause == "storage":
                self._disks.note_failure()
            self._end_training()  # it may save its last epoch, which must come before the driver deletes checkpoints
            return {"done": True, "error": message, "cause": cause, "reports": [], "notes": self._take_notes()}
        self._disks.note_report()
        last = reports[-1]
        done = last.epoch >= self._epochs
        goals = {goal: last.metrics[goal] for goal in self.config["goals"]}
        plain = [{**asdict(report), "checkpoint": None} for report in reports]
        return {"epoch": last.epoch, "done": done, "reports": plain, "notes": self._take_notes(), **goals}

    def _take_notes(self) -> list[str]:
        notes, self._notes = self._notes, []
        return notes

    def _next_reports(self) -> Sequence[EpochReport]:
        reports: Sequence[EpochReport] = () if self._training else self._begin_training()
        assert self._training is not None
        if not reports:
            reports = [self._training.advance()]
        _check_goals(reports[-1], self.config["goals"])
        if reports[-1].epoch >= self._epochs:
            self._training.finish()
        return reports

    def _begin_training(self) -> Sequence[EpochReport]:
        """Begins an attempt at the trial in a new folder, and returns the reports in the checkpoint from which it
        resumes.
        """
        job, folder = cast(Job, self.config), SweepFolder(Path(self.config["folder"]))
        config = TrialConfig.model_validate_json(job["trial"])
        self._epochs = config.epochs
        resume, reports = self._find_checkpoint(folder.saved_checkpoints(job["number"]), config)
        attempt = folder.claim_attempt(job["number"])
        self._training = TrainingThread(lambda report: self._functions.run(job, attempt, resume, report))
        return reports

    def _find_checkpoint(
        self, checkpoints: Sequence[Path], config: TrialConfig
    ) -> tuple[Path | None, list[EpochReport]]:
        """Returns the checkpoint of exactly this training with the most epochs, and the reports in it. Returns None and
        an empty list if there is no such checkpoint.

        Damaged checkpoints and checkpoints of another training are skipped, with a note for the user.
        """
        best: tuple[Path | None, list[EpochReport]] = (None, [])
        owner = self._functions.checkpoint_owner(config, Path(self.config["store"])) if checkpoints else ""
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

    def _end_training(self) -> None:
        if self._training is not None:
            self._training.stop()
            self._training = None
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()


class TrainingThread:
    """A training in a thread that advances one epoch at a time.

    Args:
        run: function that trains. Its argument is a callback, which it must call with the report of every epoch.
    """

    def __init__(self, run: Callable[[Callable[[EpochReport], None]], None]):
        self._run = run
        self._results: queue.SimpleQueue[EpochReport | BaseException | None] = queue.SimpleQueue()
        self._go = threading.Semaphore(0)
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="training", daemon=True)

    def advance(self) -> EpochReport:
        """Trains one epoch and returns its report.

        Raises:
            RuntimeError: the training ended although another epoch was expected.
            Exception: the training itself raised this exception, which is passed on.
        """
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        result = self._results.get()
        if isinstance(result, BaseException):
            raise result
        if result is None:
            raise RuntimeError("training ended before its last epoch")
        return result

    def finish(self) -> None:
        """Lets a training that has reported its last epoch run to its end, and waits for the end. If an earlier attempt
        has reported it, this one may still have to export the student.
        """
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        result = self._results.get()
        self._thread.join()
        if isinstance(result, BaseException):
            raise result

    def stop(self) -> None:
        """Ends a training that waits between two epochs, by an exception in its thread. Does nothing if the training
        has ended.
        """
        if self._thread.ident is not None:
            self._stopped = True
            self._go.release()
            self._thread.join()

    def _work(self) -> None:
        try:
            self._run(self._report)
            self._results.put(None)
        except _Stopped:
            pass
        except BaseException as error:
            self._results.put(error)

    def _report(self, report: EpochReport) -> None:
        self._results.put(report)
        self._go.acquire()
        if self._stopped:
            raise _Stopped


class _Stopped(BaseException):
    """Raised in the thread of a training to end it. Not a subclass of Exception, so that no handler in the training
    catches it.
    """


def _check_goals(report: EpochReport, goals: Sequence[str]) -> None:
    """Checks that an epoch reports a finite value for every goal.

    Raises:
        GoalError: trainings do not report a goal, or the goal is not defined on these validation patients.
        DivergedError: the value of a goal is not finite.
    """
    for goal in goals:
        value = report.metrics.get(goal)
        if value is None:
            reported = ", ".join(sorted(report.metrics))
            raise GoalError(f"search.maximize: trainings do not report {goal}; they report {reported}")
        if goal == "val/auroc_patient" and report.metrics.get("val/auroc_patient_undefined"):
            mixed = report.metrics["val/auroc_patient_mixed"]
            why = f"{mixed:.0f} patients whose images disagree have no label, and the rest do not hold both classes"
            if math.isnan(value):
                raise GoalError(f"search.maximize: {goal} is not defined on these validation patients: {why}")
        if not math.isfinite(value):
            raise DivergedError(f"goal {goal} is {value} after epoch {report.epoch}")
