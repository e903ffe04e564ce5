"""The tree → the structs of the schema, noting every mistake and where each value stands.

The law: reading goes on behind a mistake. What cannot be read takes its default, or is left out, so that all else is
still checked; whoever gets a Draft with mistakes must not use it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from msgspec import inspect
from msgspec.structs import replace

from proxyd.config import units
from proxyd.config.forms import FORMS, ROUTE_KEYS, WrongForm, long_route, long_target
from proxyd.config.mistakes import Mistake, meant
from proxyd.config.not_built import NOT_BUILT, NOT_BUILT_VALUES, told
from proxyd.config.schema import Auth, Model, Ops, Target
from proxyd.config.secrets import Unresolved
from proxyd.config.shape import Shape, shape_of_config
from proxyd.config.tree import Broken, Items, Mapping, Node, Scalar, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from proxyd.config.secrets import Secrets

Path: TypeAlias = tuple[str | int, ...]
"""Where a value is: ("models", "fast", "upstreams", 0, "upstream")."""

T = TypeVar("T")

BROKEN = object()
"""The value of what could not be read."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MEANT_AS_VARIABLE = re.compile(r"\$[A-Za-z_]\w*|\$\(\w+\)|\{\{.*\}\}|%\w+%|env:\w+", re.ASCII)
"""How shells, templates and other programs write what stands for a secret: taken for the secret itself, it is one that all can guess."""
_INSTEAD: dict[type, str] = {
    Auth: "; write its keys, or none to let everybody in",
    Ops: "; write {listen: HOST:PORT}, or {listen: off} for none",
}
"""What to write where a section is no mapping."""
_WRITTEN_OUT: dict[type, Callable[[Node], Node]] = {Model: long_route, Target: long_target}


@dataclass(slots=True)
class Draft:
    """What was read: the fields of Config, where things stand, and what is wrong so far."""

    file: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, Node] = field(default_factory=dict)
    """Every value that was written, by its path."""
    keys: dict[Path, Scalar] = field(default_factory=dict)
    """The key that each value of a mapping stands behind."""
    kept: dict[Path, list[int]] = field(default_factory=dict)
    """For lists of which items were left out: the places of the others."""
    literal: list[Path] = field(default_factory=list)
    """Secrets that stand in the file itself."""
    mistakes: list[Mistake] = field(default_factory=list)
    unresolved: list[tuple[Path, Mistake]] = field(default_factory=list)
    """References that lead nowhere, by the value that needs them. Mistakes too, but not for who only looks at the file."""

    def mistake(self, at: Path | Node, message: str) -> None:
        """Note a mistake at a node, or at the value of a path; if that was not written, at the key of what should hold it."""
        self.mistakes.append(self.noted(at, message))

    def noted(self, at: Path | Node, message: str) -> Mistake:
        """Put a message where a node or path stands in the file."""
        node: Node | None = at if not isinstance(at, tuple) else self.places.get(at)
        if node is None and isinstance(at, tuple):
            above = (at[:n] for n in range(len(at), 0, -1))
            node = next((self.keys.get(path) or self.places[path] for path in above if path in self.places), None)
        line, column = (node.line, node.column) if node is not None else (1, 1)
        return Mistake(self.file, line, column, message)

    def names(self, section: str) -> list[str]:
        """Names that are written in a section, those too whose value is wrong."""
        return [str(path[1]) for path in self.keys if len(path) == 2 and path[0] == section]

    def items(self, path: Path, values: Sequence[T]) -> Iterator[tuple[Path, T]]:
        """Pair the values of a list with their paths."""
        return (((*path, index), value) for index, value in zip(self.kept.get(path, range(len(values))), values, strict=True))

    def written(self, path: Path) -> str:
        """Quote what stands at a path, as it was written: what a reference stands for is told to nobody."""
        node = self.places.get(path)
        return shown(node.text) if isinstance(node, Scalar) else str(path[-1])


def read(root: Node, file: str, secrets: Secrets) -> Draft:
    """Read the whole file. The Draft has all fields of Config, required ones that are missing as empty mappings."""
    draft = Draft(file)
    shape = shape_of_config()
    values: dict[str, Any] = {}
    if isinstance(root, Mapping):
        values = _Reader(draft, secrets).fields(root, shape, ())
    elif not isinstance(root, Broken):
        draft.mistake(root, "the file is not a mapping; it begins with 'upstreams:' and 'models:'")
    for name in shape.fields:
        if values.get(name, BROKEN) is BROKEN:
            values[name] = shape.defaults.get(name, {})
    draft.values = values
    return draft


class _Reader:
    """One walk over one tree, by the types of the schema."""

    def __init__(self, draft: Draft, secrets: Secrets) -> None:
        self.draft = draft
        self.secrets = secrets
        self._by_type: dict[type[inspect.Type], Callable[[Node, Shape, Path], Any]] = {
            inspect.AnyType: self._anything,
            inspect.UnionType: self._word_or_number,
            inspect.StructType: self._struct,
            inspect.DictType: self._dict,
            inspect.VarTupleType: self._list,
        }

    def value(self, node: Node, shape: Shape, path: Path) -> Any:
        """Read a value of any type of the schema. BROKEN if it cannot be; then the mistake is noted."""
        self.draft.places[path] = node
        if isinstance(node, Broken):
            return BROKEN
        return self._by_type.get(type(shape.core), self._scalar)(node, shape, path)

    def fields(self, node: Mapping, shape: Shape, path: Path) -> dict[str, Any]:
        """Read the fields that are written; what is unknown or missing is a mistake."""
        values: dict[str, Any] = {}
        for key, child in node.entries:
            here = (*path, key.text)
            if key.text in shape.fields:
                self.draft.keys[here] = key
                values[key.text] = self.value(child, shape.fields[key.text], here)
            elif _general(here) in NOT_BUILT:
                self.draft.mistake(key, told(key.text))
            else:
                also = ROUTE_KEYS if shape.struct is Model else ()
                self.draft.mistake(key, f"unknown key {shown(key.text)}{meant(key.text, [*shape.fields, *also])}")
        for name in shape.fields:
            if name not in values and name not in shape.defaults:
                self.draft.mistake(self.draft.keys.get(path, node), f"{_label(path)} has no {name!r}; it is required")
        return values

    def _struct(self, node: Node, shape: Shape, path: Path) -> Any:
        struct = shape.struct
        assert struct is not None  # noqa: S101 - it is how we came here
        if shape.nullable and isinstance(node, Scalar) and _is_left_out(node, struct):
            return None
        if struct in _WRITTEN_OUT:
            try:
                node = _WRITTEN_OUT[struct](node)
            except WrongForm as wrong:
                self.draft.mistake(wrong.at, str(wrong))
                if isinstance(node, Mapping):  # for the mistakes in what else it says
                    self.fields(replace(node, entries=tuple(each for each in node.entries if each[0].text not in FORMS)), shape, path)
                return BROKEN
        if not isinstance(node, Mapping):
            self.draft.mistake(node, f"{_label(path)} is not a mapping of keys{_INSTEAD.get(struct, '')}")
            return BROKEN
        # A field that is wrong takes its default, so that the rest of the section is still checked.
        values = {name: value for name, value in self.fields(node, shape, path).items() if value is not BROKEN}
        if not all(name in values or name in shape.defaults for name in shape.fields):
            return BROKEN
        return struct(**values)

    def _dict(self, node: Node, shape: Shape, path: Path) -> Any:
        assert shape.item is not None  # noqa: S101 - it is a mapping of something
        if not isinstance(node, Mapping):
            self.draft.mistake(node, f"{_label(path)} is not a mapping of names")
            return BROKEN
        values = {}
        for key, child in node.entries:
            here = (*path, key.text)
            self.draft.keys[here] = key
            good = self._name(key)
            value = self.value(child, shape.item, here)
            if good and value is not BROKEN:
                values[key.text] = value
        return values

    def _name(self, key: Scalar) -> bool:
        """Check a key that is a name of the owner's choosing; False if it is none."""
        read_as = units.trap(key.text) if key.plain else None
        if read_as is not None:
            self.draft.mistake(key, f'the name {key.text} is {read_as} to YAML; quote it: "{key.text}"')
        elif not key.text.strip() or _CONTROL.search(key.text) or len(key.text) > 256:
            self.draft.mistake(key, "a name must have 1 to 256 characters, none of them a control character, and not only blanks")
        elif "${" in key.text:
            self.draft.mistake(key, "names are not expanded; write the name itself")
        else:
            return True
        return False

    def _list(self, node: Node, shape: Shape, path: Path) -> Any:
        assert shape.item is not None  # noqa: S101 - it is a list of something
        if not isinstance(node, Items):
            self.draft.mistake(node, f"{_label(path)} is not a list; write [a, b]")
            return BROKEN
        values = [self.value(item, shape.item, (*path, index)) for index, item in enumerate(node.items)]
        kept = [index for index, value in enumerate(values) if value is not BROKEN]
        if len(kept) < len(values):
            self.draft.kept[path] = kept
        return tuple(values[index] for index in kept)

    def _word_or_number(self, node: Node, _shape: Shape, path: Path) -> Any:
        """Read an item of `retry.on`: a status or a word. Which ones, `checks` knows."""
        if not isinstance(node, Scalar):
            self.draft.mistake(node, f"{_label(path)} is neither a word nor a number")
            return BROKEN
        text = self._expand(node, path)
        if text is None:
            return BROKEN
        return int(text) if re.fullmatch("[0-9]{1,9}", text) else text

    def _scalar(self, node: Node, shape: Shape, path: Path) -> Any:
        if not isinstance(node, Scalar):
            self.draft.mistake(node, f"{_label(path)} is a single value, not a {'list' if isinstance(node, Items) else 'mapping'}")
            return BROKEN
        if node.plain and node.text == "":
            self.draft.mistake(node, f"{_label(path)} is empty; {'write none' if shape.nullable else 'give it a value'}, or remove it")
            return BROKEN
        text = self._expand(node, path)
        return BROKEN if text is None else self._single(node, text, shape, path)

    def _single(self, node: Scalar, text: str, shape: Shape, path: Path) -> Any:
        """Read `text`, which is what `node` says when its references are put in."""
        expanded = text != node.text
        if shape.nullable and _is_nothing(node, text, expanded=expanded):
            return None
        if isinstance(shape.core, inspect.StrType):
            if shape.secret and not expanded:
                if _MEANT_AS_VARIABLE.fullmatch(text):
                    self.draft.mistake(node, f"{_label(path)} would be these very characters; a variable is written ${{NAME}}")
                    return BROKEN
                self.draft.literal.append(path)
            return self._text(node, text, path)
        try:
            return _parse(text, shape, quoted=not (node.plain or expanded))
        except ValueError as error:
            special = told(text) if (_general(path), text) in NOT_BUILT_VALUES else None
            self.draft.mistake(node, special or f"{shown(node.text)} {error}")
            return BROKEN

    def _text(self, node: Scalar, text: str, path: Path) -> Any:
        """Check a text. Its value is told in no message: it may be a secret that was put into a wrong place."""
        # A listener that is a mere port gets a better answer from `checks`.
        read_as = units.trap(text) if node.plain and text == node.text and path[-1] != "listen" else None
        if read_as is not None:
            self.draft.mistake(node, f"{_label(path)} is text, but this is {read_as} to YAML; put it in quotes")
        elif not text.strip():
            self.draft.mistake(node, f"{_label(path)} is empty")
        elif _CONTROL.search(text):
            self.draft.mistake(node, f"{_label(path)} has a control character or a line break in it")
        else:
            return text
        return BROKEN

    def _anything(self, node: Node, shape: Shape, path: Path) -> Any:
        """Read what goes into a request as JSON (`set`, `force`)."""
        if isinstance(node, Mapping):
            named = [(key.text, child) for key, child in node.entries if self._name(key)]
            items = {name: self.value(child, shape, (*path, name)) for name, child in named}
            return BROKEN if BROKEN in items.values() else items
        if isinstance(node, Items):
            values = [self.value(item, shape, (*path, index)) for index, item in enumerate(node.items)]
            return BROKEN if BROKEN in values else values
        if not isinstance(node, Scalar) or (text := self._expand(node, path)) is None:
            return BROKEN
        if not node.plain:
            return text
        try:
            return units.plain(text)
        except ValueError as error:
            # What was expanded is not told; what stands in the file may be.
            self.draft.mistake(node, f"{shown(node.text)} {error if text == node.text else 'is not plain text nor a plain number'}")
            return BROKEN

    def _expand(self, node: Scalar, path: Path) -> str | None:
        """Put in what references stand for; None if one leads nowhere."""
        try:
            return self.secrets.expand(node.text)
        except Unresolved as unresolved:
            self.draft.unresolved += [(path, self.draft.noted(node, reason)) for reason in unresolved.reasons]
            return None


def _is_nothing(node: Scalar, text: str, *, expanded: bool) -> bool:
    """Whether a value of a field that has None is None: `none`, `off`, an unquoted null, or `${VAR:-}` with nothing behind it."""
    return text in units.NOTHING or (expanded and not text) or (node.plain and text in ("null", "~"))


def _is_left_out(node: Scalar, struct: type) -> bool:
    """Whether a whole section is None. Nothing but the word itself lets everybody in."""
    return node.text == "none" if struct is Auth else _is_nothing(node, node.text, expanded=False)


def _parse(text: str, shape: Shape, *, quoted: bool) -> Any:
    """Read a number, truth value or choice. Raises ValueError; the message fits behind the text as written."""
    core = shape.core
    if isinstance(core, inspect.EnumType):
        choices = [str(member.value) for member in core.cls]
        if text not in choices:
            raise ValueError(f"is not one of {', '.join(choices)}{meant(text, choices)}")
        return core.cls(text)
    if isinstance(core, inspect.BoolType):
        if text not in ("true", "false") or quoted:
            raise ValueError("is not true or false; write one of them, without quotes")
        return text == "true"
    if not isinstance(core, inspect.IntType | inspect.FloatType):
        raise TypeError(f"the schema has a type that cannot be read: {core}")
    if quoted and not shape.unit:
        raise ValueError("is text; write the number without quotes")
    unit = units.UNITS.get(shape.unit or "")
    number, write = (units.whole(text), str) if unit is None else (unit.read(text), unit.write)
    if core.gt is not None and number <= core.gt:
        raise ValueError(f"must be more than {core.gt:g}" + ("; write none for no limit" if shape.nullable else ""))
    if core.ge is not None and number < core.ge:
        raise ValueError(f"is less than {write(core.ge)}")
    if core.le is not None and number > core.le:
        raise ValueError(f"is more than {write(core.le)}")
    return number


def _label(path: Path) -> str:
    """Name the place of a value as a person would: its last key."""
    if not path:
        return "the file"
    last = path[-1]
    return _label(path[:-1]) + f"[{last}]" if isinstance(last, int) else shown(last)


def _general(path: Path) -> str:
    """Write a path as NOT_BUILT does: names and places in lists as `*`."""
    parts = [str(part) for part in path]
    if len(parts) > 1 and parts[0] in ("upstreams", "models"):
        parts[1] = "*"
    return ".".join("*" if isinstance(part, int) else text for part, text in zip(path, parts, strict=True))
