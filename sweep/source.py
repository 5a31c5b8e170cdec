"""A search space file as plain values: found, overridden from the command line, references resolved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from mmpkd.config import near
from mmpkd.types import ConfigError, Mistake
from sweep.grammar import join, lone_word

FOLDER: Final = Path(__file__).resolve().parent.parent / "search_spaces"


def shipped() -> list[str]:
    """Names of the spaces in `search_spaces/`."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(word: str) -> dict[Any, Any]:
    path = Path(word) if word.endswith((".yaml", ".yml")) else FOLDER / f"{word}.yaml"
    if not path.is_file():
        wanted = "is no file" if path == Path(word) else f"is no space{near(word, shipped())}"
        raise ConfigError.one("space", f"{word!r} {wanted}; give a name from {FOLDER} or the path of a .yaml file")
    try:
        # OmegaConf's loader, because PyYAML's takes 1e-3 for a string and lets a key stand twice.
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError.one("space", f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError.one("space", f"{path} must be a mapping, got a {type(content).__name__}")
    arms = content.get("arms")
    if arms is None or isinstance(arms, dict):
        content["arms"] = {"none": {}} | (arms or {})
    return content


def override(content: dict[Any, Any], assignment: str, mistakes: list[Mistake]) -> None:
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        mistakes.append(Mistake(assignment, "expected key=value"))
        return
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        mistakes.append(Mistake(key, f"{text!r} is not a YAML value: {str(error).splitlines()[0]}"))
        return
    assert isinstance(value, dict)
    keys = ["search", "trials"] if key == "trials" else key.split(".")
    arms = content["arms"]
    if len(keys) > 1 and keys[0] == "arms" and isinstance(arms, dict) and keys[1] not in arms:
        whole = len(keys) == 2 and isinstance(value["value"], dict)  # a new arm, given as a whole
        if not whole:
            mistakes.append(Mistake(f"arms.{keys[1]}", f"no such arm{near(keys[1], map(str, arms))}"))
            return
    _place(content, keys, value["value"], "", mistakes)


def _place(node: dict[Any, Any], keys: Sequence[str], value: Any, path: str, mistakes: list[Mistake]) -> None:
    """Puts `value` where `keys` lead. Mappings merge; a distribution is replaced as a whole."""
    key: Any = next((known for known in node if str(known) == keys[0]), keys[0])
    word = lone_word(node)
    if word is not None and key != word:
        inner = node[word]
        if word not in ("one_of", "maybe") or not isinstance(inner, dict):
            mistakes.append(Mistake(join(path, key), f"nothing is below {path}, a {word}; override {path} itself"))
        elif word == "one_of" and keys[0] not in map(str, inner):
            mistakes.append(Mistake(join(path, key), f"no such branch{near(keys[0], map(str, inner))}"))
        else:
            _place(inner, keys, value, path, mistakes)
        return
    here = path if key == word else join(path, key)
    old = node.get(key)
    mergeable = isinstance(old, dict) and lone_word(old) is None
    if len(keys) > 1:
        if old is None:
            old = node[key] = {}
        if isinstance(old, dict):
            _place(old, keys[1:], value, here, mistakes)
        else:
            mistakes.append(Mistake(join(here, keys[1]), f"nothing is below {here}, which is {old!r}"))
    elif mergeable and isinstance(value, dict) and lone_word(value) is None:
        for inner_key, inner_value in value.items():
            _place(node[key], [str(inner_key)], inner_value, here, mistakes)
    else:
        node[key] = value


def resolved(config: DictConfig, path: str, mistakes: list[Mistake]) -> dict[Any, Any]:
    """References resolved; a key whose value cannot be is left out."""
    result = {}
    word = lone_word(dict.fromkeys(config))
    for key in config:
        here = path if key == word else join(path, key)
        try:
            result[key] = _value(config, key, here, mistakes)
        except MissingMandatoryValue:
            mistakes.append(Mistake(here, f"has no value yet; add {here}=... to the command"))
        except OmegaConfBaseException as error:
            mistakes.append(Mistake(here, _unresolved(str(error).splitlines()[0], here)))
    return result


def _value(config: DictConfig | ListConfig, key: Any, path: str, mistakes: list[Mistake]) -> Any:
    value = config[key]
    if isinstance(value, DictConfig | ListConfig) and OmegaConf.is_interpolation(config, key):
        raise InterpolationResolutionError("a reference must lead to a single fixed value")
    if isinstance(value, DictConfig):
        return resolved(value, path, mistakes)
    if isinstance(value, ListConfig):
        return [_value(value, index, path, mistakes) for index in range(len(value))]
    return value


def _unresolved(message: str, path: str) -> str:
    variable = re.search(r"Environment variable '(.+)' not found", message)
    if variable:
        return f"the environment variable {variable[1]} is not set; set it, or add {path}=... to the command"
    return message
