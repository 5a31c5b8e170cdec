"""A new folder of results appears as a whole or not at all, and touches nothing of anyone else."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from mmpkd.machine.new_folder import new_folder
from mmpkd.types import ConfigError, UserError

WORDS = ["python", "-m", "mmpkd.predict", "images=my scans", "out=old"]


def test_the_folder_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_folder(out, WORDS) as folder:
        (folder / "table").touch()
        assert not out.exists() and folder.parent == out.parent
    assert [path.name for path in out.parent.iterdir()] == ["out"] and (out / "table").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            r"out cannot be written: No space left on device\n  nothing",
        ),
        (
            shutil.Error([("a", "b", "[Errno 28] No space left: 'a'")]),
            r"cannot be written: \[Errno 28\] No space left\n",
        ),
        (KeyboardInterrupt("by the user"), "by the user"),
        (ValueError("of the program"), "of the program"),
    ],
)
def test_nothing_is_left_of_a_failure(error: BaseException, message: str, tmp_path: Path) -> None:
    kind = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(kind, match=message), new_folder(tmp_path / "out", WORDS) as folder:
        (folder / "table").touch()
        raise error
    assert not [*tmp_path.iterdir()]


def test_taken_names_are_refused_with_a_command_for_a_free_one(tmp_path: Path) -> None:
    for name in ("full", "full-2"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "of_the_user").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    again = rf"\n  python -m mmpkd.predict 'images=my scans' out={tmp_path}"
    for name, message in (
        ("full", rf"a folder with files in it, .*{again}/full-3$"),
        ("full/of_the_user", rf"is a file.*{again}/full/of_the_user-2$"),
        ("link", r"is a link to \S+nowhere, where nothing is; make that folder"),
        ("full/of_the_user/below", "cannot be made"),
    ):
        with pytest.raises(ConfigError, match=message), new_folder(tmp_path / name, WORDS):
            raise AssertionError
    (tmp_path / "empty").mkdir()
    (tmp_path / "to_empty").symlink_to(tmp_path / "empty")
    with new_folder(tmp_path / "to_empty", WORDS) as folder:
        (folder / "table").touch()
    assert (tmp_path / "empty" / "table").exists() and (tmp_path / "to_empty").is_symlink()


def test_two_at_once_do_not_mix_and_a_killed_one_is_tidied_away(tmp_path: Path) -> None:
    out, left = tmp_path / "out", tmp_path / ".out.0123abcd.partial"
    left.mkdir()
    (left / "table").touch()
    (tmp_path / ".out.of_the_user.partial").mkdir()
    with (
        pytest.raises(ConfigError, match=r"a folder with files in it.*\n.*out-2$"),
        new_folder(out, WORDS) as slower,
    ):
        assert not left.exists()
        with new_folder(out, WORDS) as faster:
            assert slower.exists() and slower != faster
            (faster / "first").touch()
        (slower / "second").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.of_the_user.partial"}
    assert [path.name for path in out.iterdir()] == ["first"]
