"""Measures the size of report.html and the time to write it, without pictures, for a sweep of hand-made trials.

    python -m benchmarks.report_size [ARMS] [TRIALS] [PARAMETERS]

The defaults are 12 arms, 3,000 trials of 30 epochs and 6 parameters. About half the trials are pruned after 10 epochs.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from sweep.reports.page.page import Ended, write_report
from sweep.storage.layout import SweepFolder
from sweep.types import Record, State

GOALS: Final = ("val/auroc", "val/pointing")
KNOWN: Final = {"val/auroc_se": 0.02, "val/pointing_se": 0.04, "val/pointing_chance": 0.06, "val/pointing_prior": 0.5}


def trials(arms: list[str], count: int, num_parameters: int) -> list[Record]:
    """Returns trials with random settings and scores. The first parameter matters to AUROC."""
    random = np.random.default_rng(0)
    records = []
    for number in range(count):
        arm = arms[number % len(arms)]
        state: State = "pruned" if random.random() < 0.55 else "complete"
        epochs = 10 if state == "pruned" else 30
        values = {f"{arm}/objectives.logits.params.value_{index}": random.random() for index in range(num_parameters)}
        auroc = 0.7 + 0.1 * next(iter(values.values())) + 0.03 * random.standard_normal()
        metrics = {**KNOWN, "val/auroc": auroc, "val/pointing": 0.4 + 0.05 * random.standard_normal()}
        records.append(Record(number, arm, state, epochs, 60.0, values, metrics, "{}"))
    return records


def main(num_arms: int = 12, num_trials: int = 3000, num_parameters: int = 6) -> None:
    arms = ["none", *(f"teacher_{number}" for number in range(1, num_arms))]
    records = trials(arms, num_trials, num_parameters)
    epochs = [
        {"number": each.number, "arm": each.arm, "epoch": epoch, **{goal: each.metrics[goal] for goal in GOALS}}
        for each in records
        for epoch in range(1, each.epochs + 1)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = SweepFolder(Path(scratch))
        pd.DataFrame(epochs).to_parquet(folder.epochs)
        for title, ended in (("while it runs", None), ("when it ends, without pictures", Ended())):
            begin = time.process_time()
            write_report(folder, records, arms, GOALS, "val/auroc", ended=ended)
            seconds, page = time.process_time() - begin, folder.report.read_text()
            print(f"{title}: {len(page.encode()) / 1e6:.2f} MB in {seconds:.1f} s of one core")
    for title, body in re.findall(r'<h2 id="[^"]*">(.*?)</h2>(.*?)(?=<h2|</body)', page, re.DOTALL):
        print(f"  {title}: {len(body) / 1e3:.0f} kB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
