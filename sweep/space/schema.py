"""A JSON Schema of search space files, so that editors complete and check them: `python -m sweep.run schema=true`.

It is put together from what judges a space later: the pydantic models of a trial, of the search and of
each kind's parameters, the dictionaries of kinds, and the words of the grammar. A file says only a part
(it may extend another, and an arm may add what the rest leaves out), so hardly anything is required.
What a schema cannot say, such as where a reference leads, `plan=true` does.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from pydantic.json_schema import models_json_schema

from mmpkd.cohort import READERS
from mmpkd.config import CohortConfig, EvaluationConfig, ObjectiveConfig, Strict, TeacherConfig, TrialConfig
from mmpkd.objectives import OBJECTIVES
from mmpkd.scoring.saliency import MAPS
from mmpkd.teachers import TEACHERS
from sweep.space import grammar
from sweep.space.grammar import RANGES, WORDS
from sweep.space.loading import shipped
from sweep.space.space import SCORES, SHARED, SearchConfig

Json: TypeAlias = dict[str, Any]

DRAFT: Final = "http://json-schema.org/draft-07/schema#"  # the newest that editors know well
# A key that names a kind, and so decides what `params` beside it may hold: (model, key, kinds by name).
KINDS: Final[Sequence[tuple[type[Strict], str, Mapping[str, Any]]]] = (
    (CohortConfig, "reader", READERS),
    (TeacherConfig, "kind", TEACHERS),
    (ObjectiveConfig, "kind", OBJECTIVES),
)
ANNOTATIONS: Final = ("description", "default", "examples")
NO_WORD: Final[Json] = {"not": {"enum": list(WORDS)}}
REFERENCE: Final[Json] = {"type": "string", "pattern": r"\$\{.+\}"}


def schema() -> Json:
    """The schema, as `json.dumps` takes it."""
    return _Assembly().file()


class _Assembly:
    """Pydantic's schema of each model, made into what a space file may say in its place.

    Each has two forms: with distributions, and without, for what all trials share and inside a `choice`.
    """

    def __init__(self) -> None:
        params = [one.Params for _, _, known in KINDS for one in known.values()]
        models = [
            TrialConfig,
            SearchConfig,
            EvaluationConfig,
            *(model for model, _, _ in KINDS),
            *dict.fromkeys(params),
        ]
        references, whole = models_json_schema([(model, "validation") for model in models], ref_template="{model}")
        self._names = {model: str(references[model, "validation"]["$ref"]) for model in models}
        self._models: dict[str, Json] = whole["$defs"]
        self._definitions: dict[str, Json] = {}
        self._params: dict[str, list[tuple[Json, str]]] = {}  # model -> condition, model of its `params`
        for model, key, known in KINDS:
            self._name_kinds(model, key, known)
            self._params[self._names[model]] = [
                ({"properties": {key: {"const": name}}, "required": [key]}, self._names[one.Params])
                for name, one in known.items()
            ]
        self._name_kinds(EvaluationConfig, "map", MAPS)
        search = self._models[self._names[SearchConfig]]["properties"]
        search["select"]["enum"] = list(SCORES)
        for one in _alternatives(search["maximize"]):
            if one["type"] == "array":
                one["items"]["enum"] = list(SCORES)
        self._label_objectives()

    def _name_kinds(self, model: type[Strict], key: str, known: Mapping[str, Any]) -> None:
        """Puts known names, and what their classes say of themselves, in place of any text."""
        said = self._models[self._names[model]]["properties"][key]
        others = [one for one in _alternatives(said) if one["type"] != "string"]
        named = [{"const": name, "description": inspect.cleandoc(one.__doc__ or "")} for name, one in known.items()]
        said.pop("type", None)
        said["anyOf"] = [*named, *others]

    def _label_objectives(self) -> None:
        """An objective is of the kind that its label names, unless it says otherwise."""
        name = self._names[ObjectiveConfig]
        labelled = {}
        for label, one in OBJECTIVES.items():
            mine = f"{name}:{label}"
            labelled[label] = {"$ref": mine}
            self._models[mine] = {**self._models[name], "description": inspect.cleandoc(one.__doc__ or "")}
            silent = {"properties": {"kind": {"type": "null"}}}  # or not there at all
            self._params[mine] = [*self._params[name], (silent, self._names[one.Params])]
        self._models[self._names[TrialConfig]]["properties"]["objectives"]["properties"] = labelled

    def file(self) -> Json:
        trial = self._models[self._names[TrialConfig]]
        own = {key: self._place(key, said, key not in SHARED) for key, said in trial["properties"].items()}
        drawn = {key: place for key, place in own.items() if key not in SHARED}
        arm = {"$ref": "#/definitions/arm"}
        self._definitions["arm"] = {
            "description": "A treatment to be compared, merged deep over the rest of the file.",
            "anyOf": [_mapping(drawn, False), _mapping({"one_of": _branches(arm)}, False, required=["one_of"])],
        }
        off = [{"const": False, "description": "switched off"}, {"type": "null"}]
        arms = {"type": ["object", "null"], "propertyNames": NO_WORD, "additionalProperties": {"anyOf": [arm, *off]}}
        search = self._place("search", {"$ref": self._names[SearchConfig]}, False)
        extends = {
            "type": "string",
            "description": "A space by name, or by its path from this file. Mappings merge deep, and this file wins.",
            "examples": shipped(),
        }
        # What is shared is given here or in the file that this one extends.
        below = {key: trial["properties"][key].get("$ref") for key in trial["required"] if key in SHARED}
        needed = {key: {"required": self._models[name].get("required", [])} for key, name in below.items() if name}
        return {
            "$schema": DRAFT,
            "title": "search space",
            "description": inspect.cleandoc(grammar.__doc__ or ""),
            **_mapping(own | {"extends": extends, "arms": arms, "search": _or_null(search)}, False),
            "if": {"not": {"required": ["extends"]}},
            "then": {"required": list(below), "properties": needed},
            "definitions": self._definitions,
        }

    def _place(self, name: str, said: Json, drawn: bool = True) -> Json:
        """What may stand at a place of a trial's configuration.

        Args:
            name: of its definition, which branches of the place lead back to.
        """
        name = str(said.get("$ref", name))
        if not drawn and "$ref" not in said:
            return self._content(name, said, False)
        key = name if drawn else f"{name}.fixed"
        if key not in self._definitions:
            self._definitions[key] = {}
            self._definitions[key] = self._content(name, said, drawn)
        return {"$ref": f"#/definitions/{key}"}

    def _content(self, name: str, said: Json, drawn: bool) -> Json:
        values = _alternatives(self._models[name] if "$ref" in said else said)
        found = [self._value(name, one, drawn) for one in values]
        if any(one.get("type") not in ("object", "string") or "enum" in one for one in values):
            found.append(REFERENCE)  # a reference leads to a single leaf; among the texts it needs no mention
        if drawn:
            found.append(self._distribution(name, said, values))
        notes = {key: said[key] for key in ANNOTATIONS if key in said and not isinstance(said[key], dict)}
        return notes | (found[0] if len(found) == 1 else {"anyOf": found})

    def _value(self, name: str, said: Json, drawn: bool) -> Json:
        match said:
            case {"$ref": str()}:
                return self._place(name, said, drawn)
            case {"type": "object"}:
                owner = name.partition(":")[0]
                known = {
                    key: self._place(f"{owner}.{key}", one, drawn) for key, one in said.get("properties", {}).items()
                }
                rest = said.get("additionalProperties", True)
                made = _mapping(known, self._place(f"{name}.each", rest, drawn) if isinstance(rest, dict) else rest)
                if drawn and isinstance(rest, dict):
                    made["propertyNames"] = NO_WORD
                if name in self._params:
                    made["allOf"] = [
                        {"if": condition, "then": {"properties": {"params": self._place("", {"$ref": params}, drawn)}}}
                        for condition, params in self._params[name]
                    ]
                return made | {key: said[key] for key in ("description",) if key in said}
            case {"type": "array", "items": dict() as items}:
                return said | {"items": self._place(f"{name}.each", items, False)}
        return {key: value for key, value in said.items() if key not in ("title", "format", "default")}

    def _distribution(self, name: str, said: Json, values: Sequence[Json]) -> Json:
        here = {"$ref": f"#/definitions/{name}"}
        words: Json = {word: {"anyOf": bounds} for word in RANGES if (bounds := _bounds(word, values))}
        words["choice"] = {"type": "array", "minItems": 1, "items": self._place(name, said, False)}
        words |= {"one_of": _branches(here), "maybe": {"anyOf": [here]}}
        for word, one in words.items():
            one["description"] = _described(word)
        return _mapping(words, False, minProperties=1, maxProperties=1)


def _alternatives(said: Json) -> list[Json]:
    """What of several kinds a value may be, without titles and remarks."""
    if "anyOf" in said:
        return [one for each in said["anyOf"] for one in _alternatives(each)]
    return [said]


def _mapping(properties: Json, rest: Json | bool, **more: Any) -> Json:
    return {"type": "object", "properties": properties, "additionalProperties": rest, **more}


def _or_null(place: Json) -> Json:
    return {"anyOf": [place, {"type": "null"}]}


def _branches(place: Json) -> Json:
    return {"type": "object", "minProperties": 1, "propertyNames": NO_WORD, "additionalProperties": place}


def _bounds(word: str, values: Sequence[Json]) -> list[Json]:
    """Two bounds that the place itself would take; none where it takes no number of this sort."""
    log, integer = RANGES[word]
    found = []
    for one in values:
        if one.get("type") in (("integer", "number") if integer else ("number",)) and not {"enum", "const"} & set(one):
            limits = {key: value for key, value in one.items() if key.endswith(("inimum", "aximum"))}
            if log:
                limits["exclusiveMinimum"] = max(limits.get("exclusiveMinimum", 0), 0)
            bound = {"anyOf": [{"type": "integer" if integer else "number", **limits}, REFERENCE]}
            found.append({"type": "array", "minItems": 2, "maxItems": 2, "items": bound})
    return found


def _described(word: str) -> str:
    """A word's line in the grammar's own table."""
    lines = (grammar.__doc__ or "").splitlines()
    return re.sub(r"\s{2,}", "   ", next((line for line in lines if f"{{{word}: " in line), "").strip())
