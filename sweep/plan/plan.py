"""Makes the plan of a sweep: it builds and checks every branch of every arm before a device is used.

`price.py` adds the price.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mmpkd.build import announcements, paths_of_params, single_steps
from mmpkd.cohort.facts import Facts
from mmpkd.config import IMAGE, TrialConfig, validate
from mmpkd.teachers import resolve, sized
from mmpkd.teachers.teacher import ResolvedTeacher
from mmpkd.types import ConfigError, Mistake
from sweep.plan.checks import config_without, facts_of, goals_of, mistakes_of, nothing_to_sample
from sweep.plan.findings import Findings
from sweep.space.draw import branches, count_branches, count_configurations
from sweep.space.space import PATHS_OF_SPACE, Space

MOST_BRANCHES: Final = 64  # with more branches than this, an arm is checked at a selection that has each label


@dataclass(frozen=True)
class BranchPlan:
    """The result of checking one branch of an arm."""

    arm: str
    labels: Mapping[str, str]  # the decisions that choose the branch, by leaf name
    free: tuple[str, ...]  # names of the leaves that are sampled in the branch
    checked: int  # number of configurations built, one at every bound and value


@dataclass(frozen=True)
class Plan:
    """A search space with the results of all checks. The space may be run if `mistakes` is empty."""

    space: str
    trials: int
    goals: tuple[str, ...]
    branches: tuple[BranchPlan, ...]
    mistakes: tuple[Mistake, ...]  # mistakes found while reading the space and while planning
    warnings: tuple[str, ...]
    facts: Facts | None  # None if the cohort could not be read; `mistakes` says so
    configs: Mapping[str, Sequence[TrialConfig]]  # all configurations that were built, by arm

    @property
    def example(self) -> TrialConfig | None:
        """One of the drawn configurations, or None if none could be drawn. It stands for the settings that all trials
        share: cohort, evaluation, epochs, threads, seed, execution and checkpoint_seconds.
        """
        return next((config for configs in self.configs.values() for config in configs), None)

    def teachers(self) -> Iterator[tuple[str, ResolvedTeacher]]:
        """Yields every teacher that an arm uses, with its path in the space. A path occurs more than once if its
        teacher has several settings.
        """
        for arm, configs in self.configs.items():
            for config in configs:
                for name in config.active_teachers():
                    yield f"arms.{arm}.teachers.{name}", resolve(config.teachers[name])

    def outlines(self) -> list[str]:
        """Returns a line about each teacher to be fitted. A teacher has several lines if its size depends on sampled
        values.
        """
        if self.facts is None or self.mistakes:
            return []
        facts, lines = self.facts, dict[str, None]()
        for arm, configs in self.configs.items():
            for config in configs:
                config_with_sizes = sized(config, facts)
                for name in config_with_sizes.active_teachers():
                    teacher = resolve(config_with_sizes.teachers[name])
                    lines |= dict.fromkeys(teacher.outlines(f"arms.{arm}.teachers.{name}", facts))
        return list(lines)

    @property
    def checked(self) -> int:
        return sum(branch.checked for branch in self.branches)

    def as_json(self) -> dict[str, Any]:
        """Returns the content of plan.json."""
        return {
            "space": self.space,
            "trials": self.trials,
            "goals": list(self.goals),
            "branches": [
                {
                    "arm": branch.arm,
                    "labels": dict(branch.labels),
                    "free": list(branch.free),
                    "checked": branch.checked,
                }
                for branch in self.branches
            ],
            "checked": self.checked,
            "references": [
                arm
                for arm, configs in self.configs.items()
                if any(config.student.reads != (IMAGE,) for config in configs)
            ],
            "samples": self.facts.num_samples if self.facts else None,
            "warnings": list(self.warnings),
            "mistakes": [{"path": path, "problem": problem} for path, problem in self.mistakes],
        }


def plan(space: Space, mistakes: Sequence[Mistake] = ()) -> Plan:
    """Returns the plan of a space. Builds configurations of every branch, with the leaves at each of their bounds, and
    collects all mistakes under their paths in the space file.

    Args:
        mistakes: the mistakes that `load_space` found. They come first in the plan, and no mistake is reported twice.
    """
    findings = Findings(space, mistakes)
    facts = facts_of(space, findings)
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
                broken: list[str] = []
                try:
                    config = validate(TrialConfig, drawn.config, known=known_paths)
                    configs[arm].append(config)
                except ConfigError as error:
                    findings.add(error.mistakes, drawn, arm)
                    broken = [mistake.path for mistake in error.mistakes]
                    config = config_without(drawn.config, broken)
                if config is not None and config.fingerprint() not in seen:
                    seen.add(config.fingerprint())
                    findings.add(mistakes_of(config, facts, broken), drawn, arm)
    goals = goals_of(space.search, facts, findings)
    if space.search.trials < len(space.arms):
        findings.append(
            "search.trials", f"{space.search.trials} for {len(space.arms)} arms; each arm needs at least one"
        )
    if not findings.mistakes and space.search.trials > len(space.arms):
        for arm in [arm for arm, node in space.arms.items() if count_configurations(node) == 1]:
            findings.append(*nothing_to_sample(arm, space))
    example = next((config for of_arm in configs.values() for config in of_arm), None)
    stopping = space.search.early_stopping
    if example and stopping and stopping.grace and stopping.grace >= example.epochs:
        grace = f"its grace of {stopping.grace} epochs is not below epochs={example.epochs}"
        warnings.append(f"search.early_stopping never acts: {grace}")
    checked = Plan(
        space=space.name,
        trials=space.search.trials,
        goals=goals,
        branches=tuple(plans),
        mistakes=tuple(findings.mistakes),
        warnings=tuple(warnings),
        facts=facts,
        configs=configs,
    )
    if facts is None or findings.mistakes:
        return checked
    notes = [f"{path} {caveat}" for path, teacher in checked.teachers() for caveat in teacher.caveats(facts)]
    every_config = [config for of_arm in configs.values() for config in of_arm]
    students = {config.student.model_dump_json(): config for config in every_config}
    notes += [note for config in students.values() for note in announcements(config, facts)]
    notes += [note for config in every_config for note in single_steps(config, facts)]
    return replace(checked, warnings=(*dict.fromkeys(notes), *checked.warnings))
