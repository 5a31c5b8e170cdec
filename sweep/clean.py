"""Lists files of sweeps that are no longer needed, and deletes them on request: `python -m sweep.clean`."""

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

from mmpkd.command import asks_for_help, command_line
from mmpkd.types import ConfigError, Mistake, UserError
from sweep.options import DEFAULT_CACHE, DEFAULT_STORAGE, read_sweep_options
from sweep.pareto import Contenders
from sweep.selection import rule_of
from sweep.storage.layout import SweepFolder
from sweep.storage.lock import hold_driver_lock, is_locked
from sweep.storage.reader import Sweep, check_exists, read_sweep
from sweep.transfer.addresses import Place, place
from sweep.transfer.lease import hold_lease
from sweep.transfer.views import is_running_there, refresh, view_of

HELP = """\
usage: python -m sweep.clean [NAME] [key=value ...]

Lists files that are no longer needed, with their sizes; it deletes them only
with delete=true. It never touches a running sweep, nor the tables, reports,
best.yaml, journals and spools of any sweep: every sweep can still be continued
afterwards.

  NAME           one sweep only; name=NAME means the same
  delete=true    deletes what is listed otherwise
  storage=runs   folder or address of all sweeps, as given to sweep.run
  unused=true    the cache as well: prepared images, and outputs of teachers for
                 them, of data on which no sweep under storage= was run. Sweeps
                 elsewhere, and mmpkd.train, are not considered; they prepare
                 again what they miss
  cache=cache    folder of the cache, as given to sweep.run

what is deleted of a sweep
  checkpoints of trials that have ended and are neither on the front nor near
  the choice of search.select (a killed driver, or a worker that outlived it,
  leaves them), files that a kill left half-written

examples
  python -m sweep.clean
  python -m sweep.clean breast delete=true
  python -m sweep.clean unused=true cache=/scratch/cache
"""
HALF_WRITTEN: Final = (".partial", ".tmp")


@dataclass(frozen=True)
class Waste:
    """A file or a folder that is no longer needed. Its `size` is in bytes."""

    path: Path | Place
    reason: str
    size: int


def main(words: Sequence[str]) -> None:
    if asks_for_help(words):
        print(HELP, end="")
        return
    defaults = {"name": "", "delete": "false", "storage": DEFAULT_STORAGE, "unused": "false", "cache": DEFAULT_CACHE}
    options, mistakes = read_sweep_options(words, defaults)
    storage, delete = view_of(options["storage"]), options["delete"] == "true"
    folders = storage.sweeps()
    for folder in folders:
        refresh(folder)
    if options["name"]:
        mistakes += check_exists(options["name"], storage)
    elif not folders:
        problem = f"no sweeps under {storage}, so it is unknown what is needed; name their folder with storage=DIR"
        mistakes.append(Mistake("storage", problem))
    cache = place(options["cache"], "cache")
    if options["unused"] == "true" and not cache.is_local:
        problem = f"{cache} lies in an object store; delete there with its own tools what is no longer needed"
        mistakes.append(Mistake("cache", problem))
    elif options["unused"] == "true" and not cache.local_path.is_dir():
        mistakes.append(Mistake("cache", f"there is no folder {options['cache']!r}; name the folder of the cache"))
    if mistakes:
        raise ConfigError(mistakes)
    used = stores_in_use(folders) if options["unused"] == "true" else None  # raises before anything is deleted
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    wastes: list[Waste] = []
    for folder in folders if not options["name"] else [storage.sweep(options["name"])]:
        if is_running_there(folder):
            console.print(f"{folder.name} is running, and is not touched")
            continue
        wastes += _clean_sweep(folder, delete, console)
    if used is not None:
        for waste in unused_in_cache(cache.local_path, used):
            assert isinstance(waste.path, Path)
            if not delete or _delete_cached(waste.path):
                wastes.append(_listed(waste, console))
    total = f"{decimal(sum(waste.size for waste in wastes))} in {len(wastes)} places"
    if not wastes:
        console.print(f"nothing to clean under {storage}{' and ' + options['cache'] if used is not None else ''}")
    elif delete:
        console.print(f"deleted {total}")
    else:
        console.print(f"{total} can be deleted; the same command with delete=true deletes them")


def _listed(waste: Waste, console: Console) -> Waste:
    console.print(f"{decimal(waste.size):>10}  {waste.path}  ({waste.reason})")
    return waste


# --- sweeps ---


def _clean_sweep(folder: SweepFolder, delete: bool, console: Console) -> list[Waste]:
    if not delete:
        return [_listed(waste, console) for waste in waste_of(read_sweep(folder))]
    with hold_driver_lock(folder), hold_lease(folder, console.print):  # no driver starts, and the files do not change
        wastes = []
        for waste in waste_of(read_sweep(folder)):
            _delete(waste.path)
            wastes.append(_listed(waste, console))
        return wastes


def waste_of(sweep: Sweep) -> list[Waste]:
    """Returns the files and folders of a sweep that are no longer needed, for a sweep that is not running."""
    folder = sweep.folder
    wastes: list[Waste] = []
    there = set(folder.shared_checkpoints.names())
    for number in settled_numbers(sweep):
        if str(number) in there:
            reason = f"checkpoints of trial {number}, which is neither on the front nor among the best"
            checkpoints = folder.shared_checkpoints.child(str(number))
            path = checkpoints.local_path if checkpoints.is_local else checkpoints
            wastes.append(Waste(path, reason, sum(checkpoints.sizes().values())))
    if folder.address:
        return wastes
    listed = {waste.path for waste in wastes}
    for path in half_written(folder.path):
        if not listed & set(path.parents):
            wastes.append(Waste(path, "half-written", size_of(path)))
    return wastes


def settled_numbers(sweep: Sweep) -> list[int]:
    """Returns the numbers of the ended trials that are neither on the Pareto front nor near the choice of
    `search.select` (see `pareto.Contenders`), and can no longer become so. References are compared among themselves.

    A configuration that waits for runs on further seeds can still join the front. A configuration that lacks a value
    for one of the goals of the present space can also still join the front.
    """
    results, goals = sweep.results(), sweep.goals
    select = rule_of(sweep.search.get("select", "")).goals
    positions = [goals.index(goal) for goal in select] if set(select) <= set(goals) else [0]
    contenders = {is_reference: Contenders(positions) for is_reference in (False, True)}
    for number, values in results.items():
        contenders[sweep.trials[number].arm in sweep.references].add(number, values)
    kept = contenders[False].numbers | contenders[True].numbers
    cannot_join = [
        number
        for number, trial in sweep.trials.items()
        if trial.state in ("pruned", "failed") or (trial.state == "complete" and trial.repeat_of is not None)
    ]
    return sorted({*cannot_join, *results} - kept)


def half_written(folder: Path) -> Iterator[Path]:
    """Yields files and folders that still have their temporary name, because a kill came before they were renamed."""
    for parent, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            if name.endswith(HALF_WRITTEN):
                yield Path(parent) / name
        folders[:] = [name for name in folders if not name.endswith(HALF_WRITTEN)]


# --- the cache ---


def stores_in_use(folders: Sequence[SweepFolder]) -> set[str]:
    """Returns the fingerprints of the prepared cohorts on which the given sweeps were run.

    Raises:
        UserError: a sweep has begun but has no plan file yet. Only the plan file holds the fingerprint.
    """
    used = set()
    for folder in folders:
        sweep = read_sweep(folder)
        if "store" in sweep.plan:
            used.add(str(sweep.plan["store"]))
        elif sweep.running or sweep.trials:
            raise UserError(f"{folder}: has no plan yet that says which prepared images it uses; try again later")
    return used


def unused_in_cache(cache: Path, used: set[str]) -> Iterator[Waste]:
    """Yields the unused entries of the cache.

    Unused entries are: prepared cohorts ("stores") that no sweep uses; outputs of teachers and finished training stages
    that were computed for such stores; and half-written folders. Entries that another process is writing are left out.
    """
    for kind in ("stores", "teachers"):
        for path in sorted((cache / kind).iterdir()) if (cache / kind).is_dir() else ():
            if not path.is_dir() or path.is_symlink() or is_locked(_lock_of(path)):
                continue
            if path.name.endswith(HALF_WRITTEN):
                yield Waste(path, "half-made", size_of(path))
            elif kind == "stores" and path.name.rpartition("-")[2] not in used:
                yield Waste(path, "prepared images of no sweep", size_of(path))
            elif kind == "teachers" and _cohort_of(path) not in used:
                yield Waste(path, "outputs of a teacher for images of no sweep", size_of(path))
    for path in sorted((cache / "stages").glob("*")):
        if path.suffix in (".pt", ".partial") and path.name.partition("-")[0] not in used:
            yield Waste(path, "a finished stage of no sweep", size_of(path))


def _cohort_of(teacher: Path) -> str:
    """Returns the fingerprint of the prepared cohort for which a teacher's outputs were computed."""
    try:
        return str(json.loads((teacher / "manifest.json").read_text())["cohort"])
    except (PermissionError, IsADirectoryError) as error:
        raise UserError(f"{teacher / 'manifest.json'}: cannot be read ({error.strerror}); ask its owner") from error
    except (OSError, ValueError, KeyError) as error:
        why = f"its manifest cannot be read ({type(error).__name__})"
        raise UserError(f"{teacher}: {why}; delete the folder by hand, and the outputs are computed again") from error


def _lock_of(path: Path) -> Path:
    """Returns the lock file of what writes a store or a teacher: see `cohort/prepare.py` and `teachers/cache.py`."""
    name = path.name
    for ending in (*HALF_WRITTEN, ".deleted", ".training"):
        name = name.removesuffix(ending)
    hidden = name.removeprefix(".").rpartition(".")[0]  # `.NAME.<8 digits>.partial` of `machine.new_folder`
    return path.with_name(f"{hidden if name.startswith('.') else name}.lock")


def _delete_cached(path: Path) -> bool:
    """Deletes a folder of the cache under the lock of its writers, and returns False if a writer holds the lock.

    The folder is renamed first. A kill during the deletion therefore never leaves a partial folder under a valid name.
    """
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
    """Returns the size in bytes of a file, or of all files below a folder together."""
    files = [Path(parent) / name for parent, _, names in os.walk(path) for name in names] if path.is_dir() else [path]
    total = 0
    for file in files:
        with suppress(FileNotFoundError):  # a worker that outlived its driver has just renamed the file
            total += file.lstat().st_size
    return total


@contextmanager
def _deleting(path: Path | Place) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be deleted ({error.strerror or error}); what is listed above is deleted"
        ) from error


def _delete(path: Path | Place) -> None:
    with _deleting(path):
        if isinstance(path, Place):
            path.delete()
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


if __name__ == "__main__":
    with command_line() as words:
        main(words)
