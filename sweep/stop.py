"""Asks a running sweep to end cleanly: `python -m sweep.stop NAME`; --help says the rest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from mmpkd.command import run as command
from mmpkd.types import ConfigError, Mistake, UserError
from sweep.options import DEFAULT_STORAGE, read_sweep_options
from sweep.storage.layout import Storage, SweepFolder
from sweep.storage.lock import driver_of, is_locked
from sweep.storage.reader import how_to_continue, read_sweep, unknown

HELP = """\
usage: python -m sweep.stop NAME [key=value ...]

Asks the sweep's driver to end, from any machine that sees its folder, and waits until it has: running
trials keep their last checkpoints, tables and report are written, tracking is told. The command that
continues it is printed at the end. Ctrl-C here ends the waiting only.

  NAME           the sweep; name=NAME says the same. python -m sweep.status lists them
  storage=runs   folder of all sweeps, as given to sweep.run
  timeout=300    seconds to wait

exit status: 0 stopped, or not running at all; 1 still running after the timeout; 2 a mistake above

examples
  python -m sweep.stop breast
  python -m sweep.stop breast storage=/shared/runs timeout=3600
"""
LOOK_SECONDS: Final = 0.2
LINE_SECONDS: Final = 10.0  # between two lines where there is no terminal


def main(words: Sequence[str]) -> None:
    """Raises SystemExit with 1 if the sweep has not ended in time; UserError means 2."""
    if {"--help", "-h", "help"} & set(words):
        print(HELP, end="")
        return
    said, mistakes = read_sweep_options(words, {"name": "", "storage": DEFAULT_STORAGE, "timeout": "300"})
    storage, timeout = Storage(Path(said["storage"])), _seconds(said["timeout"], mistakes)
    if said["name"]:
        mistakes += unknown(said["name"], storage)
    else:
        running = [folder.name for folder in storage.sweeps() if is_locked(folder.driver_lock)]
        mistakes.append(Mistake("NAME", f"which sweep? running under {storage}: {', '.join(running) or 'none'}"))
    if mistakes:
        raise ConfigError(mistakes)
    folder, console = storage.sweep(said["name"]), Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    if not is_locked(folder.driver_lock):
        console.print(f"{folder.name} is not running")
        console.print("\n".join(how_to_continue(read_sweep(folder))))
        return
    _ask(folder)
    if not _ended(folder, timeout, console):
        console.print(
            f"{folder.name} still runs after {timeout:g} s ({driver_of(folder) or 'unknown driver'}).\n"
            "  The request stands, and the same command waits on. Should the driver hang, kill it there: "
            "a killed sweep continues too, and loses an epoch at most."
        )
        raise SystemExit(1)
    console.print(f"{folder.name} has stopped")
    console.print("\n".join(how_to_continue(read_sweep(folder))))


def _seconds(text: str, mistakes: list[Mistake]) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        mistakes.append(Mistake("timeout", f"a number of seconds above 0, got {text!r}"))
    return seconds


def _ask(folder: SweepFolder) -> None:
    path = folder.stop_request
    try:
        path.touch()  # empty, so nobody can see half of it
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); ask where the sweep was started") from error


def _ended(folder: SweepFolder, timeout: float, console: Console) -> bool:
    """Waits for the driver's lock; whether it came free in time."""
    begun = told = time.monotonic()
    asked = f"{folder.name}: asked to stop"
    if not console.is_terminal:
        console.print(asked)
    with console.status(asked) as shown:
        while is_locked(folder.driver_lock):
            now = time.monotonic()
            if now - begun > timeout:
                return False
            line = f"{asked} {now - begun:.0f} s ago, still running"
            if console.is_terminal:
                shown.update(line)
            elif now - told > LINE_SECONDS:
                console.print(line)
                told = now
            time.sleep(LOOK_SECONDS)
    folder.stop_request.unlink(missing_ok=True)  # of a driver that ended, or died, before it saw it
    return True


if __name__ == "__main__":
    command(main)
