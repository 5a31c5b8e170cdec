"""Finds the file of an exported student, and says of which kind the student is."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from mmpkd.types import ConfigError

NAME = "student.safetensors"  # a student that classifies, see `mmpkd.export.student_file`
ANSWERING, ANSWERS = "vlm.safetensors", "vlm 1"  # a student that answers, and its format, see `mmpkd.vlm.exported`


def is_answering(file: Path) -> bool:
    """Returns whether a file is an exported student that answers questions. Damaged files are left to `read`."""
    try:
        with safe_open(file, "pt") as opened:
            return (opened.metadata() or {}).get("format") == ANSWERS
    except (OSError, SafetensorError):
        return file.name == ANSWERING


def find(path: Path) -> Path:
    """Returns the file of an exported student, one that classifies or one that answers.

    Args:
        path: the file, or a folder that holds exactly one such file, at any depth.

    Raises:
        ConfigError: there is none, or there are several.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        train = f"python -m mmpkd.train config={path}"
        raise ConfigError.at("model", f"{path} is a configuration, not a student; train it first: {train}")
    if path.suffix.lower() == ".pt":
        problem = f"{path} is the checkpoint from which a training continues"
        wanted = f"{NAME} or {ANSWERING}, which that folder has after the last epoch"
        raise ConfigError.at("model", f"{problem}; wanted {wanted}")
    if path.is_file():
        return path
    files = sorted(file for name in (NAME, ANSWERING) for file in path.rglob(name)) if path.is_dir() else []
    if len(files) == 1:
        return files[0]
    listed = "\n".join(f"  model={file}" for file in files[:10])
    if files:
        raise ConfigError.at("model", f"{path} holds {len(files)} exported students; name one of them:\n{listed}")
    wanted = f"python -m mmpkd.train config=FILE writes {NAME} or {ANSWERING} to its folder after the last epoch"
    raise ConfigError.at("model", f"no exported student at {path}; {wanted}")
