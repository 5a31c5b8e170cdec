"""Shared fixtures: a tiny known-answer cohort and a student that trains on it in a second."""

from __future__ import annotations

import gc
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# Before torch and scikit-learn are loaded, and for processes that tests start: as many threads as cores in each of
# several processes only wait for each other. What depends on threads sets them itself.
os.environ["OMP_NUM_THREADS"] = "1"

from mmpkd.config import CohortConfig, TrialConfig
from tests import colour_cohort

LONGEST = ("test_known_answer.py", "test_fault_campaign.py", "test_nodes.py", "test_mirror.py", "test_gpu_packing.py")
LONGEST += ("test_end_to_end_influence.py", "test_gpu_benchmark.py", "test_export_formats.py", "test_mlflow_pages.py")
REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@cache
def uses_ray(file: Path) -> bool:
    """Returns whether tests of a file need the Ray that all of them share."""
    return "ray_session" in file.read_text()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps each file in one process, for its fixtures, and all files with tests on Ray in the same one, for one Ray.

    Marks `xdist_group` would say the same, but pytest-xdist 3.8.0 loses them under pytest 9.2.
    """
    from xdist.scheduler import LoadFileScheduling

    class OneRay(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "ray" if uses_ray(config.rootpath / file) else file

    return OneRay(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files first that take longest, so that at the end no core waits for one of them."""
    items.sort(key=lambda item: item.path.name not in LONGEST and not uses_ray(item.path))


def pytest_configure() -> None:
    """Collects no garbage while tests are collected: there is none, and each look at so many objects takes long."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """Keeps what libraries and earlier files have left out of each collection of garbage.

    A worker of a sweep collects after every trial, which otherwise takes half a second.
    """
    gc.freeze()


def pytest_unconfigure() -> None:
    """Lets the end of the process collect everything; libraries would report what stays as leaked."""
    gc.unfreeze()
    gc.enable()  # in a process that has only dealt tests, too


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
