"""Pictures of the same test images under one student of each arm. Nothing is drawn of a credentialed cohort."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmpkd.cohort.store import Store
from mmpkd.scoring.pictures import student_maps
from sweep.reports.page.pictures import LEGEND, NUM_IMAGES, note, picture, picture_table
from sweep.storage.layout import SweepFolder
from sweep.students import read_student
from sweep.types import Record


def pictures(store: Store, trained: SweepFolder, records: Sequence[Record], rows: NDArray[np.int64]) -> str:
    """Returns a table of pictures as HTML, with a column for the student of each arm on the first seed, or the reason
    why there is none.

    Args:
        rows: the samples of the tested part. Those with a region are drawn, evenly spaced.
    """
    if store.facts.credentialed:
        return note("The cohort is credentialed, so there are no pictures of it.")
    with_region = np.array([row for row in rows if store.rois(int(row))])
    if not len(with_region):
        return note("No image has a region, so there is nothing to compare maps with.")
    drawn = with_region[np.linspace(0, len(with_region) - 1, min(NUM_IMAGES, len(with_region))).astype(int)]
    columns = [("image", [picture(store, int(row), None) for row in drawn])]
    for record in records:
        if record.repeat_of is None and record.state == "complete":
            maps = student_maps(read_student(trained, record.number), store, drawn)
            cells = [picture(store, int(row), map_hw) for row, map_hw in zip(drawn, maps, strict=True)]
            columns.append((record.arm, cells))
    return picture_table(columns) + note(LEGEND.replace("validation part", "test part"))
