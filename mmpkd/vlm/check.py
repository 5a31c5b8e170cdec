"""Checks the configuration of a vision-language student, before anything is trained."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from mmpkd.cohort.facts import Facts
from mmpkd.config import IMAGE, AugmentationConfig, TrialConfig
from mmpkd.near_names import near
from mmpkd.types import ConfigError, Mistake
from mmpkd.vlm import model
from mmpkd.vlm.config import FAMILIES, VlmConfig, VlmTeacherConfig
from mmpkd.vlm.scores import text
from mmpkd.vlm.vocabulary import FolderTokens, Processor, folder_facts, folder_processor


def check(config: TrialConfig, facts: Facts) -> list[Mistake]:
    """Returns everything that is wrong with the configuration of a training whose student is a VlmConfig."""
    assert isinstance(config.student, VlmConfig)
    if facts.questions is None:
        remedy = "a cohort of questions has the reader med_grit, vqa or synthetic_vqa"
        return [Mistake("student.kind", f"a student of kind vlm answers questions, and the cohort has none; {remedy}")]
    mistakes = _unused(config)
    if missing := text.missing_libraries():
        mistakes.append(Mistake("student.kind", missing))
    if facts.external:
        mistakes.append(Mistake("cohort", "no sample is in part train, so there is nothing to learn from"))
    mistakes += [Mistake(f"student.{path}", problem) for path, problem in _check_model(config.student, facts)]
    mistakes += _check_distillation(config, facts)
    return mistakes or _check_folders(config)  # only models that can be read are compared


def _unused(config: TrialConfig) -> list[Mistake]:
    """Returns a mistake for each section that a student of kind vlm does not use, and that is not empty."""
    instead = "a student of kind vlm does not use it; what it learns from a teacher stands under distillation"
    names = [name for name in ("teachers", "objectives", "stages", "pretrain") if getattr(config, name)]
    mistakes = [Mistake(name, instead) for name in names]
    if config.augmentation != AugmentationConfig():
        problem = (
            "a student of kind vlm sees every image as it is stored, because boxes stand in the text; leave it out"
        )
        mistakes.append(Mistake("augmentation", problem))
    unread = {"optimizer": ("label_smoothing", "class_weights"), "evaluation": ("map", "roi", "within")}
    for section, keys in unread.items():
        given = getattr(config, section)
        for name in keys:
            if getattr(given, name) != type(given).model_fields[name].default:
                mistakes.append(Mistake(f"{section}.{name}", "a student of kind vlm does not use it; leave it out"))
    if config.execution not in ("auto", "eager"):
        mistakes.append(Mistake("execution", "the steps of a student of kind vlm run eagerly; leave it out"))
    if config.cohort.own_numbering:
        problem = "only says who the patients of another cohort are; leave it out where a student is trained"
        mistakes.append(Mistake("cohort.own_numbering", problem))
    return mistakes


def _check_model(vlm: VlmConfig, facts: Facts) -> list[Mistake]:
    """Returns the mistakes in a student or teacher, with paths below its section."""
    images = (IMAGE, *facts.views)
    mistakes = [
        Mistake("reads", f"the cohort has no image {name!r}{near(name, images)}")
        for name in vlm.reads
        if name not in images
    ]
    return mistakes + model.check(vlm, facts.image_size)


def _check_distillation(config: TrialConfig, facts: Facts) -> list[Mistake]:
    assert isinstance(config.student, VlmConfig) and facts.questions is not None
    parts, teacher = config.distillation, config.distillation.teacher
    if not parts.needs_teacher:
        return []
    if teacher is None:
        problem = "missing: a teacher is needed by kl, pseudo_labels and corrections; write distillation.teacher={}"
        return [Mistake("distillation.teacher", problem)]
    where = "distillation.teacher"
    mistakes = [Mistake(f"{where}.{path}", problem) for path, problem in _check_model(teacher, facts)]
    mistakes += _check_pair(config.student, teacher)
    if teacher.epochs == 0 and teacher.model in FAMILIES:
        mistakes.append(Mistake(f"{where}.epochs", "0 is for the folder of a trained model; a new one has to learn"))
    if parts.corrections.rounds and not teacher.hints and teacher.model in FAMILIES:
        problem = "corrections need a teacher that has learned to use the truth; write for example 0.5"
        mistakes.append(Mistake(f"{where}.hints", problem))
    if parts.corrections.rounds >= config.epochs:
        problem = f"{parts.corrections.rounds} rounds need more than {config.epochs} epochs (epochs)"
        mistakes.append(Mistake("distillation.corrections.rounds", problem))
    if parts.corrections.rounds and teacher.control:
        problem = (
            "a shuffled teacher is still given the true answer of each item that it corrects, and controls nothing"
        )
        mistakes.append(Mistake(f"{where}.control", f"{problem}; set distillation.corrections.rounds=0"))
    if parts.corrections.rounds and parts.kl.weight and parts.kl.top_k:
        problem = (
            "cached logits belong to targets that corrections replace; leave top_k out, or set corrections.rounds=0"
        )
        mistakes.append(Mistake("distillation.kl.top_k", problem))
    if parts.pseudo_labels.use and not facts.questions.num_unanswered:
        problem = "every training question has an answer, so that there is nothing to label; set it to false"
        mistakes.append(Mistake("distillation.pseudo_labels.use", problem))
    return mistakes


def _check_pair(student: VlmConfig, teacher: VlmTeacherConfig) -> list[Mistake]:
    """Returns a mistake for each key in which the teacher must agree with the student, and does not: their tokens are
    compared one by one."""
    where, mistakes = "distillation.teacher", []
    are_built = student.model in FAMILIES and teacher.model in FAMILIES
    if (student.model in FAMILIES) != (teacher.model in FAMILIES) and _are_models(student.model, teacher.model):
        problem = f"has another tokenizer than student.model={student.model}; both are built, or both are folders"
        mistakes.append(Mistake(f"{where}.model", problem))
    if student.box_steps != teacher.box_steps:
        problem = f"must be that of the student, {student.box_steps}, got {teacher.box_steps}"
        mistakes.append(Mistake(f"{where}.box_steps", problem))
    if are_built and student.vision.patch_size != teacher.vision.patch_size:
        problem = f"must be that of the student, {student.vision.patch_size}, got {teacher.vision.patch_size}"
        mistakes.append(Mistake(f"{where}.vision.patch_size", problem))
    return mistakes


def _are_models(*names: str) -> bool:
    """Returns whether each of these is a family, or a folder whose model can be read. Another mistake says what is
    wrong with a folder that cannot."""
    try:
        for name in names:
            if name not in FAMILIES:
                folder_facts(Path(name))
    except ConfigError:
        return False
    return True


def _check_folders(config: TrialConfig) -> list[Mistake]:
    """Returns a mistake if a teacher from a folder reads other tokens or pixels than a student from another one. Both
    get the input of the student, and a teacher may have more tokens, which are cut."""
    assert isinstance(config.student, VlmConfig)
    student, teacher = config.student, config.distillation.teacher
    if teacher is None or not config.distillation.needs_teacher:
        return []
    if student.model in FAMILIES or student.model == teacher.model:
        return []
    where = "distillation.teacher.model"
    try:
        own, other = _processor(student.model), _processor(teacher.model)
    except ConfigError as error:
        return [Mistake(where, mistake.problem) for mistake in error.mistakes]
    advice = f"name a model of the family of student.model={student.model}"
    if own.token_pixels != other.token_pixels or (own.mean, own.std) != (other.mean, other.std):
        pixels = f"its visual tokens cover {other.token_pixels} x {other.token_pixels} pixels"
        problem = f"{pixels}, and those of the student {own.token_pixels} x {own.token_pixels}"
        if own.token_pixels == other.token_pixels:
            problem = "it normalises pixels in another way than the student"
        return [Mistake(where, f"{problem}; {advice}")]
    assert isinstance(own.tokens, FolderTokens) and isinstance(other.tokens, FolderTokens)
    ids, teacher_ids = (tokens.backend.get_vocab(with_added_tokens=True) for tokens in (own.tokens, other.tokens))
    num_differing = sum(teacher_ids.get(token) != index for token, index in ids.items())
    if num_differing:
        problem = f"its tokenizer is not the student's: {num_differing} of {len(ids)} tokens differ"
        return [Mistake(where, f"{problem}; {advice}")]
    if config.distillation.kl.weight and other.tokens.size < own.tokens.size:
        problem = f"its logits are of {other.tokens.size} words, and those of the student of {own.tokens.size}"
        return [Mistake(where, f"{problem}; name a model with as many, or set distillation.kl.weight=0")]
    return []


@lru_cache(maxsize=4)
def _processor(folder: str) -> Processor:
    """Returns the processor of a folder. A plan checks many configurations with the same folders."""
    return folder_processor(Path(folder), box_steps=1)
