"""Checks a prepared store against its manifest and its source files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from mmpkd.cohort import questions, reader_for
from mmpkd.cohort.decode import Depth, decode, depth_of, read_depth
from mmpkd.cohort.facts import BadSample, Reader
from mmpkd.cohort.prepare import store_identity, store_path
from mmpkd.cohort.source import NUM_SHOWN, missing_files, scan_cohort
from mmpkd.cohort.store import MANIFEST, Store
from mmpkd.config import CohortConfig
from mmpkd.machine.checksums import first_changed
from mmpkd.machine.errors import machine_fault
from mmpkd.types import CohortError


def check(config: CohortConfig, cache: Path, count: int | None, console: Console) -> None:
    """Checks a store against its manifest and its source files.

    Args:
        count: number of samples that are decoded again and compared pixel by pixel. None compares all samples.

    Raises:
        CohortError: no store of these sources and options exists, or the store differs from its manifest or its
            sources. The message lists all differences.
    """
    reader = reader_for(config)
    scan = scan_cohort(config, reader)
    identity = store_identity(config, reader, scan)
    target = store_path(cache, identity)
    if not target.exists():
        why = "".join(
            f"\n  {path.name} differs in {_describe_differences(path, identity)}" for path in _other_stores(target)
        )
        remedy = "prepare it first: python -m mmpkd.cohort prepare, with the same words"
        raise CohortError(f"no store of these sources and options in {target.parent.absolute()}; {remedy}{why}")
    store = Store.open(target)
    if name := first_changed(target, store.manifest.get("checksums", {})):
        raise CohortError(f"{target / name} is damaged: its checksum differs; delete the store (rm -r {target})")
    problems = [
        f"{len(missing)} samples lack a file"
        for missing in (missing_files(config.root, scan, config.allow_outside),)
        if missing
    ]
    if scan.text is not None:
        stored = store.text(list(store.facts.sections))
        has_changed = (stored.fillna("") != scan.text.astype(object).loc[stored.index].fillna("")).any(axis=1)
        num_changed = int(has_changed.sum())
        problems += [f"the report texts of {num_changed} samples have changed"] if num_changed else []
    if scan.questions is not None:
        tables = (questions.about(scan.questions, list(store.sample_ids)), store.questions)
        current, stored = (table[list(questions.COLUMNS)].fillna("").astype(str) for table in tables)
        if not current.equals(stored):
            problems.append("the questions or answers have changed")
    views = [store.view(name) for name in store.facts.views]
    rows = np.arange(len(store.sample_ids))
    if count is not None:
        rows = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))
    depths = [depth_of(store.manifest), *(read_depth(*stated) for stated in store.manifest["view_depths"].values())]
    for row in track(rows, "decoding again", console=console, transient=True, disable=not console.is_terminal):
        if problem := _compare_sample(store, reader, int(row), views, depths):
            problems.append(f"sample {row + 1} of the store: {problem}")
    if problems:
        shown = problems[:NUM_SHOWN] + [f"and {len(problems) - NUM_SHOWN} more"] * (len(problems) > NUM_SHOWN)
        remedy = f"delete the store (rm -r {target}) and prepare it again"
        raise CohortError("\n  ".join([f"{target} differs from its sources:", *shown, remedy]))
    for sentence in reader.deviations(scan):
        console.print(f"differs from the data set as published: {sentence}", highlight=False, markup=False)
    result = f"{target}: complete, and {len(rows)} of {len(store.sample_ids)} samples decoded again are as stored"
    console.print(result, highlight=False, markup=False)


def _other_stores(target: Path) -> list[Path]:
    """Returns the folders of all complete stores of the same reader."""
    reader = target.name.rsplit("-", 1)[0]
    return sorted(path.parent for path in target.parent.glob(f"{reader}-*/{MANIFEST}") if path.parent.suffix == "")


def _describe_differences(path: Path, identity: Mapping[str, Any]) -> str:
    """Returns, in words, which parts of another store's identity differ from `identity`."""
    other = json.loads((path / MANIFEST).read_text())
    words = {"source": "the files or tables", "params": "cohort.params", "image_size": "cohort.image_size"}
    words |= {"contrast": "cohort.window or cohort.clahe", "depth": "the student that it is to test"}
    words |= {"leave_out": "cohort.leave_out"}
    optional = ("contrast", "depth", "leave_out")
    names = [name for name in dict.fromkeys((*identity, *optional)) if name != "fingerprint"]
    different = [words.get(name, "the program's version") for name in names if other.get(name) != identity.get(name)]
    return ", ".join(dict.fromkeys(different))


def _compare_sample(
    store: Store, reader: Reader, row: int, views: Sequence[np.ndarray], depths: Sequence[Depth]
) -> str:
    """Decodes one sample again and describes how it differs from the store. The text is empty if it does not differ."""
    facts = store.facts
    try:
        decoded = decode(reader.load(str(store.sample_ids[row])), facts.image_size, facts.channels, facts.views, depths)
    except BadSample as bad:
        if fault := machine_fault(bad):
            raise CohortError(f"checking stopped: {fault}; fix that, and run the same command again") from bad
        return bad.reason
    if not np.array_equal(decoded.pixels_VCHW[0], store.image_NCHW[row]):
        return "the image has other pixels"
    for name, view, pixels in zip(facts.views, views, decoded.pixels_VCHW[1:], strict=True):
        if not np.array_equal(pixels, view[row]):
            return f"the view {name} has other pixels"
    stored = store.rois(row)
    regions = [(facts.roi_labels.index(roi.label), roi.store_runs) for roi in decoded.rois]
    regions.sort(key=lambda region: region[0])
    is_same = len(regions) == len(stored) and all(
        label == stored_label and np.array_equal(runs, stored_runs)
        for (label, runs), (stored_label, stored_runs) in zip(regions, stored, strict=True)
    )
    return "" if is_same else "it has other regions"
