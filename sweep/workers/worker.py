"""What a Ray worker does: one training after another, an epoch at a time, leaving nothing behind.

`mmpkd.train.train` is a loop with a callback, and Ray Tune asks for one epoch per call. So the
loop runs in a thread of its own that waits inside the callback until the next epoch is asked for:
a trial that is stopped unwinds there, and the process serves the next one.
"""

from __future__ import annotations

import gc
import itertools
import math
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from mmpkd.config import CohortConfig, TrialConfig
from mmpkd.machine.errors import behind, machine_fault
from mmpkd.types import DivergedError, EpochReport, UserError
from sweep.storage.failures import GoalError, cause_of, error_file, message_of

if TYPE_CHECKING:
    from mmpkd.cohort.store import Store
    from sweep.plan.plan import Plan
    from sweep.plan.price import Price
    from sweep.space.space import Space


class TrialWorker(tune.Trainable):
    """Serves trials until Ray takes the process down. Tests replace the static methods."""

    @staticmethod
    def prepare(config: CohortConfig, cache: Path) -> Store:
        """What the driver does once, before the first trial."""
        from mmpkd.cohort.prepare import prepare

        return prepare(config, cache)

    @staticmethod
    def cautions(planned: Plan, store: Store) -> list[str]:
        """What in a prepared cohort gives its labels away to the teachers of a plan, as warnings."""
        from mmpkd.cohort.suspects import suspects_of
        from mmpkd.teachers.input_leakage import leakage_warnings

        assert planned.example is not None
        return leakage_warnings(suspects_of(store), planned.teachers(), store, planned.example.cohort.fold)

    @staticmethod
    def price(space: Space, planned: Plan, seconds: float, say: Callable[[str], None]) -> Price | None:
        """What the sweep will cost, timed on the cluster that runs; see `timing.priced`."""
        from sweep.plan.timing import priced

        return priced(space, planned, seconds, say)

    @staticmethod
    def run_training(
        config: TrialConfig,
        cache: Path,
        store: Path,
        folder: Path,
        resume: Path | None,
        report: Callable[[EpochReport], None],
    ) -> None:
        from mmpkd.cohort.store import Store
        from mmpkd.train import train  # torch and timm: only where training happens

        train(config, cache, folder=folder, resume=resume, report=report, store=Store.open(store))

    @staticmethod
    def owner(config: TrialConfig, store: Path) -> str:
        """Of the checkpoints of this training on this prepared cohort."""
        from mmpkd.checkpoint import owner
        from mmpkd.cohort.store import Store

        return owner(config, Store.open(store).fingerprint)

    @staticmethod
    def read_history(checkpoint: Path, owner: str = "") -> list[EpochReport]:
        """The reports in a checkpoint; of this owner, if one is given.

        Raises:
            ConfigError: it is damaged, or another's.
        """
        from mmpkd.checkpoint import history

        return history(checkpoint, owner)

    def setup(self, config: dict[str, Any]) -> None:
        self._training: Training | None = None
        self._notes: list[str] = []  # what the user should know, for the next result

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._leave()
        return True  # False would lose the new trial: Tune marks it failed and tells no searcher (2.60)

    def cleanup(self) -> None:
        self._leave()

    def step(self) -> dict[str, Any]:
        """The next epoch; of a resumed trial first everything its checkpoint already says.

        A mistake of the user's, or want of memory or disk, ends the trial and keeps the process.
        Anything else may have spoilt the process (CUDA), so it is raised and Ray starts a new one; its
        story is in `errors/<number>.txt`. An error without a story: the process itself died.
        """
        number, folder = self.config["number"], Path(self.config["folder"])
        try:
            reports = self._next_reports()
        except Exception as error:
            places = (folder, Path(self.config["cache"]))
            cause, message = cause_of(error, places), message_of(error, places)
            with suppress(OSError):  # the disk may be the trouble
                path = error_file(folder, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{cause}: {message}\n\n{traceback.format_exc()}")
            if cause == "error" and not isinstance(error, UserError):
                raise
            return {"done": True, "error": message, "cause": cause, "reports": [], "notes": self._taken_notes()}
        last = reports[-1]
        final = last.epoch >= self._epochs
        goals = {goal: last.metrics[goal] for goal in self.config["goals"]}
        plain = [_plain(report) for report in reports]
        return {"epoch": last.epoch, "done": final, "reports": plain, "notes": self._taken_notes(), **goals}

    def _taken_notes(self) -> list[str]:
        taken, self._notes = self._notes, []
        return taken

    def _next_reports(self) -> Sequence[EpochReport]:
        reports: Sequence[EpochReport] = () if self._training else self._start()
        assert self._training is not None
        if not reports:
            reports = [self._training.advance()]
        _check_goals(reports[-1], self.config["goals"])
        if reports[-1].epoch >= self._epochs:
            self._training.finish()
        return reports

    def _start(self) -> Sequence[EpochReport]:
        """Begins in a folder of its own, from the newest sound checkpoint of earlier attempts."""
        job = self.config
        config = TrialConfig.model_validate_json(job["trial"])
        self._epochs = config.epochs
        resume, reports = self._newest(attempts_of(Path(job["folder"]), job["number"]), config)
        own = _claim(Path(job["folder"]), job["number"])

        def run(report: Callable[[EpochReport], None]) -> None:
            self.run_training(config, Path(job["cache"]), Path(job["store"]), own, resume, report)

        self._training = Training(run)
        return reports

    def _newest(self, attempts: Sequence[Path], config: TrialConfig) -> tuple[Path | None, list[EpochReport]]:
        """The checkpoint of this very training that is furthest on; what is passed over is noted."""
        best: tuple[Path | None, list[EpochReport]] = (None, [])
        checkpoints = [path for path in (attempt / "last.pt" for attempt in attempts) if path.exists()]
        owner = self.owner(config, Path(self.config["store"])) if checkpoints else ""
        problems = []
        for checkpoint in checkpoints:
            try:
                reports = self.read_history(checkpoint, owner)
            except UserError as error:
                if machine_fault(error) or any(isinstance(one, PermissionError) for one in behind(error)):
                    raise  # it may be whole, and epochs that it holds would be trained again
                problems.append(str(error))  # torn by a full disk or a dying node, or put there: an older one will do
                continue
            if len(reports) >= len(best[1]):  # none, in the stages before the last
                best = (checkpoint, reports)
        begins = f"is trained from epoch {len(best[1]) + 1} on" if len(best[1]) < config.epochs else "is complete"
        self._notes += [f"{problem}; without it trial {self.config['number']} {begins}" for problem in problems]
        return best

    def _leave(self) -> None:
        if self._training is not None:
            self._training.stop()
            self._training = None
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()


class Training:
    """A training in a thread, advanced an epoch at a time.

    Args:
        run: is given the callback that it must call after every epoch.
    """

    def __init__(self, run: Callable[[Callable[[EpochReport], None]], None]):
        self._run = run
        self._said: queue.SimpleQueue[EpochReport | BaseException | None] = queue.SimpleQueue()
        self._go = threading.Semaphore(0)
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="training", daemon=True)

    def advance(self) -> EpochReport:
        """The next epoch's report.

        Raises:
            Exception: whatever the training raised.
            RuntimeError: it ended without a further epoch.
        """
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        said = self._said.get()
        if isinstance(said, BaseException):
            raise said
        if said is None:
            raise RuntimeError("training ended before its last epoch")
        return said

    def finish(self) -> None:
        """Lets a training that has reported its last epoch come to its end."""
        if self._thread.ident is None:
            return
        self._go.release()
        said = self._said.get()
        self._thread.join()
        if isinstance(said, BaseException):
            raise said

    def stop(self) -> None:
        """Unwinds a training that waits between two epochs; nothing to do when it has ended."""
        if self._thread.ident is not None:
            self._stopped = True
            self._go.release()
            self._thread.join()

    def _work(self) -> None:
        try:
            self._run(self._report)
            self._said.put(None)
        except _Stopped:
            pass
        except BaseException as error:
            self._said.put(error)

    def _report(self, report: EpochReport) -> None:
        self._said.put(report)
        self._go.acquire()
        if self._stopped:
            raise _Stopped


class _Stopped(BaseException):
    """Not an Exception, so that no handler in a training swallows it."""


def checkpoints_of(folder: Path, number: int) -> Path:
    return folder / "checkpoints" / str(number)


def attempts_of(folder: Path, number: int) -> list[Path]:
    """The attempts made at a trial, oldest first."""
    found = [path for path in checkpoints_of(folder, number).glob("attempt-*") if path.name[8:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[8:]))


def _claim(folder: Path, number: int) -> Path:
    """A new attempt's folder. Nobody else writes there and earlier ones are only read, so an
    orphaned worker of a dead driver cannot write over its successor."""
    attempts = attempts_of(folder, number)
    taken = int(attempts[-1].name.partition("-")[2]) if attempts else 0
    for attempt in itertools.count(taken + 1):
        own = checkpoints_of(folder, number) / f"attempt-{attempt}"
        own.parent.mkdir(parents=True, exist_ok=True)
        try:
            own.mkdir()
        except FileExistsError:
            continue
        return own
    raise AssertionError("unreachable")


def _check_goals(report: EpochReport, goals: Sequence[str]) -> None:
    for goal in goals:
        value = report.metrics.get(goal)
        if value is None:
            reported = ", ".join(sorted(report.metrics))
            raise GoalError(f"search.maximize: trainings do not report {goal}; they report {reported}")
        if goal == "val/auroc_patient" and report.metrics.get("val/auroc_patient_undefined"):
            lost = report.metrics["val/auroc_patient_mixed"]
            why = f"{lost:.0f} patients whose images disagree have no label, and the rest do not hold both classes"
            if math.isnan(value):
                raise GoalError(f"search.maximize: {goal} is not defined on these validation patients: {why}")
        if not math.isfinite(value):
            raise DivergedError(f"goal {goal} is {value} after epoch {report.epoch}")


def _plain(report: EpochReport) -> dict[str, Any]:
    return {**asdict(report), "checkpoint": None}
