"""Teachers, by name. A new one is a file here, a line below and a hand-worked test."""

from mmpkd.cohort.facts import Facts
from mmpkd.config import TeacherConfig, near, validate
from mmpkd.teachers.ensemble import Ensemble
from mmpkd.teachers.fused import Fused
from mmpkd.teachers.image import Image
from mmpkd.teachers.tabular import Tabular
from mmpkd.teachers.teacher import Teacher
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


def caveats(config: TeacherConfig, facts: Facts) -> list[str]:
    """What whoever plans with a teacher that has passed `check` should know of it."""
    kind = TEACHERS[config.kind]
    params = validate(kind.Params, config.params)
    near_label = ", ".join(getattr(params, "near_label", ()))
    found = [f"reads {near_label}, which nearly states the label; its runs are tagged near_label"] if near_label else []
    return found + kind.caveats(params, facts)


__all__ = ["TEACHERS", "Teacher", "caveats", "check"]
