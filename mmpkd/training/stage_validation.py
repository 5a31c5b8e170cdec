"""Checks the stages of a configuration before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from mmpkd.config import STUDENT, TASK, StageConfig, TrialConfig
from mmpkd.near_names import near
from mmpkd.objectives import Objective
from mmpkd.student import Student
from mmpkd.types import Mistake


def check(config: TrialConfig, student: Student, objectives: Mapping[str, Objective]) -> list[Mistake]:
    """Returns what is wrong with the stages of a configuration.

    Args:
        student, objectives: modules that were built from this configuration; they may be on the meta device.
    """
    if not config.stages:
        return []
    parts = nn.ModuleDict(objectives)
    names = [f"{STUDENT}.{name}".rstrip(".") for name, _ in student.named_modules()]
    names += [name for name, _ in parts.named_modules() if name]
    learning = [name for name in names if list(part_of(name, student, parts).parameters())]
    suggested = [name for name in learning if not any(part.isdigit() for part in name.split("."))]
    answers = [STUDENT, *(f"{label}.{head}" for label, objective in objectives.items() for head in objective.heads)]
    mistakes: list[Mistake] = []
    for index, stage in enumerate(config.stages):
        where, last = f"stages.{index}", index == len(config.stages) - 1
        if stage.name in [earlier.name for earlier in config.stages[:index]]:
            mistakes.append(Mistake(f"{where}.name", f"another stage is called {stage.name!r}"))
        if stage.epochs is not None and last:
            mistakes.append(Mistake(f"{where}.epochs", "the last stage has the `epochs` of the trial; leave this out"))
        elif stage.epochs is None and not last:
            mistakes.append(Mistake(f"{where}.epochs", "missing: only the last stage has the `epochs` of the trial"))
        mistakes += [
            Mistake(f"{where}.train", f"no module that can learn is called {path!r}{near(path, suggested)}")
            for path in stage.train
            if path not in learning
        ]
        for label in stage.objectives:
            if label != TASK and label not in objectives:
                off = " (its weight is 0)" if label in config.objectives else near(label, (TASK, *objectives))
                mistakes.append(Mistake(f"{where}.objectives", f"there is no objective {label!r}{off}"))
        if stage.answer not in answers:
            mistakes.append(Mistake(f"{where}.answer", f"{stage.answer!r} has no logits{near(stage.answer, answers)}"))
    for label in objectives.keys() - concerned(config.stages):
        problem = "no stage uses it; name it under the `objectives` of a stage, or leave it out"
        mistakes.append(Mistake(f"objectives.{label}", problem))
    return mistakes or list(_unused(config, objectives, learning))


def _unused(config: TrialConfig, objectives: Mapping[str, Objective], learning: Sequence[str]) -> Iterator[Mistake]:
    """Yields a mistake for each trained module through which no loss term and no scored logit is computed, and a
    mistake for each loss term that is computed through no trained module."""
    trained: set[str] = set()
    for index, stage in enumerate(config.stages):
        where, through = f"stages.{index}", _answer_parts(stage, objectives)
        parts_of_terms = {
            label: set(through) if label == TASK else _term_parts(label, stage, objectives)
            for label in stage.objectives
        }
        for label, parts in parts_of_terms.items():
            affected = {part for part in parts if any(_overlap(path, part) for path in stage.train)}
            trained |= affected
            if not affected:
                yield Mistake(f"{where}.objectives", f"{label} affects no module that this stage trains")
        for path in stage.train:
            if not any(_overlap(path, part) for parts in parts_of_terms.values() for part in parts):
                problem = f"no term of this stage passes through {path}, so it would learn nothing"
                yield Mistake(f"{where}.train", f"{problem} (the logits are those of {stage.answer})")
    if not any(_overlap(path, part) for path in stage.train for part in through):
        problem = f"the last stage trains nothing behind the logits of {stage.answer}, so its scores would never change"
        yield Mistake(f"{where}.train", problem)
    for part in through:
        ready = part not in learning or (part == STUDENT and (config.vit.pretrained or config.pretrain))
        if part not in trained and not ready:
            yield Mistake(f"{where}.answer", f"{stage.answer} passes through {part}, which no stage trains")


def _answer_parts(stage: StageConfig, objectives: Mapping[str, Objective]) -> list[str]:
    """Returns the modules through which the logits of a stage are computed."""
    label, _, head = stage.answer.partition(".")
    if stage.answer == STUDENT:
        return [STUDENT]
    return [STUDENT, *(f"{label}.{part}" for part in objectives[label].heads[head]), stage.answer]


def _term_parts(label: str, stage: StageConfig, objectives: Mapping[str, Objective]) -> set[str]:
    """Returns the modules through which an objective may be computed: its own modules except its heads, and the modules
    through which the logits of the stage are computed."""
    own, heads = objectives[label], objectives[label].heads
    parts = {STUDENT, *(f"{label}.{name}" for name, _ in own.named_children() if name not in heads)}
    return parts if stage.answer.partition(".")[0] == label else parts.union(_answer_parts(stage, objectives))


def _overlap(path: str, other: str) -> bool:
    """Whether two modules are the same, or one is a part of the other."""
    return path == other or path.startswith(f"{other}.") or other.startswith(f"{path}.")


def concerned(stages: Sequence[StageConfig]) -> dict[str, None]:
    """Returns the labels of the objectives that these stages train, use as terms or take logits from, in order."""
    paths = (path for stage in stages for path in (*stage.train, *stage.objectives, stage.answer))
    labels = dict.fromkeys(path.partition(".")[0] for path in paths)
    return {label: None for label in labels if label not in (STUDENT, TASK)}


def part_of(path: str, student: nn.Module, objectives: nn.Module) -> nn.Module:
    """Returns a module by its path: `student`, the label of an objective, or a part of either."""
    root, _, below = path.partition(".")
    return student.get_submodule(below) if root == STUDENT else objectives.get_submodule(path)
