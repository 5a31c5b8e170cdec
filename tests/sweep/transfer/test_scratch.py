"""The private folder below the temporary folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from mmpkd.types import ConfigError
from sweep.transfer.scratch import default_scratch


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_only_its_user_can_enter_it(tmp_path: Path) -> None:
    folder = default_scratch()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    assert default_scratch() == folder


def test_a_folder_that_others_can_enter_is_refused() -> None:
    default_scratch().chmod(0o755)
    with pytest.raises(ConfigError, match=r"not a folder that only you can enter; name .* with scratch=DIR"):
        default_scratch()


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    folder = default_scratch()
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is not a folder that only you can enter"):
        default_scratch()
