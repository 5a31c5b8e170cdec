"""What is wrong with the stages of a configuration, known before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from mmpkd.config import STUDENT, TASK, StageConfig, TrialConfig
from mmpkd.near_names import near
from mmpkd.objectives import Objective
from mmpkd.student import Student
from mmpkd.types import Mistake


def check(config: TrialConfig, student: Student, objectives: Mapping[str, Objective]) -> list[Mistake]:
    """Everything wrong with the stages of a configuration, of what it builds (on the meta device will do)."""
    if not config.stages:
        return []
    parts = nn.ModuleDict(objectives)
    named = [f"{STUDENT}.{name}".rstrip(".") for name, _ in student.named_modules()]
    named += [name for name, _ in parts.named_modules() if name]
    learnt = [name for name in named if list(part_of(name, student, parts).parameters())]
    nameable = [name for name in learnt if not any(part.isdigit() for part in name.split("."))]
    answers = [STUDENT, *(f"{label}.{head}" for label, one in objectives.items() for head in one.heads)]
    mistakes: list[Mistake] = []
    for index, stage in enumerate(config.stages):
        where, last = f"stages.{index}", index == len(config.stages) - 1
        if stage.name in [one.name for one in config.stages[:index]]:
            mistakes.append(Mistake(f"{where}.name", f"another stage is called {stage.name!r}"))
        if stage.epochs is not None and last:
            mistakes.append(Mistake(f"{where}.epochs", "the last stage takes the trial's `epochs`; leave this out"))
        elif stage.epochs is None and not last:
            mistakes.append(Mistake(f"{where}.epochs", "missing: only the last stage takes the trial's `epochs`"))
        mistakes += [
            Mistake(f"{where}.train", f"no module that can learn is called {path!r}{near(path, nameable)}")
            for path in stage.train
            if path not in learnt
        ]
        for label in stage.objectives:
            if label != TASK and label not in objectives:
                off = " (its weight is 0)" if label in config.objectives else near(label, (TASK, *objectives))
                mistakes.append(Mistake(f"{where}.objectives", f"there is no term {label!r}{off}"))
        if stage.answer not in answers:
            mistakes.append(Mistake(f"{where}.answer", f"{stage.answer!r} cannot answer{near(stage.answer, answers)}"))
    for label in objectives.keys() - concerned(config.stages):
        problem = "no stage listens to it; name it under a stage's `objectives`, or leave it out"
        mistakes.append(Mistake(f"objectives.{label}", problem))
    return mistakes or list(_idle(config, objectives, learnt))


def _idle(config: TrialConfig, objectives: Mapping[str, Objective], learnt: Sequence[str]) -> Iterator[Mistake]:
    """What a stage trains to no end, by what passes through what."""
    trained: set[str] = set()
    for index, stage in enumerate(config.stages):
        where, through = f"stages.{index}", _answer_parts(stage, objectives)
        taught = {
            label: set(through) if label == TASK else _term_parts(label, stage, objectives)
            for label in stage.objectives
        }
        for label, parts in taught.items():
            learning = {part for part in parts if any(_meet(path, part) for path in stage.train)}
            trained |= learning
            if not learning:
                yield Mistake(f"{where}.objectives", f"{label} teaches nothing that this stage trains")
        for path in stage.train:
            if not any(_meet(path, part) for parts in taught.values() for part in parts):
                problem = f"no term of this stage passes through {path}, so it would learn nothing"
                yield Mistake(f"{where}.train", f"{problem} (what answers is {stage.answer})")
    if not any(_meet(path, part) for path in stage.train for part in through):
        problem = f"the last stage trains nothing of what answers ({stage.answer}), so its scores would never change"
        yield Mistake(f"{where}.train", problem)
    for part in through:
        ready = part not in learnt or (part == STUDENT and config.student.pretrained)
        if part not in trained and not ready:
            yield Mistake(f"{where}.answer", f"{stage.answer} passes through {part}, which no stage trains")


def _answer_parts(stage: StageConfig, objectives: Mapping[str, Objective]) -> list[str]:
    """The modules that a stage's answer passes through."""
    label, _, head = stage.answer.partition(".")
    if stage.answer == STUDENT:
        return [STUDENT]
    return [STUDENT, *(f"{label}.{part}" for part in objectives[label].heads[head]), stage.answer]


def _term_parts(label: str, stage: StageConfig, objectives: Mapping[str, Objective]) -> set[str]:
    """The modules that an objective may pass through: its own, and those that answer, but not heads of its own."""
    own, heads = objectives[label], objectives[label].heads
    parts = {STUDENT, *(f"{label}.{name}" for name, _ in own.named_children() if name not in heads)}
    return parts if stage.answer.partition(".")[0] == label else parts.union(_answer_parts(stage, objectives))


def _meet(one: str, other: str) -> bool:
    """Whether one module is the other, or a part of it."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def concerned(stages: Sequence[StageConfig]) -> dict[str, None]:
    """Labels of the objectives that these stages train, listen to or answer by, in their order."""
    named = (path for stage in stages for path in (*stage.train, *stage.objectives, stage.answer))
    labels = dict.fromkeys(name.partition(".")[0] for name in named)
    return {label: None for label in labels if label not in (STUDENT, TASK)}


def part_of(path: str, student: nn.Module, objectives: nn.Module) -> nn.Module:
    """A module by its path: `student`, an objective's label, or a part of either."""
    root, _, below = path.partition(".")
    return student.get_submodule(below) if root == STUDENT else objectives.get_submodule(path)
