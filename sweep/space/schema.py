"""Makes a JSON Schema of search space files, for completion and checks in editors: `python -m sweep.run schema=true`.

The schema is made from the parts that later validate a space: the pydantic models of a trial, of the search and of the
parameters of each kind, the dictionaries of kinds, and the words of the grammar. The schema requires hardly any key,
because a file may be incomplete: it can extend another file, and an arm can add missing keys. `plan=true` finds what a
schema cannot express, such as a reference to a leaf that does not exist.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from pydantic.json_schema import models_json_schema

from mmpkd.cohort import READERS
from mmpkd.config import CohortConfig, EvaluationConfig, ObjectiveConfig, TeacherConfig, TrialConfig
from mmpkd.objectives import OBJECTIVES
from mmpkd.scoring.saliency import MAPS
from mmpkd.teachers import TEACHERS
from mmpkd.types import Strict
from sweep.selection import Selection
from sweep.space import grammar
from sweep.space.grammar import RANGES, WORDS
from sweep.space.loading import shipped
from sweep.space.search_config import SCORES, SearchConfig
from sweep.space.space import SHARED

Json: TypeAlias = dict[str, Any]

DRAFT: Final = "http://json-schema.org/draft-07/schema#"  # the newest draft that editors support well
# Keys that name a kind: (model, key, kinds by name). The kind decides what `params` beside the key may hold.
KINDS: Final[Sequence[tuple[type[Strict], str, Mapping[str, Any]]]] = (
    (CohortConfig, "reader", READERS),
    (TeacherConfig, "kind", TEACHERS),
    (ObjectiveConfig, "kind", OBJECTIVES),
)
ANNOTATIONS: Final = ("description", "default", "examples")
NO_WORD: Final[Json] = {"not": {"enum": list(WORDS)}}
REFERENCE: Final[Json] = {"type": "string", "pattern": r"\$\{.+\}"}


def schema() -> Json:
    """Returns the JSON Schema as plain values."""
    return _SchemaBuilder().schema()


class _SchemaBuilder:
    """Converts pydantic's schema of each model to the schema of the matching part of a space file.

    Each definition has two forms: one that allows distributions, and one that does not. The latter is for keys that all
    trials share, and for the values of a `choice`.
    """

    def __init__(self) -> None:
        params = [kind.Params for _, _, known in KINDS for kind in known.values()]
        models = [
            TrialConfig,
            SearchConfig,
            EvaluationConfig,
            Selection,
            *(model for model, _, _ in KINDS),
            *dict.fromkeys(params),
        ]
        references, schema_of_models = models_json_schema(
            [(model, "validation") for model in models], ref_template="{model}"
        )
        self._names = {model: str(references[model, "validation"]["$ref"]) for model in models}
        self._models: dict[str, Json] = schema_of_models["$defs"]
        self._definitions: dict[str, Json] = {}
        self._params: dict[str, list[tuple[Json, str]]] = {}  # model -> condition on the kind, model of `params`
        for model, key, known in KINDS:
            self._name_kinds(model, key, known)
            self._params[self._names[model]] = [
                ({"properties": {key: {"const": name}}, "required": [key]}, self._names[kind.Params])
                for name, kind in known.items()
            ]
        self._name_kinds(EvaluationConfig, "map", MAPS)
        search = self._models[self._names[SearchConfig]]["properties"]
        for alternative in _alternatives(search["select"]):
            if alternative.get("type") == "string":
                alternative["enum"] = list(SCORES)
        rule = self._models[self._names[Selection]]["properties"]
        for alternative in [*_alternatives(rule["maximize"]), *_alternatives(rule["of"])]:
            if alternative["type"] == "string":
                alternative["enum"] = list(SCORES)
        for alternative in _alternatives(search["maximize"]):
            if alternative["type"] == "array":
                alternative["items"]["enum"] = list(SCORES)
        self._label_objectives()

    def _name_kinds(self, model: type[Strict], key: str, known: Mapping[str, Any]) -> None:
        """Allows only known names at a key. The description of each name is the docstring of its class."""
        field = self._models[self._names[model]]["properties"][key]
        others = [alternative for alternative in _alternatives(field) if alternative["type"] != "string"]
        named = [{"const": name, "description": inspect.cleandoc(kind.__doc__ or "")} for name, kind in known.items()]
        field.pop("type", None)
        field["anyOf"] = [*named, *others]

    def _label_objectives(self) -> None:
        """Makes the schema allow for each objective only the parameters of the objective's kind. The kind is named by
        the key `kind` or, if this key is missing, by the objective's label.
        """
        name = self._names[ObjectiveConfig]
        labelled = {}
        for label, objective in OBJECTIVES.items():
            reference = f"{name}:{label}"
            labelled[label] = {"$ref": reference}
            self._models[reference] = {**self._models[name], "description": inspect.cleandoc(objective.__doc__ or "")}
            without_kind = {"properties": {"kind": {"type": "null"}}}  # `kind` is null, or the key is absent
            self._params[reference] = [*self._params[name], (without_kind, self._names[objective.Params])]
        self._models[self._names[TrialConfig]]["properties"]["objectives"]["properties"] = labelled

    def schema(self) -> Json:
        """Returns the schema of a whole space file."""
        trial = self._models[self._names[TrialConfig]]
        own = {key: self._place(key, field, key not in SHARED) for key, field in trial["properties"].items()}
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
        # Shared keys stand in this file, or in the file that it extends.
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

    def _place(self, name: str, field: Json, drawn: bool = True) -> Json:
        """Returns the schema for one key or item ("place") in a trial's configuration.

        Args:
            name: name of the schema definition of the place, to which the branches of the place refer back.
            field: pydantic's schema of the place.
            drawn: whether distributions are allowed at the place.
        """
        name = str(field.get("$ref", name))
        if not drawn and "$ref" not in field:
            return self._content(name, field, False)
        key = name if drawn else f"{name}.fixed"
        if key not in self._definitions:
            self._definitions[key] = {}
            self._definitions[key] = self._content(name, field, drawn)
        return {"$ref": f"#/definitions/{key}"}

    def _content(self, name: str, field: Json, drawn: bool) -> Json:
        values = _alternatives(self._models[name] if "$ref" in field else field)
        schemas = [self._value(name, value, drawn) for value in values]
        if any(value.get("type") not in ("object", "string") or "enum" in value for value in values):
            schemas.append(REFERENCE)  # a reference leads to a single leaf; any text includes references
        if drawn:
            schemas.append(self._distribution(name, field, values))
        notes = {key: field[key] for key in ANNOTATIONS if key in field and not isinstance(field[key], dict)}
        return notes | (schemas[0] if len(schemas) == 1 else {"anyOf": schemas})

    def _value(self, name: str, field: Json, drawn: bool) -> Json:
        match field:
            case {"$ref": str()}:
                return self._place(name, field, drawn)
            case {"type": "object"}:
                owner = name.partition(":")[0]
                known = {
                    key: self._place(f"{owner}.{key}", inner, drawn)
                    for key, inner in field.get("properties", {}).items()
                }
                others = field.get("additionalProperties", True)
                each = self._place(f"{name}.each", others, drawn) if isinstance(others, dict) else others
                mapping = _mapping(known, each)
                if drawn and isinstance(others, dict):
                    mapping["propertyNames"] = NO_WORD
                if name in self._params:
                    mapping["allOf"] = [
                        {"if": condition, "then": {"properties": {"params": self._place("", {"$ref": params}, drawn)}}}
                        for condition, params in self._params[name]
                    ]
                return mapping | {key: field[key] for key in ("description",) if key in field}
            case {"type": "array", "items": dict() as items}:
                return field | {"items": self._place(f"{name}.each", items, False)}
        return {key: value for key, value in field.items() if key not in ("title", "format", "default")}

    def _distribution(self, name: str, field: Json, values: Sequence[Json]) -> Json:
        same_place = {"$ref": f"#/definitions/{name}"}
        words: Json = {word: {"anyOf": bounds} for word in RANGES if (bounds := _bounds(word, values))}
        words["choice"] = {"type": "array", "minItems": 1, "items": self._place(name, field, False)}
        words |= {"one_of": _branches(same_place), "maybe": {"anyOf": [same_place]}}
        for word, schema in words.items():
            schema["description"] = _described(word)
        return _mapping(words, False, minProperties=1, maxProperties=1)


def _alternatives(field: Json) -> list[Json]:
    """Returns a list of schemas. A value is valid for the field if it matches one of them."""
    inner = field.get("anyOf") or field.get("oneOf")  # pydantic writes oneOf where a key says which model it is
    return [alternative for each in inner for alternative in _alternatives(each)] if inner else [field]


def _mapping(properties: Json, others: Json | bool, **keywords: Any) -> Json:
    return {"type": "object", "properties": properties, "additionalProperties": others, **keywords}


def _or_null(place: Json) -> Json:
    return {"anyOf": [place, {"type": "null"}]}


def _branches(place: Json) -> Json:
    return {"type": "object", "minProperties": 1, "propertyNames": NO_WORD, "additionalProperties": place}


def _bounds(word: str, values: Sequence[Json]) -> list[Json]:
    """Returns the schemas of the lower and the upper bound of a range. Both schemas allow the same numbers as the place
    (key or item) at which the range stands. The list is empty if the place allows no such number.
    """
    log, integer = RANGES[word]
    schemas = []
    kinds = ("integer", "number") if integer else ("number",)
    for alternative in values:
        if alternative.get("type") in kinds and not {"enum", "const"} & set(alternative):
            limits = {key: value for key, value in alternative.items() if key.endswith(("inimum", "aximum"))}
            if log:
                limits["exclusiveMinimum"] = max(limits.get("exclusiveMinimum", 0), 0)
            bound = {"anyOf": [{"type": "integer" if integer else "number", **limits}, REFERENCE]}
            schemas.append({"type": "array", "minItems": 2, "maxItems": 2, "items": bound})
    return schemas


def _described(word: str) -> str:
    """Returns the description of a grammar word: its line in the table in the docstring of `grammar.py`."""
    lines = (grammar.__doc__ or "").splitlines()
    return re.sub(r"\s{2,}", "   ", next((line for line in lines if f"{{{word}: " in line), "").strip())
