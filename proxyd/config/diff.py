"""What differs between two configurations: what a reload applies, and what waits for a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec import structs

from proxyd.config.shape import Shape, shape_of_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxyd.config.schema import Config


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """One field, or one entry of a mapping, that is not what it was. No value is told: it may be a secret."""

    path: str
    what: str
    """`changed`, `added` or `removed`."""

    def __str__(self) -> str:
        """As people read it."""
        return f"{self.path} {self.what}"


@dataclass(frozen=True, slots=True)
class Changes:
    """All that differs, by path."""

    live: tuple[Change, ...] = ()
    waiting: tuple[Change, ...] = ()
    """Marked `boot` in the schema: they take effect with the next start."""

    def __bool__(self) -> bool:
        """Something differs."""
        return bool(self.live or self.waiting)


def compare(old: Config, new: Config) -> Changes:
    """Tell what is different in `new`."""
    found = [*_differences(shape_of_config(), old, new, "")]
    return Changes(
        tuple(sorted(change for change, boot in found if not boot)),
        tuple(sorted(change for change, boot in found if boot)),
    )


def applied(old: Config, new: Config) -> Config:
    """Return what runs after a reload: `new`, but for the fields that wait for a restart, which are as in `old`."""
    kept: Config = _kept(shape_of_config(), old, new)
    return kept


def _differences(shape: Shape, old: Any, new: Any, path: str) -> Iterator[tuple[Change, bool]]:
    if old == new and type(old) is type(new):
        return
    if shape.struct is not None and old is not None and new is not None:
        for name, field in shape.fields.items():
            yield from _differences(field, getattr(old, name), getattr(new, name), f"{path}.{name}".lstrip("."))
        return
    olds, news = _named(shape, old), _named(shape, new)
    if olds is None or news is None or shape.item is None:
        yield Change(path, "changed"), shape.boot
        return
    for name in {**olds, **news}:
        here = f"{path}.{name}"
        if name not in news:
            yield Change(here, "removed"), shape.boot
        elif name not in olds:
            yield Change(here, "added"), shape.boot
        else:
            yield from _differences(shape.item, olds[name], news[name], here)
    if [*olds] != [*news] and {*olds} == {*news} and isinstance(new, tuple):
        yield Change(path, "changed"), shape.boot  # their order alone


def _named(shape: Shape, value: Any) -> dict[str, Any] | None:
    """The entries of a mapping, or of a list whose entries have names; None for anything else."""
    if isinstance(value, dict):
        return value
    if isinstance(value, tuple) and shape.item is not None and "name" in shape.item.fields:
        entries = {each.name: each for each in value}
        return entries if len(entries) == len(value) else None
    return None


def _kept(shape: Shape, old: Any, new: Any) -> Any:
    if shape.struct is not None and old is not None and new is not None:
        fields = {name: _kept(field, getattr(old, name), getattr(new, name)) for name, field in shape.fields.items()}
        return structs.replace(new, **fields)
    return old if shape.boot else new
