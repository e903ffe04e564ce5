"""The schema's types, unwrapped once, for those who walk along them: the reader and the editor's JSON Schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from msgspec import NODEFAULT, Struct, inspect

from proxyd.config.schema import Config


@dataclass(frozen=True, slots=True)
class Shape:
    """What a value must be: its type, and what the schema says beside it."""

    core: inspect.Type
    """Never Metadata; a union only where two kinds of values are meant, not for None."""
    nullable: bool = False
    unit: str | None = None
    """A key of `units.UNITS`, or nothing."""
    secret: bool = False
    boot: bool = False
    description: str = ""
    struct: type[Struct] | None = None
    fields: dict[str, Shape] = field(default_factory=dict)
    """Of a struct."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Of the fields that need not be written; the others are required."""
    item: Shape | None = None
    """Of a list or a mapping of names."""


def shape_of_config() -> Shape:
    """Unwrap the whole schema."""
    return _shape(inspect.type_info(Config))


def _shape(type_: inspect.Type) -> Shape:
    extra: dict[str, Any] = {}
    description = ""
    while isinstance(type_, inspect.Metadata):
        extra = {**extra, **(type_.extra or {})}
        description = description or (type_.extra_json_schema or {}).get("description", "")
        type_ = type_.type
    nullable = False
    if isinstance(type_, inspect.UnionType):
        others = tuple(each for each in type_.types if not isinstance(each, inspect.NoneType))
        nullable = len(others) < len(type_.types)
        type_ = others[0] if len(others) == 1 else inspect.UnionType(others)
    return Shape(
        core=type_,
        nullable=nullable,
        unit=extra.get("unit"),
        secret=bool(extra.get("secret")),
        boot=bool(extra.get("boot")),
        description=description,
        struct=type_.cls if isinstance(type_, inspect.StructType) else None,
        fields={each.name: _shape(each.type) for each in type_.fields} if isinstance(type_, inspect.StructType) else {},
        defaults=_defaults(type_),
        item=_item(type_),
    )


def _defaults(type_: inspect.Type) -> dict[str, Any]:
    fields = type_.fields if isinstance(type_, inspect.StructType) else ()
    return {each.name: each.default_factory() if each.default is NODEFAULT else each.default for each in fields if not each.required}


def _item(type_: inspect.Type) -> Shape | None:
    if isinstance(type_, inspect.DictType):
        return _shape(type_.value_type)
    return _shape(type_.item_type) if isinstance(type_, inspect.VarTupleType) else None
