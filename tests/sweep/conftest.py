"""One Ray for all tests of the engine: it takes seconds to start."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def frozen() -> Iterator[None]:
    """Keeps what Ray, torch and MLflow brought along out of each collection: a worker collects after every trial."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    from sweep.cluster import cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_SECONDS", "0.1")  # workers have their environment from this Ray's start
        patch.setenv("RAY_worker_niceness", "0")  # at Ray's 15 they starve beside the other process of these tests
        with cluster():
            patch.undo()
            yield
