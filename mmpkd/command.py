"""A command's words, and how it ends: a user's mistake is one screen on stderr and exit status 2, never a traceback."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console

from mmpkd.machine.errors import behind, machine_fault, with_fault
from mmpkd.types import ConfigError, Mistake, UserError


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs `main` on the command line's words."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # where `±` has no character, a `?` is better than no result
            stream.reconfigure(errors="replace")
    try:
        main(sys.argv[1:])
    except ConfigError as error:
        count, fault = len(error.mistakes), with_fault(error).removeprefix(str(error))
        mistakes = "\n".join(f"  {one}" for one in error.mistakes)
        print(f"{count} mistake{'s' * (count != 1)}:\n{mistakes}{fault}", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"error: {with_fault(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not (fault := machine_fault(error)):
            raise
        where = error.filename or "the output, or a temporary file"
        print(f"error: {where}: {fault}\n  once that is mended, the same command goes on", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)


def plain_console(**options: Any) -> Console:
    """A console that prints names as they are: to others `[/b]` is a mistake, and `[b]` and `:x:` something else."""
    return Console(markup=False, emoji=False, **options)


def warn(warnings: Iterable[str], console: Console | None = None) -> None:
    """Prints each warning on a line of its own, on stderr unless a console is given."""
    console = console or plain_console(stderr=True)
    for warning in warnings:
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True)


def make_folder(path: Path) -> None:
    """
    Raises:
        ConfigError: a file is in the way, or the disk does not let.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError.at("out", f"no folder can be made at {path.absolute()}: {error.strerror}") from error


@contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """
    Raises:
        UserError: a file of this folder cannot be read or written, or a disk is full or away.
    """
    try:
        yield
    except Exception as error:  # torch wraps the error of its file
        cause = next((one for one in behind(error) if isinstance(one, OSError)), None)
        if cause is None or isinstance(error, UserError):
            raise
        named = isinstance(cause.filename, str) and Path(cause.filename).absolute().is_relative_to(folder.absolute())
        if named:
            problem = f"{cause.filename2 or cause.filename}: cannot be read or written ({cause.strerror})"
        elif machine_fault(error):
            problem = f"nothing more can be written ({cause.strerror}); see {folder}, and where the output goes"
        else:
            raise
        mend = "what was written before is whole; once that is mended, the same command goes on"
        raise UserError(f"{problem}\n  {mend}") from error


def options(words: Sequence[str], defaults: Mapping[str, str], known: Iterable[str] = ()) -> Iterator[Mistake]:
    """Words that begin with a dash, each with the word that says the same here; what is 'false' else is a switch."""
    names = sorted({*defaults, *known})
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if word.startswith("-"):
            key, equals, value = word.lstrip("-").partition("=")
            key = next(iter(get_close_matches(key.replace("-", "_"), names, n=1, cutoff=0.6)), key or "key")
            if not equals:
                alone = not following or following.startswith("-") or "=" in following or defaults.get(key) == "false"
                value = "true" if alone else following
            yield Mistake(word, f"words are key=value, without dashes; write {key}={value}")


def at_home(value: str) -> str:
    """A value with `~` at its beginning as shells read it, which many do not behind a `key=`."""
    return os.path.expanduser(value) if value.startswith("~") else value


def own_words(
    words: Sequence[str], defaults: Mapping[str, str], known: Iterable[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """What `key=value` words say of a command's own keys, else their defaults; and the other words, in their order.

    Args:
        known: further words, which one that is written as an option may have been meant to be.

    Raises:
        ConfigError: words written as options, `--key value`: which of the rest belongs to them is a guess.
    """
    if mistakes := [*options(words, defaults, known)]:
        raise ConfigError(mistakes)
    own, rest = dict(defaults), []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in own:
            own[key] = at_home(value)
        else:
            rest.append(word)
    return own, rest
