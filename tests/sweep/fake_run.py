"""`python -m tests.sweep.fake_run`: sweep.run with fake trainings and their log, for tests that kill a driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from mmpkd.machine.loading import loading

with loading():
    from rich.console import Console

    from benchmarks.witness import logged
    from mmpkd.command import command_line
    from mmpkd.config import TrialConfig
    from sweep.driver import run_sweep
    from sweep.interrupt import exit_process, requests_end_the_driver
    from sweep.options import read_run_options
    from sweep.space.space import load_space
    from tests.sweep.fake_sweep import FAKE


@requests_end_the_driver()
def main(words: Sequence[str]) -> None:
    options, mistakes = read_run_options(words)
    space, space_mistakes = load_space(options.space, options.overrides)
    assert space is not None and not mistakes and not space_mistakes
    assert space.search.maximize is not None
    example = TrialConfig.model_validate({"cohort": {"reader": "synthetic"}, "epochs": 4})
    planned: Any = SimpleNamespace(goals=space.search.maximize, facts=None, example=example, as_json=dict)
    functions = replace(FAKE, training=logged(FAKE.training))
    exit_process(run_sweep(space, planned, options, Console(), functions))


if __name__ == "__main__":
    with command_line() as words:
        main(words)
