"""Reads a search space file as plain values, with the files that it extends, overrides and references.

extends: other_space      a name, or a path relative to this file. Mappings merge deep and this file
                          wins; lists and distributions are replaced as a whole
${a.path}                 the value of another leaf; if that leaf is sampled, the sampled value (`references.py`)
${oc.env:NAME}            an environment variable
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from functools import cached_property, lru_cache
from io import StringIO
from pathlib import Path
from typing import Any, Final

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from mmpkd.near_names import near, near_path
from mmpkd.types import ConfigError, Mistake
from sweep.space.grammar import REFERENCE, join, lone_word

FOLDER: Final = Path(__file__).resolve().parents[2] / "search_spaces"
SHORTCUTS: Final = ("trials", "budget_device_hours", "deadline", "warm_start")  # KEY stands for search.KEY in a command


def shipped() -> list[str]:
    """Returns the names of the search spaces in the folder `search_spaces/`."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(word: str) -> dict[Any, Any]:
    """Reads a space by name or path, and merges it over all files that it extends. The result always has the arm
    `none`.

    Raises:
        ConfigError: a file does not exist, a file does not hold a mapping, or files extend each other in a circle.
    """
    path = _located(word, Path(), "space")
    content = _read(path, "space")
    chain = [path.resolve()]
    while (parent := content.pop("extends", None)) is not None:
        if not isinstance(parent, str):
            raise ConfigError.at("extends", f"wants one name or path of a space, got {parent!r}")
        path = _located(parent, path.parent, "extends")
        chain.append(path.resolve())
        if chain[-1] in chain[:-1]:
            circle = " -> ".join(step.name for step in chain[chain.index(chain[-1]) :])
            raise ConfigError.at("extends", f"goes in a circle: {circle}")
        content = merged(_read(path, "extends"), content)
    arms = content.get("arms")
    if arms is None or isinstance(arms, dict):
        content["arms"] = {"none": {}} | (arms or {})
    return content


def _located(word: str, folder: Path, key: str) -> Path:
    is_path = word.endswith((".yaml", ".yml"))
    path = folder / Path(word).expanduser() if is_path else FOLDER / f"{word}.yaml"
    if not path.is_file():
        wanted = "is no file" if is_path else f"is no space{near(word, shipped())}"
        raise ConfigError.at(key, f"{word!r} {wanted}; give a name from {FOLDER} or the path of a .yaml file")
    return path


@lru_cache(maxsize=8)
def _parsed(text: str) -> Any:
    """Returns the content of YAML. Callers copy it."""
    # OmegaConf's loader, because PyYAML's reads 1e-3 as a string and accepts duplicate keys.
    return OmegaConf.to_container(OmegaConf.load(StringIO(text)), resolve=False)


def _read(path: Path, key: str) -> dict[Any, Any]:
    try:
        content = deepcopy(_parsed(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError.at(key, f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError.at(key, f"{path} must be a mapping, got a {type(content).__name__}")
    return content


def merged(base: Any, over: Any) -> Any:
    """Merges plain values deep. If one of the two values is a distribution, or is not a mapping, `over` replaces
    `base`.
    """
    if not (isinstance(base, dict) and isinstance(over, dict)) or lone_word(base) or lone_word(over):
        return over
    return base | {key: merged(base[key], value) if key in base else value for key, value in over.items()}


def override(content: dict[Any, Any], assignment: str, mistakes: list[Mistake], known: Collection[str] = ()) -> None:
    """Applies `dotted.key=value` to a space.

    Args:
        mistakes: list to which a mistake is appended if the override does not fit the space.
        known: every key and dotted path that a command line may name. A key is a mistake if its first part (before the
            first dot) is not the first part of any of these.
    """
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        space = f"; write space={assignment}" if assignment in shipped() else ""
        mistakes.append(Mistake(assignment, f"expected key=value{space}"))
        return
    if known and key.split(".")[0] not in {path.split(".")[0] for path in known}:
        hint = near_path(key, None, known) or near_path(key.split(".")[0], None, known)
        mistakes.append(Mistake(key, f"unknown word{hint}"))
        return
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        mistakes.append(Mistake(key, f"{text!r} is not a YAML value: {str(error).splitlines()[0]}"))
        return
    assert isinstance(value, dict)
    if key == "extends":
        mistakes.append(Mistake(key, "belongs in a file; on the command line write space=FILE"))
        return
    keys = ["search", key] if key in SHORTCUTS else key.split(".")
    arms = content["arms"]
    if len(keys) > 1 and keys[0] == "arms" and isinstance(arms, dict) and keys[1] not in arms:
        is_new_arm = len(keys) == 2 and isinstance(value["value"], dict)
        if not is_new_arm:
            mistakes.append(Mistake(f"arms.{keys[1]}", f"no such arm{near(keys[1], map(str, arms))}"))
            return
    _set(content, keys, value["value"], "", mistakes)


def shadowed(content: Mapping[Any, Any], assignment: str) -> Mistake | None:
    """Returns a mistake if an override of what all arms share would change nothing where the file says it: in arms that
    set a value of their own, while the shared part has none or every arm has its own.

    Args:
        content: the space as it stands in its files, without overrides.
    """
    key = assignment.partition("=")[0]
    keys, arms = key.split("."), content["arms"]
    if keys[0] in ("arms", "search", *SHORTCUTS) or not isinstance(arms, dict):
        return None
    on = [str(arm) for arm, own in arms.items() if own is not False]
    keep = [str(arm) for arm, own in arms.items() if own is not False and _sets(own, keys)]
    if not keep or (_sets(content, keys) and keep != on):
        return None
    remedy = " ".join(f"arms.{arm}.{assignment}" for arm in keep)
    return Mistake(key, f"would not change arms that set a value of their own ({', '.join(keep)}); write {remedy}")


def _sets(node: Any, keys: Sequence[str]) -> bool:
    """Returns whether a value, not a section, stands at a path of plain keys."""
    for key in keys:
        if not isinstance(node, dict) or lone_word(node) or key not in node:
            return False
        node = node[key]
    return not isinstance(node, dict) or lone_word(node) is not None


def _set(node: dict[Any, Any], keys: Sequence[str], value: Any, path: str, mistakes: list[Mistake]) -> None:
    """Sets the value at the path `keys`. Mappings merge, and a distribution is replaced as a whole."""
    key: Any = next((known for known in node if str(known) == keys[0]), keys[0])
    word = lone_word(node)
    if word is not None and key != word:
        inner = node[word]
        if word not in ("one_of", "maybe") or not isinstance(inner, dict):
            mistakes.append(Mistake(join(path, key), f"nothing is below {path}, a {word}; override {path} itself"))
        elif word == "one_of" and keys[0] not in map(str, inner):
            mistakes.append(Mistake(join(path, key), f"no such branch{near(keys[0], map(str, inner))}"))
        else:
            _set(inner, keys, value, path, mistakes)
        return
    inner_path = path if key == word else join(path, key)
    old = node.get(key)
    mergeable = isinstance(old, dict) and lone_word(old) is None
    if len(keys) > 1:
        if old is None:
            old = node[key] = {}
        if isinstance(old, dict):
            _set(old, keys[1:], value, inner_path, mistakes)
        else:
            mistakes.append(Mistake(join(inner_path, keys[1]), f"nothing is below {inner_path}, which is {old!r}"))
    elif mergeable and isinstance(value, dict) and lone_word(value) is None:
        for inner_key, inner_value in value.items():
            _set(node[key], [str(inner_key)], inner_value, inner_path, mistakes)
    else:
        node[key] = value


def resolved(content: dict[Any, Any], static: Collection[str], mistakes: list[Mistake]) -> dict[Any, Any]:
    """Returns the content with references resolved. A key whose reference is broken is left out.

    A reference between two leaves of a trial is not resolved here, because an arm may replace the leaf, or the leaf may
    be sampled. It is kept as `${path}`, with a path without grammar words.

    Args:
        static: names of sections. A reference is always resolved here if it stands in one of these sections, or if it
            names a leaf in one of them.
        mistakes: list to which a mistake is appended for each broken reference.
    """
    return _References(content, static, mistakes).mapping(content, ())


class _References:
    def __init__(self, content: dict[Any, Any], static: Collection[str], mistakes: list[Mistake]):
        self._content, self._static, self._mistakes = content, static, mistakes

    @cached_property
    def _config(self) -> DictConfig:  # takes long, and few spaces have references that need it
        return OmegaConf.create(self._content)

    def mapping(self, content: dict[Any, Any], keys: tuple[Any, ...]) -> dict[Any, Any]:
        result = {}
        for key, value in content.items():
            path = ".".join(map(str, _without_words(self._content, (*keys, key))))
            try:
                result[key] = self._value(value, (*keys, key), path)
            except MissingMandatoryValue:
                self._mistakes.append(Mistake(path, f"has no value yet; add {path}=... to the command"))
            except OmegaConfBaseException as error:
                self._mistakes.append(Mistake(path, self._unresolved(str(error).splitlines()[0], path)))
        return result

    def _value(self, value: Any, keys: tuple[Any, ...], path: str) -> Any:
        if isinstance(value, dict):
            return self.mapping(value, keys)
        if isinstance(value, list):
            return [self._value(item, (*keys, index), path) for index, item in enumerate(value)]
        if not isinstance(value, str) or not ("${" in value or value == "???"):
            return value
        match = REFERENCE.fullmatch(value)
        target = self._target(match[1], keys) if match else None
        if target and isinstance(node := _at(self._content, target), dict) and lone_word(node) is None:
            raise InterpolationResolutionError("a reference must lead to a single leaf, this is a mapping")
        if target and self._is_kept(keys, target):
            return "${" + ".".join(map(str, _without_words(self._content, target))) + "}"
        for inner in () if target else REFERENCE.findall(value):
            inner_target = self._target(inner, keys)
            if inner_target and isinstance(_at(self._content, inner_target), dict):
                raise InterpolationResolutionError("a reference inside a text must lead to a single fixed value")
        result = _at(self._config, target or keys)
        if isinstance(result, DictConfig | ListConfig):
            result = OmegaConf.to_container(result, resolve=True)
        if isinstance(result, dict):
            raise InterpolationResolutionError("a reference must lead to a single fixed value here")
        return result

    def _is_kept(self, keys: tuple[Any, ...], target: tuple[Any, ...]) -> bool:
        """Returns whether a reference is left to `references.bind`, which is so if it links two leaves of a trial in
        the same arm.
        """
        arm = target[1] if target[0] == "arms" else None
        in_reach = arm is None or (keys[0] == "arms" and keys[1] == arm)
        inside_list = any(isinstance(_at(self._content, keys[:depth]), list) for depth in range(1, len(keys)))
        drawn = lone_word(_at(self._content, target)) is not None
        if drawn and not in_reach and keys[0] not in self._static:
            return not inside_list  # `references.bind` refuses this reference, because it knows the arms
        return in_reach and not inside_list and not {keys[0], target[0]} & set(self._static)

    def _target(self, text: str, keys: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Returns the keys of the node that a reference names, or None if no such node exists. The reference may name
        the node with or without grammar words.
        """
        dots = len(text) - len(text.lstrip("."))
        target: tuple[Any, ...] = keys[:-dots] if dots else ()
        node = _at(self._content, target)
        for key in text[dots:].split("."):
            while (word := lone_word(node)) in ("one_of", "maybe") and key != word:
                target, node = (*target, word), node[word]
            matches = [known for known in node if str(known) == key] if isinstance(node, dict) else []
            if not matches:
                return None
            target, node = (*target, matches[0]), node[matches[0]]
        return target

    def _unresolved(self, message: str, path: str) -> str:
        variable = re.search(r"Environment variable '(.+)' not found", message)
        if variable:
            return f"the environment variable {variable[1]} is not set; set it, or add {path}=... to the command"
        key = re.match(r"Interpolation key '(.+)' not found", message)
        return message + (near(key[1], _paths(self._content, "")) if key else "")


def _at(node: Any, keys: Sequence[Any]) -> Any:
    for key in keys:
        node = node[key]
    return node


def _without_words(content: Any, keys: Sequence[Any]) -> list[Any]:
    """Returns the keys of a path without the grammar words among them."""
    return [key for depth, key in enumerate(keys) if lone_word(_at(content, keys[:depth])) != key]


def _paths(node: Any, path: str) -> list[str]:
    below = node.items() if isinstance(node, dict) else ()
    inner_paths = [_paths(inner, path if lone_word(node) else join(path, key)) for key, inner in below]
    return [path, *(inner_path for paths in inner_paths for inner_path in paths)]
