"""A command's words."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.table import Table

from mmpkd.command import own_words, plain_console, run, written_to
from mmpkd.types import UserError


def test_own_words_and_the_rest() -> None:
    words = ["a=1", "b", "lr=2", "a=3=4", "c=", "d"]
    assert own_words(words, {"a": "", "c": "x", "d": "y"}) == ({"a": "3=4", "c": "", "d": "y"}, ["b", "lr=2", "d"])


def test_a_plain_console_prints_brackets_and_colons_as_they_are() -> None:
    console = plain_console(file=io.StringIO(), width=80)
    table = Table("[b]", title=":x: [/i]")
    table.add_row("[red] [/t]")
    console.print("val/auroc/[/b]/:mass:")
    console.print(table)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "val/auroc/[/b]/:mass:" in told and ":x: [/i]" in told and "[red] [/t]" in told and " [b] " in told


def test_every_console_of_a_command_is_plain() -> None:
    """One that reads markup ends a sweep with a traceback where a teacher is called `[/t]`."""
    root = Path(__file__).parents[2]
    made = [
        line.strip()
        for path in sorted([*root.glob("mmpkd/**/*.py"), *root.glob("sweep/*.py")])
        for line in path.read_text().splitlines()
        if re.search(r"(?<!plain_)\bConsole\(", line)
    ]
    assert [line for line in made if "markup=False" not in line and "transient" not in line] == [
        "console = Console(stderr=True)",  # of bars whose words are ours
        "console = Console(stderr=True)",
    ]


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


def test_an_output_without_the_characters_gets_others() -> None:
    code = "from mmpkd.command import run; run(lambda words: print('0.5 ± 0.1'))"
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0.5 ? 0.1\n")
