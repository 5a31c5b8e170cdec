"""Runs the command `python -m mmpkd.cohort`, which prepares, shows and checks a cohort. Its usage is in `HELP`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpkd.cohort import READERS
from mmpkd.cohort.check import check
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.show import show
from mmpkd.cohort.suspects import suspects_of
from mmpkd.command import asks_for_help, command_line, own_words, plain_console, warn, wrapped
from mmpkd.config import CohortConfig, validate
from mmpkd.machine.files import overridden, read_yaml
from mmpkd.near_names import near
from mmpkd.types import ConfigError, Mistake

VERBS = ("prepare", "show", "check")
READER_LINES = "\n".join(wrapped(", ".join(READERS), 80, indent="  ", hanging=""))
HELP = f"""\
usage: python -m mmpkd.cohort prepare|show|check [config=FILE] [key=value ...]

Prepares a cohort, shows what it holds, or checks its store against the source
files. A sweep prepares its cohort by itself, with the same result.

  prepare       decodes the raw data set into a store under cache/stores; if it
                is interrupted, the same command continues
  show          prepares the cohort if needed, then prints counts, the balance
                of labels by part, missing cells, the roles of columns and how
                well each column alone predicts the labels, and draws a contact
                sheet in the store's folder
  check         checks that the store is complete and agrees with the source
                files, by decoding some of its samples again, and lists how the
                copy differs from the data set as published

  config=FILE   a configuration or a search space, whose cohort section is read
  cohort.KEY=.. any leaf of a cohort, such as cohort.reader= and cohort.root=
  samples=64    of check: how many samples are decoded; samples=all: every one
  cache=DIR     the folder of the stores [cache]

Every cohort takes cohort.window.level=40 cohort.window.width=400, the range of
values that becomes 0 to 255 (Hounsfield units in CT), and cohort.clahe={{}}, an
adaptive equalisation. docs/formats.md lists the image formats. The options of
each reader are in docs/your_own_data.md and docs/published_data_sets.md.
The readers are
{READER_LINES}

examples
  python -m mmpkd.cohort prepare cohort.reader=derm7pt cohort.root=DIR
  python -m mmpkd.cohort show config=search_spaces/breast.yaml cohort.root=DIR
  python -m mmpkd.cohort check config=best.yaml samples=all
"""


def main(words: Sequence[str]) -> None:
    if not words or asks_for_help(words):
        print(HELP, end="")
        return
    verb, *arguments = words
    if verb not in VERBS:
        raise ConfigError.at("verb", f"wanted {', '.join(VERBS)}, got {verb!r}{near(verb, VERBS)}; --help explains")
    options, overrides = own_words(arguments, {"config": "", "cache": "cache", "samples": "64"})
    content = {"cohort": read_yaml(Path(options["config"])).get("cohort", {}) if options["config"] else {}}
    content = overridden(content, overrides)
    if unknown := [key for key in content if key != "cohort"]:
        problem = "not of a cohort, whose keys begin with cohort."
        raise ConfigError([Mistake(key, f"{problem}{near(key, options)}") for key in unknown])
    config = validate(CohortConfig, content["cohort"], "cohort")
    samples = options["samples"]
    if samples != "all" and not samples.isdecimal():
        raise ConfigError.at("samples", f"a number or all, got {samples!r}")
    console, cache = plain_console(soft_wrap=True), Path(options["cache"])
    if verb == "check":
        check(config, cache, None if samples == "all" else int(samples), console)
        return
    store = prepare(config, cache, notes=verb != "show")  # which prints them itself
    warn(suspects_of(store).lines(store.facts))
    if verb == "show":
        show(store, console)
    else:
        console.print(f"store: {store.path}", highlight=False)


if __name__ == "__main__":
    with command_line() as words:
        main(words)
