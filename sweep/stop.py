"""Asks a running sweep to end cleanly: `python -m sweep.stop NAME`. Its options are listed by `--help`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from rich.console import Console

from mmpkd.command import asks_for_help, command_line
from mmpkd.types import ConfigError, Mistake, UserError
from sweep.options import DEFAULT_STORAGE, read_sweep_options
from sweep.storage.layout import SweepFolder
from sweep.storage.lock import driver_of
from sweep.storage.reader import check_exists, how_to_continue, read_sweep
from sweep.transfer.views import is_running_there, refresh, view_of

HELP = """\
usage: python -m sweep.stop NAME [key=value ...]

Asks the sweep's driver to end, from any machine that sees the sweep's folder,
and waits until it has ended: running trials keep their last checkpoints, the
tables and the report are written, and the tracking server receives the rest. At
the end it prints the command that continues the sweep. Ctrl-C ends only the
waiting.

  NAME           the sweep; name=NAME means the same. python -m sweep.status
                 lists all sweeps
  storage=runs   folder or address of all sweeps, as given to sweep.run
  timeout=300    seconds to wait

examples
  python -m sweep.stop breast
  python -m sweep.stop breast storage=/shared/runs timeout=3600

exit status: 0 stopped, or not running; 1 still running after the timeout; 2 a
mistake, described above
"""
POLL_SECONDS: Final = 0.2
REMOTE_POLL_SECONDS: Final = 2.0  # if every look is a request to an object store
LINE_SECONDS: Final = 10.0  # seconds between two lines if the output is not a terminal


def main(words: Sequence[str]) -> None:
    """Asks the sweep to end, and waits until it has ended.

    Raises:
        SystemExit: with status 1 if the sweep does not end in time.
        UserError: the user made a mistake. The command then ends with status 2.
    """
    if asks_for_help(words):
        print(HELP, end="")
        return
    options, mistakes = read_sweep_options(words, {"name": "", "storage": DEFAULT_STORAGE, "timeout": "300"})
    storage, timeout = view_of(options["storage"]), _seconds(options["timeout"], mistakes)
    if options["name"]:
        mistakes += check_exists(options["name"], storage)
    else:
        running = [folder.name for folder in storage.sweeps() if is_running_there(folder)]
        mistakes.append(Mistake("NAME", f"which sweep? running under {storage}: {', '.join(running) or 'none'}"))
    if mistakes:
        raise ConfigError(mistakes)
    folder = storage.sweep(options["name"])
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    if not is_running_there(folder):
        console.print(f"{folder.name} is not running")
        refresh(folder)
        console.print("\n".join(how_to_continue(read_sweep(folder))))
        return
    _request_stop(folder)
    if not _wait_for_end(folder, timeout, console):
        console.print(
            f"{folder.name} still runs after {timeout:g} s ({driver_of(folder) or 'unknown driver'}).\n"
            "  The request remains, and the same command waits again. If the driver hangs, kill it on its machine: "
            "a killed sweep can be continued too, and loses an epoch at most."
        )
        raise SystemExit(1)
    console.print(f"{folder.name} has stopped")
    refresh(folder)
    console.print("\n".join(how_to_continue(read_sweep(folder))))


def _seconds(text: str, mistakes: list[Mistake]) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        mistakes.append(Mistake("timeout", f"expected a number of seconds above 0, got {text!r}"))
    return seconds


def _request_stop(folder: SweepFolder) -> None:
    file = folder.shared.child(folder.stop_request.name)
    try:
        file.write_bytes(b"")
    except OSError as error:
        raise UserError(
            f"{file}: cannot be written ({error.strerror or error}); stop the sweep on the machine where it was started"
        ) from error


def _wait_for_end(folder: SweepFolder, timeout: float, console: Console) -> bool:
    """Waits until the driver releases its lock, and returns whether it did so in time."""
    begun = last_line = time.monotonic()
    request = f"{folder.name}: asked to stop"
    if not console.is_terminal:
        console.print(request)
    with console.status(request) as status:
        while is_running_there(folder):
            now = time.monotonic()
            if now - begun > timeout:
                return False
            line = f"{request} {now - begun:.0f} s ago, still running"
            if console.is_terminal:
                status.update(line)
            elif now - last_line > LINE_SECONDS:
                console.print(line)
                last_line = now
            time.sleep(REMOTE_POLL_SECONDS if folder.address else POLL_SECONDS)
    folder.shared.child(folder.stop_request.name).delete()  # it remains if the driver ended before it saw the request
    return True


if __name__ == "__main__":
    with command_line() as words:
        main(words)
