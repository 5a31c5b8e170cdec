"""Names become objects here, through the visible dictionaries; needs are held against provides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmpkd import stage_validation, teachers
from mmpkd.cohort import READERS
from mmpkd.cohort.facts import Facts
from mmpkd.config import IMAGE, STUDENT, TASK, ObjectiveConfig, Strict, TrialConfig, validate
from mmpkd.fit import seeded
from mmpkd.near_names import near, paths_of
from mmpkd.objectives import OBJECTIVES, Objective
from mmpkd.scoring.saliency import MAPS, columns_explained
from mmpkd.student import Student, announced, build_student
from mmpkd.types import ConfigError, Mistake, Needs, Offer


def paths_of_params() -> list[str]:
    """Dotted paths of the parameters of every kind: what a key that is given one step too high was meant to be."""
    kinds: dict[str, Mapping[str, Any]] = {
        "cohort": READERS,
        "teachers.NAME": teachers.TEACHERS,
        "objectives.NAME": OBJECTIVES,
    }
    known: list[str] = []
    for start, named in kinds.items():
        for kind in named.values():
            known += paths_of(kind.Params, f"{start}.params")
    return known


def announcements(config: TrialConfig, facts: Facts) -> list[str]:
    """What is done to the student's pretrained weights to make them fit; a configuration that has passed `check`."""
    done = announced(config.student, facts.image_size, facts.channels * len(config.student.reads))
    return [f"the student's pretrained weights: {'; '.join(done)}"] if done else []


def single_steps(config: TrialConfig, facts: Facts) -> list[str]:
    """Whether a batch is larger than its cohort, so that each epoch is a single step."""
    size, count = config.optimizer.batch_size, facts.num_samples
    if size < count:
        return []
    held = f"optimizer.batch_size={size} holds all {count} samples of the cohort, so that an epoch is a single step"
    return [f"{held} and {config.epochs} epochs are {config.epochs} steps; choose a smaller one"]


def goals(facts: Facts) -> tuple[str, ...]:
    """What a sweep on this cohort can maximise: without ROIs there is nothing to localise."""
    return ("val/auroc", "val/pointing") if facts.roi_labels else ("val/auroc",)


def check(config: TrialConfig, facts: Facts) -> list[Mistake]:
    """Everything wrong with a configuration that can be known without training, all at once."""
    mistakes: list[Mistake] = []
    if facts.external:
        mend = "train on another cohort, and score its model on this one with python -m mmpkd.evaluate"
        mistakes.append(Mistake("cohort", f"no sample is in part train, so there is nothing to learn from; {mend}"))
    try:
        student = _student(config, facts, empty=True)
    except ConfigError as error:
        student = None
        mistakes += error.mistakes
    for name in config.student.reads:
        if name not in (known := (IMAGE, *facts.views)):
            mistakes.append(Mistake("student.reads", f"the cohort has no image {name!r}{near(name, known)}"))
    for name in config.active_teachers() if config.student.reads != (IMAGE,) else ():
        if name in config.teachers and getattr(teachers.TEACHERS.get(config.teachers[name].kind), "sees_view", False):
            mistakes.append(Mistake("student.reads", f"teacher {name!r} sees what the student reads: that is {IMAGE}"))
    if config.evaluation.map not in MAPS:
        mistakes.append(
            Mistake("evaluation.map", f"unknown map {config.evaluation.map!r}{near(config.evaluation.map, MAPS)}")
        )
    elif MAPS[config.evaluation.map].per_label:
        try:
            columns_explained(facts.roi_labels, facts.tasks)
        except ConfigError as error:
            mistakes += error.mistakes
    offers: dict[str, Offer] = {}
    config = teachers.sized(config, facts)
    for name, teacher in config.teachers.items():
        wrong, offer = teachers.check(teacher, facts)
        mistakes += teachers.check_name(name, f"teachers.{name}")
        mistakes += [Mistake(f"teachers.{name}.{path}", problem) for path, problem in wrong]
        if offer is not None:
            offers[name] = offer
    drafts: dict[str, Objective] = {}
    for label, objective in config.active_objectives().items():
        wrong = _check_objective(label, objective, config, facts, student, offers)
        mistakes += wrong
        if not wrong:
            drafts[label] = _draft(objective, facts)
    sound = student is not None and len(drafts) == len(config.active_objectives())
    if student is not None and sound:
        mistakes += stage_validation.check(config, student, drafts)
    return mistakes


def _check_objective(
    label: str,
    objective: ObjectiveConfig,
    config: TrialConfig,
    facts: Facts,
    student: Student | None,
    offers: Mapping[str, Offer],
) -> list[Mistake]:
    where = f"objectives.{label}"
    if label in (TASK, STUDENT) or "." in label or hasattr(nn.ModuleDict(), label):
        return [Mistake(where, "this name is taken; call the objective something else")]
    if "/" in label:
        return [Mistake(where, "its metrics are named loss/LABEL, so a label holds no '/'")]
    assert objective.kind is not None
    if objective.kind not in OBJECTIVES:
        return [Mistake(f"{where}.kind", f"unknown objective {objective.kind!r}{near(objective.kind, OBJECTIVES)}")]
    kind = OBJECTIVES[objective.kind]
    try:
        params = validate(kind.Params, objective.params, f"{where}.params")
    except ConfigError as error:
        blocks = f"missing: a block of the student, 0 to {student.depth - 1}" if student else "missing"
        lacks = Mistake(f"{where}.params.layer", "missing")
        return [Mistake(one.path, blocks) if one == lacks else one for one in error.mistakes]
    wrong = kind.check(params, facts.tasks)
    mistakes = [Mistake(f"{where}.{path}" if path else where, problem) for path, problem in wrong]
    draft, size = _draft(objective, facts), config.optimizer.batch_size
    needs = draft.needs
    if size < draft.least_batch:
        wanted = f"compares the samples of a batch, {draft.least_batch} or more of them"
        mistakes.append(Mistake(where, f"{wanted}; optimizer.batch_size is {size}: raise it, or drop this term"))
    if objective.teacher is None:
        known = ", ".join(config.teachers) or "none"
        mistakes.append(Mistake(f"{where}.teacher", f"needs a teacher; the configuration has: {known}"))
    elif objective.teacher not in config.teachers:
        hint = near(objective.teacher, config.teachers)
        mistakes.append(Mistake(f"{where}.teacher", f"no teacher is named {objective.teacher!r}{hint}"))
    elif offer := offers.get(objective.teacher):
        if lacking := needs.teacher - offer.fields:
            able = [name for name, one in offers.items() if needs.teacher <= one.fields]
            mend = (
                f"name {' or '.join(able)}" if able else "take another kind of teacher, or an objective that reads this"
            )
            told = f"does not provide {', '.join(sorted(lacking))}, but {', '.join(sorted(offer.fields))}; {mend}"
            mistakes.append(Mistake(f"{where}.teacher", f"{objective.teacher!r} {told}"))
        elif unknown := sorted(layer for layer in needs.teacher_layers if layer >= offer.layers):
            known = f"{objective.teacher!r} has hidden layers 0 to {offer.layers - 1}, got {unknown[0]}"
            mistakes.append(Mistake(f"{where}.params.teacher_layer", known))
    read = needs.student_layers | needs.student_attention
    beyond = sorted(layer for layer in read if student and layer >= student.depth)
    if student and beyond:
        last = student.depth - 1
        mistakes.append(Mistake(f"{where}.params.layer", f"the student's blocks are 0 to {last}, got {beyond[0]}"))
    return mistakes


def _draft(objective: ObjectiveConfig, facts: Facts) -> Objective:
    """An objective to look at, whose parameters have been checked; on the meta device, without a size."""
    kind: Any = OBJECTIVES[str(objective.kind)]
    with torch.device("meta"):
        draft: Objective = kind(kind.Params.model_validate(objective.params), facts.tasks, 1, 1)
    return draft


def _student(config: TrialConfig, facts: Facts, *, empty: bool = False) -> Student:
    num_logits, channels = facts.tasks[-1].columns.stop, facts.channels * len(config.student.reads)
    return build_student(config.student, facts.image_size, channels, num_logits, empty=empty)


def build(
    config: TrialConfig,
    facts: Facts,
    teacher_dims: Mapping[str, int],
    heads: Mapping[str, tuple[Tensor, Tensor]] = {},
) -> tuple[Student, nn.ModuleDict]:
    """The student and its objectives by label, initialised from the configuration's seed.

    The student is drawn before and apart from the objectives, so that the same seed gives every
    arm of a comparison the same student.

    Args:
        teacher_dims: width of each active teacher's embedding.
        heads: weight and bias of the classifier of each teacher that hands it out.

    The configuration has passed `check`.
    """
    with seeded(config.seed, "student"):
        student = _student(config, facts)
    objectives: dict[str, Objective] = {}
    for label, one in config.active_objectives().items():
        assert one.kind is not None and one.teacher is not None
        kind: Any = OBJECTIVES[one.kind]
        params: Strict = validate(kind.Params, one.params, f"objectives.{label}.params")
        with seeded(config.seed, "objective", label):
            objectives[label] = kind(params, facts.tasks, student.dim, teacher_dims[one.teacher])
        if "head" in objectives[label].needs.teacher and one.teacher in heads:
            objectives[label].inherit(*heads[one.teacher])
    return student, nn.ModuleDict(objectives)


def needed(config: TrialConfig, objectives: nn.ModuleDict, teacher: str) -> Needs:
    """What the objectives that listen to a teacher read of it."""
    listening = [name for name, one in config.active_objectives().items() if one.teacher == teacher]
    needs = [cast(Objective, objectives[name]).needs for name in listening]
    return Needs(
        teacher=frozenset().union(*(one.teacher for one in needs)),
        teacher_layers=frozenset().union(*(one.teacher_layers for one in needs)),
    )
