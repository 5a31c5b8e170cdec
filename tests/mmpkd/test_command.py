"""A command's words."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest

from mmpkd.command import own_words, run, written_to
from mmpkd.types import UserError


def test_own_words_and_the_rest() -> None:
    words = ["a=1", "b", "lr=2", "a=3=4", "c=", "d"]
    assert own_words(words, {"a": "", "c": "x", "d": "y"}) == ({"a": "3=4", "c": "", "d": "y"}, ["b", "lr=2", "d"])


@pytest.mark.parametrize("number, told", [(errno.ENOSPC, True), (errno.EFBIG, True), (errno.EPIPE, False)])
def test_only_what_is_about_a_folder_or_a_full_disk_is_told_as_such(tmp_path: Path, number: int, told: bool) -> None:
    with pytest.raises(UserError if told else OSError), written_to(tmp_path):
        raise OSError(number, "nameless")
    with pytest.raises(FileNotFoundError), written_to(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "elsewhere", "/somewhere/else")


def test_a_full_disk_behind_the_output_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def main(words: Sequence[str]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SystemExit) as end:
        run(main)
    assert end.value.code == 2 and "No space left on device" in capsys.readouterr().err
