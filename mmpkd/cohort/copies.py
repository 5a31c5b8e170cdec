"""Finds pictures that a cohort holds under several patients.

If such a picture is in two parts, or in two folds, a student is scored on what it learnt, so the cohort is refused.
Within one part there is a warning. Several images of one patient may be alike.
"""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmpkd.cohort.journal import Entry
from mmpkd.cohort.likeness import Hashes, Pair, Pictures, candidates, is_same_picture
from mmpkd.config import CohortConfig
from mmpkd.types import CohortError

NUM_SHOWN = 10  # maximum number of groups, or of samples of a group, that a message lists
MAX_LEFT_OUT = 1000  # of a longer list nobody would copy the rows, and a command line cannot hold it

Group = list[int]  # positions of the samples that show one picture, ascending


def find(pictures: Pictures, hash_N: Hashes, entries: Sequence[Entry], patient_N: NDArray[np.object_]) -> list[Group]:
    """Returns the groups of samples of different patients that show the same picture.

    Args:
        hash_N: the perceptual hashes of the pictures.
        entries: the journal's entries of the same samples. Their checksums find equal images that have no hash.
    """
    leader = list(range(len(patient_N)))

    def lead(position: int) -> int:
        while leader[position] != position:
            leader[position] = position = leader[leader[position]]
        return position

    for pair in _pairs(hash_N, entries, patient_N):
        roots = lead(pair.first), lead(pair.second)
        if roots[0] == roots[1]:
            continue
        if is_same_picture(pictures.grey(pair.first), pictures.grey(pair.second), pair):
            leader[max(roots)] = min(roots)
    groups: dict[int, Group] = defaultdict(list)
    for position in range(len(leader)):
        groups[lead(position)].append(position)
    return [group for group in groups.values() if len(set(patient_N[group])) > 1]


def shown_in_both(pictures: Pictures, hash_N: Hashes, others: Pictures, hash_M: Hashes) -> NDArray[np.bool_]:
    """Returns whether each picture of a cohort is a picture of another cohort as well, N."""
    is_shown_N = np.zeros(len(hash_N), bool)
    for pairs in candidates(hash_N, hash_M):
        for pair in pairs:
            if not is_shown_N[pair.first]:
                images = pictures.grey(pair.first), others.grey(pair.second)
                is_shown_N[pair.first] = is_same_picture(*images, pair)
    return is_shown_N


def _pairs(hash_N: Hashes, entries: Sequence[Entry], patient_N: NDArray[np.object_]) -> Iterator[Pair]:
    """Yields pairs of samples that may show one picture.

    Samples of one patient are a pair only if their entries are equal.
    """
    positions: dict[Hashable, Group] = defaultdict(list)
    for position, entry in enumerate(entries):
        if not entry.appearances[0].is_blank:
            positions[entry.pixels, entry.height, entry.width, entry.appearances].append(position)
    for alike in positions.values():
        yield from (Pair(alike[0], other) for other in alike[1:])
    for pairs in candidates(hash_N):
        yield from (pair for pair in pairs if patient_N[pair.first] != patient_N[pair.second])


def refuse(
    groups: Sequence[Group], samples: pd.DataFrame, split: pd.Series, config: CohortConfig, is_public: bool
) -> None:
    """Checks that no picture is in two parts.

    Args:
        samples: the samples of a scan, in the order of the positions in `groups`.
        split: the part of each of them.
        is_public: whether the message may name samples; otherwise it names their rows only.

    Raises:
        CohortError: a picture is in two parts. The message lists the first ones, and rows that can be left out.
    """
    part_N = split.to_numpy(dtype=str)
    apart = [group for group in groups if len(set(part_N[group])) > 1]
    if not apart:
        return
    lines = []
    for group in apart[:NUM_SHOWN]:
        listed = [f"{_place(samples, position, is_public)} in {part_N[position]}" for position in group[:NUM_SHOWN]]
        lines.append("; ".join(listed) + (f"; and {len(group) - NUM_SHOWN} more" if len(group) > NUM_SHOWN else ""))
    if len(apart) > NUM_SHOWN:
        lines.append(f"and {len(apart) - NUM_SHOWN} more")
    surplus = [position for group in apart for position in _surplus(group, samples, part_N)]
    remedy = "If the images of a line are of one patient, give these rows the same patient in the source"
    if option := leave_out_option(samples, surplus, config):
        remedy += f". Or keep one patient of each line and leave out the others: {option}"
    counted = f"{len(apart)} picture{'s are' * (len(apart) > 1) or ' is'}"
    problem = f"{counted} in several parts of the cohort, under different patients: pixel for pixel, or nearly so"
    raise CohortError("\n  ".join([f"cohort {config.reader}: {problem}", *lines]) + f"\n{remedy}.")


def leave_out_option(samples: pd.DataFrame, positions: Sequence[int], config: CohortConfig) -> str:
    """Returns the option of a command line that leaves out the samples at some positions, and those that are left out
    already. The text is empty if they are more than MAX_LEFT_OUT."""
    if len(positions) > MAX_LEFT_OUT:
        return ""
    rows = [*config.leave_out, *(_row(samples, position) for position in positions)]
    return shlex.quote(f"cohort.leave_out={json.dumps(rows, separators=(',', ':'))}")


def warnings(groups: Sequence[Group], samples: pd.DataFrame, is_public: bool) -> list[str]:
    """Returns a warning if different patients have images that show the same picture. It lists the first ones."""
    if not groups:
        return []
    shown = [" and ".join(_place(samples, position, is_public) for position in group[:3]) for group in groups]
    more = f"; and {len(shown) - 3} more" if len(shown) > 3 else ""
    counted = "1 picture is" if len(groups) == 1 else f"{len(groups)} pictures are"
    where = f"in one part under different patients, pixel for pixel or nearly so: {'; '.join(shown[:3])}{more}"
    return [f"warning: {counted} {where}. If they are of one patient, name the patient alike in the source"]


def _surplus(group: Group, samples: pd.DataFrame, part_N: NDArray[np.str_]) -> Group:
    """Returns the samples of a group without those of one patient, who is of the test part if any of them is."""
    kept = max(group, key=lambda position: (part_N[position] == "test", part_N[position] == "val", -position))
    patient_N = samples["patient"].to_numpy()
    return [position for position in group if patient_N[position] != patient_N[kept]]


def _row(samples: pd.DataFrame, position: int) -> int | str:
    if "row" not in samples:
        return position + 1
    row = samples["row"].iloc[position]
    return row if isinstance(row, str) else int(row)


def _place(samples: pd.DataFrame, position: int, is_public: bool) -> str:
    word = "row" if "row" in samples else "sample"
    name = f" ({samples.index[position]})" if is_public else ""
    return f"{word} {_row(samples, position)}{name}"
