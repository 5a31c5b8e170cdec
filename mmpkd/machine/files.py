"""Reads YAML files and `dotted.key=value` overrides as plain values, writes files atomically, and locks places in the
cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmpkd.types import ConfigError, Mistake


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file atomically: readers see the old content or the new, never a part of it."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(beside, path)


@contextmanager
def locked(path: Path, error: Callable[[str, str], Exception]) -> Iterator[None]:
    """Context manager that holds the lock of a file or folder of the cache, so that one process of a machine makes it
    and the others wait.

    Args:
        error: function that returns what is raised if the lock cannot be taken, from the lock's path and the problem.
    """
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as reason:
        problem = f"cannot be locked ({reason.strerror}); delete it, or put the cache elsewhere with cache=DIR"
        raise error(lock.lock_file, problem) from None
    try:
        yield
    finally:
        lock.release()


def parse_own_yaml(text: str) -> Any:
    """Returns the content of YAML that this project has written. It takes a fifth of the time of `yaml.safe_load`, but
    ends the process at thousands of nested brackets.
    """
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the YAML mapping in a file, with its interpolations unresolved.

    Raises:
        ConfigError: the file does not exist, is not YAML, or is not a mapping.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))  # PyYAML alone reads 1e-3 as a string
    except OSError as error:
        raise ConfigError.at(str(path), f"cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        details = " ".join(str(error).split())
        raise ConfigError.at(str(path), f"is not YAML: {details}") from None
    if not isinstance(content, dict):
        raise ConfigError.at(str(path), f"must be a mapping, got {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def overridden(content: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Returns `content` with `dotted.key=value` overrides applied and ${...} references resolved.

    Raises:
        ConfigError: an override has no '=', or a reference leads to nothing.
    """
    words = list(overrides)
    mistakes = [Mistake(word, "expected key=value") for word in words if "=" not in word]
    if mistakes:
        raise ConfigError(mistakes)
    try:
        changes = OmegaConf.from_dotlist(words)
    except (yaml.YAMLError, OmegaConfBaseException, IndexError):
        raise ConfigError.at("", f"an override is not YAML: {' '.join(words)}") from None
    try:
        merged = OmegaConf.merge(OmegaConf.create(dict(content)), changes)
        resolved = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        path = str(getattr(error, "full_key", "") or "")
        raise ConfigError.at(path, str(error).splitlines()[0]) from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}
