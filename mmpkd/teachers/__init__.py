"""Teachers, by name. A new one is a file here, a line below and a hand-worked test."""

from mmpkd.teachers.tabular import Tabular
from mmpkd.teachers.teacher import Teacher

TEACHERS: dict[str, type[Teacher]] = {
    "tabular": Tabular,
}

__all__ = ["TEACHERS", "Teacher"]
