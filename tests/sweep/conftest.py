"""One Ray for all tests of the engine: it takes seconds to start."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweep.space import Space, load_space
from tests.sweep.fake import SPACE


@pytest.fixture(scope="session", autouse=True)
def frozen() -> Iterator[None]:
    """Keeps what Ray, torch and MLflow brought along out of each collection: a worker collects after every trial."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    from sweep.driver import cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_SECONDS", "0.1")  # workers have their environment from this Ray's start
        with cluster():
            patch.undo()
            yield


@pytest.fixture
def fake_space(tmp_path: Path) -> Space:
    """Two arms of a training of trivial arithmetic."""
    path = tmp_path / "fake.yaml"
    path.write_text(SPACE)
    space, mistakes = load_space(str(path))
    assert space is not None and not mistakes
    return space
