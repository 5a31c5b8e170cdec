"""Suggestions for misspelt names: the nearest known names, wherever in the tree of a configuration they stand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from mmpkd.types import Mistake

STUDENT_KINDS = ("vit", "vlm")  # pydantic adds the kind of a student to the path of a mistake in its section
# What is said of a key that belongs to a student of the other kind.
OF_OTHER_KIND = {
    "vit": "belongs to a student that answers questions; write student.kind=vlm",
    "vlm": "belongs to a student that classifies, which has no student.kind; a student of kind vlm lacks it",
}
# Sections that few configurations have. Their keys are suggested where no other is near.
RARE = ("pretrain", "distillation", "vision", "decoder", "positions", "lora")
RARITY = 0.15  # by how much less similar their keys count as
NAME = "NAME"  # in a path, stands for a key that the user chooses, such as the name of a teacher
SIBLING_CUTOFF, ELSEWHERE_CUTOFF = 0.7, 0.75  # least similarity of a name beside the misspelt key, or elsewhere
WORD_SIMILARITY = 0.9  # least similarity of two names if one of them is a word of the other
MARGIN = 0.04  # names whose similarity is this close to that of the nearest are suggested as well


def near(name: str, known: Iterable[str]) -> str:
    """Returns ' (did you mean ...?)' if a known name is close, else the list of known names if it is short."""
    names = sorted(known)
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    if not close and len(name) == 2:  # a wrong letter is half of the name
        close = [known for known in get_close_matches(name, names, n=3, cutoff=0.5) if known[0] == name[0]]
    return _meant(close) or _list_of(names)


def near_path(path: str, content: Any, known: Iterable[str]) -> str:
    """Like `near`, for the dotted path of a key, among all dotted paths of a configuration.

    A key beside the misspelt key is suggested by its name alone, any other by its path. Keys below an unknown top-level
    key are considered as well: `task: {class_weights: balanced}` leads to optimizer.class_weights.

    Args:
        content: the value that was given for the key.
        known: dotted paths, in which NAME stands for a name that the user chooses.
    """
    tree = sorted({_with_user_names(candidate, path) for candidate in known})
    parent = path.rpartition(".")[0]
    nearest = _nearest(path, tree)
    for below in _paths_below(path, content) if not parent else ():
        nearest = nearest or _nearest(below, tree)
    if nearest:
        split = [(candidate.rpartition("."), candidate) for candidate in nearest]
        return _meant([name if owner == parent else candidate for (owner, _, name), candidate in split])
    return _list_of([candidate.rpartition(".")[2] for candidate in tree if candidate.rpartition(".")[0] == parent])


def mistake_of(error: Mapping[str, Any], path: str, tree: Iterable[str]) -> Mistake:
    """Returns pydantic's error details as a Mistake, with a suggestion where a known name is near.

    Args:
        path: dotted path of the model that was validated.
        tree: known dotted paths, see `near_path`.
    """
    parts = [str(part) for part in error["loc"]]
    kept = [part for place, part in enumerate(parts) if not (part in STUDENT_KINDS and parts[place - 1] == "student")]
    location = ".".join([*([path] if path else []), *kept])
    if error["type"] == "extra_forbidden":
        tree = set(tree)
        if location in tree and len(kept) < len(parts):
            return Mistake(location, OF_OTHER_KIND[parts[parts.index("student") + 1]])
        return Mistake(location, f"unknown key{near_path(location, error['input'], tree)}")
    if error["type"] == "missing":
        return Mistake(location, "missing")
    if error["type"] == "value_error":  # raised by one of our own validators
        message = str(error["ctx"]["error"])
        if isinstance(error["input"], Mapping):  # the message repeats a single value, but not a whole section
            return Mistake(location, message)
    else:
        message = error["msg"][0].lower() + error["msg"][1:]
    values = re.findall("'([^']*)'", str(error.get("ctx", {}).get("expected", "")))  # the field's options, if few
    similar = get_close_matches(str(error["input"]), values, n=1, cutoff=0.6)
    return Mistake(location, f"{message}, got {error['input']!r}{_meant(similar)}")


def _meant(names: Iterable[str]) -> str:
    quoted = " or ".join(repr(name) for name in names)
    return f" (did you mean {quoted}?)" if quoted else ""


def _list_of(names: list[str]) -> str:
    return f" (known: {', '.join(names)})" if 0 < len(names) <= 20 else ""


def _nearest(path: str, tree: Iterable[str]) -> list[str]:
    """Returns at most three of the paths that are most similar to this path; none if no path is similar."""
    parent, _, last = path.rpartition(".")
    similar = []
    for candidate in tree:
        owner, _, name = candidate.rpartition(".")
        similarity = 1.0 if name == last else SequenceMatcher(None, name, last).ratio()
        if min(len(name), len(last)) > 2 and ({name} & set(last.split("_")) or {last} & set(name.split("_"))):
            similarity = max(similarity, WORD_SIMILARITY)  # `heads` of `num_heads`
        if owner != parent and _rarity(candidate) == 2:
            similarity -= RARITY
        if name != NAME and similarity >= (SIBLING_CUTOFF if owner == parent else ELSEWHERE_CUTOFF):
            by_path = SequenceMatcher(None, candidate, path).ratio()
            similar.append((similarity - (0.05 if owner != parent else 0), by_path, candidate))
    # Among equally near paths, those that every training has come first and exclude the others.
    similar.sort(key=lambda scored: (-scored[0], _rarity(scored[2]), -scored[1], scored[2]))
    nearest = [candidate for score, _, candidate in similar if score > similar[0][0] - MARGIN]
    return [candidate for candidate in nearest if _rarity(candidate) <= _rarity(nearest[0])][:3]


def _rarity(path: str) -> int:
    """Returns 0 for a path that every training has, 1 for one with a user's name in it, 2 for one of a rare section."""
    parts = path.split(".")
    return 2 if any(part in RARE for part in parts) else int(NAME in parts)


def _with_user_names(known: str, path: str) -> str:
    """Fills the placeholders (NAME) in a known path with the keys that the user wrote at the same positions of `path`.

    It stops at the first key, other than a placeholder, in which the two paths differ."""
    keys, given = known.split("."), path.split(".")
    for position, key in enumerate(keys):
        if position >= len(given) - 1 or key not in (NAME, given[position]):
            break
        keys[position] = given[position]
    return ".".join(keys)


def _paths_below(path: str, content: Any) -> Iterator[str]:
    """Yields the dotted path of every key below a key with this content."""
    for key, value in content.items() if isinstance(content, Mapping) else ():
        yield f"{path}.{key}"
        yield from _paths_below(f"{path}.{key}", value)


@lru_cache(maxsize=256)
def paths_of(model: type[BaseModel], start: str = "") -> tuple[str, ...]:
    """Returns the dotted path of every key that a configuration may have."""
    paths: list[str] = []
    for key, field in model.model_fields.items():
        path = f"{start}.{key}" if start else key
        paths.append(path)
        for is_named, inner in _models_in(field.annotation):
            paths += paths_of(inner, f"{path}.{NAME}" if is_named else path)
    return tuple(paths)


def _models_in(annotation: Any) -> Iterator[tuple[bool, type[BaseModel]]]:
    """Yields a pair for each model that a value with this annotation may be or hold: first whether a key or index
    chosen by the user leads to the model, then the model."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield False, annotation
    is_container = get_origin(annotation) in (dict, Mapping, tuple, list)
    for inner in get_args(annotation):
        for is_named, model in _models_in(inner):
            yield is_named or is_container, model
