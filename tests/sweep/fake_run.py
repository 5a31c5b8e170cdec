"""`python -m tests.sweep.fake_run`: sweep.run with the fake worker, for tests that kill a whole driver."""

from __future__ import annotations

import sys

from rich.console import Console

from mmpkd.command import run as command
from mmpkd.types import ConfigError
from sweep.plan import plan
from sweep.run import read_words, sweep
from sweep.space import load_space
from tests.sweep.fake import FakeWorker


def main(words: list[str]) -> None:
    said, mistakes = read_words(words)
    space, found = load_space(said.space, said.overrides)
    if space is None or mistakes + found:
        raise ConfigError(mistakes + found)
    planned = plan(space)
    if planned.mistakes:
        raise ConfigError(planned.mistakes)
    sys.exit(sweep(space, planned, said, Console(), FakeWorker))


if __name__ == "__main__":
    command(main)
