"""One Ray for all tests of the engine: it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    from sweep.cluster import cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_SECONDS", "0.1")  # workers have their environment from this Ray's start
        patch.setenv("RAY_worker_niceness", "0")  # at Ray's 15 they starve beside the other process of these tests
        with cluster():
            patch.undo()
            yield
