"""Reading the words of a command, and its messages."""

from __future__ import annotations

import errno
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from mmpkd.command import command_line, command_lines, own_words, plain_console, table_lines, written_to
from mmpkd.types import ConfigError, Mistake, UserError


def test_own_words_and_other_words() -> None:
    words = ["a=1", "b", "lr=2", "a=3=4", "c=", "d"]
    assert own_words(words, {"a": "", "c": "", "d": "y"}) == ({"a": "3=4", "c": "", "d": "y"}, ["b", "lr=2", "d"])


def test_an_empty_folder_is_not_the_current_one() -> None:
    """As of a variable of the shell that is not set."""
    problem = "is empty; write a value, or leave the word out for {}"
    with pytest.raises(ConfigError) as caught:
        own_words(["out=", "cache=", "table="], {"out": "runs/x", "cache": "cache", "table": ""})
    assert [*caught.value.mistakes] == [
        Mistake("out", problem.format("out=runs/x")),
        Mistake("cache", problem.format("cache=cache")),
    ]


def test_a_table_that_is_too_wide_goes_on_below() -> None:
    rows = [["a", "12.5", "x", "yy"], ["label", "3", "", "z"]]
    assert table_lines(["name", "score", "n", "more"], rows, 16) == [
        *("name   score  n", "a      12.5   x", "label  3"),
        *("", "name   more", "a      yy", "label  z"),
    ]


def test_a_long_command_is_broken_where_a_shell_joins_it() -> None:
    command = "RAY_ADDRESS=auto python -m sweep.run 'optimizer.lr={log_uniform: [1e-4, 1e-2]}' name=x"
    lines = command_lines(command, width=40)
    assert lines == [
        "  RAY_ADDRESS=auto python -m sweep.run \\",
        "      'optimizer.lr={log_uniform: [1e-4, 1e-2]}' \\",
        "      name=x",
    ]
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == shlex.split(command)


def test_a_plain_console_prints_brackets_and_colons_as_they_are() -> None:
    console = plain_console(file=io.StringIO(), width=80)
    table = Table("[b]", title=":x: [/i]")
    table.add_row("[red] [/t]")
    console.print("val/auroc/[/b]/:mass:")
    console.print(table)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert (
        "val/auroc/[/b]/:mass:" in printed and ":x: [/i]" in printed and "[red] [/t]" in printed and " [b] " in printed
    )


def test_every_console_of_a_command_is_plain() -> None:
    """A console that reads markup would end a sweep with a traceback if a teacher is called `[/t]`."""
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


@pytest.mark.parametrize("number, printed", [(errno.ENOSPC, True), (errno.EFBIG, True), (errno.EPIPE, False)])
def test_only_errors_of_the_folder_or_a_full_disk_become_messages(tmp_path: Path, number: int, printed: bool) -> None:
    with pytest.raises(UserError if printed else OSError), written_to(tmp_path):
        raise OSError(number, "nameless")
    with pytest.raises(FileNotFoundError), written_to(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "elsewhere", "/somewhere/else")


def test_a_full_output_disk_gives_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, command_line():
        raise OSError(errno.ENOSPC, "No space left on device")
    assert end.value.code == 2 and "No space left on device" in capsys.readouterr().err


def test_an_output_without_a_character_gets_a_replacement() -> None:
    code = "from mmpkd.command import command_line\nwith command_line():\n    print('0.5 ± 0.1')"
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0.5 ? 0.1\n")
