"""Lists, and on request deletes, what sweeps left and nobody needs: `python -m sweep.clean`; --help says the rest."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout
from rich.console import Console
from rich.filesize import decimal

from mmpkd.command import run as command
from mmpkd.types import ConfigError, Mistake, UserError
from sweep.options import DEFAULT_CACHE, DEFAULT_STORAGE, read_sweep_options
from sweep.pareto import admit
from sweep.storage.layout import Storage, SweepFolder
from sweep.storage.lock import hold_driver_lock, is_locked
from sweep.storage.reader import Sweep, read_sweep, unknown

HELP = """\
usage: python -m sweep.clean [NAME] [key=value ...]

Lists what could go, with its size, and deletes nothing unless told to. A running sweep is left alone,
and so are tables, reports, best.yaml, journals and spools of all of them: every sweep can still be
continued afterwards.

  NAME           one sweep only; name=NAME says the same
  delete=true    deletes what is listed otherwise
  storage=runs   folder of all sweeps, as given to sweep.run
  unused=true    the cache as well: prepared images, and teachers' answers about them, of data that no
                 sweep under storage= was run on. Sweeps elsewhere, and mmpkd.train, are not asked; what
                 they miss they make again
  cache=cache    folder of the cache, as given to sweep.run

what goes of a sweep
  checkpoints of trials that have ended and are not on the front (a killed driver, or a worker that
  outlived it, leaves them), files that a kill left half-written, Ray Tune's scratch folder

examples
  python -m sweep.clean
  python -m sweep.clean breast delete=true
  python -m sweep.clean unused=true cache=/scratch/cache
"""
HALF_WRITTEN: Final = (".partial", ".tmp")


@dataclass(frozen=True)
class Waste:
    path: Path
    why: str
    size: int  # bytes


def main(words: Sequence[str]) -> None:
    if {"--help", "-h", "help"} & set(words):
        print(HELP, end="")
        return
    defaults = {"name": "", "delete": "false", "storage": DEFAULT_STORAGE, "unused": "false", "cache": DEFAULT_CACHE}
    said, mistakes = read_sweep_options(words, defaults)
    storage, delete = Storage(Path(said["storage"])), said["delete"] == "true"
    folders = storage.sweeps()
    if said["name"]:
        mistakes += unknown(said["name"], storage)
    elif not folders:
        told = f"no sweeps under {storage}, so nothing says what is needed; name their folder with storage=DIR"
        mistakes.append(Mistake("storage", told))
    if said["unused"] == "true" and not Path(said["cache"]).is_dir():
        mistakes.append(Mistake("cache", f"{said['cache']!r} is no folder"))
    if mistakes:
        raise ConfigError(mistakes)
    used = stores_in_use(folders) if said["unused"] == "true" else None  # raises before anything is deleted
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    found: list[Waste] = []
    for folder in folders if not said["name"] else [storage.sweep(said["name"])]:
        if is_locked(folder.driver_lock):
            console.print(f"{folder.name} is running, and left alone")
            continue
        found += _sweep_up(folder, delete, console)
    if used is not None:
        for waste in unused(Path(said["cache"]), used):
            if not delete or _delete_cached(waste.path):
                found.append(_told(waste, console))
    total = f"{decimal(sum(waste.size for waste in found))} in {len(found)} places"
    if not found:
        console.print(f"nothing to clean under {storage}{' and ' + said['cache'] if used is not None else ''}")
    elif delete:
        console.print(f"deleted {total}")
    else:
        console.print(f"{total} could go; the same command with delete=true deletes them")


def _told(waste: Waste, console: Console) -> Waste:
    console.print(f"{decimal(waste.size):>10}  {waste.path}  ({waste.why})")
    return waste


# --- sweeps ---


def _sweep_up(folder: SweepFolder, delete: bool, console: Console) -> list[Waste]:
    if not delete:
        return [_told(waste, console) for waste in of_sweep(read_sweep(folder))]
    with hold_driver_lock(folder):  # no driver starts meanwhile, and what one did before is seen
        found = []
        for waste in of_sweep(read_sweep(folder)):
            _delete(waste.path)
            found.append(_told(waste, console))
        return found


def of_sweep(sweep: Sweep) -> list[Waste]:
    """What could go of a sweep that is not running."""
    folder = sweep.folder
    found: list[Waste] = []
    for number in settled(sweep):
        path = folder.checkpoints_of(number)
        if path.is_dir():
            found.append(Waste(path, f"checkpoints of trial {number}, which is not on the front", size_of(path)))
    if (scratch := folder.tune_scratch).is_dir():
        found.append(Waste(scratch, "scratch of a driver that was killed", size_of(scratch)))
    gone = {waste.path for waste in found}
    for path in half_written(folder.path):
        if not gone & set(path.parents):
            found.append(Waste(path, "half-written", size_of(path)))
    return found


def settled(sweep: Sweep) -> list[int]:
    """Trials that have ended, are not on the front, and cannot come to be: a configuration that waits for
    further seeds can, and so can one that lacks a goal of today."""
    results = sweep.results()
    front: dict[int, Sequence[float]] = {}
    for number, values in results.items():
        admit(front, number, values)
    never = [
        number
        for number, trial in sweep.trials.items()
        if trial.state in ("pruned", "failed") or (trial.state == "complete" and trial.repeat_of is not None)
    ]
    return sorted({*never, *(number for number in results if number not in front)} - set(front))


def half_written(folder: Path) -> Iterator[Path]:
    """What is written beside its place, to be renamed when whole, and never was."""
    for place, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            if name.endswith(HALF_WRITTEN):
                yield Path(place) / name
        folders[:] = [name for name in folders if not name.endswith(HALF_WRITTEN)]


# --- the cache ---


def stores_in_use(folders: Sequence[SweepFolder]) -> set[str]:
    """Fingerprints of the prepared cohorts that sweeps were run on.

    Raises:
        UserError: a sweep does not say.
    """
    used = set()
    for folder in folders:
        sweep = read_sweep(folder)
        if "store" in sweep.plan:
            used.add(str(sweep.plan["store"]))
        elif sweep.running or sweep.trials:
            raise UserError(f"{folder}: has no plan yet that says which prepared images it uses; try again later")
    return used


def unused(cache: Path, used: set[str]) -> Iterator[Waste]:
    """Stores of no sweep, teachers' answers and finished stages of them, and what was left half-written; nothing that
    is being made."""
    for kind in ("stores", "teachers"):
        for path in sorted((cache / kind).iterdir()) if (cache / kind).is_dir() else ():
            if not path.is_dir() or path.is_symlink() or is_locked(_lock_of(path)):
                continue
            if path.name.endswith(HALF_WRITTEN):
                yield Waste(path, "half-made", size_of(path))
            elif kind == "stores" and path.name.rpartition("-")[2] not in used:
                yield Waste(path, "prepared images of no sweep", size_of(path))
            elif kind == "teachers" and _cohort_of(path) not in used:
                yield Waste(path, "a teacher's answers about images of no sweep", size_of(path))
    for path in sorted((cache / "stages").glob("*")):
        if path.suffix in (".pt", ".partial") and path.name.partition("-")[0] not in used:
            yield Waste(path, "a finished stage of no sweep", size_of(path))


def _cohort_of(teacher: Path) -> str:
    """Fingerprint of the prepared cohort that a teacher was asked about."""
    try:
        return str(json.loads((teacher / "manifest.json").read_text())["cohort"])
    except (PermissionError, IsADirectoryError) as error:
        raise UserError(
            f"{teacher / 'manifest.json'}: cannot be read ({error.strerror}); ask whom it belongs to"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        why = f"its manifest cannot be read ({type(error).__name__})"
        raise UserError(f"{teacher}: {why}; delete the folder by hand, and its answers are made again") from error


def _lock_of(path: Path) -> Path:
    """Whoever makes a store or a teacher's answers holds this, see `cohort.prepare` and `teachers.outputs`."""
    name = path.name
    for ending in (*HALF_WRITTEN, ".deleted"):
        name = name.removesuffix(ending)
    return path.with_name(f"{name}.lock")


def _delete_cached(path: Path) -> bool:
    """Under the lock of those who make it, and renamed first, so that a kill leaves no half of it that looks
    whole. False: somebody is at it."""
    try:
        with FileLock(_lock_of(path), timeout=0):
            if path.name.endswith(HALF_WRITTEN):
                _delete(path)
                return True
            beside = path.with_name(f"{path.name}.deleted.partial")
            with _deleting(path):
                os.replace(path, beside)
            _delete(beside)
            return True
    except Timeout:
        return False


# --- files ---


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = [Path(place) / name for place, _, names in os.walk(path) for name in names] if path.is_dir() else [path]
    total = 0
    for file in files:
        with suppress(FileNotFoundError):  # a worker that outlived its driver has just renamed it
            total += file.lstat().st_size
    return total


@contextmanager
def _deleting(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be deleted ({error.strerror}); what is listed above is gone") from error


def _delete(path: Path) -> None:
    with _deleting(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


if __name__ == "__main__":
    command(main)
