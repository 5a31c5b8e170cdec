"""`python -m tests.sweep.fake_run`: sweep.run with the fake worker and its log, for tests that kill a whole driver."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from benchmarks.witness import logged
from mmpkd.command import run as command
from mmpkd.config import TrialConfig
from sweep.interrupt import leave, requests_end_the_driver
from sweep.options import read_run_options
from sweep.run import sweep
from sweep.space.space import load_space
from tests.sweep.fake import FakeWorker


@requests_end_the_driver()
def main(words: Sequence[str]) -> None:
    options, mistakes = read_run_options(words)
    space, found = load_space(options.space, options.overrides)
    assert space is not None and not mistakes and not found
    assert space.search.maximize is not None
    example = TrialConfig.model_validate({"cohort": {"reader": "synthetic"}, "epochs": 4})
    # Not planned, which would load torch for nothing.
    planned: Any = SimpleNamespace(goals=space.search.maximize, facts=None, example=example, as_json=dict)
    leave(sweep(space, planned, options, Console(), logged(FakeWorker)))


if __name__ == "__main__":
    command(main)
