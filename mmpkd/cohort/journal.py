"""Decoding a cohort, in parallel and so that it can be continued.

Pixels go straight to their places in the preallocated arrays. After each block of samples the
arrays are flushed, then a line per sample is appended to `journal.jsonl`: a sample with a line is done.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmpkd.cohort.decode import Appearance, Decoded, Depth, Roi, decode
from mmpkd.cohort.facts import BadSample, Reader, Scan
from mmpkd.machine.checksums import DamagedError, checksum, objects_in, sealed, unsealed
from mmpkd.machine.errors import machine_fault
from mmpkd.machine.resources import cores
from mmpkd.types import CohortError

BLOCK = 64  # samples decoded between two flushes
JOURNAL = "journal.jsonl"
QUIET_SECONDS = 1.0  # a preparation shorter than this shows no bar


@dataclass(frozen=True)
class Entry:
    """What is known of a decoded sample besides its pixels."""

    height: int
    width: int
    rois: tuple[Roi, ...]
    num_empty: int
    looks: tuple[Appearance, ...]
    pixels: str  # checksum of its pixels, of image and views


def read_journal(partial: Path) -> dict[str, Entry]:
    """The samples that are done; a damaged line is as if it had not been written, and its sample is decoded again."""
    path = partial / JOURNAL
    entries = {}
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        with suppress(DamagedError, LookupError, TypeError, ValueError):
            for one in objects_in(line.strip(b"\0")):
                said = unsealed(one)
                rois = tuple(
                    Roi(label, np.array(runs, np.int32), np.array(stored, np.int32))
                    for label, runs, stored in said["rois"]
                )
                looks, pixels = tuple(Appearance(*one) for one in said["looks"]), said["pixels"]
                entry = Entry(said["height"], said["width"], rois, said["num_empty"], looks, pixels)
                entries[said["sample"]] = entry
    return entries


def _pixel_checksum(arrays: Sequence[np.memmap], row: int) -> str:
    """Checksum of what a sample has in all arrays."""
    crc = ""
    for array in arrays:
        crc = checksum(array[row].tobytes(), crc)
    return crc


def decode_all(
    reader: Reader, scan: Scan, partial: Path, arrays: Sequence[np.memmap], size: int, depths: Sequence[Depth]
) -> dict[str, BadSample]:
    """Decode what the journal of `partial` lacks into `arrays` (images, then each view; all N x C x H x W).

    Threads, not processes: Pillow, zlib and numpy let go of the interpreter while they work.

    Returns:
        The samples that cannot be used.
    """

    def one(sample: str) -> Decoded | BadSample:
        try:
            raw = reader.load(sample)
            assert {label for label, _ in raw.rois} <= set(scan.roi_labels), "an ROI label that the scan does not list"
            return decode(raw, size, scan.channels, scan.views, depths)
        except BadSample as bad:
            if fault := machine_fault(bad):
                # With `max_bad` a good sample would be left out for ever.
                raise CohortError(f"preparing stopped: {fault}; once that is mended, the same command goes on") from bad
            return BadSample(bad.file or next(iter(scan.files.get(sample, ())), ""), bad.reason)

    ids = [str(sample) for sample in scan.samples.index]
    _drop_unfinished_line(partial / JOURNAL)
    noted = read_journal(partial)
    done = {
        sample
        for row, sample in enumerate(ids)
        if sample in noted and noted[sample].pixels == _pixel_checksum(arrays, row)
    }
    todo = [(row, sample) for row, sample in enumerate(ids) if sample not in done]
    bad: dict[str, BadSample] = {}
    columns = (TextColumn("preparing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    bar = progress.add_task("", total=len(ids), completed=len(done))
    started = time.monotonic()
    with ThreadPoolExecutor(cores().amount) as pool:
        try:
            for start in range(0, len(todo), BLOCK):
                block = todo[start : start + BLOCK]
                entries: dict[str, Entry] = {}
                for (row, sample), decoded in zip(block, pool.map(one, (name for _, name in block)), strict=True):
                    if isinstance(decoded, BadSample):
                        bad[sample] = decoded
                    else:
                        for array, pixels_CHW in zip(arrays, decoded.pixels_VCHW, strict=True):
                            array[row] = pixels_CHW
                        known = decoded.height, decoded.width, decoded.rois, decoded.num_empty, decoded.looks
                        entries[sample] = Entry(*known, _pixel_checksum(arrays, row))
                    progress.advance(bar)
                    if time.monotonic() - started > QUIET_SECONDS:
                        progress.start()
                for array in arrays:
                    array.flush()
                _append_entries(partial / JOURNAL, entries)
        finally:
            progress.stop()
            pool.shutdown(cancel_futures=True)
    return bad


def _drop_unfinished_line(path: Path) -> None:
    """Cut off a last line that an interruption left without an end: it must not run into the next one."""
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def _append_entries(path: Path, entries: dict[str, Entry]) -> None:
    with path.open("a") as file:
        for sample, entry in entries.items():
            rois = [(roi.label, roi.runs.tolist(), roi.store_runs.tolist()) for roi in entry.rois]
            file.write(sealed({**vars(entry), "sample": sample, "rois": rois}) + "\n")
        file.flush()
        os.fsync(file.fileno())
