"""What is wrong with the cells of a user's own table, told once for all wrong cells of a column."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mmpkd.cohort.formats.tables import describe_rows
from mmpkd.cohort.readers.table.params import TableParams
from mmpkd.types import Mistake


def cell_mistakes(params: TableParams, key: str, problem: str, column: pd.Series, wrong: pd.Series) -> list[Mistake]:
    """One mistake under `cohort.params.<key>` for all cells of a column that are `wrong`: their rows, and of public
    data their values; none if no cell is. Both are indexed by the position of the row, and may be of some rows."""
    positions = wrong.index[wrong.to_numpy(bool, na_value=False)]
    if not len(positions):
        return []
    cells = "1 cell is" if len(positions) == 1 else f"{len(positions)} cells are"
    is_wrong = np.zeros(max(positions) + 1, bool)
    is_wrong[positions] = True
    rows = describe_rows(is_wrong, None if params.credentialed else column.reindex(range(len(is_wrong))))
    return [Mistake(f"cohort.params.{key}", f"{cells} {problem}: {params.file} {rows}")]
