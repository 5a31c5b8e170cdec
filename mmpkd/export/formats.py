"""Writes a student in the format of other software, and compares what was written with the student before it counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from mmpkd.command import warn
from mmpkd.export import student_file, to_hub, to_mlflow, to_onnx, to_timm, to_transformers
from mmpkd.export.lookup import find, is_answering
from mmpkd.export.student_file import Exported
from mmpkd.machine.new_folder import new_folder
from mmpkd.types import ConfigError, UserError
from mmpkd.vlm import student as vlm_student

TOLERANCE = 1e-5  # largest difference of a probability


class Format(NamedTuple):
    """A format of other software.

    write: writes the files for a student, which was read from the given file, to an existing folder.
    compare: loads the files in the folder, and returns the largest difference between their probabilities and those of
        the student, which was read from the given file, for random images.
    libraries: modules that both need, and that an installation may lack.
    extra: the part of this package's installation that brings these libraries.
    """

    write: Callable[[Exported, Path, Path], None]
    compare: Callable[[Exported, Path, Path], float]
    libraries: tuple[str, ...] = ()
    extra: str = ""


FORMATS: Mapping[str, Format] = {
    "timm": Format(to_timm.write, to_timm.compare),
    "onnx": Format(to_onnx.write, to_onnx.compare, ("onnx", "onnxruntime", "onnxscript"), "export"),
    "mlflow": Format(to_mlflow.write, to_mlflow.compare, ("mlflow",), "sweep"),
    "hub": Format(to_hub.write, to_timm.compare),
}


ANSWERING = "transformers"  # the format of students that answer, and of no other


def export(model: Path, to: str, out: Path) -> float:
    """Writes a student to a new folder in a format of `FORMATS`. The folder appears once all its files are written and
    give the student's probabilities for random images.

    Args:
        model: see `student_file.read`.

    Returns:
        The largest difference between a probability of the export and of the student; 0 for a student that answers,
        whose weights are copied.

    Raises:
        ConfigError: no student at `model`, or a damaged one; the format cannot hold this student, or a library is
            missing; `out` is taken, see `new_folder`.
        UserError: the export does not give the student's probabilities, or the disk refuses to write it.
    """
    file = find(model)
    words = ["python", "-m", "mmpkd.export", f"model={model}", f"to={to}"]
    if is_answering(file) != (to == ANSWERING):
        does = "answers questions" if is_answering(file) else "classifies"
        wanted = ANSWERING if is_answering(file) else " or ".join(FORMATS)
        raise ConfigError.at("to", f"{to} is not for a student that {does}; write {wanted}")
    if to == ANSWERING:
        warn(to_transformers.write(vlm_student.read(file), out, words))
        return 0.0
    kind = FORMATS[to]
    exported = student_file.read(file)
    if missing := [name for name in kind.libraries if find_spec(name) is None]:
        install = f"python -m pip install --editable '.[{kind.extra}]'"
        problem = f"{to} needs {', '.join(missing)}, which this Python lacks"
        raise ConfigError.at("to", f"{problem}; in the folder of this software, install with: {install}")
    with new_folder(out, words) as folder:
        kind.write(exported, file, folder)
        difference = kind.compare(exported, file, folder)
        if not difference <= TOLERANCE:  # also if it is not a number
            problem = f"the exported files give other probabilities than the student, by up to {difference:.2g}"
            raise UserError(f"{problem}\n  nothing was written; report this with the versions of torch and timm")
    return difference
