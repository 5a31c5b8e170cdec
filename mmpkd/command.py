"""The command line of our programs: reads arguments, and reports mistakes on one screen with exit status 2."""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from shlex import quote
from textwrap import wrap
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from mmpkd.machine.errors import error_chain, machine_fault, with_fault
from mmpkd.near_names import near
from mmpkd.types import ConfigError, Mistake, UserError

Item = TypeVar("Item")
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://|(s3|gs|gcs|az|abfs):", re.IGNORECASE)


@contextmanager
def command_line() -> Iterator[list[str]]:
    """A context that yields the arguments of the command line.

    A user's mistake, a fault of the machine or an interrupt within it ends the program, with a message on stderr and an
    exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an encoding without `±` prints `?` instead of failing
            stream.reconfigure(errors="replace")
    try:
        yield sys.argv[1:]
    except ConfigError as error:
        count, fault = len(error.mistakes), with_fault(error).removeprefix(str(error))
        mistakes = "\n".join(f"  {mistake}" for mistake in error.mistakes)
        print(f"{count} mistake{'s' * (count != 1)}:\n{mistakes}{fault}", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"error: {with_fault(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not (fault := machine_fault(error)):
            raise
        path = error.filename or "the output, or a temporary file"
        print(f"error: {path}: {fault}\n  repair this, then run the same command again", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again", file=sys.stderr)
        sys.exit(130)


def plain_console(**options: Any) -> Console:
    """Returns a console that prints all text literally. By default, rich would read `[/b]`, `[b]` and `:x:` as markup
    and emoji."""
    return Console(markup=False, emoji=False, **options)


def wrapped(text: str, width: int, indent: str = "", hanging: str = "  ") -> list[str]:
    """Returns a text in lines of at most `width` characters, broken at blanks only; a longer word has its own line.

    Args:
        indent: precedes the first line.
        hanging: precedes the others, after `indent`.
    """
    return wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent + hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


def command_lines(command: str, width: int = 80, indent: str = "  ") -> list[str]:
    """Returns a command for a shell in lines of at most `width` characters, all but the last ending in a backslash, so
    that they can be pasted as they are. A longer word has its own line.
    """
    lines = [indent.removesuffix(" ")]
    for word in map(quote, shlex.split(command)):
        if len(lines[-1]) + len(word) + 3 > width and lines[-1].strip():
            lines[-1] += " \\"
            lines.append(f"{indent}   ")
        lines[-1] += f" {word}"
    return lines


def table_lines(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int, num_keys: int = 1) -> list[str]:
    """Returns a table in lines of at most `width` characters, without cutting a cell.

    Columns that do not fit follow as a further table below, which repeats the first columns. A line is longer only if
    the first columns and one more are.

    Args:
        num_keys: the number of first columns that name a row.
    """
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    keys, parts = list(range(num_keys)), [list(range(num_keys))]
    for column in range(num_keys, len(heads)):
        if len(parts[-1]) > num_keys and sum(widths[place] + 2 for place in [*parts[-1], column]) - 2 > width:
            parts.append([*keys])
        parts[-1].append(column)
    tables = [
        ["  ".join(row[place].ljust(widths[place]) for place in part).rstrip() for row in [heads, *rows]]
        for part in parts
    ]
    return [line for table in tables for line in [*([""] if table is not tables[0] else []), *table]]


def progress_bar(items: Sequence[Item], name: str) -> Iterable[Item]:
    """Iterates over items and shows a transient progress bar on stderr if that is a terminal."""
    console = plain_console(stderr=True)
    return track(items, escape(name), console=console, transient=True, disable=not console.is_terminal)


def warn(warnings: Iterable[str], console: Console | None = None) -> None:
    """Prints each warning on a line of its own, on stderr unless a console is given."""
    console = console or plain_console(stderr=True)
    for warning in warnings:
        console.print(f"warning: {warning}", markup=False, emoji=False, highlight=False, soft_wrap=True)


def make_folder(path: Path) -> None:
    """Makes a folder for the results, with its parents.

    Raises:
        ConfigError: a file of this name exists, or the disk refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError.at("out", f"the folder {path.absolute()} cannot be made: {error.strerror}") from error


def named_folder(text: str) -> Path:
    """Returns the folder that `out=` names, with a name of its own where the text is `.` or ends in `..`.

    Raises:
        ConfigError: it is the root of the disk, which has no name.
    """
    path = Path(text)
    path = path if path.name not in ("", "..") else path.resolve()
    if not path.name:
        raise ConfigError.at("out", f"{path} is the root of the disk; name a folder below it")
    return path


@contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Turns disk errors into messages while results are written to a folder.

    Raises:
        UserError: a file of this folder cannot be read or written, or a disk is full or unreachable.
    """
    try:
        yield
    except Exception as error:  # torch wraps errors of files in its own
        cause = next((link for link in error_chain(error) if isinstance(link, OSError)), None)
        if cause is None or isinstance(error, UserError):
            raise
        inside = isinstance(cause.filename, str) and Path(cause.filename).absolute().is_relative_to(folder.absolute())
        if inside:
            problem = f"{cause.filename2 or cause.filename}: cannot be read or written ({cause.strerror})"
        elif machine_fault(error):
            disks = f"{folder}, of the cache and of the output"
            problem = f"nothing more can be written ({cause.strerror}); check the disks of {disks}"
        else:
            raise
        advice = "the files written so far are complete; repair this, then run the same command again to continue"
        raise UserError(f"{problem}\n  {advice}") from error


def asks_for_help(words: Sequence[str]) -> bool:
    """Returns whether a command line asks for the help of the command."""
    return bool({"--help", "-h", "help"} & set(words))


def unknown_words(words: Iterable[str], options: Iterable[str]) -> list[Mistake]:
    """Returns a mistake for each of these words, none of which is an option of the command, with the nearest option."""
    names = list(options)
    return [Mistake(word, f"not an option of this command{near(word.partition('=')[0], names)}") for word in words]


def misspelt_words(words: Iterable[str], options: Iterable[str], leaves: Iterable[str]) -> list[Mistake]:
    """Returns a mistake for each word `key=value` whose key is no leaf of a configuration and is near an option of the
    command. It is used where such a word would be read as a leaf.

    Args:
        leaves: the top-level keys of the configuration.
    """
    names, top = list(options), set(leaves)
    unknown = [word for word in words if word.partition("=")[0].partition(".")[0] not in top]
    return [mistake for mistake in unknown_words(unknown, names) if "did you mean" in mistake.problem]


def dashed_words(words: Sequence[str], defaults: Mapping[str, str], known: Iterable[str] = ()) -> Iterator[Mistake]:
    """Yields a mistake for each argument written as `--key value`, with its `key=value` form.

    A key whose default is 'false' is a switch without a value.
    """
    names = sorted({*defaults, *known})
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if word.startswith("-"):
            key, equals, value = word.lstrip("-").partition("=")
            key = next(iter(get_close_matches(key.replace("-", "_"), names, n=1, cutoff=0.6)), key or "key")
            if not equals:
                is_switch = (
                    not following or following.startswith("-") or "=" in following or defaults.get(key) == "false"
                )
                value = "true" if is_switch else following
            yield Mistake(word, f"words are key=value, without dashes; write {key}={value}")


def expand_home(value: str) -> str:
    """Expands a leading `~` of a value, which many shells do not do after `key=`."""
    return os.path.expanduser(value) if value.startswith("~") else value


def empty_words(values: Mapping[str, str], defaults: Mapping[str, str]) -> Iterator[Mistake]:
    """Yields a mistake for each empty value of a key that has a default: an empty path would be the current folder, for
    example if a variable of the shell is not set. Switches, which are true or false, are judged elsewhere.
    """
    for key, default in defaults.items():
        if not values[key] and default not in ("", "false", "true"):
            yield Mistake(key, f"is empty; write a value, or leave the word out for {key}={default}")


def own_words(
    words: Sequence[str], defaults: Mapping[str, str], known: Iterable[str] = (), addresses: Iterable[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Splits the words of a command line. Returns a value for each key of `defaults`, from its `key=value` word or else
    from `defaults`, and the remaining words in order.

    Args:
        known: further keys, suggested for a word that is written as an option.
        addresses: keys whose value may be an address such as s3://bucket/folder.

    Raises:
        ConfigError: words are written as options, `--key value`, so that it is unclear which value belongs to which; a
            value is empty that has a default; or the folder of the results or of the cache is an address, which would
            become the name of a local folder.
    """
    if mistakes := [*dashed_words(words, defaults, known)]:
        raise ConfigError(mistakes)
    own, rest = dict(defaults), []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in own:
            own[key] = expand_home(value)
        else:
            rest.append(word)
    if mistakes := [*empty_words(own, defaults)]:
        raise ConfigError(mistakes)
    for key in {"out", "cache"} & set(own) - set(addresses):
        if match := ADDRESS.match(own[key]):
            problem = f"begins with {match[0]!r} like an address, and this command needs a folder on a disk"
            raise ConfigError.at(key, f"{problem}; name one, such as {key}={defaults[key]}")
    return own, rest
