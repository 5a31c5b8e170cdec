"""Teachers, by name. A new one is a file here, a line below and a hand-worked test."""

from mmpkd.cohort.facts import Facts
from mmpkd.config import TeacherConfig, TrialConfig, validate
from mmpkd.near_names import near
from mmpkd.student import build_student
from mmpkd.teachers.ensemble import Ensemble
from mmpkd.teachers.fused import Fused
from mmpkd.teachers.image import Image
from mmpkd.teachers.tabular import Tabular
from mmpkd.teachers.teacher import Size, Teacher
from mmpkd.teachers.text import Text
from mmpkd.types import ConfigError, Mistake, Offer

TEACHERS: dict[str, type[Teacher]] = {
    "tabular": Tabular,
    "text": Text,
    "image": Image,
    "fused": Fused,
    "ensemble": Ensemble,
}


def check(config: TeacherConfig, facts: Facts) -> tuple[list[Mistake], Offer | None]:
    """What is wrong with a teacher on this cohort, under paths relative to it; and its offer, where nothing is."""
    if config.kind not in TEACHERS:
        return [Mistake("kind", f"unknown teacher {config.kind!r}{near(config.kind, TEACHERS)}")], None
    kind = TEACHERS[config.kind]
    try:
        params = validate(kind.Params, config.params, "params")
    except ConfigError as error:
        return list(error.mistakes), None
    mistakes = [Mistake(f"params.{path}", problem) for path, problem in kind.check(params, facts)]
    return mistakes, None if mistakes else kind.offers(params, facts)


def check_name(name: str, where: str) -> list[Mistake]:
    """What is wrong with the name of a teacher, or of a member of an ensemble."""
    return [Mistake(where, "its scores are named teacher/NAME/auroc, so a name holds no '/'")] if "/" in name else []


def sized(config: TrialConfig, facts: Facts) -> TrialConfig:
    """The same training, the sizes that its teachers leave out filled in from the student's; as it is where the student
    cannot be built, which `build.check` says."""
    own = config.student.model_copy(update={"pretrained": False, "weights": None})
    try:
        student = build_student(own, facts.image_size, facts.channels, 1, empty=True)
    except ConfigError:
        return config
    block, patches = student.model.blocks[0], student.model.patch_embed.patch_size
    size = Size(config.student, patches[0], student.dim, student.depth, block.attn.num_heads)
    teachers = {name: sized_teacher(teacher, size) for name, teacher in config.teachers.items()}
    return config.model_copy(update={"teachers": teachers})


def sized_teacher(config: TeacherConfig, student: Size) -> TeacherConfig:
    """The same teacher, the sizes that it leaves out filled in; as it is where `check` finds something wrong."""
    if config.kind not in TEACHERS:
        return config
    kind = TEACHERS[config.kind]
    try:
        filled = kind.sized(validate(kind.Params, config.params), student)
    except ConfigError:
        return config
    return config.model_copy(update={"params": config.params | filled}) if filled else config


def outlines(path: str, config: TeacherConfig, facts: Facts) -> list[str]:
    """What a teacher will be, one line, and what each member of an ensemble will be; it has passed `check`."""
    kind = TEACHERS[config.kind]
    params = validate(kind.Params, config.params)
    members: dict[str, TeacherConfig] = getattr(params, "members", {})
    lines = [f"{path}: {config.kind}, {kind.outline(params, facts)}"]
    for name, member in members.items():
        lines += outlines(f"{path}.params.members.{name}", member, facts)
    return lines


def caveats(config: TeacherConfig, facts: Facts) -> list[str]:
    """What whoever plans with a teacher that has passed `check` should know of it."""
    kind = TEACHERS[config.kind]
    params = validate(kind.Params, config.params)
    near_label = ", ".join(getattr(params, "near_label", ()))
    found = [f"reads {near_label}, which nearly states the label; its runs are tagged near_label"] if near_label else []
    return found + kind.caveats(params, facts)


__all__ = ["TEACHERS", "Teacher", "caveats", "check", "check_name", "outlines", "sized", "sized_teacher"]
