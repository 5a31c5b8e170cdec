"""Epochs that have the goals alone, as most have, in the tables, the summary, the report and the status of a sweep."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from sweep.reports.details import as_json
from sweep.reports.page.page import write_report
from sweep.search.searcher import Search
from sweep.storage.layout import SweepFolder
from sweep.storage.reader import read_sweep
from tests.sweep.fake import report
from tests.sweep.swept import GOALS, swept, untracked

__all__ = ["untracked"]  # a fixture


def as_trained(job: dict[str, Any], epoch: int) -> dict[str, Any]:
    """Returns the report of an epoch with the metrics that a training has computed."""
    full = report(job, epoch)
    complete = epoch in {*job["rungs"], 4}
    return {**full, "metrics": {name: full["metrics"][name] for name in full["metrics"] if complete or name in GOALS}}


def play_to_every_end(search: Search) -> None:
    """Trials 0 and 1 are complete, trial 2 is stopped at its rung, trial 3 fails before it, and trial 4 still runs."""
    search.max_running = 9
    for number, epochs in enumerate((4, 4, 2, 1, 1)):
        trial_id = str(number)
        job = search.suggest(trial_id)
        assert job["number"] == number and job["rungs"] == [2]
        last = [as_trained(job, epochs)]
        for epoch in range(1, epochs):
            search.on_trial_result(trial_id, {"reports": [as_trained(job, epoch)]})
        if number < 3:
            search.on_trial_complete(trial_id, {"reports": last})
        else:
            search.on_trial_result(trial_id, {"reports": last})
        if number == 3:
            failure = {"error": "a loss term is infinite", "cause": "diverged"}
            search.on_trial_complete(trial_id, {"reports": [], **failure})


def test_epochs_with_the_goals_alone_are_no_epochs_with_unknown_errors(tmp_path: Path) -> None:
    words = "search.trials=5", "search.early_stopping={reduction: 2}"
    search, text = swept(tmp_path, *words, play=play_to_every_end)
    folder = SweepFolder(tmp_path / "runs" / "fake")
    assert re.search(r"0\.\d{3} ± 0\.020", text) and not re.search(r"\bnan\b", text)
    epochs = pd.read_parquet(folder.epochs).set_index(["number", "epoch"])
    assert epochs[list(GOALS)].notna().all(axis=None), "curves have every epoch"
    with_error = epochs.index[epochs["val/auroc_se"].notna()]
    assert list(with_error) == [(0, 2), (0, 4), (1, 2), (1, 4), (2, 2)]
    trials = pd.read_parquet(folder.trials).set_index("number")
    assert trials["state"].to_dict() == {0: "complete", 1: "complete", 2: "pruned", 3: "failed"}
    assert trials["val/pointing_chance"].notna().to_dict() == {0: True, 1: True, 2: True, 3: False}
    assert trials.loc[3, list(GOALS)].notna().all()

    arms = list(search.space.arms)
    write_report(folder, search.records(), arms, GOALS, "val/auroc")
    page = folder.report.read_text().rpartition("</script><p")[2]
    assert "Learning curves" in page and not re.search(r"\bnan\b|NaN", page)
    assert "NaN" not in json.dumps(as_json(read_sweep(folder)))
