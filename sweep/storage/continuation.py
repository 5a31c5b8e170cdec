"""Checks that a sweep continues with the same search space, apart from a few leaves, and with the same data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from mmpkd.config import TrialConfig
from mmpkd.machine.files import parse_own_yaml
from mmpkd.types import UserError
from sweep.space.space import Space, dump_space
from sweep.storage.layout import SweepFolder

# The number of trials, their parallelism, the place of the data, and which checkpoints are written or kept change no
# trial.
# Whether another root holds the same data is checked by `refuse_other_data`.
CHANGEABLE_LEAVES: Final = (
    "cohort.root",
    *(f"search.{name}" for name in ("trials", "budget_device_hours", "deadline", "plateau")),
    *(f"search.{name}" for name in ("cpus", "gpus", "trials_per_device", "at_a_time", "max_failures")),
    "search.keep",
    *TrialConfig.INERT,
)
# Trials that differ in one of these leaves or in the cohort cannot be compared, so even extend=true forbids a change.
FIXED_LEAVES: Final = ("epochs", "search.maximize")
MAX_SHOWN_CHANGES: Final = 12


def with_earlier_rules(folder: SweepFolder, space: Space) -> Space:
    """Returns the space with the rules by which a sweep of older code has been searched so far.

    A sweep that began before the key `search.equal` existed shares device-hours among its arms, because its price and
    its budget were chosen for that, and proposes with the sampler that its folder names. It continues with both, unless
    the space names `search.equal=trials` or a sampler. Until `search.equal=trials` is named, the key stays absent from
    what the folder stores, so that later drivers recognise the sweep.
    """
    before, search = _earlier_leaves(folder), space.search
    named = search.model_fields_set
    if not before or "search.equal" in before or ("equal" in named and search.equal == "trials"):
        return space
    rules = {"equal": "hours"}
    if "sampler" not in named and "search.sampler" in before:
        rules["sampler"] = before["search.sampler"]
    stored = {key: value for key, value in ({**space.raw["search"], **rules}).items() if key != "equal"}
    return replace(space, search=search.model_copy(update=rules), raw={**space.raw, "search": stored})


def _earlier_leaves(folder: SweepFolder) -> dict[str, Any]:
    """Returns the leaves of the space of the earlier drivers. The mapping is empty if there was none."""
    leaves: dict[str, Any] = folder.read_plan().get("leaves") or {}
    return leaves or (leaves_of(resolved) if (resolved := folder.read_space()) else {})


def refuse_other_space(folder: SweepFolder, space: Space, extend: bool = False) -> bool:
    """Checks that a sweep continues in the search space in which it began, because its table may hold trials of one
    space only.

    Args:
        extend: whether the space may differ. Earlier trials that lie in the new space are then kept.

    Returns:
        Whether the space differs from the space of the earlier drivers.

    Raises:
        UserError: the folder holds a sweep of a different space, which `extend` does not allow.
    """
    before = _earlier_leaves(folder)
    if not before:
        return False
    now = leaves_of(parse_own_yaml(dump_space(space)))
    changed = [
        key for key in sorted({**before, **now}) if before.get(key) != now.get(key) and key not in CHANGEABLE_LEAVES
    ]
    fixed = [key for key in changed if key in FIXED_LEAVES or key.partition(".")[0] == "cohort"]
    if not changed or (extend and not fixed):
        return bool(changed)
    lines = [f"  {key}: was {_shown(before, key)}, is now {_shown(now, key)}" for key in changed[:MAX_SHOWN_CHANGES]]
    if len(changed) > MAX_SHOWN_CHANGES:
        lines.append(f"  and {len(changed) - MAX_SHOWN_CHANGES} more")
    if fixed:
        lines.append(f"  a change of {' or '.join(fixed)} needs a new sweep; extend=true does not allow it")
    else:
        lines.append("  extend=true continues in the new space, with the earlier trials that lie in it")
    raise UserError(
        "\n".join(
            [
                f"{folder}: this name already belongs to a sweep of a different space",
                *lines,
                f"  add name={folder.name}-2 (or any new name) to start another sweep, or undo the change to continue;",
                f"  only {', '.join(CHANGEABLE_LEAVES)} may change",
            ]
        )
    )


def warn_of_other_rounding(folder: SweepFolder, space: Space) -> list[str]:
    """Returns a warning if new trials round their numbers in another way than those of the earlier drivers. The leaf
    `execution` may change in a sweep, but compiled steps round otherwise than all others.
    """
    before, leaf = _earlier_leaves(folder), "execution"
    was, now = (values.get(leaf, TrialConfig.model_fields[leaf].default) for values in (before, space.raw))
    if not before or (was == "compile") == (now == "compile"):
        return []
    return [
        f"execution was {was} and is now {now}: new trials are rounded in another way than earlier ones, so small "
        f"differences between them may come from that; execution={was} continues as before"
    ]


def refuse_other_data(folder: SweepFolder, began: str, fingerprint: str, root: Path | None) -> None:
    """Checks that a sweep continues with the data with which it began, because its table may hold trials on one cohort
    only.

    Args:
        began: fingerprint of the prepared cohort with which the sweep began. It is empty if the sweep has not begun, or
            if no file states the fingerprint.
        fingerprint: the fingerprint of the cohort as it is prepared now.
        root: folder of the data.

    Raises:
        UserError: the sweep began with other data.
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
    """Returns the leaves of a space by path. The space is given as `dump_space` writes it, and the values are converted
    to JSON values.
    """
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
