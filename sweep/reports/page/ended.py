"""What the report shows only of a sweep that has ended: the command, the sizes of the parts, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpkd.types import UserError
from sweep import interrupt
from sweep.reports.page.page import Ended
from sweep.selection import Selection
from sweep.storage.layout import SweepFolder
from sweep.storage.reader import continue_command, read_sweep
from sweep.types import Record


def ended(
    folder: SweepFolder,
    store: str,
    records: Sequence[Record],
    arms: Sequence[str],
    goals: Sequence[str],
    select: str | Selection,
) -> Ended:
    """Returns what the report of a sweep that has ended adds. What cannot be made is left out with the reason.

    Args:
        store: folder of the prepared cohort.
    """
    facts = {}
    if folder.spool.exists() and (command := continue_command(read_sweep(folder))):
        facts["command"] = command
    if not any(record.state == "complete" for record in records) or not Path(store).is_dir():
        return Ended(facts)
    if interrupt.requested():
        return Ended(facts, "<p>The sweep was asked to end, so no pictures were drawn.</p>")
    from mmpkd.cohort.store import Store
    from sweep.reports.page.pictures import pictures

    try:
        opened = Store.open(Path(store))
        sizes = {part: len(opened.rows(part)) for part in ("train", "val", "test")}
        named = zip(("training", "validation", "test"), sizes.values(), strict=True)
        facts["split"] = ", ".join(f"{count} {name} images" for name, count in named)
        return Ended(facts, pictures(opened, folder, records, arms, goals, select))
    except UserError:  # its text may name files of the cohort
        return Ended(facts, "<p>The prepared cohort or a student could not be read, so no pictures were drawn.</p>")
    except Exception as error:  # a report without pictures is worth more than none
        return Ended(facts, f"<p>No pictures were drawn: {type(error).__name__}.</p>")
