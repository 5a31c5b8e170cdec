"""Pictures of the same test images under one student of each arm, or with its answers. Nothing is drawn of a
credentialed cohort.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmpkd.cohort.store import Store
from mmpkd.export.student_file import Exported
from mmpkd.scoring.pictures import student_maps
from sweep.reports.page.pictures import CREDENTIALED, NUM_IMAGES, Answers, note, picture, picture_table, side_of
from sweep.storage.layout import SweepFolder
from sweep.types import Record
from sweep.verdict.opening.scores import student_of

LEGEND: Final = (
    "Each column is the student of one arm on the first seed. Bright: where it looks. Outlined: the region. The images "
    "are spread over the tested part; they were not chosen by their scores."
)

LEGEND_OF_ANSWERS: Final = (
    "Each row is a question about a test image, with its true answer; each column is the student of one arm on the "
    "first seed. Boxes of an answer are solid, boxes of a question dashed. The questions are spread over the tested "
    "part; they were not chosen by their scores."
)


def pictures(store: Store, rows: NDArray[np.int64], trained: SweepFolder, records: Sequence[Record]) -> str:
    """Returns a table of pictures as HTML, with a column for the student of each arm on the first seed, or the reason
    why there is none.

    Args:
        rows: the samples of the tested part. Those with a region are drawn, evenly spaced.
    """
    if store.facts.credentialed:
        return note(CREDENTIALED)
    firsts = [record for record in records if record.repeat_of is None and record.state == "complete"]
    side = side_of(len(firsts))
    if store.facts.questions is not None:
        examples = Answers(store, rows, side)
        if not examples.rows:
            return note(examples.missing)
        answered = [(record.arm, examples.of_student(trained, record)) for record in firsts]
        return note(LEGEND_OF_ANSWERS) + picture_table([examples.first, *answered], side)
    with_region = np.array([row for row in rows if store.rois(int(row))])
    if not len(with_region):
        return note("No image has a region, so there is nothing to compare maps with.")
    drawn = with_region[np.linspace(0, len(with_region) - 1, min(NUM_IMAGES, len(with_region))).astype(int)]
    columns = [("image", [picture(store, int(row), None, side) for row in drawn])]
    for record in firsts:
        exported = student_of(trained, record)
        assert isinstance(exported, Exported), "the cohort has labels"
        maps = student_maps(exported, store, drawn)
        cells = [picture(store, int(row), map_hw, side) for row, map_hw in zip(drawn, maps, strict=True)]
        columns.append((record.arm, cells))
    return note(LEGEND) + picture_table(columns, side)
