"""A search space file and the command line's overrides, as arms to draw from (grammar in `grammar.py`).

A file is a TrialConfig whose leaves may be distributions, and beside that two keys:

    arms     the treatments to compare, each merged deep over the rest of the file. `none: {}` is
             always there; `none: false` (or `arms.none=false`) switches it off, as it does any arm.
    search   how to search; see `SearchConfig`.

Overrides are `dotted.key=value`; the dotted key leaves the words one_of and maybe out and names the
label of a branch: `arms.tabular.objectives.logits.logits.weight=1`. A value may be a distribution:
`optimizer.lr={log_uniform: [1e-4, 1e-2]}`. Overrides come first, `${...}` is resolved after
(`source.py`); a reference to what is drawn is bound arm by arm (`same.py`).
Neither ray nor torch nor optuna is needed to read a space.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from omegaconf import OmegaConf
from pydantic import AfterValidator, BeforeValidator, Field

from mmpkd.config import Positive, Strict, TrialConfig, validate
from mmpkd.near_names import near, near_path, paths_of
from mmpkd.types import ConfigError, Mistake
from sweep.space.draw import Walk, draw, leaf_name
from sweep.space.grammar import REFERENCE, Fixed, Node, OneOf, Tree, distributions, lay_over, lone_word, parse
from sweep.space.loading import SHORTCUTS, override, read, resolved
from sweep.space.points import enqueued
from sweep.space.references import bind

# Scores a sweep can maximise, all of them better when higher, and what the cohort must have for it.
SCORES: Final = {
    "val/auroc": "",
    "val/auroc_patient": "several images of a patient",
    "val/pointing": "ROIs",
    "val/mass": "ROIs",
    "val/pixel_ap": "ROIs",
}
# The same for every trial: arms are compared on the same images, scores, budget and machine.
SHARED: Final = ("cohort", "evaluation", "epochs", "threads", "seed")
PATHS: Final = (("cohort", "root"), ("student", "weights"))  # in a TrialConfig


class EarlyStopping(Strict):
    """Asynchronous halving on all goals: at epochs grace x reduction^k the best 1/reduction of an arm go on.

    `grace` is by default epochs / reduction, so trials are ranked once, and with the same share of
    their learning rate's schedule behind them whatever `epochs` is. A fixed grace of a few epochs
    ranks by who warms up fastest in long sweeps, and ranks again just before the end in short ones;
    either leaves few complete trials, of which alone the front is made.
    """

    grace: Positive | None = None  # epochs that every trial gets
    reduction: Annotated[int, Field(ge=2)] = 3

    def rungs(self, epochs: int) -> list[int]:
        """Returns the epochs at which trials are ranked; never the last epoch, where nothing is left to decide."""
        rungs, epoch = [], self.grace or math.ceil(epochs / self.reduction)
        while epoch < epochs:
            rungs.append(epoch)
            epoch *= self.reduction
        return rungs


def _off(value: object) -> object:
    return None if value is False else value


def _folder(value: str | None) -> str | None:
    """A sweep's name as it is, a path absolute: the next driver may stand in another folder."""
    return os.path.abspath(os.path.expanduser(value)) if value and os.sep in value else value


Off = BeforeValidator(_off, json_schema_input_type=EarlyStopping | Literal[False] | None)
Share = Annotated[float, Field(gt=0, le=1)]


def _per_device(value: object) -> object:
    if value is None or value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("wants a whole number above 0, or auto")


PerDevice = Annotated[
    int | Literal["auto"] | None,
    BeforeValidator(_per_device, json_schema_input_type=Annotated[int, Field(ge=1)] | Literal["auto"] | None),
]
Sampler = Literal["tpe", "nsga2", "gp", "qmc", "random"]
Point = Mapping[str, Any]
WarmStart = Annotated[str | None, AfterValidator(_folder)]


class SearchConfig(Strict):
    """How to search. The sampler's seed is the trials' `seed`."""

    maximize: Annotated[tuple[str, ...], Field(min_length=1)] | None = None  # val/auroc, with ROIs val/pointing too
    select: str = "val/auroc"  # the goal that picks best.yaml from the front
    trials: Positive = 32  # configurations started, over all arms
    budget_device_hours: Annotated[float, Field(gt=0)] | None = None  # wall time x GPUs (else cores) of all trials
    deadline: datetime | None = None  # nothing runs later; local time unless it names a zone
    plateau: Annotated[int, Field(ge=2)] | None = None  # complete trials of an arm without 1 % more hypervolume: enough
    shares: Mapping[str, Share] = {}  # of device-hours, by arm; arms not named share the rest equally
    sampler: Sampler = "tpe"
    warm_start: WarmStart = None  # a sweep of the same cohort, by name or folder, whose results the samplers begin with
    points: tuple[Point, ...] = ()  # tried first: {arm: NAME, path of a leaf: value}, what is left out is sampled
    repeats: Positive = 1  # seeds that a complete trial needs before it may enter the front
    early_stopping: Annotated[EarlyStopping | None, Off] = EarlyStopping()  # false or null: off
    trials_per_device: PerDevice = None  # a number or 'auto'; a device is a GPU, or else all cores of a machine
    cpus: Annotated[float, Field(gt=0)] | None = None  # cores reserved for a trial; `threads` of them by default
    gpus: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of a GPU reserved for a trial
    max_failures: Annotated[int, Field(ge=0)] = 3  # times that a trial whose worker died is tried again


# Every dotted path that a space file may hold outside its arms.
PATHS_OF_SPACE: Final = (*paths_of(TrialConfig), *paths_of(SearchConfig, "search"), "search", "arms", "extends")


@dataclass(frozen=True)
class Space:
    name: str
    base: Tree  # what all arms share
    own: Mapping[str, Node]  # what each arm lays over it
    arms: Mapping[str, Node]  # both, merged: what to draw from
    search: SearchConfig
    raw: Mapping[str, Any]  # the file with overrides and references resolved; `dump_space` writes it

    @property
    def seed(self) -> int:
        """The trials' seed, which is the sampler's as well."""
        return int(self.raw.get("seed", TrialConfig.model_fields["seed"].default))

    @property
    def shares(self) -> dict[str, float]:
        """Of the device-hours, by arm: as named, and the rest in equal parts."""
        named = {arm: share for arm, share in self.search.shares.items() if arm in self.arms}
        others = [arm for arm in self.arms if arm not in named]
        rest = max(1 - sum(named.values()), 0.0)
        return {arm: named[arm] if arm in named else rest / len(others) for arm in self.arms}

    def points_of(self, arm: str) -> list[dict[str, Any]]:
        """What is to be tried first in an arm, by leaf name."""
        points = [one for one in self.search.points if one["arm"] == arm]
        chosen = [enqueued(one, self.arms[arm], "search.points", []) for one in points]
        return [{leaf_name(arm, path): value for path, value in one.items()} for one in chosen]


def load_space(
    word: str, overrides: Sequence[str] = (), words: Sequence[str] = ()
) -> tuple[Space | None, list[Mistake]]:
    """A space by name or file, with `key=value` overrides laid over it.

    Every mistake is returned, under its path in the file; what is broken has a stand-in in the
    space, so that `plan` can look for further ones. The space is None where there is no file to read.

    Args:
        words: of the command line besides overrides, which a misspelt one may have been meant to be.
    """
    mistakes: list[Mistake] = []
    try:
        content = read(word)
    except ConfigError as error:
        return None, list(error.mistakes)
    for assignment in overrides:
        override(content, assignment, mistakes, (*PATHS_OF_SPACE, *SHORTCUTS, *words))
    raw = resolved(content, (*SHARED, "search"), mistakes)
    _make_absolute(raw)
    search = _search(raw.get("search"), mistakes)
    known = (*TrialConfig.model_fields, "arms", "search")
    mistakes += [
        Mistake(str(key), f"unknown key{near_path(str(key), value, PATHS_OF_SPACE)}")
        for key, value in raw.items()
        if key not in known
    ]
    base = _base({key: value for key, value in raw.items() if key in TrialConfig.model_fields}, mistakes)
    own = dict(_arms(raw.get("arms"), mistakes))
    arms = {name: bind(lay_over(base, node), name, mistakes) for name, node in own.items()}
    mistakes += _misfits(search, arms)
    raw["search"] = search.model_dump(mode="json")
    return Space(Path(word).stem, base, own, arms, search, raw), mistakes


def dump_space(space: Space) -> str:
    """The YAML that `load_space` reads back as an equal space, on any machine."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(space.raw)))


def _make_absolute(raw: Mapping[str, Any]) -> None:
    """Workers stand in other folders than the command did."""
    arms = raw.get("arms")
    shared = {key: value for key, value in raw.items() if key != "arms"}
    for content in (shared, *(arms.values() if isinstance(arms, dict) else ())):
        for section, key in PATHS:
            _make_absolute_below(content, section, key, inside=False)


def _make_absolute_below(node: Any, section: str, key: str, inside: bool) -> None:
    """Turns the paths at `section.key`, through grammar words and labels of branches, into absolute ones."""
    for name, value in node.items() if isinstance(node, dict) else ():
        if inside and name == key:
            node[name] = _absolute(value)
        elif inside or name == section or name not in TrialConfig.model_fields:
            _make_absolute_below(value, section, key, inside or name == section)


def _absolute(value: Any) -> Any:
    if isinstance(value, dict):
        return {word: _absolute(inner) for word, inner in value.items()}
    if isinstance(value, list):
        return [_absolute(inner) for inner in value]
    is_path = isinstance(value, str) and not REFERENCE.fullmatch(value)
    return os.path.abspath(os.path.expanduser(value)) if is_path else value


def _search(content: Any, mistakes: list[Mistake]) -> SearchConfig:
    content = {} if content is None else content
    try:
        search = validate(SearchConfig, content, "search")
    except ConfigError as error:
        mistakes += error.mistakes
        wrong = {mistake.path.split(".")[1] for mistake in error.mistakes if "." in mistake.path}
        sound = isinstance(content, dict) and wrong
        search = SearchConfig(**{key: value for key, value in content.items() if key not in wrong} if sound else {})
    unknown = [goal for goal in search.maximize or () if goal not in SCORES]
    mistakes += [Mistake("search.maximize", f"no score {goal!r} to maximise{near(goal, SCORES)}") for goal in unknown]
    if search.select not in SCORES:
        mistakes.append(Mistake("search.select", f"no score {search.select!r}{near(search.select, SCORES)}"))
    elif search.maximize and not unknown and search.select not in search.maximize:
        goals = ", ".join(search.maximize)
        mistakes.append(Mistake("search.select", f"{search.select} is not among the goals of search.maximize: {goals}"))
    return search


def _base(content: Mapping[Any, Any], mistakes: list[Mistake]) -> Tree:
    children: dict[Any, Node] = {}
    for key, value in content.items():
        node = parse(value, str(key), mistakes)
        if node is None:
            continue
        drawn = list(distributions(node)) if key in SHARED else []
        if drawn:
            problem = "is the same for every trial of a sweep: give one value, no distribution"
            mistakes += [Mistake(one.path, problem) for one in drawn]
            node = Fixed(str(key), draw(Tree("", {key: node}), Walk({}), "").config.get(key))
        children[key] = node
    return Tree("", children)


def _arms(arms: Any, mistakes: list[Mistake]) -> Iterator[tuple[str, Node]]:
    if arms is None:
        return  # a reference that leads nowhere, already said
    if not isinstance(arms, dict) or lone_word(arms):
        mistakes.append(Mistake("arms", f"must be a mapping of names to arms, got {arms!r}"))
        return
    if all(arm is False for arm in arms.values()):
        mistakes.append(Mistake("arms", "every arm is switched off; leave at least one on"))
    for key, content in arms.items():
        path = f"arms.{key}"
        if content is False:
            continue
        content = {} if content is None else content
        if not re.fullmatch(r"[A-Za-z0-9_-]+", str(key)):
            mistakes.append(Mistake(path, "an arm's name is letters, digits, - and _"))
        elif not isinstance(content, dict) or lone_word(content) not in (None, "one_of"):
            mistakes.append(Mistake(path, f"an arm is a mapping (or false: switched off), got {content!r}"))
        else:
            node = parse(content, path, mistakes)
            if node is not None:
                yield str(key), _without_shared(node, mistakes)


def _without_shared(node: Node, mistakes: list[Mistake]) -> Node:
    """An arm less the keys that it may not set."""
    match node:
        case OneOf(path=path, branches=branches):
            return OneOf(path, {label: _without_shared(branch, mistakes) for label, branch in branches.items()})
        case Tree(path=path, children=children):
            problem = "is the same for every trial of a sweep: set it at the top of the file, not in an arm"
            mistakes += [Mistake(child.path, problem) for key, child in children.items() if key in SHARED]
            return Tree(path, {key: child for key, child in children.items() if key not in SHARED})
    mistakes.append(Mistake(node.path, "a branch of an arm must be a mapping"))
    return Tree(node.path, {})


def _misfits(search: SearchConfig, arms: Mapping[str, Node]) -> list[Mistake]:
    """What the search says of arms, and the arms do not bear out."""
    mistakes: list[Mistake] = []
    mistakes += [
        Mistake(f"search.shares.{arm}", f"no such arm{near(arm, arms)}") for arm in search.shares if arm not in arms
    ]
    total = sum(search.shares.values())
    unnamed = [arm for arm in arms if arm not in search.shares]
    if total > 1 + 1e-9:
        mistakes.append(Mistake("search.shares", f"add up to {total:g}, and there is only 1 to share"))
    elif unnamed and total > 1 - 1e-9:
        left = ", ".join(unnamed)
        mistakes.append(Mistake("search.shares", f"add up to {total:g}, which leaves nothing for {left}; lower them"))
    elif not unnamed and arms and not mistakes and total < 1 - 1e-9:
        mistakes.append(Mistake("search.shares", f"add up to {total:g}; where every arm is named they make up 1"))
    for index, point in enumerate(search.points):
        where = f"search.points.{index}"
        if not isinstance(point.get("arm"), str) or point["arm"] not in arms:
            said = f"no such arm {point['arm']!r}{near(str(point['arm']), arms)}" if "arm" in point else "missing"
            mistakes.append(Mistake(f"{where}.arm", said))
        else:
            enqueued(point, arms[point["arm"]], where, mistakes)
    return mistakes
