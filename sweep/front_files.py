"""Collects the files of a sweep's best trials for their runs in the tracking server: the student, and overlays of its
map on validation images.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from mmpkd.cohort.store import Store
from mmpkd.scoring.pictures import example_rows, overlay_sheet
from mmpkd.types import UserError
from sweep.storage.events import Spool, SweepSummarized, TrialFilesWritten
from sweep.storage.layout import OVERLAYS, STUDENT
from sweep.students import read_student_of
from sweep.transfer.attempts import Kept, kept_student


def spool_files(spool: Spool, numbers: Iterable[int], store: Path, fold: int) -> list[str]:
    """Records in the spool the student and the overlays of each of these trials that keeps its student, unless an
    earlier driver has recorded them. Writes overlays that are missing; a student that answers has none.

    Args:
        store: the prepared cohort, which must not be credentialed.
        fold: its validation fold.

    Returns:
        A line for each trial whose files could not be read or written.
    """
    folder, problems = spool.folder, list[str]()
    recorded = dict[int, list[str]]()
    for _, event in spool.read():
        if isinstance(event, TrialFilesWritten):
            recorded[event.number] = event.paths
        elif isinstance(event, SweepSummarized):  # the files of trials that it does not mark have been deleted there
            recorded = {number: paths for number, paths in recorded.items() if str(number) in event.marks}
    for number in numbers:
        try:
            kept = kept_student(folder, number)
            if kept is None:
                continue
            has_map = kept.name == STUDENT
            if has_map and not (overlays := kept.attempt.child(OVERLAYS)).exists():
                overlays.write_bytes(_overlays(kept, store, fold))
        except (OSError, UserError) as error:  # a damaged student must not keep a sweep from ending
            problems.append(f"MLflow gets neither student nor overlays of trial {number}: {error}")
            continue
        names = (kept.name, *([OVERLAYS] if has_map else []))
        paths = [f"{folder.checkpoints.name}/{number}/{kept.attempt.name}/{name}" for name in names]
        if recorded.get(number) != paths:
            spool.append(TrialFilesWritten(number, paths))
    return problems


def _overlays(kept: Kept, store: Path, fold: int) -> bytes:
    """Returns overlays of the student's map on validation images as a PNG file."""
    exported, opened, content = read_student_of(kept), Store.open(store), io.BytesIO()
    overlay_sheet(exported, opened, example_rows(opened, fold)).save(content, "PNG")
    return content.getvalue()
