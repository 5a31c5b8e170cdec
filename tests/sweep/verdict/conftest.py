"""The sweep that tests of confirmations begin with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmpkd.cohort.suspects import Suspects
from tests.sweep.verdict.confirmed_sweep import make_sweep


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Resamples patients less often, looks for no columns that state the label, and waits for no disk: most of the
    time is theirs.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmpkd.cohort.prepare.find_suspects", lambda *args: Suspects({}, {}, {}))
        patch.setattr("mmpkd.scoring.replicates.REPLICATES", 200)
        patch.setattr("sweep.verdict.opening.scores.REPLICATES", 200)
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="module")
def base(quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nobody has confirmed."""
    tmp_path = tmp_path_factory.mktemp("searched")
    make_sweep(tmp_path)
    return tmp_path
