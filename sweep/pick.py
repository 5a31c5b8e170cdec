"""Picks a trial of a sweep and puts its student into a person's hands: `python -m sweep.pick`; `--help` lists its
options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import join, quote
from typing import Final

from pydantic import ValidationError
from rich.console import Console

from mmpkd import train
from mmpkd.command import command_line, named_folder, plain_console, written_to
from mmpkd.config import TrialConfig, dump_trial
from mmpkd.export.student_file import Exported
from mmpkd.near_names import mistake_of, paths_of
from mmpkd.types import ConfigError, Mistake, UserError
from sweep.options import DEFAULT_STORAGE, read_sweep_options, redact_passwords, sqlite_file, storage_at
from sweep.picking.candidates import Candidates, read_candidates
from sweep.picking.card import card_of
from sweep.picking.folder import PickedFolder, adopt_trained, alone_in, differing, publish, read_student
from sweep.picking.words import Pick, neighbours, pick, reasons, without_lead
from sweep.reports.console import image_blind_scores
from sweep.selection import Selection
from sweep.storage.layout import STUDENT, Storage, SweepFolder
from sweep.storage.reader import check_exists
from sweep.tracking.registry import is_local, register, tracking_uri
from sweep.transfer.attempts import kept_student
from sweep.transfer.views import view_of

HELP = """\
usage: python -m sweep.pick NAME [trial=N | by=GOAL [within=X of=GOAL]] [key=value ...]

Picks one trial of a sweep, shows it beside its neighbours with standard errors, and says why it is
picked. Writes a folder with its configuration, its student and a model card. Without trial= and by=
the rule of the sweep (search.select) picks.

  NAME           the sweep; name=NAME means the same
  trial=N        the trial of this number
  by=GOAL        the best trial by this score, such as val/pointing
  within=X       only among trials whose score by of= is within X of the best: a number such as 0.01, or
                 1se, one standard error of that best score (Breiman et al. 1984)
  of=GOAL        the score of within=
  storage=runs   folder or address of all sweeps, as given to sweep.run
  out=DIR        the folder to write; STORAGE/NAME/picked/N by default. A sweep in an object store needs it
  train=true     trains the student again where the sweep has not kept it, with the command that is
                 printed otherwise
  replace=true   replaces a folder that holds another configuration or student
  register=true  logs the student to the trial's run in MLflow and registers it under the sweep's name.
                 Without it, this is done where the sweep is tracked in a file; register=false: nowhere

it writes
  config.yaml           the configuration; python -m mmpkd.train config= reproduces it
  student.safetensors   the student, for mmpkd.predict, mmpkd.evaluate and mmpkd.export
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
    if {"--help", "-h", "help"} & set(words):
        print(HELP, end="")
        return
    options, mistakes = read_sweep_options(words, DEFAULTS)
    storage = view_of(options["storage"])
    if options["name"]:
        mistakes += check_exists(options["name"], storage)
    else:
        names = ", ".join(folder.name for folder in storage.sweeps())
        mistakes.append(Mistake("NAME", f"which sweep? under {storage}: {names or 'none'}"))
    number, rule = _choice_of_words(options, mistakes)
    if options["register"] not in (AUTO, "true", "false"):
        mistakes.append(Mistake("register", f"true or false, got {options['register']!r}"))
    if storage.address and not options["out"]:
        problem = "a student is used from a disk, and the sweep lies in an object store"
        mistakes.append(Mistake("out", f"{problem}; name a folder to write with out=DIR"))
    if options["out"] and Path(options["out"]).is_file():
        mistakes.append(Mistake("out", f"{options['out']} is a file; name a folder to write with out=DIR"))
    if mistakes:
        raise ConfigError(mistakes)
    folder = storage.sweep(options["name"])
    trials = read_candidates(folder)
    if unknown := trials.unknown_goals({"by": options["by"], "of": options["of"]}):
        raise ConfigError(unknown)
    picked = pick(trials, rule or trials.rule, number)
    console = plain_console(highlight=False)
    show(trials, picked, console)
    target = PickedFolder(named_folder(options["out"] or str(folder.picked / str(picked.trial.number))))
    with written_to(target.path.parent):
        student = write(trials, picked, target, join(["python", "-m", "sweep.pick", *words]), options, console)
    is_private = student is not None and student.card.credentialed
    if student is not None and (options["register"] == "true" or (options["register"] == AUTO and not is_private)):
        _register(trials, picked, target, storage, options["register"] == "true", console)


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
            return None, Selection.model_validate(rule)
        except ValidationError as error:
            problems = [mistake_of(details, "", paths_of(Selection)) for details in error.errors()]
            mistakes += [Mistake(path or given[-1], problem) for path, problem in problems]
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


def write(
    trials: Candidates, picked: Pick, target: PickedFolder, command: str, options: Mapping[str, str], console: Console
) -> Exported | None:
    """Writes the folder of a picked trial, trains its student if that is wanted and needed, and says how to use it.

    Args:
        command: the command line of this process.

    Returns:
        The student, or None if it is not trained yet.

    Raises:
        UserError: the student is damaged, the folder holds something else, or another process writes there.
    """
    config, number = trials.config_of(picked.trial), picked.trial.number
    text, training = dump_trial(config), options["train"] == "true"
    replace = options["replace"] == "true" and target.path.exists()
    copy = target.path.with_name(f".{target.path.name}.{STUDENT}.partial")
    with alone_in(target.path.parent):
        try:
            student = _copied(trials.sweep.folder, number, config, copy, training, console)
            if (names := differing(target, text, student)) and not replace:
                problem = f"{target.path} holds another {' and another '.join(names)} than that of trial {number}"
                raise UserError(f"{problem}; this replaces it:\n  {command} replace=true")
            if not replace:
                adopt_trained(target, config)
            same = target.student.is_file() and not replace
            exported = _read(student or target.student, config, number, training, console) if student or same else None
            publish(target, text, student, card_of(trials, picked, config, exported), replace)
        finally:
            copy.unlink(missing_ok=True)
    if exported is None and training:
        train.main(target.training_words(_cache_of(trials)))
        adopt_trained(target, config)
        console.print(f"the student is moved to {target.student}", soft_wrap=True)
        exported = read_student(target.student, config, number)
        publish(target, text, None, card_of(trials, picked, config, exported), replace=False)
    elif same:
        console.print("it was picked before, with the same configuration and student; its card is written anew")
    _say_what_next(trials, target, trained=exported is not None, command=command, console=console)
    return exported


def _copied(
    folder: SweepFolder, number: int, config: TrialConfig, copy: Path, training: bool, console: Console
) -> Path | None:
    """Copies the student that the sweep has kept, and returns the copy, or None if it has kept none.

    Raises:
        UserError: the student cannot be read, or is damaged and not to be trained again.
    """
    if (attempt := kept_student(folder, number)) is None:
        return None
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        attempt.download(STUDENT, copy)
    except FileNotFoundError:  # a driver has just deleted it
        return None
    except PermissionError as error:
        raise UserError(f"{attempt.child(STUDENT)}: cannot be read ({error.strerror}); ask its owner") from error
    try:
        return copy if _read(copy, config, number, training, console) else None
    except UserError as error:  # it names the copy, which is deleted
        raise UserError(str(error).replace(str(copy), str(attempt.child(STUDENT)))) from error


def _read(file: Path, config: TrialConfig, number: int, training: bool, console: Console) -> Exported | None:
    """Returns the student in a file. If it is damaged and is to be trained again, warns and returns None.

    Raises:
        UserError: the student is damaged, and is not to be trained again.
    """
    try:
        return read_student(file, config, number)
    except UserError as error:
        if not training:
            raise
        console.print(f"warning: {error}")
        return None


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


def _cache_of(trials: Candidates) -> str:
    """Returns the folder of the cache with which the sweep was run, or an empty text if there is none here."""
    caches = [word.partition("=")[2] for word in trials.sweep.words or () if word.startswith("cache=")]
    return caches[-1] if caches and Path(caches[-1]).is_dir() else ""


def _say_what_next(trials: Candidates, target: PickedFolder, trained: bool, command: str, console: Console) -> None:
    def line(text: str) -> None:
        console.print(text, soft_wrap=True)

    names = ", ".join(path.name for path in (target.config, target.student, target.card) if path.is_file())
    line(f"\nfiles in {target.path}: {names}")
    if not trained:
        line("the sweep has not kept this student; this trains exactly the same one, and train=true does it here:")
        line(f"  {join(['python', '-m', 'mmpkd.train', *target.training_words(_cache_of(trials))])}")
        line("then this takes it over:")
        line(f"  {command}")
        return
    student = quote(str(target.student))
    line(f"apply it to images:\n  python -m mmpkd.predict model={student} images=FOLDER")
    line(f"export it to=timm, onnx, mlflow or hub:\n  python -m mmpkd.export model={student} to=onnx")


if __name__ == "__main__":
    with command_line() as words:
        main(words)
