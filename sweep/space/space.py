"""Reads a search space file and the overrides of the command line, and makes the arms to draw from.

A file has the keys of a TrialConfig, but its leaves may be distributions (`grammar.py`). It has two further keys:

    arms     the treatments to compare, each merged deep over the rest of the file. The arm `none: {}`
             always exists. The value `false` switches an arm off, as in `arms.none=false`.
    search   how to search; see `SearchConfig`.

Overrides are `dotted.key=value`. The dotted key leaves out the words one_of and maybe and names the label of a branch:
`arms.tabular.objectives.logits.logits.weight=1`. A value may be a distribution: `optimizer.lr={log_uniform: [1e-4,
1e-2]}`. Overrides are applied before `${...}` is resolved (`loading.py`). References to sampled leaves are resolved arm
by arm (`references.py`). Reading a space needs no ray, torch or optuna.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from omegaconf import OmegaConf

from mmpkd.config import TrialConfig, validate
from mmpkd.near_names import near, near_path, paths_of
from mmpkd.types import ConfigError, Mistake
from sweep.selection import rule_of
from sweep.space.draw import BoundsChooser, draw, leaf_name
from sweep.space.grammar import REFERENCE, Fixed, Node, OneOf, Tree, distributions, lay_over, lone_word, parse
from sweep.space.loading import SHORTCUTS, override, read, resolved, shadowed
from sweep.space.points import values_of_point
from sweep.space.references import bind
from sweep.space.search_config import ANSWER, SCORES, SearchConfig

# Keys with one value for all trials, because arms are compared on the same images, scores, budget and machine.
SHARED: Final = ("cohort", "evaluation", "epochs", "threads", "seed", *TrialConfig.INERT)
TIE_DIGITS: Final = 9  # decimal digits to which parts of shares are compared; further digits are rounding errors
FILES: Final = (  # keys of a TrialConfig that hold the path of a file or folder, by their sections
    ("cohort", "root"),
    ("student", "weights"),
    ("teachers", "params", "encoder"),
    ("student", "model"),
    ("distillation", "teacher", "model"),
    ("teachers", "params", "network", "weights"),
)


# Every dotted path that a space file may hold outside its arms.
PATHS_OF_SPACE: Final = (*paths_of(TrialConfig), *paths_of(SearchConfig, "search"), "search", "arms", "extends")


@dataclass(frozen=True)
class Space:
    name: str
    base: Tree  # what all arms share
    own: Mapping[str, Node]  # what each arm changes
    arms: Mapping[str, Node]  # base and own merged; configurations are drawn from these arms
    search: SearchConfig
    raw: Mapping[str, Any]  # the file with overrides and references resolved; `dump_space` writes it

    @property
    def seed(self) -> int:
        """The seed of the trials, which is also the seed of the sampler."""
        return int(self.raw.get("seed", TrialConfig.model_fields["seed"].default))

    @property
    def shares(self) -> dict[str, float]:
        """The share of the trials by arm, or of the device-hours with `search.equal=hours`. Arms that `search.shares`
        does not name divide the remainder equally.
        """
        named = {arm: share for arm, share in self.search.shares.items() if arm in self.arms}
        others = [arm for arm in self.arms if arm not in named]
        remainder = max(1 - sum(named.values()), 0.0)
        return {arm: named[arm] if arm in named else remainder / len(others) for arm in self.arms}

    def points_of(self, arm: str) -> list[dict[str, Any]]:
        """Returns the points that are tried first in an arm. Each point maps leaf names to values."""
        points = [point for point in self.search.points if point["arm"] == arm]
        values_by_path = [values_of_point(point, self.arms[arm], "search.points", []) for point in points]
        return [{leaf_name(arm, path): value for path, value in values.items()} for values in values_by_path]


def furthest_behind(used: Mapping[str, float], shares: Mapping[str, float], arms: Sequence[str]) -> str:
    """Returns the arm that has used the smallest part of its share. If several arms are equal, returns the first of
    them. The search and the plan both follow this rule.

    Args:
        used: what each arm has used, either a number of trials or device-seconds.
        shares: the share of each arm.
        arms: the arms to choose from, in the order of the space file.
    """
    return min(arms, key=lambda arm: round(used[arm] / shares[arm], TIE_DIGITS))


def load_space(
    word: str, overrides: Sequence[str] = (), words: Sequence[str] = ()
) -> tuple[Space | None, list[Mistake]]:
    """Loads a space by name or file, and applies `key=value` overrides.

    Args:
        words: other keys of the command line. A misspelt override may have been meant as one of these keys.

    Returns:
        The space and all mistakes, each mistake under its path in the file. Stand-ins replace broken parts of the
        space, so that `plan` can look for further mistakes. The space is None if no file could be read.
    """
    mistakes: list[Mistake] = []
    try:
        content = read(word)
    except ConfigError as error:
        return None, list(error.mistakes)
    mistakes += [mistake for assignment in overrides if (mistake := shadowed(content, assignment)) is not None]
    for assignment in overrides:
        override(content, assignment, mistakes, (*PATHS_OF_SPACE, *SHORTCUTS, *words))
    raw = resolved(content, (*SHARED, "search"), mistakes)
    _make_absolute(raw)
    search = _search(raw.get("search"), raw.get("student"), mistakes)
    known = (*TrialConfig.model_fields, "arms", "search")
    mistakes += [
        Mistake(str(key), f"unknown key{near_path(str(key), value, PATHS_OF_SPACE)}")
        for key, value in raw.items()
        if key not in known
    ]
    base = _base({key: value for key, value in raw.items() if key in TrialConfig.model_fields}, mistakes)
    own = dict(_arms(raw.get("arms"), mistakes))
    arms = {name: bind(lay_over(base, node), name, mistakes) for name, node in own.items()}
    mistakes += _mismatches(search, arms)
    raw["search"] = search.model_dump(mode="json")
    return Space(Path(word).stem, base, own, arms, search, raw), mistakes


def dump_space(space: Space) -> str:
    """Returns the space as YAML. `load_space` reads it back as an equal space on any machine."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(space.raw)))


def _make_absolute(raw: Mapping[str, Any]) -> None:
    """Makes all file paths in a space absolute, because workers do not run in the command's working directory."""
    arms = raw.get("arms")
    shared = {key: value for key, value in raw.items() if key != "arms"}
    for content in (shared, *(arms.values() if isinstance(arms, dict) else ())):
        for path in FILES:
            _make_absolute_below(content, path)


def _make_absolute_below(node: Any, path: tuple[str, ...]) -> None:
    """Makes the file paths at a dotted path absolute, also if they stand below grammar words and labels of branches.

    Args:
        path: the keys that are left of one of `FILES`.
    """
    for name, value in node.items() if isinstance(node, dict) else ():
        if name != path[0]:
            if path not in FILES or name not in TrialConfig.model_fields:
                _make_absolute_below(value, path)
        elif len(path) > 1:
            _make_absolute_below(value, path[1:])
        else:
            node[name] = _absolute(value, or_name=name in ("encoder", "model"))


def _absolute(value: Any, or_name: bool) -> Any:
    """Makes a path absolute, or each path of a distribution. With `or_name`, what is no folder is the name of a model
    and stays as it is.
    """
    if isinstance(value, dict):
        return {word: _absolute(inner, or_name) for word, inner in value.items()}
    if isinstance(value, list):
        return [_absolute(inner, or_name) for inner in value]
    if not isinstance(value, str) or REFERENCE.fullmatch(value):
        return value
    path = os.path.abspath(os.path.expanduser(value))
    return value if or_name and not os.path.isdir(path) else path


def _search(content: Any, student: Any, mistakes: list[Mistake]) -> SearchConfig:
    """Returns the section `search` of a space. The goal that chooses a trial is by default one of the student's kind.

    Args:
        student: the section `student`.
    """
    content = {} if content is None else content
    answers = isinstance(student, dict) and student.get("kind") == "vlm"
    if answers and isinstance(content, dict) and "select" not in content:
        goals = content.get("maximize")
        content = content | {"select": goals[0] if isinstance(goals, list) and goals else ANSWER}
    try:
        search = validate(SearchConfig, content, "search")
    except ConfigError as error:
        mistakes += error.mistakes
        broken = {mistake.path.split(".")[1] for mistake in error.mistakes if "." in mistake.path}
        usable = isinstance(content, dict) and broken
        search = SearchConfig(**{key: value for key, value in content.items() if key not in broken} if usable else {})
    unknown = [goal for goal in search.maximize or () if goal not in SCORES]
    mistakes += [Mistake("search.maximize", f"no score {goal!r} to maximise{near(goal, SCORES)}") for goal in unknown]
    for goal in rule_of(search.select).goals:
        if goal not in SCORES:
            mistakes.append(Mistake("search.select", f"no score {goal!r}{near(goal, SCORES)}"))
        elif search.maximize and not unknown and goal not in search.maximize:
            goals = ", ".join(search.maximize)
            mistakes.append(Mistake("search.select", f"{goal} is not among the goals of search.maximize: {goals}"))
    if search.trials_per_device is not None and search.gpus is not None:
        problem = f"stands beside search.gpus={search.gpus:g}, and each says how many trials share a GPU"
        mistakes.append(Mistake("search.trials_per_device", f"{problem}; set one of them to null"))
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
            mistakes += [Mistake(distribution.path, problem) for distribution in drawn]
            node = Fixed(str(key), draw(Tree("", {key: node}), BoundsChooser({}), "").config.get(key))
        children[key] = node
    return Tree("", children)


def _arms(arms: Any, mistakes: list[Mistake]) -> Iterator[tuple[str, Node]]:
    if arms is None:
        return  # a broken reference, which is reported already
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
    """Returns an arm without the keys that only the top level of the file may set. Each such key is reported as a
    mistake.
    """
    match node:
        case OneOf(path=path, branches=branches):
            return OneOf(path, {label: _without_shared(branch, mistakes) for label, branch in branches.items()})
        case Tree(path=path, children=children):
            problem = "is the same for every trial of a sweep: set it at the top of the file, not in an arm"
            mistakes += [Mistake(child.path, problem) for key, child in children.items() if key in SHARED]
            return Tree(path, {key: child for key, child in children.items() if key not in SHARED})
    mistakes.append(Mistake(node.path, "a branch of an arm must be a mapping"))
    return Tree(node.path, {})


def _mismatches(search: SearchConfig, arms: Mapping[str, Node]) -> list[Mistake]:
    """Returns the mistakes in `search.shares` and `search.points`, such as names of arms or leaves that do not
    exist.
    """
    mistakes: list[Mistake] = []
    mistakes += [
        Mistake(f"search.shares.{arm}", f"no such arm{near(arm, arms)}") for arm in search.shares if arm not in arms
    ]
    total = sum(search.shares.values())
    unnamed = [arm for arm in arms if arm not in search.shares]
    if total > 1 + 1e-9:
        mistakes.append(Mistake("search.shares", f"add up to {total:g}, and there is only 1 to share"))
    elif unnamed and total > 1 - 1e-9:
        others = ", ".join(unnamed)
        mistakes.append(Mistake("search.shares", f"add up to {total:g}, which leaves nothing for {others}; lower them"))
    elif not unnamed and arms and not mistakes and total < 1 - 1e-9:
        mistakes.append(Mistake("search.shares", f"add up to {total:g}; where every arm is named they make up 1"))
    for index, point in enumerate(search.points):
        where = f"search.points.{index}"
        if not isinstance(point.get("arm"), str) or point["arm"] not in arms:
            problem = f"no such arm {point['arm']!r}{near(str(point['arm']), arms)}" if "arm" in point else "missing"
            mistakes.append(Mistake(f"{where}.arm", problem))
        else:
            values_of_point(point, arms[point["arm"]], where, mistakes)
    return mistakes
