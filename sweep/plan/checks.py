"""Checks the cohort, the configurations and the goals of a search space, as far as possible even if parts are
broken.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mmpkd.build import check, goals
from mmpkd.cohort import facts as read_facts
from mmpkd.cohort.facts import Facts
from mmpkd.config import CohortConfig, TrialConfig, validate
from mmpkd.types import CohortError, ConfigError, Mistake, TaskKind, lay_out
from sweep.plan.findings import Findings, is_below
from sweep.selection import rule_of
from sweep.space.search_config import SCORES, SearchConfig
from sweep.space.space import Space

# Stand-in tasks, used if the cohort and so its real tasks cannot be read.
STAND_IN_TASKS: Final[Sequence[tuple[str, TaskKind, Sequence[str]]]] = (
    ("unknown", "binary", ("no", "yes")),
    ("unknown", "multiclass", ("a", "b", "c")),
)


def facts_of(space: Space, findings: Findings) -> Facts | None:
    """Returns the facts of the cohort that all trials share, or None if the cohort cannot be read."""
    content = space.raw.get("cohort")
    if content is None or any(is_below(mistake.path, "cohort") for mistake in findings.mistakes):
        return None  # a missing or invalid section is reported already, here or by each TrialConfig
    try:
        try:
            config = validate(CohortConfig, content, "cohort")
        except ConfigError as error:  # once the wrong keys are removed, columns can still be checked
            for mistake in error.mistakes:
                findings.append(*mistake)
            remaining = _without_keys({"cohort": content}, [mistake.path for mistake in error.mistakes])
            config = validate(CohortConfig, remaining["cohort"], "cohort")
        return read_facts(config)
    except ConfigError as error:
        for mistake in error.mistakes:
            findings.append(*mistake)
    except CohortError as error:
        findings.append("cohort", str(error))
    return None


def config_without(content: Mapping[str, Any], broken: Sequence[str]) -> TrialConfig | None:
    """Returns the configuration without its broken keys, so that its other keys can be checked. Returns None if the
    configuration is not valid without the broken keys.
    """
    try:
        return validate(TrialConfig, _without_keys(content, broken))
    except ConfigError:
        return None


def _without_keys(content: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    remaining = copy.deepcopy(dict(content))
    for path in paths:
        *parents, key = path.split(".")
        inner: Any = remaining
        for parent in parents:
            inner = inner.get(parent) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.pop(key, None)
    return remaining


def mistakes_of(config: TrialConfig, facts: Facts | None, broken: Sequence[str]) -> list[Mistake]:
    """Returns the mistakes that `mmpkd.build.check` finds, without mistakes that the broken keys may have caused.

    Args:
        facts: facts of the cohort, or None if the cohort cannot be read. If None, mistakes in teachers are left out.
        broken: paths of the keys that were removed from the configuration.
    """
    doubtful = [path.rpartition(".")[0] or path for path in broken]
    doubtful += [] if facts else ["teachers", "student.kind", "student.reads"]
    if any(path.partition(".")[0] in ("student", "cohort") for path in broken):
        doubtful += ["student", "cohort", "objectives"]
    if facts is not None:
        mistakes = check(config, facts)
    else:  # keeps only mistakes that do not depend on the tasks
        either, other = (check(config, _stand_in_facts(config, task)) for task in STAND_IN_TASKS)
        mistakes = [mistake for mistake in either if mistake in other]
    return [mistake for mistake in mistakes if not any(is_below(mistake.path, start) for start in doubtful)]


def _stand_in_facts(config: TrialConfig, task: tuple[str, TaskKind, Sequence[str]]) -> Facts:
    """Returns stand-in facts with one task, for a cohort that cannot be read."""
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


def goals_of(search: SearchConfig, facts: Facts | None, findings: Findings) -> tuple[str, ...]:
    """Returns the goals of the sweep: `search.maximize` if it is set, otherwise all goals that the cohort can score."""
    selected = rule_of(search.select).goals
    if facts is None:
        return search.maximize or tuple(selected)
    questions = facts.questions
    has = {
        "classes": bool(facts.tasks),
        "ROIs": bool(facts.roi_labels),
        "several images of a patient": bool(facts.tasks) and facts.several_images,
        "questions": questions is not None and questions.has_words,
        "questions about places": questions is not None and questions.has_boxes,
    }
    possible = [goal for goal, needs in SCORES.items() if has[needs]]
    for goal in search.maximize or ():
        if (needs := SCORES.get(goal)) and not has[needs]:
            able = " and ".join(possible)
            findings.append("search.maximize", f"{goal} needs {needs} and the cohort has none; it can score {able}")
    if search.maximize is not None:
        return search.maximize
    default = goals(facts)
    for selected_goal in [goal for goal in selected if goal not in default]:
        problem = f"{selected_goal} is not among the goals of this cohort: {', '.join(default)}"
        if selected_goal in possible:
            others = [goal for goal in default if goal.startswith("val/auroc") != selected_goal.startswith("val/auroc")]
            problem += f"; name them: search.maximize=[{', '.join([selected_goal, *others])}]"
        elif default:
            problem += f"; name the goal by which the best trial is chosen: search.select={default[0]}"
        findings.append("search.select", problem)
    return default


def nothing_to_sample(arm: str, space: Space) -> Mistake:
    """Returns the mistake to report for an arm that has nothing to sample because every leaf is fixed."""
    advice = f"give a leaf a distribution, or switch the arm off (arms.{arm}=false)"
    advice += f", or ask for one trial an arm (trials={len(space.arms)}; search.repeats=N runs it on N seeds)"
    return Mistake(f"arms.{arm}", f"has nothing to sample, so all its trials would be the same: {advice}")
