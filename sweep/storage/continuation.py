"""A sweep's folder: one driver at a time, one space, or one after the other."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from mmpkd.types import UserError
from sweep.space.space import Space, dump_space
from sweep.storage.events import read_plan, read_space

# How much is run, how many at a time, and where the data lie changes no trial. That it is the same data at
# another root is for `refuse_other_data` to see.
MAY_CHANGE: Final = (
    "cohort.root",
    *(f"search.{name}" for name in ("trials", "budget_device_hours", "deadline", "plateau")),
    *(f"search.{name}" for name in ("cpus", "gpus", "trials_per_device", "max_failures")),
)
# Trials with another of these are no more comparable than those of another cohort.
NEVER: Final = ("epochs", "search.maximize")
MOST_SHOWN: Final = 12


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, made if need be, with this process as its only driver.

    The kernel lets go of the lock when the process ends, however it ends. A folder that nothing
    was written to goes again, so that a start that fails leaves no trace.

    Raises:
        UserError: another driver is at it, or nothing can be written there.
    """
    path = folder / "driver.lock"
    try:
        if path.is_dir():
            raise UserError(f"{path}: a file of the sweep belongs there, and this is none; move it away")
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", errors="replace")
    except OSError as error:
        raise unwritable(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"{folder}: another driver runs this sweep ({holder})\n"
                "  wait for it, stop it there with Ctrl-C, or start a sweep of your own with name=..."
            ) from None
        except OSError as error:  # a file system without locks
            raise unwritable(folder, error) from error
        try:
            try:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
            except OSError as error:
                raise unwritable(folder, error) from error
            yield
        finally:
            if set(folder.iterdir()) == {path}:
                shutil.rmtree(folder, ignore_errors=True)


def unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: a sweep cannot be kept there ({error.strerror}); name another place with storage=DIR")


def refuse_other_space(folder: Path, space: Space, extend: bool = False) -> bool:
    """Trials of different spaces do not belong in one table.

    Args:
        extend: unless one of them is the next step of the other.

    Returns:
        Whether the space is another than before.

    Raises:
        UserError: the folder holds the sweep of a different space.
    """
    plan = read_plan(folder)
    before = plan.get("leaves") or (leaves_of(written) if (written := read_space(folder)) else {})
    if not before:
        return False
    now = leaves_of(yaml.safe_load(dump_space(space)))
    changed = [key for key in sorted({**before, **now}) if before.get(key) != now.get(key) and key not in MAY_CHANGE]
    never = [key for key in changed if key in NEVER or key.partition(".")[0] == "cohort"]
    if not changed or (extend and not never):
        return bool(changed)
    lines = [f"  {key}: was {_shown(before, key)}, is now {_shown(now, key)}" for key in changed[:MOST_SHOWN]]
    if len(changed) > MOST_SHOWN:
        lines.append(f"  and {len(changed) - MOST_SHOWN} more")
    if never:
        lines.append(f"  another {' or '.join(never)} is another sweep, and extend=true cannot make it this one")
    else:
        lines.append("  extend=true goes on in the new space, with the earlier trials that lie in it")
    raise UserError(
        "\n".join(
            [
                f"{folder}: this name already belongs to a sweep of a different space",
                *lines,
                f"  add name={folder.name}-2 (or any new name) to start another sweep, or undo the change to continue;",
                f"  only {', '.join(MAY_CHANGE)} may change",
            ]
        )
    )


def refuse_other_data(folder: Path, began: str, fingerprint: str, root: Path | None) -> None:
    """Nor do trials of different data, though the space be the same.

    Args:
        began: the fingerprint of the prepared cohort that the sweep began with; empty: it has not, or nobody says.
        fingerprint: today's.

    Raises:
        UserError: it began with another.
    """
    if began and began != fingerprint:
        raise UserError(
            f"{folder}: this sweep began with other data\n"
            f"  prepared cohort: was {began}, is now {fingerprint}: "
            f"the files under cohort.root ({root}), or the program's reader, have changed\n"
            f"  give the folder with the old files as cohort.root=DIR (it may have moved), or add "
            f"name={folder.name}-2 (or any new name) to start another sweep"
        )


def leaves_of(space: Mapping[str, Any]) -> dict[str, Any]:
    """A space, as `dump_space` writes it, by the path of each leaf, as JSON has it."""
    leaves: dict[str, Any] = json.loads(json.dumps(_leaves(space), default=str))
    return leaves


def _leaves(content: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(content, Mapping) or not content:
        return {path: content}
    return {
        name: leaf
        for key, value in content.items()
        for name, leaf in _leaves(value, f"{path}.{key}" if path else str(key)).items()
    }


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "absent"
