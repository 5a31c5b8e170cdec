"""What a misspelt name was meant to be: the nearest of those that are known, wherever in the tree they stand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel

NAME = "NAME"  # stands in a path for a key that the user chooses, such as a teacher's name
BESIDE, ELSEWHERE = 0.7, 0.75  # how alike a name must be that stands beside the misspelt one, or elsewhere
WORD = 0.9  # how alike a name is to one of several words of which it is one
MARGIN = 0.04  # names hardly less alike than the nearest are told as well


def near(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' if a known name is close, else the list of them if it is short."""
    names = sorted(known)
    return _meant(get_close_matches(name, names, n=3, cutoff=0.6)) or _list_of(names)


def near_path(path: str, content: Any, known: Iterable[str]) -> str:
    """As `near`, of a key by its dotted path, among all dotted paths of a tree.

    A key that stands beside the misspelt key is told by its name alone, any other by its path. `task: {class_weights:
    balanced}` leads to optimizer.class_weights by what stands below the unknown key.

    Args:
        content: what was given for the key.
        known: in which NAME stands for whatever a user calls a thing.
    """
    tree = sorted({_named_as(place, path) for place in known})
    parent = path.rpartition(".")[0]
    nearest = _nearest(path, tree)
    for below in _paths_below(path, content) if not parent else ():
        nearest = nearest or _nearest(below, tree)
    if nearest:
        return _meant([place.rpartition(".")[2] if place.rpartition(".")[0] == parent else place for place in nearest])
    return _list_of([place.rpartition(".")[2] for place in tree if place.rpartition(".")[0] == parent])


def _meant(names: Iterable[str]) -> str:
    quoted = " or ".join(repr(name) for name in names)
    return f" (did you mean {quoted}?)" if quoted else ""


def _list_of(names: list[str]) -> str:
    return f" (known: {', '.join(names)})" if 0 < len(names) <= 20 else ""


def _nearest(path: str, tree: Iterable[str]) -> list[str]:
    """At most three of the paths that are most like this path; none where nothing is like it."""
    parent, _, last = path.rpartition(".")
    alike = []
    for place in tree:
        whose, _, name = place.rpartition(".")
        by_name = 1.0 if name == last else SequenceMatcher(None, name, last).ratio()
        if min(len(name), len(last)) > 2 and ({name} & set(last.split("_")) or {last} & set(name.split("_"))):
            by_name = max(by_name, WORD)  # `heads` of `num_heads`
        wanted = BESIDE if whose == parent else ELSEWHERE
        if name != NAME and by_name >= wanted:
            alike.append(
                (by_name - (0.05 if whose != parent else 0), SequenceMatcher(None, place, path).ratio(), place)
            )
    # Of paths equally near those that every training has go first, and leave out the rest.
    alike.sort(key=lambda scored: (-scored[0], NAME in scored[2].split("."), -scored[1], scored[2]))
    nearest = [place for score, _, place in alike if score > alike[0][0] - MARGIN]
    everywhere = [place for place in nearest if NAME not in place.split(".")]
    return (everywhere if everywhere and nearest[0] == everywhere[0] else nearest)[:3]


def _named_as(known: str, path: str) -> str:
    """A known path with the names that stand in the same places of another, as far as the two go together."""
    keys, given = known.split("."), path.split(".")
    for place, key in enumerate(keys):
        if place >= len(given) - 1 or key not in (NAME, given[place]):
            break
        keys[place] = given[place]
    return ".".join(keys)


def _paths_below(path: str, content: Any) -> Iterator[str]:
    for key, value in content.items() if isinstance(content, Mapping) else ():
        yield f"{path}.{key}"
        yield from _paths_below(f"{path}.{key}", value)


@lru_cache(maxsize=256)
def paths_of(model: type[BaseModel], start: str = "") -> tuple[str, ...]:
    """The dotted path of every key that a configuration may have."""
    paths: list[str] = []
    for key, field in model.model_fields.items():
        here = f"{start}.{key}" if start else key
        paths.append(here)
        for place, inner in _models_in(field.annotation):
            paths += paths_of(inner, f"{here}.{NAME}" if place else here)
    return tuple(paths)


def _models_in(annotation: Any) -> Iterator[tuple[bool, type[BaseModel]]]:
    """The configurations that a value may be or hold; True: below a key or an index of the user's."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield False, annotation
    holds = get_origin(annotation) in (dict, Mapping, tuple, list)
    for inner in get_args(annotation):
        for place, model in _models_in(inner):
            yield place or holds, model
