"""Checks a configuration, and builds the student and the objectives that it names.

Kinds become classes through the dictionaries READERS, TEACHERS and OBJECTIVES. What an objective needs is compared with
what its teacher offers before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmpkd import objectives, teachers
from mmpkd.cohort import READERS
from mmpkd.cohort.facts import Facts
from mmpkd.config import IMAGE, STUDENT, TASK, ObjectiveConfig, TrialConfig
from mmpkd.fit import seeded
from mmpkd.near_names import near, paths_of
from mmpkd.objectives import Objective
from mmpkd.scoring.saliency import MAPS, columns_explained
from mmpkd.student import Student, announced, build_student
from mmpkd.training import pretrain, stage_validation
from mmpkd.types import ConfigError, Mistake, Needs, Offer
from mmpkd.vlm.check import check as check_vlm
from mmpkd.vlm.config import DistillationConfig, VlmConfig


def paths_of_params() -> list[str]:
    """Returns the dotted paths of the parameters of every kind, to be suggested for a key in the wrong place."""
    kinds: dict[str, Mapping[str, Any]] = {
        "cohort": READERS,
        "teachers.NAME": teachers.TEACHERS,
        "objectives.NAME": objectives.OBJECTIVES,
    }
    paths: list[str] = []
    for start, classes in kinds.items():
        for kind in classes.values():
            paths += paths_of(kind.Params, f"{start}.params")
    return paths


def announcements(config: TrialConfig, facts: Facts) -> list[str]:
    """Describes how the student's pretrained weights are changed to fit. The configuration must have passed `check`."""
    if isinstance(config.student, VlmConfig):
        return []
    changes = announced(config.vit, facts.image_size, facts.channels * len(config.student.reads))
    return [f"the student's pretrained weights: {'; '.join(changes)}"] if changes else []


def single_steps(config: TrialConfig, facts: Facts) -> list[str]:
    """Warns if a batch holds the whole cohort, so that each epoch is a single step."""
    size, count, what = config.optimizer.batch_size, facts.num_samples, "samples"
    if facts.questions is not None:
        count, what = facts.questions.num_items, "questions"
    if size < count:
        return []
    problem = f"optimizer.batch_size={size} holds all {count} {what} of the cohort, so that an epoch is a single step"
    return [f"{problem} and {config.epochs} epochs are {config.epochs} steps; choose a smaller batch"]


def goals(facts: Facts) -> tuple[str, ...]:
    """Returns the goals that a sweep on this cohort can maximise; without ROIs or boxes, none is of localisation."""
    if facts.questions is not None:
        known = facts.questions
        return ("val/answer",) * known.has_words + ("val/recall50",) * known.has_boxes
    return ("val/auroc", "val/pointing") if facts.roi_labels else ("val/auroc",)


def check(config: TrialConfig, facts: Facts) -> list[Mistake]:
    """Returns everything that is wrong with a configuration and can be known without training."""
    if isinstance(config.student, VlmConfig):
        return check_vlm(config, facts)
    mistakes: list[Mistake] = []
    if facts.questions is not None:
        problem = "the cohort holds questions, which a vision transformer cannot answer; write student.kind=vlm"
        return [Mistake("student.kind", problem)]
    if config.distillation != DistillationConfig():
        problem = "belongs to a student of kind vlm; a vision transformer learns from teachers through objectives"
        mistakes.append(Mistake("distillation", problem))
    if facts.external:
        remedy = "train on another cohort, and score its model on this one with python -m mmpkd.evaluate"
        mistakes.append(Mistake("cohort", f"no sample is in part train, so there is nothing to learn from; {remedy}"))
    if config.cohort.own_numbering:
        problem = "only says who the patients of another cohort are; leave it out where a student is trained"
        mistakes.append(Mistake("cohort.own_numbering", problem))
    try:
        student = _student(config, facts, empty=True)
    except ConfigError as error:
        student = None
        mistakes += error.mistakes
    mistakes += pretrain.check(config, facts, student)
    mistakes += _check_images(config, facts)
    mistakes += _check_map(config, facts)
    offers: dict[str, Offer] = {}
    config = teachers.sized(config, facts)
    for name, teacher in config.teachers.items():
        mistakes += teachers.check_name(name, f"teachers.{name}")
        teacher_mistakes = teachers.check(teacher, facts, f"teachers.{name}.")
        mistakes += teacher_mistakes
        if not teacher_mistakes:
            offers[name] = teachers.resolve(teacher).offers(facts)
    drafts: dict[str, Objective] = {}
    for label, objective in config.active_objectives().items():
        draft, objective_mistakes = _check_objective(label, objective, config, facts, student, offers)
        mistakes += objective_mistakes
        if draft is not None:
            drafts[label] = draft
    if student is not None and len(drafts) == len(config.active_objectives()):
        mistakes += stage_validation.check(config, student, drafts)
    return mistakes


def _check_images(config: TrialConfig, facts: Facts) -> list[Mistake]:
    """Returns what is wrong with the images that the student reads."""
    mistakes = []
    images = (IMAGE, *facts.views)
    for name in config.student.reads:
        if name not in images:
            mistakes.append(Mistake("student.reads", f"the cohort has no image {name!r}{near(name, images)}"))
    for name in config.active_teachers() if config.student.reads != (IMAGE,) else ():
        if name in config.teachers and teachers.sees_view(config.teachers[name]):
            problem = f"teacher {name!r} sees the view of the student, which must then read only {IMAGE}"
            mistakes.append(Mistake("student.reads", problem))
    return mistakes


def _check_map(config: TrialConfig, facts: Facts) -> list[Mistake]:
    """Returns what is wrong with the saliency map that is scored."""
    name = config.evaluation.map
    if name not in MAPS:
        return [Mistake("evaluation.map", f"unknown map {name!r}{near(name, MAPS)}")]
    if MAPS[name].per_label:
        try:
            columns_explained(facts.roi_labels, facts.tasks)
        except ConfigError as error:
            return list(error.mistakes)
    return []


def _check_objective(
    label: str,
    objective: ObjectiveConfig,
    config: TrialConfig,
    facts: Facts,
    student: Student | None,
    offers: Mapping[str, Offer],
) -> tuple[Objective | None, list[Mistake]]:
    """Returns a draft of an objective on the meta device, or None and the mistakes in its configuration."""
    where = f"objectives.{label}"
    if label in (TASK, STUDENT) or "." in label or hasattr(nn.ModuleDict(), label):
        return None, [Mistake(where, "this name is reserved; choose another name for the objective")]
    if "/" in label:
        return None, [
            Mistake(where, "a label cannot contain '/', because metrics are named loss/LABEL; choose another label")
        ]
    try:
        kind, params = objectives.resolve(objective, where)
    except ConfigError as error:
        blocks = f"missing: a block of the student, 0 to {student.depth - 1}" if student else "missing"
        no_layer = Mistake(f"{where}.params.layer", "missing")
        return None, [Mistake(each.path, blocks) if each == no_layer else each for each in error.mistakes]
    mistakes = [
        Mistake(f"{where}.{path}" if path else where, problem) for path, problem in kind.check(params, facts.tasks)
    ]
    with torch.device("meta"):  # without memory; the widths do not matter
        draft = kind(params, facts.tasks, 1, 1)
    size = config.optimizer.batch_size
    if size < draft.min_batch:
        problem = f"compares the samples of a batch, {draft.min_batch} or more of them"
        mistakes.append(Mistake(where, f"{problem}; optimizer.batch_size is {size}: raise it, or drop this term"))
    mistakes += _check_needs(where, objective.teacher, draft.needs, config, student, offers)
    return None if mistakes else draft, mistakes


def _check_needs(
    where: str,
    teacher: str | None,
    needs: Needs,
    config: TrialConfig,
    student: Student | None,
    offers: Mapping[str, Offer],
) -> list[Mistake]:
    """Returns a mistake for each thing that an objective needs but that its teacher or the student does not have."""
    mistakes = []
    if teacher is None:
        names = ", ".join(config.teachers) or "none"
        mistakes.append(Mistake(f"{where}.teacher", f"needs a teacher; the configuration has: {names}"))
    elif teacher not in config.teachers:
        mistakes.append(Mistake(f"{where}.teacher", f"no teacher is named {teacher!r}{near(teacher, config.teachers)}"))
    elif offer := offers.get(teacher):
        if missing := needs.teacher - offer.fields:
            able = [name for name, other in offers.items() if needs.teacher <= other.fields]
            remedy = f"name {' or '.join(able)}" if able else "use another kind of teacher or another objective"
            problem = f"does not provide {', '.join(sorted(missing))}, but {', '.join(sorted(offer.fields))}; {remedy}"
            mistakes.append(Mistake(f"{where}.teacher", f"{teacher!r} {problem}"))
        elif unknown := sorted(layer for layer in needs.teacher_layers if layer >= offer.layers):
            problem = f"{teacher!r} has hidden layers 0 to {offer.layers - 1}, got {unknown[0]}"
            mistakes.append(Mistake(f"{where}.params.teacher_layer", problem))
    layers = needs.student_layers | needs.student_attention
    if student and (beyond := sorted(layer for layer in layers if layer >= student.depth)):
        problem = f"the student's blocks are 0 to {student.depth - 1}, got {beyond[0]}"
        mistakes.append(Mistake(f"{where}.params.layer", problem))
    return mistakes


def _student(config: TrialConfig, facts: Facts, *, empty: bool = False) -> Student:
    """Returns the student of a configuration. If `empty`, the student is on the meta device and has no weights."""
    num_logits, channels = facts.tasks[-1].columns.stop, facts.channels * len(config.student.reads)
    return build_student(config.vit, facts.image_size, channels, num_logits, empty=empty)


def build(
    config: TrialConfig,
    facts: Facts,
    teacher_dims: Mapping[str, int],
    heads: Mapping[str, tuple[Tensor, Tensor]] = {},
) -> tuple[Student, nn.ModuleDict]:
    """Returns the student and its objectives by label, initialised from the seed of the configuration.

    The student is drawn before and independently of the objectives, so that the same seed gives every arm of a
    comparison the same student. The configuration must have passed `check`.

    Args:
        teacher_dims: width of the embedding of each active teacher.
        heads: for each teacher that offers its classifier, the weight and bias of this classifier.
    """
    with seeded(config.seed, "student"):
        student = _student(config, facts)
    built: dict[str, Objective] = {}
    for label, objective in config.active_objectives().items():
        assert objective.teacher is not None
        kind, params = objectives.resolve(objective, f"objectives.{label}")
        with seeded(config.seed, "objective", label):
            built[label] = kind(params, facts.tasks, student.dim, teacher_dims[objective.teacher])
        if "head" in built[label].needs.teacher and objective.teacher in heads:
            built[label].inherit(*heads[objective.teacher])
    return student, nn.ModuleDict(built)


def needed(config: TrialConfig, objectives: nn.ModuleDict, teacher: str) -> Needs:
    """Returns the outputs and hidden layers of a teacher that the objectives with this teacher read."""
    labels = [label for label, objective in config.active_objectives().items() if objective.teacher == teacher]
    needs = [cast(Objective, objectives[label]).needs for label in labels]
    return Needs(
        teacher=frozenset().union(*(each.teacher for each in needs)),
        teacher_layers=frozenset().union(*(each.teacher_layers for each in needs)),
    )
