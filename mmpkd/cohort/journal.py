"""Decodes the samples of a cohort in parallel, and can continue after an interruption.

The pixels of each sample are written to the sample's row of preallocated arrays. After each block of samples the arrays
are flushed to the disk, and only then a line for each sample of the block is appended to `journal.jsonl`. A sample with
a line in that file is done, and a continued preparation does not decode it again.
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
QUIET_SECONDS = 1.0  # a shorter preparation shows no progress bar


@dataclass(frozen=True)
class Entry:
    """A sample's line of the journal. It holds everything about the decoded sample except the pixels."""

    height: int
    width: int
    rois: tuple[Roi, ...]
    num_empty: int
    appearances: tuple[Appearance, ...]  # the journal file calls this field `looks`
    pixels: str  # checksum of the pixels of the image and of its views


def read_journal(partial: Path) -> dict[str, Entry]:
    """Returns the entry of each sample that is done, by sample id.

    Damaged lines are skipped. `decode_all` decodes the samples of such lines again.
    """
    path = partial / JOURNAL
    entries = {}
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        with suppress(DamagedError, LookupError, TypeError, ValueError):
            for written in objects_in(line.strip(b"\0")):
                content = unsealed(written)
                rois = tuple(
                    Roi(label, np.array(runs, np.int32), np.array(stored, np.int32))
                    for label, runs, stored in content["rois"]
                )
                appearances = tuple(Appearance(*fields) for fields in content["looks"])
                entries[content["sample"]] = Entry(
                    content["height"], content["width"], rois, content["num_empty"], appearances, content["pixels"]
                )
    return entries


def _pixel_checksum(arrays: Sequence[np.memmap], row: int) -> str:
    """Returns the checksum of a sample's pixels in all arrays."""
    crc = ""
    for array in arrays:
        crc = checksum(array[row].tobytes(), crc)
    return crc


def decode_all(
    reader: Reader, scan: Scan, partial: Path, arrays: Sequence[np.memmap], size: int, depths: Sequence[Depth]
) -> dict[str, BadSample]:
    """Decodes the samples that have no line in the journal of the folder `partial`; writes their pixels to `arrays`.

    It uses threads, not processes, because Pillow, zlib and numpy release the interpreter's lock while they work.

    Args:
        arrays: the array of the images, then an array for each view; each is N x C x H x W.
        size: height and width of the stored square in pixels.
        depths: the Depth of the images, then the Depth of each view.

    Returns:
        The samples that cannot be used, by sample id, each with its error.
    """

    def decode_sample(sample: str) -> Decoded | BadSample:
        try:
            raw = reader.load(sample)
            assert {label for label, _ in raw.rois} <= set(scan.roi_labels), "an ROI label that the scan does not list"
            return decode(raw, size, scan.channels, scan.views, depths)
        except BadSample as bad:
            if fault := machine_fault(bad):
                # Without this, a good sample could be left out of the store for ever, as one of the `max_bad` samples.
                raise CohortError(f"preparing stopped: {fault}; fix that, and the same command continues") from bad
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
                for (row, sample), decoded in zip(
                    block, pool.map(decode_sample, (name for _, name in block)), strict=True
                ):
                    if isinstance(decoded, BadSample):
                        bad[sample] = decoded
                    else:
                        for array, pixels_CHW in zip(arrays, decoded.pixels_VCHW, strict=True):
                            array[row] = pixels_CHW
                        entries[sample] = Entry(
                            height=decoded.height,
                            width=decoded.width,
                            rois=decoded.rois,
                            num_empty=decoded.num_empty,
                            appearances=decoded.appearances,
                            pixels=_pixel_checksum(arrays, row),
                        )
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
    """Removes the last line if an interruption left it without a line end, because the next line would be joined to
    it."""
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def _append_entries(path: Path, entries: dict[str, Entry]) -> None:
    with path.open("a") as file:
        for sample, entry in entries.items():
            rois = [(roi.label, roi.runs.tolist(), roi.store_runs.tolist()) for roi in entry.rois]
            content = {
                "height": entry.height,
                "width": entry.width,
                "rois": rois,
                "num_empty": entry.num_empty,
                "looks": entry.appearances,
                "pixels": entry.pixels,
                "sample": sample,
            }
            file.write(sealed(content) + "\n")
        file.flush()
        os.fsync(file.fileno())
