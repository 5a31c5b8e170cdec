"""Is a store still what its sources say?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from mmpkd.cohort import reader_for
from mmpkd.cohort.decode import Depth, decode
from mmpkd.cohort.facts import BadSample, Reader
from mmpkd.cohort.prepare import identify, place
from mmpkd.cohort.source import NUM_SHOWN, missing_files
from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig
from mmpkd.types import CohortError


def check(config: CohortConfig, cache: Path, count: int | None, console: Console) -> None:
    """Holds a store against its manifest and its sources, `count` samples of it (None: all) pixel by pixel.

    Raises:
        CohortError: there is no store of these sources and options; or all that differs.
    """
    reader = reader_for(config)
    scan = reader.scan()
    target = place(cache, identify(config, reader, scan))
    if not target.exists():
        others = sorted(path.name for path in target.parent.glob(f"{config.reader}-*") if path.is_dir())
        why = f"; there are {', '.join(others)}, of other files, tables or options" if others else ""
        raise CohortError(f"no store of these sources and options in {target.parent.absolute()}{why}: prepare it first")
    store = Store.open(target)
    problems = [f"{len(missing)} samples lack a file" for missing in (missing_files(config.root, scan),) if missing]
    rows = np.arange(len(store.sample_ids))
    if count is not None:
        rows = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))
    depth = Depth(store.manifest["bit_depth"], store.manifest["window"] and tuple(store.manifest["window"]))
    for row in track(rows, "decoding again", console=console, transient=True, disable=not console.is_terminal):
        if problem := _compared(store, reader, int(row), depth):
            problems.append(f"row {row + 1} of the store: {problem}")
    if problems:
        shown = problems[:NUM_SHOWN] + [f"and {len(problems) - NUM_SHOWN} more"] * (len(problems) > NUM_SHOWN)
        mend = f"delete the store (rm -r {target}) and prepare it again"
        raise CohortError("\n  ".join([f"{target} differs from its sources:", *shown, mend]))
    for sentence in reader.deviations(scan):
        console.print(f"differs from the data set as published: {sentence}", highlight=False, markup=False)
    told = f"{target}: whole, and {len(rows)} of {len(store.sample_ids)} samples decoded again are as stored"
    console.print(told, highlight=False, markup=False)


def _compared(store: Store, reader: Reader, row: int, depth: Depth) -> str:
    """What differs; empty if nothing does."""
    facts = store.facts
    try:
        decoded = decode(reader.load(str(store.sample_ids[row])), facts.image_size, facts.channels, facts.views, depth)
    except BadSample as bad:
        return bad.reason
    if not np.array_equal(decoded.pixels_VCHW[0], store.image_NCHW[row]):
        return "the image has other pixels"
    stored = store.rois(row)
    found = [(facts.roi_labels.index(roi.label), roi.store_runs) for roi in decoded.rois]
    found.sort(key=lambda one: one[0])
    alike = len(found) == len(stored) and all(
        one == other and np.array_equal(runs, known) for (one, runs), (other, known) in zip(found, stored, strict=True)
    )
    return "" if alike else "it has other regions"
