"""Confirms the result of a sweep on fresh seeds and on the sealed test part: `python -m sweep.confirm`; `--help` lists
its options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from shlex import join
from typing import Any, Final

from mmpkd.command import command_line, plain_console
from mmpkd.types import ConfigError, Mistake, UserError
from sweep.interrupt import exit_process, requests_end_the_driver
from sweep.options import DEFAULT_CACHE, DEFAULT_STORAGE, read_sweep_options, redact_passwords
from sweep.picking.candidates import read_candidates
from sweep.storage.continuation import CHANGEABLE_LEAVES
from sweep.storage.failures import disk_problem
from sweep.storage.lock import alone_in
from sweep.storage.reader import check_exists
from sweep.storage.records import MIN_CONFIRMED
from sweep.transfer.views import is_running_there, view_of
from sweep.verdict.folder import confirmed_by, lock_of
from sweep.verdict.power import MIN_SEEDS
from sweep.verdict.protocol import Wanted

HELP = """\
usage: python -m sweep.confirm NAME [key=value ...]

Says whether the teacher helps. Freezes a protocol, trains the finalists of each
arm on fresh seeds, chooses one of each arm, trains it and its controls on
further seeds, opens the test part once, and compares each arm with none. The
same command again continues.

  NAME           the sweep; name=NAME means the same
  plan=true      shows the protocol, the price and what the test part can show,
                 and stops; nothing is frozen
  goal=GOAL      the primary score             [first goal that needs no ROIs]
  localisation=GOAL   the second primary score, or none [first goal of ROIs or
                 boxes]
  arms=A,B       arms to compare with none                 [all with a teacher]
  difference=X   the smallest difference of the goal that matters        [0.05]
  localisation_difference=X   the same of the second score                [0.1]
  finalists=K    of each arm, by the goal on validation   [3, or as many as all
                 arms have complete trials]
  choose_seeds=N fresh seeds on which the finalists run                     [5]
  seeds=N        further seeds of the chosen [5, or 10 above 300 test patients]
  external=FILE  scores the students on another cohort as well, which is read
                 from the section `cohort` of a YAML file
  folds=N        tests all patients by cross-validation, where the test part is
                 small: each of N parts is sealed in turn, and the whole search
                 is repeated on the others. plan=true counts the trainings
  cohort=FILE    the folds of a second cohort instead, with settings from the
                 sweep, for a fraction of the price: the section `cohort` of a
                 YAML file
  again=true     opens the test part although an earlier confirmation has
  new=true       begins a new confirmation with another protocol
  storage=runs, cache=cache, tracking=URI   as given to sweep.run
  search.at_a_time=N, search.deadline=WHEN, cohort.root=DIR and other keys of
                 sweep.run that change no trial

it writes to STORAGE/NAME/confirm
  protocol.yaml  what is compared, frozen and hashed before anything runs
  verdict.html   the answer, intervals, seeds, controls, protocol and ledger
  verdict.json   the same for programs

examples
  python -m sweep.confirm demo plan=true
  python -m sweep.confirm breast difference=0.03 seeds=10

exit status: 0 a verdict is written; 1 a training failed; 2 a mistake, shown
above; 130 stopped before the end, the same command continues
"""
DEFAULTS: Final[Mapping[str, str]] = {
    **{
        key: ""
        for key in ("name", "goal", "localisation", "arms", "difference", "localisation_difference", "finalists")
    },
    **{key: "" for key in ("choose_seeds", "seeds", "tracking", "external", "folds", "cohort")},
    **{"storage": DEFAULT_STORAGE, "cache": DEFAULT_CACHE, "plan": "false", "again": "false", "new": "false"},
}


# Keys of sweep.run that the trainings take over. They change no training, or say where its files are.
PASSED_ON: Final = (*set(CHANGEABLE_LEAVES) - {"search.trials", "search.plateau", "search.keep"}, "scratch", "patience")
MOST: Final = 1000  # seeds of the choice and of the training are as far apart
# Of whole numbers. With a single finalist the luck of the search is unknown, so nothing could be told.
LEAST: Final = {"finalists": MIN_CONFIRMED, "choose_seeds": MIN_SEEDS, "seeds": MIN_SEEDS, "folds": 3}


@requests_end_the_driver()
def main(words: Sequence[str]) -> None:
    """Runs the command line; see HELP.

    Raises:
        SystemExit: the command ends, with status 0 (a verdict), 1 (a training failed) or 130 (stopped before the end).
        UserError: the user made mistakes. The command then ends with status 2.
    """
    if {"--help", "-h", "help"} & set(words):
        print(HELP, end="")
        return
    passed_on = [word for word in words if word.partition("=")[0] in PASSED_ON]
    options, mistakes = read_sweep_options([word for word in words if word not in passed_on], DEFAULTS)
    storage = view_of(options["storage"])
    mistakes += check_exists(options["name"], storage)
    if (confirmed := confirmed_by(options["name"])) and storage.sweep(confirmed).exists():
        problem = f"{options['name']} is a part of the confirmation of {confirmed}"
        mistakes.append(Mistake("name", f"{problem}; name that sweep"))
    wanted = _wanted(options, mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    from sweep.verdict.steps import confirm  # imports Ray and torch, which take seconds

    console, folder = plain_console(highlight=False), storage.sweep(options["name"])
    if is_running_there(folder):
        stop = join(["python", "-m", "sweep.stop", options["name"], f"storage={options['storage']}"])
        raise UserError(f"the sweep {options['name']} still runs; wait for its end, or stop it:\n  {stop}")
    trials = read_candidates(folder)
    places = [f"{key}={options[key]}" for key in ("storage", "cache", "tracking") if options[key]]
    command = join(["python", "-m", "sweep.confirm", *map(redact_passwords, words)])
    is_plan, problem = options["plan"] == "true", f"another sweep.confirm of {folder} runs"
    try:
        with nullcontext() if is_plan else alone_in(lock_of(folder), problem):
            status = confirm(trials, wanted, (*places, *passed_on), options, command, console)
    except OSError as error:
        if not (problem := disk_problem(error, (storage.path, Path(options["cache"])))):
            raise
        raise UserError(f"{problem}\n  repair this, then run the same command again, which continues") from error
    exit_process(status)


def _wanted(options: Mapping[str, str], mistakes: list[Mistake]) -> Wanted:
    """Returns what the options state of the protocol, and adds their mistakes."""
    numbers: dict[str, Any] = {}
    for key, least in LEAST.items():
        text = options[key]
        numbers[key] = int(text) if text.isdecimal() and least <= int(text) <= MOST else None
        if text and numbers[key] is None:
            mistakes.append(Mistake(key, f"wants a whole number from {least} to {MOST}, got {text!r}"))
    for key in ("difference", "localisation_difference"):
        difference, text = None, options[key]
        with suppress(ValueError):
            difference = float(text)
        if text and (difference is None or not 0 < difference < 1):
            mistakes.append(Mistake(key, f"wants a number between 0 and 1, such as 0.05, got {text!r}"))
        numbers[key] = difference
    if options["cohort"] and not options["folds"]:
        mistakes.append(Mistake("cohort", "is the cohort that is divided into folds; write folds=N as well, such as 5"))
    arms = tuple(dict.fromkeys(filter(None, options["arms"].split(","))))
    return Wanted(options["goal"] or None, options["localisation"] or None, arms or None, **numbers)


if __name__ == "__main__":
    with command_line() as words:
        main(words)
