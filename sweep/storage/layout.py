"""Defines the folder of a sweep: the path of each file, and functions that read and write whole files.

Only this module contains the names of the files in a sweep's folder. Other modules get paths from a `SweepFolder`, or
call its methods to read or write a file.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from mmpkd.types import UserError
from sweep.patience import delete_folder
from sweep.storage.whole_files import add_sealed, read_resolved_space, read_sealed, write_sealed
from sweep.transfer.addresses import Place, place
from sweep.transfer.refusals import in_words

BEST: Final = "best.yaml"
CHECKPOINT: Final = "last.pt"  # written by mmpkd.checkpoint in the folder of an attempt
STUDENT: Final = "student.safetensors"  # written by mmpkd.export there, after the last epoch
VLM_STUDENT: Final = "vlm.safetensors"  # in its place, if the student answers questions
OVERLAYS: Final = "overlays.png"  # what the student looks at, beside it; written for the best trials of a sweep
PICKED_CONFIG, PICKED_CARD = "config.yaml", "card.md"  # beside a copy of STUDENT in the folder of a picked trial
ATTEMPT: Final = "attempt-"  # with a number, the name of an attempt at a trial in the folder of its checkpoints


@dataclass(frozen=True)
class SweepFolder:
    """The folder of one sweep.

    Attributes:
        path: the folder on this machine.
        address: where copies of the files go, and where workers keep checkpoints and error files, if the sweep lies in
            an object store.
        needless: numbers of trials whose checkpoints are deleted there after the next copy (`transfer/mirror.py`).
    """

    path: Path
    address: Place | None = None
    needless: deque[int] = field(default_factory=deque, compare=False, repr=False)

    @classmethod
    def at(cls, address: str) -> Self:
        """Returns the folder of a sweep at a path or an address, as a worker sees it."""
        at_address = place(address)
        return cls(Path(at_address.path), None if at_address.is_local else at_address)

    def __str__(self) -> str:
        return str(self.shared)

    @property
    def shared(self) -> Place:
        """The sweep's place that every machine sees: the address, or this folder."""
        return self.address or Place("", str(self.path))

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.path.name

    # --- files from which a sweep continues ---

    @property
    def journal(self) -> Path:
        """Optuna's journal, which decides what is true about the sweep's trials."""
        return self.path / "journal.log"

    @property
    def plan(self) -> Path:
        """Sealed JSON with the plan, the sweep's identity, and the number of extensions of its search space."""
        return self.path / "plan.json"

    @property
    def space(self) -> Path:
        """The search space with overrides and references resolved, as YAML."""
        return self.path / "space.yaml"

    @property
    def warm_start(self) -> Path:
        """The results of another sweep from which this sweep's samplers learned first (`warm_start`), as sealed
        JSON.
        """
        return self.path / "warm.json"

    @property
    def spool(self) -> Path:
        """The spool: every event of the sweep, with one line of sealed JSON for each event."""
        return self.path / "spool.jsonl"

    @property
    def spool_sent(self) -> Path:
        """Notes how many bytes of the spool the tracking server has received."""
        return self.path / "spool.sent"

    @property
    def driver_lock(self) -> Path:
        """The file that the sweep's driver keeps locked while it runs."""
        return self.path / "driver.lock"

    @property
    def copies(self) -> Path:
        """What the driver notes about the copies at the sweep's address (`transfer/mirror.py`)."""
        return self.path / "copies.json"

    @property
    def status(self) -> Path:
        """What the driver shows of itself while it runs, as sealed JSON; see `driver_status.py`."""
        return self.path / "status.json"

    @property
    def stop_request(self) -> Path:
        """The file by which sweep.stop asks the driver to end. The driver removes the file."""
        return self.path / "stop"

    # --- results for the user ---

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
        """The report as an HTML page."""
        return self.path / "report.html"

    @property
    def errors(self) -> Path:
        """The folder with one error file for each failed trial."""
        return self.path / "errors"

    def error(self, number: int) -> Path:
        """Returns the file with the cause, the message and the traceback of a failed trial."""
        return self.errors / f"{number}.txt"

    def shared_error(self, number: int) -> Place:
        """Returns the same file at the place that every machine sees."""
        return self.shared.child(f"{self.errors.name}/{self.error(number).name}")

    @property
    def picked(self) -> Path:
        """The folder of the picked trials (`sweep.pick`), which has a folder for each under its number."""
        return self.path / "picked"

    # --- checkpoints ---

    @property
    def checkpoints(self) -> Path:
        """The folder with the checkpoints of all trials."""
        return self.path / "checkpoints"

    def checkpoints_of(self, number: int) -> Path:
        """Returns the folder of one trial's checkpoints."""
        return self.checkpoints / str(number)

    @property
    def shared_checkpoints(self) -> Place:
        """The same folder at the place that every machine sees."""
        return self.shared.child(self.checkpoints.name)

    def keeps_checkpoints(self, number: int) -> bool:
        """Whether a trial has a checkpoint."""
        files = self.shared_checkpoints.child(str(number)).sizes()
        return any(file.rpartition("/")[2] == CHECKPOINT for file in files)

    def delete_checkpoints(self, number: int) -> None:
        """Deletes the checkpoints of a trial. Files that cannot be deleted are left without an error."""
        if self.address:
            self.needless.append(number)
        else:
            delete_folder(self.checkpoints_of(number))

    # --- all of them ---

    @property
    def files(self) -> tuple[Path, ...]:
        """All files with fixed names, whether they exist or not, except the driver's lock."""
        return (self.status, self.stop_request, self.journal, self.spool, *self.whole_files)

    @property
    def whole_files(self) -> tuple[Path, ...]:
        """Those of these files that are written anew as a whole and tell of trials."""
        results = (self.epochs, self.trials, self.best, self.report)
        return (self.plan, self.space, self.warm_start, self.spool_sent, *results)

    def file(self, name: str) -> Path:
        """Returns the path of the file of this name in this folder. If `name` is a path in another folder, only its
        last part counts.
        """
        return self.path / Path(name).name

    def exists(self) -> bool:
        """Returns whether a sweep was ever begun in this folder. Returns False if the folder cannot be read."""
        return os.path.isfile(self.driver_lock) or os.path.isfile(self.spool)

    def set_aside(self, paths: Sequence[Path]) -> Path:
        """Copies files that a repair is about to change into a new folder beside them, and returns the new folder."""
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
        """Returns the content of the plan's file. It is empty before the sweep's first start.

        Raises:
            UserError: the file is damaged, or cannot be read.
        """
        return read_sealed(self.plan, "and the command that began the sweep makes it anew")

    def write_plan(self, content: Mapping[str, Any]) -> None:
        write_sealed(self.plan, content)

    def add_to_plan(self, entries: Mapping[str, Any]) -> None:
        """Adds entries to the plan's file, which must exist."""
        add_sealed(self.plan, entries)

    def read_warm_start(self, consequence: str) -> dict[str, Any]:
        """Returns the results of another sweep from which the samplers of this one learned first, or an empty mapping.

        Args:
            consequence: what happens once the user has deleted the damaged file, as the end of a sentence of the error.

        Raises:
            UserError: the file is damaged, or cannot be read.
        """
        return read_sealed(self.warm_start, consequence)

    def write_warm_start(self, content: Mapping[str, Any]) -> None:
        write_sealed(self.warm_start, content)

    def read_space(self) -> dict[str, Any]:
        """Returns the resolved search space. It is empty before the sweep's first start.

        Raises:
            UserError: the file is damaged, or cannot be read.
        """
        return read_resolved_space(self.space)


@dataclass(frozen=True)
class Storage:
    """The folder of all sweeps, which `storage=` on the command line names."""

    path: Path
    address: Place | None = None

    def __str__(self) -> str:
        return str(self.address or self.path)

    @property
    def mlflow_database(self) -> Path:
        """The SQLite file that MLflow uses unless `tracking=` names a server."""
        return self.path / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        """The folder of MLflow's artifacts. It has one folder for each sweep."""
        return self.path / "mlartifacts"

    def sweep(self, name: str) -> SweepFolder:
        return SweepFolder(self.path / name, self.address and self.address.child(name))

    def sweeps(self) -> list[SweepFolder]:
        """Returns the folders of all sweeps, ordered by name.

        Raises:
            UserError: the folder cannot be read.
        """
        try:
            if self.address:
                folders = map(self.sweep, self.address.names())
                return [folder for folder in folders if folder.shared.child(folder.spool.name).exists()]
            paths = sorted(self.path.iterdir()) if self.path.exists() else []
        except OSError as error:
            problem = in_words(error) if self.address else f"{self}: cannot be read ({error.strerror})"
            raise UserError(f"{problem}; name a folder with storage=DIR") from error
        return [folder for folder in map(SweepFolder, paths) if folder.exists()]
