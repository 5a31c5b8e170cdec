"""The functions of a sweep whose trainings are those of `tests.sweep.fake`. Workers import that module alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmpkd.config import CohortConfig
from sweep.driver import SweepFunctions
from tests.sweep.fake import FAKE_TRAINING


class FakeStore:
    """A prepared cohort, as far as a driver looks at it; tests replace its fingerprint."""

    fingerprint = "as prepared"
    num_folds = 4

    def __init__(self, path: Path):
        self.path = path


def prepare(config: CohortConfig, cache: Path) -> Any:
    return FakeStore(cache / "store")


# A cohort without columns gives nothing away, and trivial arithmetic has no price.
FAKE = SweepFunctions(prepare, lambda *_: [], lambda *_: None, FAKE_TRAINING)
