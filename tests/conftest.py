"""Shared fixtures: a tiny known-answer cohort and a student that trains on it in a second."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

# Before torch and scikit-learn are loaded, and for processes that tests start: as many threads as cores in each of
# several processes only wait for each other. What depends on threads sets them itself.
os.environ["OMP_NUM_THREADS"] = "1"

from mmpkd.config import CohortConfig, TrialConfig
from tests import colour_cohort

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps each file in one process, for its fixtures, and all files with tests on Ray in the same one, for one Ray.

    Marks `xdist_group` would say the same, but pytest-xdist 3.8.0 loses them under pytest 9.2.
    """
    from xdist.scheduler import LoadFileScheduling

    class OneRay(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "ray" if "ray_session" in (config.rootpath / file).read_text() else file

    return OneRay(config, log)


@pytest.fixture(scope="session")
def tiny_cohort() -> CohortConfig:
    return CohortConfig(reader="synthetic", image_size=32, params={"side": 32, "train": 60, "val": 30, "test": 12})


@pytest.fixture(scope="session")
def tiny_trial(tiny_cohort: CohortConfig) -> TrialConfig:
    """A two-block student with objectives of two teachers; three epochs take about a second."""
    content: dict[str, Any] = {
        "cohort": tiny_cohort,
        "student": {
            "model": "vit_tiny_patch16_224",
            "patch_size": 8,
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 2,
            "drop_path_rate": 0.1,
        },
        "teachers": {"findings": {"kind": "tabular"}},
        "objectives": {"logits": {}, "features": {"params": {"layer": 1}}},
        "optimizer": {"batch_size": 16},
        "epochs": 3,
    }
    return TrialConfig.model_validate(content)


@pytest.fixture(scope="session")
def colour_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw files of the second tiny cohort; see `colour_cohort.py`. Tests only read them."""
    root = tmp_path_factory.mktemp("colour")
    colour_cohort.write(root)
    return root


@pytest.fixture(scope="session")
def colour_trial(colour_root: Path, tiny_trial: TrialConfig) -> TrialConfig:
    """A student of the second cohort, validated on fold 1, that trains in a second."""
    content = tiny_trial.model_dump() | {
        "cohort": colour_cohort.config(colour_root, fold=1),
        "objectives": {"logits": {}, "features": {"params": {"layer": 1}}},
        "optimizer": {"batch_size": 16, "lr": 3e-3},
        "augmentation": {"shift": 0.05},
    }
    return TrialConfig.model_validate(content)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of stores and teacher outputs for the whole test session, as users share theirs."""
    return tmp_path_factory.mktemp("cache")


def real_data(name: str) -> Path:
    """Returns a folder of ../shared/data, or skips the test and says what is missing."""
    path = REAL_DATA / name
    if not path.is_dir():
        pytest.skip(f"real data are not here: {path}")
    return path
