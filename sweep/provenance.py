"""What a sweep was made with: who started it, the commit of the code, and the versions of the libraries."""

from __future__ import annotations

import getpass
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

LIBRARIES: Final = ("torch", "timm", "ray", "optuna", "mlflow")
GIT_SECONDS: Final = 5.0  # time that git gets; the folder of the code may lie on a slow disk


def user_name() -> str:
    """Returns the name of the user, or an empty text if the machine does not know one, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


@cache
def code_commit() -> str:
    """Returns the git commit of this code when it was first asked for, with '+changes' if files differ from the commit.
    Returns an empty text if the code lies in no git repository of its own, as after an installation.
    """
    root = Path(__file__).parents[1]
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else ""
    return f"{commit}+changes" if commit and _git(root, "status", "--porcelain", "-uno") else commit


@cache
def library_versions() -> Mapping[str, str]:
    """Returns the versions of Python and of the main libraries, by name."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _git(root: Path, *words: str) -> str:
    try:
        command = ["git", "-C", str(root), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
