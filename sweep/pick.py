"""Picks a trial of a sweep and puts its student into a person's hands: `python -m sweep.pick`; `--help` lists its
options.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import join, quote
from typing import Final

from rich.console import Console

from mmpkd.command import asks_for_help, command_line, named_folder, plain_console, written_to
from mmpkd.types import ConfigError, Mistake, UserError
from mmpkd.vlm.config import VlmConfig
from sweep.options import DEFAULT_STORAGE, read_sweep_options, redact_passwords, sqlite_file, storage_at
from sweep.picking.candidates import Candidates, read_candidates
from sweep.picking.folder import PickedFolder
from sweep.picking.hand_out import hand_out
from sweep.picking.words import Pick, neighbours, pick, reasons, without_lead
from sweep.reports.console import image_blind_scores
from sweep.selection import Selection, read_selection
from sweep.storage.layout import Storage
from sweep.storage.reader import check_exists
from sweep.tracking.registry import is_local, register, tracking_uri
from sweep.transfer.views import view_of

HELP = """\
usage: python -m sweep.pick NAME [trial=N | by=GOAL [within=X of=GOAL]]
                            [key=value ...]

Picks one trial of a sweep, shows it beside its neighbours with standard errors,
and says why it is picked. Writes a folder with its configuration, its student
and a model card. Without trial= and by= the rule of the sweep (search.select)
picks.

  NAME           the sweep; name=NAME means the same
  trial=N        the trial of this number
  by=GOAL        the best trial by this score, such as val/pointing
  within=X       only among trials whose score by of= is within X of the best: a
                 number such as 0.01, or 1se, one standard error of that best
                 score (Breiman et al. 1984)
  of=GOAL        the score of within=
  storage=runs   folder or address of all sweeps, as given to sweep.run
  out=DIR        the folder to write [STORAGE/NAME/picked/N]; a sweep in an
                 object store needs it
  train=true     trains the student again where the sweep has not kept it, with
                 the command that is printed otherwise
  replace=true   replaces a folder that holds another configuration or student
  register=true  logs the student to the trial's run in MLflow and registers it
                 under the sweep's name. Without it, this is done where the
                 sweep is tracked in a file; register=false: nowhere

it writes
  config.yaml           the configuration; python -m mmpkd.train config=
                        reproduces it
  student.safetensors   the student, for mmpkd.predict, mmpkd.evaluate and
                        mmpkd.export; vlm.safetensors if it answers questions
  card.md               data, protocol, scores, baselines and limits

examples
  python -m sweep.pick breast
  python -m sweep.pick breast trial=12
  python -m sweep.pick breast by=val/pointing within=1se of=val/auroc
"""
AUTO: Final = "auto"
DEFAULTS: Final[Mapping[str, str]] = {
    **{key: "" for key in ("name", "trial", "by", "within", "of", "out")},
    **{"storage": DEFAULT_STORAGE, "train": "false", "replace": "false", "register": AUTO},
}


def main(words: Sequence[str]) -> None:
    """Runs the command line; see HELP."""
    if asks_for_help(words):
        print(HELP, end="")
        return
    options, mistakes = read_sweep_options(words, DEFAULTS)
    storage = view_of(options["storage"])
    mistakes += check_exists(options["name"], storage)
    number, rule = _choice_of_words(options, mistakes)
    if options["register"] not in (AUTO, "true", "false"):
        mistakes.append(Mistake("register", f"true or false, got {options['register']!r}"))
    if (obstacle := _obstacle(storage, options)) and not any(mistake.path == "name" for mistake in mistakes):
        others = [word for word in words if not word.startswith("out=")]
        command = _command([*others, f"out=picked/{options['name'] or 'NAME'}"])
        mistakes.append(Mistake("out", f"{obstacle}; name a folder for it:\n    {command}"))
    if mistakes:
        raise ConfigError(mistakes)
    folder = storage.sweep(options["name"])
    trials = read_candidates(folder)
    if unknown := trials.unknown_goals({"by": options["by"], "of": options["of"]}):
        raise ConfigError(unknown)
    if number is None:
        trials.refuse_losses()
    picked = pick(trials, rule or trials.rule, number)
    config = trials.config_of(picked.trial)
    is_registered = options["register"] != "false" and not isinstance(config.student, VlmConfig)
    if options["register"] == "true" and not is_registered:
        problem = "a student that answers cannot be registered: a model in MLflow gives probabilities; leave it out"
        raise ConfigError.at("register", problem)
    console = plain_console(highlight=False)
    show(trials, picked, console)
    path = named_folder(options["out"] or str(folder.picked / str(picked.trial.number)))
    target = PickedFolder.of(path, config)
    with written_to(target.path.parent):
        student = hand_out(trials, picked, target, _command(words), options, console)
    is_private = student is not None and student.card.credentialed
    if student is not None and is_registered and (options["register"] == "true" or not is_private):
        _register(trials, picked, target, storage, options["register"] == "true", console)


def _obstacle(storage: Storage, options: Mapping[str, str]) -> str:
    """Returns why the picked folder cannot be where the words put it, or an empty text."""
    if not options["out"] and storage.address:
        return "a student is used from a disk, and the sweep lies in an object store"
    target = Path(options["out"]) if options["out"] else storage.sweep(options["name"]).picked
    if os.path.lexists(target) and not target.is_dir():
        return f"{target} is no folder"
    above = next(path for path in (target.absolute(), *target.absolute().parents) if path.exists())
    return "" if above.is_dir() and os.access(above, os.W_OK) else f"{above} cannot be written"


def _command(words: Sequence[str]) -> str:
    return join(["python", "-m", "sweep.pick", *map(redact_passwords, words)])


def _choice_of_words(options: Mapping[str, str], mistakes: list[Mistake]) -> tuple[int | None, Selection | None]:
    """Returns the number and the rule that the words name, and adds their mistakes. Both are None if the sweep's own
    rule picks.
    """
    number = int(options["trial"]) if options["trial"].isdecimal() else None
    if options["trial"] and number is None:
        mistakes.append(Mistake("trial", f"wants the number of a trial, got {options['trial']!r}"))
    given = [key for key in ("by", "within", "of") if options[key]]
    if options["trial"] and given:
        mistakes.append(Mistake("trial", f"names the trial already; leave out {' and '.join(given)}"))
    elif given and not options["by"]:
        mistakes.append(
            Mistake("by", f"missing: {' and '.join(given)} limits a choice; write by=GOAL, such as val/auroc")
        )
    elif given:
        try:
            rule = {"maximize": options["by"], "within": options["within"] or None, "of": options["of"] or None}
            return None, read_selection(rule)
        except ConfigError as error:
            mistakes += [Mistake(path or given[-1], problem) for path, problem in error.mistakes]
    return number, None


def show(trials: Candidates, picked: Pick, console: Console) -> None:
    """Prints the picked trial beside its neighbours, and why it is picked."""
    console.print(neighbours(trials, picked))
    console.print()
    if trials.sweep.running:
        ended = sum(record.state != "running" for record in trials.records)
        planned = trials.space.search.trials
        console.print(
            f"warning: the sweep still runs ({ended} of {planned} trials have ended), so the choice may change"
        )
    for line in [*reasons(trials, picked), *image_blind_scores([picked.trial], trials.sweep.goals)]:
        console.print(line)
    for line in without_lead(picked.trial, trials.sweep.goals):
        console.print(f"warning: {line}")


def _register(
    trials: Candidates, picked: Pick, target: PickedFolder, storage: Storage, is_wanted: bool, console: Console
) -> None:
    """Registers the student in MLflow.

    Args:
        is_wanted: whether the user asked for it. Otherwise a tracking server is left alone, because others see it, and
            a failure is only a warning.
    """
    sweep = trials.sweep
    where = storage_at(str(storage)) if storage.address else storage
    try:
        uri = tracking_uri(sweep.words or (), where)
        if not is_wanted and not (is_local(uri) and sqlite_file(uri).is_file()):
            return
        console.print("\nMLflow: registering the student")  # importing MLflow takes seconds
        name, number = sweep.folder.name, picked.trial.number
        version, is_new = register(
            uri, name, sweep.plan.get("sweep", ""), number, target.student, target.card.read_text()
        )
    except UserError as error:
        if is_wanted:
            raise
        console.print(f"warning: {error}", soft_wrap=True)
        return
    state = "registered" if is_new else "registered already"
    console.print(f"{state} in MLflow as version {version} of the model {name}; serve it:")
    console.print(
        f"  MLFLOW_TRACKING_URI={quote(redact_passwords(uri))} mlflow models serve --env-manager local "
        f"--model-uri models:/{name}/{version}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    with command_line() as words:
        main(words)
