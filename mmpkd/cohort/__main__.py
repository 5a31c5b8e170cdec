"""The command line of cohorts; see HELP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmpkd.cohort import READERS
from mmpkd.cohort.check import check
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.show import show
from mmpkd.cohort.suspects import suspects_of
from mmpkd.command import own_words, plain_console, run, warn
from mmpkd.config import CohortConfig, validate
from mmpkd.machine.files import overridden, read_yaml
from mmpkd.near_names import near
from mmpkd.types import ConfigError

VERBS = ("prepare", "show", "check")
HELP = f"""A cohort by itself: prepare it once, look at it, hold it against its sources.

    python -m mmpkd.cohort prepare cohort.reader=NAME cohort.root=DIR [cohort.key=value ...]
    python -m mmpkd.cohort show    config=search_spaces/breast.yaml cohort.root=DIR
    python -m mmpkd.cohort check   config=best.yaml samples=all

  prepare   decodes the raw data set into a store under cache/stores; the same command again continues
  show      the same, then prints counts, label balance by part, missing cells, column roles and what each column
            tells alone, and draws a contact sheet with further images and regions, in the store's folder
  check     says whether the store is whole and still what the files say, by decoding again samples=64 of it
            (samples=all for every one), and how the copy differs from the data set as published

  config=FILE   a configuration or a search space, of which the cohort section is read
  cache=DIR     where stores lie (cache)

Any cohort may have cohort.window.level=40 cohort.window.width=400, the values that become 0 to 255 (Hounsfield units
in CT), and cohort.clahe={{}}, an adaptive equalisation; docs/formats.md says what is read of each format.

Readers: {", ".join(READERS)}; the options of each stand at the top of mmpkd/cohort/<reader>.py.
A sweep prepares its cohort by itself, with the same result."""


def main(words: Sequence[str]) -> None:
    if not words or {"-h", "--help"} & set(words):
        print(HELP)
        return
    verb, *rest = words
    if verb not in VERBS:
        raise ConfigError.at("verb", f"wanted {', '.join(VERBS)}, got {verb!r}{near(verb, VERBS)}; --help explains")
    own, overrides = own_words(rest, {"config": "", "cache": "cache", "samples": "64"})
    content = {"cohort": read_yaml(Path(own["config"])).get("cohort", {}) if own["config"] else {}}
    content = overridden(content, overrides)
    if unknown := [key for key in content if key != "cohort"]:
        raise ConfigError.at(unknown[0], f"not of a cohort; keys begin with cohort.{near(unknown[0], own)}")
    config = validate(CohortConfig, content["cohort"], "cohort")
    if own["samples"] != "all" and not own["samples"].isdecimal():
        raise ConfigError.at("samples", f"a number or all, got {own['samples']!r}")
    console, cache = plain_console(soft_wrap=True), Path(own["cache"])
    if verb == "check":
        check(config, cache, None if own["samples"] == "all" else int(own["samples"]), console)
        return
    store = prepare(config, cache)
    warn(suspects_of(store).lines(store.facts))
    if verb == "show":
        show(store, console)
    else:
        console.print(f"store: {store.path}", highlight=False)


if __name__ == "__main__":
    run(main)
