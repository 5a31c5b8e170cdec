"""What must not change when a sweep continues: its search space, but for what may change, and its data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from mmpkd.types import UserError
from sweep.space.space import Space, dump_space
from sweep.storage.layout import SweepFolder

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


def refuse_other_space(folder: SweepFolder, space: Space, extend: bool = False) -> bool:
    """Trials of different spaces do not belong in one table.

    Args:
        extend: unless one of them is the next step of the other.

    Returns:
        Whether the space is another than before.

    Raises:
        UserError: the folder holds the sweep of a different space.
    """
    plan = folder.read_plan()
    before = plan.get("leaves") or (leaves_of(written) if (written := folder.read_space()) else {})
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


def refuse_other_data(folder: SweepFolder, began: str, fingerprint: str, root: Path | None) -> None:
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
