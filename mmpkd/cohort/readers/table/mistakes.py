"""Reports wrong cells of a user's table. All wrong cells of a column are reported as a single mistake."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mmpkd.cohort.formats.tables import describe_rows
from mmpkd.cohort.readers.table.params import TableParams
from mmpkd.types import Mistake


def cell_mistakes(params: TableParams, key: str, problem: str, column: pd.Series, wrong: pd.Series) -> list[Mistake]:
    """Returns one mistake under `cohort.params.<key>` for all wrong cells of a column, or none if no cell is wrong.

    The mistake lists the rows of the wrong cells, and also their values if the data are public.

    Args:
        column: cells of the column. The index is the position of a cell's row in the table. Rows may be left out.
        wrong: a bool for each cell of `column`, with the same index.
    """
    positions = wrong.index[wrong.to_numpy(bool, na_value=False)]
    if not len(positions):
        return []
    cells = "1 cell is" if len(positions) == 1 else f"{len(positions)} cells are"
    is_wrong = np.zeros(max(positions) + 1, bool)
    is_wrong[positions] = True
    rows = describe_rows(is_wrong, None if params.credentialed else column.reindex(range(len(is_wrong))))
    return [Mistake(f"cohort.params.{key}", f"{cells} {problem}: {params.file} {rows}")]
