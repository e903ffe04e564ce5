"""The JSON Schema of the file as it is written, for editors: short forms, `30s`, `32MiB` and `${VAR}` included.

It is looser than the reader: names that lead nowhere, and all else that `checks` knows, only `proxyd check` tells.
"""

from __future__ import annotations

import enum
import re
from typing import Any, TypeAlias

from msgspec import inspect

from proxyd.config import units
from proxyd.config.checks import RETRY_WORDS
from proxyd.config.schema import Auth, Config, Kind, Model, Target, Upstream
from proxyd.config.shape import Shape, shape_of_config

Document: TypeAlias = dict[str, Any]

_REFERENCE = r"\$\{"
_NAME = {"minLength": 1, "maxLength": 256}
_STATUS = {"type": "integer", "minimum": 400, "maximum": 599}


def json_schema() -> Document:
    """Make the JSON Schema (2020-12) of `config.yaml`. Ready for `json.dumps`."""
    definitions: Document = {}
    whole = _struct(shape_of_config(), definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "proxyd configuration",
        **whole,
        "$defs": dict(sorted(definitions.items())),
    }


def _struct(shape: Shape, definitions: Document) -> Document:
    """Make the schema of a struct; those inside it go to `definitions`."""
    assert shape.struct is not None  # noqa: S101 - callers look
    properties = {name: _field(shape, name, definitions) for name in shape.fields}
    document: Document = {
        "type": "object",
        "description": (shape.struct.__doc__ or "").strip(),
        "properties": properties,
        "additionalProperties": False,
    }
    required = [name for name in shape.fields if name not in shape.defaults]
    if required:
        document["required"] = required
    if shape.struct is Upstream:
        document["allOf"] = _needs_of_kinds()
    if shape.struct is Config:
        for name in ("upstreams", "models"):
            properties[name]["minProperties"] = 1
        properties["models"]["propertyNames"] = {**_NAME, "pattern": r"^[^*]*\*?$"}
        properties["aliases"]["propertyNames"] = {**_NAME, "pattern": r"^[^*]*$"}
    return _with_short_forms(document, shape, definitions)


def _field(shape: Shape, name: str, definitions: Document) -> Document:
    field = shape.fields[name]
    document = _value(field, definitions)
    told = field.description + (" (boot: a change waits for a restart)" if field.boot else "")
    if told:
        document = {"description": told, **document}
    if name in shape.defaults and field.struct is None:
        document["default"] = _default(shape.defaults[name], field.unit)
    return document


def _value(shape: Shape, definitions: Document) -> Document:
    if shape.struct is not None:
        name = shape.struct.__name__
        if name not in definitions:
            definitions[name] = _struct(shape, definitions)
        reference = {"$ref": f"#/$defs/{name}"}
        words = ["none"] if shape.struct is Auth else ["none", "off", None]
        return {"anyOf": [{"enum": words}, reference]} if shape.nullable else reference
    if isinstance(shape.core, inspect.DictType) and shape.item is not None:
        return {"type": "object", "propertyNames": dict(_NAME), "additionalProperties": _value(shape.item, definitions)}
    if isinstance(shape.core, inspect.VarTupleType) and shape.item is not None:
        return {"type": "array", "items": _value(shape.item, definitions)}
    if isinstance(shape.core, inspect.AnyType):
        return {}
    if isinstance(shape.core, inspect.UnionType):  # retry.on
        return {"anyOf": [{"enum": list(RETRY_WORDS)}, dict(_STATUS), {"type": "string", "pattern": _REFERENCE}]}
    return _single(shape)


def _single(shape: Shape) -> Document:
    """Make the schema of a single value. `pattern` speaks of strings only, `minimum` of numbers only, so one object says both."""
    core = shape.core
    null = ["null"] if shape.nullable else []
    words = [re.escape(word) for word in units.NOTHING] if shape.nullable else []
    if isinstance(core, inspect.StrType):
        return {"type": ["string", *null] if null else "string", "minLength": 1}
    if isinstance(core, inspect.EnumType):
        return {"anyOf": [{"enum": [member.value for member in core.cls]}, {"type": "string", "pattern": _REFERENCE}]}
    if isinstance(core, inspect.BoolType):
        return {"type": ["boolean", "string", *null], "pattern": _strings(words)}
    if not isinstance(core, inspect.IntType | inspect.FloatType):
        raise TypeError(f"the schema has a type that an editor cannot be told: {core}")
    unit = units.UNITS.get(shape.unit or "")
    if unit is not None:
        words.append(unit.pattern)
    document: Document = {
        "type": list(dict.fromkeys(["integer" if unit is None else unit.bare, "string", *null])),
        "pattern": _strings(words),
    }
    bounds = {"minimum": core.ge, "exclusiveMinimum": core.gt, "maximum": core.le}
    return {**document, **{name: bound for name, bound in bounds.items() if bound is not None}}


def _strings(patterns: list[str]) -> str:
    return f"^(?:{'|'.join(patterns)})$|{_REFERENCE}" if patterns else _REFERENCE


def _default(value: Any, unit: str | None) -> Any:
    """Write a default as the file would."""
    if value is None:
        return "none"
    if unit is not None:
        return units.UNITS[unit].write(value)
    if isinstance(value, tuple):
        return [_default(item, None) for item in value]
    return value.value if isinstance(value, enum.Enum) else value


def _with_short_forms(document: Document, shape: Shape, definitions: Document) -> Document:
    """Add what `forms` writes out."""
    name = {"type": "string", **_NAME, "description": "a name under `upstreams`"}
    if shape.struct is Target:
        return {"anyOf": [name, document]}
    if shape.struct is not Model:
        return document
    properties = document["properties"]
    targets = {key: value for key, value in properties["upstreams"].items() if key != "default"}
    target = shape.fields["upstreams"].item
    assert target is not None  # noqa: S101 - it is a list
    single = {key: _field(target, key, definitions) for key in ("upstream", "model")}
    document["properties"] = {**single, **properties, "upstreams": {**targets, "minItems": 1}}
    document["oneOf"] = [{"required": ["upstream"]}, {"required": ["upstreams"]}]
    document["dependentRequired"] = {"model": ["upstream"]}
    return {"anyOf": [name, {**targets, "minItems": 1}, document]}


def _needs_of_kinds() -> list[Document]:
    """Say what each kind of upstream must have, as `checks` does."""
    needs = {Kind.OPENAI: ["base_url"], Kind.AZURE: ["base_url", "api_key"]}
    return [
        {"if": {"properties": {"kind": {"const": kind.value}}, "required": ["kind"]}, "then": {"required": fields}}
        for kind, fields in needs.items()
    ]
