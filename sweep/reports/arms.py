"""Counts what each arm of a sweep got: configurations by how they ended, and device-hours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.table import Table

from sweep.search.budget import Ledger
from sweep.types import Record

ARM_COLUMNS: Final = ("arm", "started", "complete", "pruned", "failed", "device-hours")


@dataclass(frozen=True)
class ArmTotals:
    """What an arm got. Runs of a configuration on further seeds add to the device-hours only.

    Attributes:
        started: number of started configurations, including those that wait to be continued.
        pruned: number of configurations that early stopping ended.
    """

    arm: str
    started: int
    complete: int
    pruned: int
    failed: int
    device_hours: float

    def cells(self) -> list[str]:
        """Returns the cells of the arm's row in a table with the columns `ARM_COLUMNS`."""
        counts = (self.started, self.complete, self.pruned, self.failed)
        return [self.arm, *map(str, counts), f"{self.device_hours:.3g}"]


def totals_by_arm(records: Sequence[Record], ledger: Ledger) -> list[ArmTotals]:
    """Returns what each arm of a sweep got.

    Args:
        records: all finished trials of the sweep.
        ledger: the started configurations and the device-seconds of all trials, including unfinished ones.
    """
    states = Counter((record.arm, record.state) for record in records if record.repeat_of is None)
    return [
        ArmTotals(
            arm=arm,
            started=started,
            complete=states[arm, "complete"],
            pruned=states[arm, "pruned"],
            failed=states[arm, "failed"],
            device_hours=ledger.spent[arm] / 3600,
        )
        for arm, started in ledger.started.items()
    ]


def arms_table(totals: Sequence[ArmTotals]) -> Table:
    """Returns a table of what each arm got: configurations by how they ended, and device-hours."""
    table = Table(*ARM_COLUMNS, title="Arms", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for arm in totals:
        table.add_row(*arm.cells())
    return table
