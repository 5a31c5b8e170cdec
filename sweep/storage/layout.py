"""The folder of a sweep: the place of each file, and how whole files are read and written.

This module is the only one that spells the name of a file in a sweep's folder. Other modules ask a `SweepFolder` for a
file, or ask it to read or write one.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from mmpkd.machine.checksums import DamagedError, sealed, unsealed
from mmpkd.machine.files import write_atomically
from mmpkd.types import UserError

BEST: Final = "best.yaml"


@dataclass(frozen=True)
class SweepFolder:
    """The folder of one sweep."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.path.name

    # --- what makes the sweep go on ---

    @property
    def journal(self) -> Path:
        """Optuna's journal: the truth about the sweep's trials."""
        return self.path / "journal.log"

    @property
    def journal_lock(self) -> Path:
        """The lock that Optuna puts beside its journal while it writes."""
        return self.path / "journal.log.lock"

    @property
    def plan(self) -> Path:
        """The file of the plan, the sweep's identity, and the number of extensions of its space, as sealed JSON."""
        return self.path / "plan.json"

    @property
    def space(self) -> Path:
        """The search space as resolved."""
        return self.path / "space.yaml"

    @property
    def warm_start(self) -> Path:
        """The results of another sweep with which this one began, as sealed JSON."""
        return self.path / "warm.json"

    @property
    def spool(self) -> Path:
        """Every event of the sweep, one line of sealed JSON each."""
        return self.path / "spool.jsonl"

    @property
    def spool_sent(self) -> Path:
        """How much of the spool the tracking server has received."""
        return self.path / "spool.sent"

    @property
    def driver_lock(self) -> Path:
        """The file that the sweep's driver holds locked as long as it runs."""
        return self.path / "driver.lock"

    @property
    def stop_request(self) -> Path:
        """The file by which sweep.stop asks the driver to end; the driver removes it."""
        return self.path / "stop"

    @property
    def tune_scratch(self) -> Path:
        """The folder in which Ray Tune keeps snapshots while it runs; nothing is restored from it."""
        return self.path / "ray"

    # --- what the sweep leaves for its user ---

    @property
    def best(self) -> Path:
        """The configuration of the best trial."""
        return self.path / BEST

    @property
    def trials(self) -> Path:
        """A table with one row for each finished trial."""
        return self.path / "trials.parquet"

    @property
    def epochs(self) -> Path:
        """A table with one row for each epoch of each trial."""
        return self.path / "epochs.parquet"

    @property
    def report(self) -> Path:
        """The report as a page for a browser."""
        return self.path / "report.html"

    @property
    def errors(self) -> Path:
        """The folder of the failed trials' errors."""
        return self.path / "errors"

    def error(self, number: int) -> Path:
        """Returns the file with the cause, the message and the traceback of a failed trial."""
        return self.errors / f"{number}.txt"

    # --- checkpoints ---

    @property
    def checkpoints(self) -> Path:
        """The folder of all trials' checkpoints."""
        return self.path / "checkpoints"

    def checkpoints_of(self, number: int) -> Path:
        """Returns the folder of one trial's checkpoints."""
        return self.checkpoints / str(number)

    def attempts(self, number: int) -> list[Path]:
        """Returns the folders of the attempts made at a trial, oldest first."""
        folders = [path for path in self.checkpoints_of(number).glob("attempt-*") if path.name[8:].isdecimal()]
        return sorted(folders, key=lambda path: int(path.name[8:]))

    def saved_checkpoints(self, number: int) -> list[Path]:
        """Returns the last checkpoint of each attempt at a trial that has one, oldest attempt first."""
        checkpoints = [attempt / "last.pt" for attempt in self.attempts(number)]  # written by mmpkd.checkpoint
        return [path for path in checkpoints if path.exists()]

    def claim_attempt(self, number: int) -> Path:
        """Makes and returns the folder of a new attempt at a trial.

        Only its claimer writes there, and folders of earlier attempts are only read. So the orphaned worker of a dead
        driver cannot overwrite the checkpoints of its successor.
        """
        attempts = self.attempts(number)
        last = int(attempts[-1].name[8:]) if attempts else 0
        for attempt in itertools.count(last + 1):
            folder = self.checkpoints_of(number) / f"attempt-{attempt}"
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
        raise AssertionError("unreachable")

    def delete_checkpoints(self, number: int) -> None:
        """Deletes the checkpoints of a trial, as far as they can be deleted."""
        shutil.rmtree(self.checkpoints_of(number), ignore_errors=True)

    # --- all of them ---

    @property
    def files(self) -> tuple[Path, ...]:
        """The files whose names are fixed, whether they exist or not; without the driver's lock."""
        return (
            *(self.stop_request, self.journal_lock, self.journal, self.spool, self.spool_sent),
            *(self.plan, self.space, self.warm_start, self.best, self.trials, self.epochs, self.report),
        )

    def file(self, name: str) -> Path:
        """Returns the file of this name, which may have been noted with the path of another folder."""
        return self.path / Path(name).name

    def exists(self) -> bool:
        """Whether a sweep was ever begun in this folder; False where the folder may not be read."""
        return os.path.isfile(self.driver_lock) or os.path.isfile(self.spool)

    def set_aside(self, paths: Sequence[Path]) -> Path:
        """Copies files into a new folder beside them, before a repair changes them, and returns that folder."""
        for count in itertools.count(1):
            if not (copies := self.path / f"before-repair-{count}").exists():
                break
        copies.mkdir()
        for path in paths:
            if path.is_file():
                shutil.copy2(path, copies / path.name)
        return copies

    # --- reading and writing ---

    def read_plan(self) -> dict[str, Any]:
        """Returns what the plan's file holds; empty before the sweep's first start.

        Raises:
            UserError: it is damaged, or cannot be read.
        """
        return _read_sealed(self.plan, "and the command that began the sweep makes it anew")

    def write_plan(self, content: Mapping[str, Any]) -> None:
        _write_sealed(self.plan, content)

    def read_warm_start(self, consequence: str) -> dict[str, Any]:
        """Returns the results with which the sweep began; empty where there are none.

        Args:
            consequence: what happens once the user has deleted a damaged file, as the end of a sentence.

        Raises:
            UserError: it is damaged, or cannot be read.
        """
        return _read_sealed(self.warm_start, consequence)

    def write_warm_start(self, content: Mapping[str, Any]) -> None:
        _write_sealed(self.warm_start, content)

    def read_space(self) -> dict[str, Any]:
        """Returns the search space as resolved; empty before the sweep's first start.

        Raises:
            UserError: it is damaged, or cannot be read.
        """
        remedy = f"delete it (rm {self.space}), and the command that began the sweep writes it anew"
        try:
            content = yaml.safe_load(self.space.read_text())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UserError(f"{self.space}: cannot be read ({error.strerror})") from error
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{self.space}: is not YAML ({' '.join(str(error).split())}); {remedy}") from None
        search = content.get("search") or {} if isinstance(content, dict) else None
        counts = [search.get(name, 1) for name in ("trials", "repeats")] if isinstance(search, dict) else [""]
        if not all(isinstance(count, int) for count in counts):
            raise UserError(f"{self.space}: does not contain a search space; {remedy}")
        return dict(content)


@dataclass(frozen=True)
class Storage:
    """The folder of all sweeps, as `storage=` names it."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def mlflow_database(self) -> Path:
        """The SQLite file of MLflow that is used unless `tracking=` names a server."""
        return self.path / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        """The folder of MLflow's artifacts, with one folder for each sweep."""
        return self.path / "mlartifacts"

    def sweep(self, name: str) -> SweepFolder:
        return SweepFolder(self.path / name)

    def sweeps(self) -> list[SweepFolder]:
        """Returns the folders of all sweeps, by name.

        Raises:
            UserError: the folder cannot be read.
        """
        try:
            paths = sorted(self.path.iterdir()) if self.path.exists() else []
        except OSError as error:
            raise UserError(f"{self}: cannot be read ({error.strerror}); name a folder with storage=DIR") from error
        return [folder for folder in map(SweepFolder, paths) if folder.exists()]


def _write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, sealed(content, indent=2) + "\n")


def _read_sealed(path: Path, consequence: str) -> dict[str, Any]:
    try:
        return unsealed(path.read_bytes())
    except FileNotFoundError:
        return {}
    except DamagedError as error:
        raise UserError(f"{path}: {error}; delete it (rm {path}), {consequence}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
