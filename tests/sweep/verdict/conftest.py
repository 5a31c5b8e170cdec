"""The sweep that tests of confirmations begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweep.verdict.confirmed_sweep import make_sweep


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nobody has confirmed."""
    tmp_path = tmp_path_factory.mktemp("searched")
    make_sweep(tmp_path)
    return tmp_path
