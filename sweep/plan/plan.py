"""The plan: every branch of every arm built and checked before a device is used (no price yet)."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Final

from mmpkd.build import announcements, check, goals, paths_of_params, single_steps
from mmpkd.cohort import facts as read_facts
from mmpkd.cohort.facts import Facts
from mmpkd.config import IMAGE, CohortConfig, TeacherConfig, TrialConfig, validate
from mmpkd.teachers import caveats, outlines, sized
from mmpkd.types import CohortError, ConfigError, Mistake, TaskKind, lay_out
from sweep.space.draw import Drawn, branches, count_branches, count_configurations
from sweep.space.grammar import WORDS, Fixed, Maybe, Node, OneOf, Tree
from sweep.space.search_config import SCORES, SearchConfig
from sweep.space.space import PATHS_OF_SPACE, Space

STAND_INS: Final[Sequence[tuple[str, TaskKind, Sequence[str]]]] = (
    ("unknown", "binary", ("no", "yes")),
    ("unknown", "multiclass", ("a", "b", "c")),
)
MOST_BRANCHES: Final = 64  # of one arm; beyond that each label is checked at least once, and the plan says so


@dataclass(frozen=True)
class BranchPlan:
    arm: str
    labels: Mapping[str, str]  # the decisions that lead here, by leaf name
    free: tuple[str, ...]  # leaf names of what is sampled besides
    checked: int  # configurations built, at every bound and value


@dataclass(frozen=True)
class Plan:
    space: str
    trials: int
    goals: tuple[str, ...]
    branches: tuple[BranchPlan, ...]
    mistakes: tuple[Mistake, ...]  # of the space and of the plan; none may be left before anything starts
    warnings: tuple[str, ...]
    facts: Facts | None  # None: the cohort could not be read, which is among the mistakes
    configs: Mapping[str, Sequence[TrialConfig]]  # by arm, all that were built

    @property
    def example(self) -> TrialConfig | None:
        """A trial; cohort, evaluation, epochs, threads and seed are those of all."""
        return next((config for configs in self.configs.values() for config in configs), None)

    def teachers(self) -> Iterator[tuple[str, TeacherConfig]]:
        """Every teacher that an arm listens to, with its path in the space; a path may have several."""
        for arm, configs in self.configs.items():
            for config in configs:
                for name in config.active_teachers():
                    yield f"arms.{arm}.teachers.{name}", config.teachers[name]

    def outlines(self) -> list[str]:
        """What each teacher will be, a line each; several where its size depends on what is sampled."""
        if self.facts is None or self.mistakes:
            return []
        facts, found = self.facts, dict[str, None]()
        for arm, configs in self.configs.items():
            for config in configs:
                whole = sized(config, facts)
                for name in whole.active_teachers():
                    found |= dict.fromkeys(outlines(f"arms.{arm}.teachers.{name}", whole.teachers[name], facts))
        return list(found)

    @property
    def checked(self) -> int:
        return sum(branch.checked for branch in self.branches)

    def as_json(self) -> dict[str, Any]:
        """What plan.json holds."""
        return {
            "space": self.space,
            "trials": self.trials,
            "goals": list(self.goals),
            "branches": [
                {"arm": one.arm, "labels": dict(one.labels), "free": list(one.free), "checked": one.checked}
                for one in self.branches
            ],
            "checked": self.checked,
            "references": [
                arm
                for arm, several in self.configs.items()
                if any(config.student.reads != (IMAGE,) for config in several)
            ],
            "samples": self.facts.num_samples if self.facts else None,
            "warnings": list(self.warnings),
            "mistakes": [{"path": path, "problem": problem} for path, problem in self.mistakes],
        }


def plan(space: Space, mistakes: Sequence[Mistake] = ()) -> Plan:
    """Builds every branch at every bound and gathers what is wrong, under the paths of the space file.

    Args:
        mistakes: what `load_space` found; they lead the plan's own, and nothing is said twice.
    """
    found = _Findings(space, mistakes)
    facts = _facts(space, found)
    warnings: list[str] = []
    plans: list[BranchPlan] = []
    configs: dict[str, list[TrialConfig]] = {arm: [] for arm in space.arms}
    seen: set[str] = set()
    known_paths = (*PATHS_OF_SPACE, *paths_of_params())
    for arm, node in space.arms.items():
        if (count := count_branches(node)) > MOST_BRANCHES:
            unchecked = "not every combination is checked, but each label at least once"
            warnings.append(f"arm {arm} has {count} branches: {unchecked}")
        for branch in branches(node, arm, MOST_BRANCHES):
            plans.append(BranchPlan(arm, branch.labels, branch.free, len(branch.drawn)))
            for drawn in branch.drawn:
                config: TrialConfig | None
                wrong: list[str] = []
                try:
                    config = validate(TrialConfig, drawn.config, known=known_paths)
                    configs[arm].append(config)
                except ConfigError as error:
                    found.add(error.mistakes, drawn, arm)
                    wrong = [mistake.path for mistake in error.mistakes]
                    config = _without(drawn.config, wrong)
                if config is not None and config.fingerprint() not in seen:
                    seen.add(config.fingerprint())
                    found.add(_check(config, facts, wrong), drawn, arm)
    chosen = _goals(space.search, facts, found)
    if space.search.trials < len(space.arms):
        found.say("search.trials", f"{space.search.trials} for {len(space.arms)} arms; each arm needs at least one")
    if not found.mistakes and space.search.trials > len(space.arms):
        for arm in [arm for arm, node in space.arms.items() if count_configurations(node) == 1]:
            found.say(*_still(arm, space))
    example = next((config for several in configs.values() for config in several), None)
    stopping = space.search.early_stopping
    if example and stopping and stopping.grace and stopping.grace >= example.epochs:
        grace = f"its grace of {stopping.grace} epochs is not below epochs={example.epochs}"
        warnings.append(f"search.early_stopping never acts: {grace}")
    said = tuple(plans), tuple(found.mistakes), tuple(warnings)
    made = Plan(space.name, space.search.trials, chosen, *said, facts, configs)
    if facts is None or found.mistakes:
        return made
    told = [f"{path} {caveat}" for path, teacher in made.teachers() for caveat in caveats(teacher, facts)]
    students = {config.student.model_dump_json(): config for several in configs.values() for config in several}
    told += [one for config in students.values() for one in announcements(config, facts)]
    told += [one for several in configs.values() for config in several for one in single_steps(config, facts)]
    return replace(made, warnings=(*dict.fromkeys(told), *made.warnings))


class _Findings:
    """Mistakes without repetition: none below a leaf that is known to be broken, each once."""

    def __init__(self, space: Space, mistakes: Sequence[Mistake]):
        self.mistakes = list(mistakes)
        self._broken = tuple(mistake.path for mistake in mistakes if mistake.path)
        self._misspelt = {path: word for node in (space.base, *space.own.values()) for path, word in _misspelt(node)}
        self._said: set[tuple[str, str]] = set()

    def add(self, mistakes: Iterable[Mistake], drawn: Drawn, arm: str) -> None:
        """Mistakes of a drawn configuration, told under the space file's own paths."""
        for path, problem in mistakes:
            self.say(_traced(path, drawn.origins) or f"arms.{arm}", problem)

    def say(self, path: str, problem: str) -> None:
        # The bounds of one leaf differ in their numbers only; the first says it.
        known = (path, re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", problem))
        if known in self._said or any(_within(path, broken) for broken in self._broken):
            return
        self._said.add(known)
        words = [word for start, word in self._misspelt.items() if _within(path, start)]
        self.mistakes.append(Mistake(path, problem + (f" (did you mean {words[0]!r}?)" if words else "")))


def _within(path: str, start: str) -> bool:
    return path == start or path.startswith(f"{start}.")


def _traced(path: str, origins: Mapping[str, str]) -> str:
    """Where in the space file a path of a drawn configuration comes from."""
    parts = path.split(".") if path else []
    for length in range(len(parts), -1, -1):
        known = ".".join(parts[:length])
        if known and known in origins:
            return ".".join([origins[known], *parts[length:]])
    return path


def _misspelt(node: Node) -> list[tuple[str, str]]:
    """Mappings with one key that is nearly a grammar word: a hint for whatever goes wrong there."""
    match node:
        case Tree(path=path, children=children):
            key, child = next(iter(children.items()), ("", None))
            close = get_close_matches(str(key), WORDS, n=1, cutoff=0.8) if len(children) == 1 else []
            # Ranges and choices hold lists; an objective that is called 'hint' is not a misspelt 'int'.
            holds_list = isinstance(child, Fixed) and isinstance(child.value, list)
            hints = [(path, word) for word in close if holds_list or word in ("one_of", "maybe")]
            return hints + [pair for child in children.values() for pair in _misspelt(child)]
        case OneOf(branches=branches):
            return [pair for branch in branches.values() for pair in _misspelt(branch)]
        case Maybe(child=child):
            return _misspelt(child)
    return []


def _facts(space: Space, found: _Findings) -> Facts | None:
    """The cohort's facts, if it can be read. All trials share one cohort."""
    content = space.raw.get("cohort")
    if content is None or any(_within(mistake.path, "cohort") for mistake in found.mistakes):
        return None  # said already, or by each TrialConfig
    try:
        try:
            config = validate(CohortConfig, content, "cohort")
        except ConfigError as error:  # say it, and go on without the wrong keys: columns can still be checked
            for mistake in error.mistakes:
                found.say(*mistake)
            less = _less({"cohort": content}, [mistake.path for mistake in error.mistakes])
            config = validate(CohortConfig, less["cohort"], "cohort")
        return read_facts(config)
    except ConfigError as error:
        for mistake in error.mistakes:
            found.say(*mistake)
    except CohortError as error:
        found.say("cohort", str(error))
    return None


def _without(content: Mapping[str, Any], wrong: Sequence[str]) -> TrialConfig | None:
    """The configuration less its wrong keys, so that the rest can still be checked; None if it needs them."""
    try:
        return validate(TrialConfig, _less(content, wrong))
    except ConfigError:
        return None


def _less(content: Mapping[str, Any], wrong: Sequence[str]) -> dict[str, Any]:
    less = copy.deepcopy(dict(content))
    for path in wrong:
        *parents, key = path.split(".")
        inner: Any = less
        for parent in parents:
            inner = inner.get(parent) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.pop(key, None)
    return less


def _check(config: TrialConfig, facts: Facts | None, wrong: Sequence[str]) -> list[Mistake]:
    """What the core says: nothing of mappings that lack a wrong key, nor of teachers without a cohort,
    nor of what hangs on a student or a cohort that lacks one."""
    doubtful = [path.rpartition(".")[0] or path for path in wrong] + ([] if facts else ["teachers", "student.reads"])
    if any(path.partition(".")[0] in ("student", "cohort") for path in wrong):
        doubtful += ["student", "cohort", "objectives"]
    if facts is not None:
        found = check(config, facts)
    else:  # what is wrong whatever the tasks are
        either, other = (check(config, _stand_in(config, task)) for task in STAND_INS)
        found = [mistake for mistake in either if mistake in other]
    return [mistake for mistake in found if not any(_within(mistake.path, start) for start in doubtful)]


def _stand_in(config: TrialConfig, task: tuple[str, TaskKind, Sequence[str]]) -> Facts:
    """Facts to go on with where the cohort cannot be read."""
    return Facts(
        tasks=lay_out([task]),
        columns={},
        unlisted=(),
        channels=1,
        image_size=config.cohort.image_size,
        roi_labels=(),
        views=(),
        sections={},
        credentialed=False,
        num_samples=0,
    )


def _goals(search: SearchConfig, facts: Facts | None, found: _Findings) -> tuple[str, ...]:
    """What to maximise: as asked, or all that the cohort can score."""
    if facts is None:
        return search.maximize or (search.select,)
    has = {"": True, "ROIs": bool(facts.roi_labels), "several images of a patient": facts.several_images}
    possible = [goal for goal, needs in SCORES.items() if has[needs]]
    for goal in search.maximize or ():
        if (needs := SCORES.get(goal)) and not has[needs]:
            able = " and ".join(possible)
            found.say("search.maximize", f"{goal} needs {needs} and the cohort has none; it can score {able}")
    if search.maximize is not None:
        return search.maximize
    default = goals(facts)
    if search.select not in default:
        problem = f"{search.select} is not among the goals of this cohort: {', '.join(default)}"
        if search.select in possible:
            others = [goal for goal in default if goal.startswith("val/auroc") != search.select.startswith("val/auroc")]
            problem += f"; name them: search.maximize=[{', '.join([search.select, *others])}]"
        found.say("search.select", problem)
    return default


def _still(arm: str, space: Space) -> Mistake:
    """That an arm has nothing to sample."""
    mend = f"give a leaf a distribution, or switch the arm off (arms.{arm}=false)"
    mend += f", or ask for one trial an arm (trials={len(space.arms)}; search.repeats=N runs it on N seeds)"
    return Mistake(f"arms.{arm}", f"has nothing to sample, so all its trials would be the same: {mend}")
