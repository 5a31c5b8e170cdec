"""The teachers by name. A new teacher is one file here, one line in `TEACHERS` and one test."""

from mmpkd.cohort.facts import Facts
from mmpkd.config import TeacherConfig, TrialConfig, validate
from mmpkd.near_names import near
from mmpkd.student import build_student
from mmpkd.teachers.ensemble import Ensemble
from mmpkd.teachers.fused import Fused
from mmpkd.teachers.image import Image
from mmpkd.teachers.tabular import Tabular
from mmpkd.teachers.teacher import CompositeParams, ResolvedTeacher, StudentSize, Teacher, TeacherParams
from mmpkd.teachers.text import Text
from mmpkd.types import ConfigError, Mistake
from mmpkd.vlm.config import VlmConfig

TEACHERS: dict[str, type[Teacher]] = {
    "tabular": Tabular,
    "text": Text,
    "image": Image,
    "fused": Fused,
    "ensemble": Ensemble,
}


def resolve(config: TeacherConfig, path: str = "") -> ResolvedTeacher:
    """Returns a teacher's configuration with its kind looked up and its parameters validated, members included.

    Args:
        path: prefix of the dotted path of each mistake, with its final dot.

    Raises:
        ConfigError: the kind is unknown, or parameters are unknown, missing or out of range.
    """
    kind, params = _kind_and_params(config, path)
    configs = params.members if isinstance(params, CompositeParams) else {}
    members = {name: resolve(member, f"{path}params.members.{name}.") for name, member in configs.items()}
    return ResolvedTeacher(config.kind, kind, params, config.control, members)


def _kind_and_params(config: TeacherConfig, path: str = "") -> tuple[type[Teacher], TeacherParams]:
    """Returns the class and the validated parameters of a teacher. Nothing else validates parameters of teachers."""
    if config.kind not in TEACHERS:
        raise ConfigError.at(f"{path}kind", f"unknown teacher {config.kind!r}{near(config.kind, TEACHERS)}")
    kind = TEACHERS[config.kind]
    return kind, validate(kind.Params, config.params, f"{path}params")


def check(config: TeacherConfig, facts: Facts, path: str = "") -> list[Mistake]:
    """Returns everything that is wrong with a teacher and its members on this cohort.

    Args:
        path: prefix of the dotted path of each mistake, with its final dot.
    """
    try:
        kind, params = _kind_and_params(config, path)
    except ConfigError as error:
        return list(error.mistakes)
    mistakes = []
    for name, member in params.members.items() if isinstance(params, CompositeParams) else ():
        where = f"{path}params.members.{name}"
        mistakes += check_name(name, where)
        if member.control is not None:
            problem = "a member cannot have a control; set the control of the whole teacher instead"
            mistakes.append(Mistake(f"{where}.control", problem))
        mistakes += check(member, facts, f"{where}.")
        if sees_view(member):
            problem = f"a teacher of kind {member.kind!r} sees the student's view, so its logits cannot be combined"
            mistakes.append(Mistake(f"{where}.kind", f"{problem}; members must be teachers that are cached"))
    return mistakes + [Mistake(f"{path}params.{where}", problem) for where, problem in kind.check(params, facts)]


def sees_view(config: TeacherConfig) -> bool:
    """Whether a teacher of this kind sees the student's view; False for an unknown kind."""
    return config.kind in TEACHERS and TEACHERS[config.kind].sees_view


def check_name(name: str, where: str) -> list[Mistake]:
    """Returns what is wrong with the name of a teacher or of a member."""
    problem = "a name cannot contain '/', because scores are named teacher/NAME/auroc; choose another name"
    return [Mistake(where, problem)] if "/" in name else []


def sized(config: TrialConfig, facts: Facts) -> TrialConfig:
    """Returns the configuration of a training, with each size that a teacher leaves out filled in from the student's.

    Returns the given configuration unchanged if the student cannot be built; `build.check` reports that. A
    vision-language student has no such teachers.
    """
    if isinstance(config.student, VlmConfig):
        return config
    own = config.vit.model_copy(update={"pretrained": False, "weights": None})
    try:
        student = build_student(own, facts.image_size, facts.channels, 1, empty=True)
    except ConfigError:
        return config
    block, patches = student.model.blocks[0], student.model.patch_embed.patch_size
    size = StudentSize(config.vit, patches[0], student.dim, student.depth, block.attn.num_heads)
    teachers = {name: _sized_teacher(teacher, size) for name, teacher in config.teachers.items()}
    return config.model_copy(update={"teachers": teachers})


def _sized_teacher(config: TeacherConfig, student: StudentSize) -> TeacherConfig:
    """Returns the same teacher with its missing sizes filled in, or the same object if `check` rejects it."""
    try:
        kind, params = _kind_and_params(config)
    except ConfigError:
        return config
    sizes = kind.sizes(params, student)
    if isinstance(params, CompositeParams):
        members = {name: _sized_teacher(member, student) for name, member in params.members.items()}
        if members != params.members:
            sizes["members"] = {name: member.model_dump() for name, member in members.items()}
    return config.model_copy(update={"params": {**config.params, **sizes}}) if sizes else config


def leakage_remedy(kind: str) -> str:
    """Returns what the user can do if a teacher of this kind states the label. The kind may be unknown."""
    return TEACHERS[kind].LEAKAGE_REMEDY if kind in TEACHERS else "Leave out the inputs that state it"
