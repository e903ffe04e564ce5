"""YAML text → a tree that knows where everything stands, and that is small, flat and free of surprises.

The law: nothing in the text decides how long the reading takes. Bytes, depth and documents are bounded while events
arrive, and aliases are refused (an alias bomb of 1 kB is three million nodes when walked).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

import yaml
from msgspec import Struct

from proxyd.config.mistakes import Mistake

MAX_BYTES = 1_000_000
MAX_DEPTH = 64


class Scalar(Struct, frozen=True, gc=False):
    """A value as it was written; `plain` without quotes. Lines and columns count from 1."""

    text: str
    plain: bool
    line: int
    column: int


class Items(Struct, frozen=True):
    """A list."""

    items: tuple[Node, ...]
    line: int
    column: int


class Mapping(Struct, frozen=True):
    """A mapping whose keys are scalars, each once."""

    entries: tuple[tuple[Scalar, Node], ...]
    line: int
    column: int

    def get(self, key: str) -> Node | None:
        """Return the value of a key, if it is there."""
        return next((value for name, value in self.entries if name.text == key), None)


class Broken(Struct, frozen=True):
    """A place whose mistake has been told; to be passed over."""

    line: int
    column: int


Node: TypeAlias = Scalar | Items | Mapping | Broken

# YAML 1.2 section 5.1, c-printable: what may stand in a file; and no lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_HINTS = {
    "found character that cannot start any token": "no value begins with this character; put it in quotes",
    "did not find expected alphabetic or numeric character": "a name that begins with * or & stands in quotes",
    "mapping values are not allowed in this context": "a ':' is not expected here; check the indentation, or quote the value",
    "did not find expected key": "the indentation does not match, or a quote or bracket is missing",
    "found unexpected end of stream": "a quote that is opened here is never closed",
    "found duplicate anchor": "anchors and aliases are not supported",
}


def grow(text: str, file: str) -> tuple[Node | None, list[Mistake]]:
    """Read one YAML document. Returns its root, None for an empty file or one that is not YAML, and all mistakes met.

    Duplicate keys, keys that are not scalars, anchors, aliases, tags and merge keys are mistakes; reading goes on behind
    them. What is not YAML, too large, too deep or a second document ends the reading.
    """
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "replace")) > MAX_BYTES:
        return None, [Mistake(file, 1, 1, f"the file is larger than {MAX_BYTES} bytes")]
    found = _UNPRINTABLE.search(text)
    if found:
        line, column = place_of(text, found.start())
        return None, [Mistake(file, line, column, f"the character U+{ord(found[0]):04X} is not allowed in YAML")]
    gardener = _Gardener(file)
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if not gardener.take(event):
                return None, gardener.mistakes
    except yaml.MarkedYAMLError as error:
        return None, [*gardener.mistakes, _not_yaml(error, text, file)]
    except yaml.YAMLError:
        return None, [*gardener.mistakes, Mistake(file, 1, 1, "not YAML")]
    return gardener.root, gardener.mistakes


def place_of(text: str, offset: int) -> tuple[int, int]:
    """Line and column, from 1, of the character at `offset`."""
    before = text[:offset]
    return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not come yet; a mapping's keys and values alternate."""

    mapping: bool
    line: int
    column: int
    children: list[Node] = field(default_factory=list)


class _Gardener:
    """Events in, a tree out, without recursion."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.mistakes: list[Mistake] = []
        self.root: Node | None = None
        self._open: list[_Open] = []
        self._documents = 0

    def take(self, event: yaml.Event) -> bool:
        """Take the next event; False ends the reading."""
        if isinstance(event, yaml.ScalarEvent):
            if event.anchor is not None or event.tag is not None:
                self._refuse_properties(event)
            line, column = _place(event)
            self._add(Scalar(event.value, not event.style, line, column))
        elif isinstance(event, yaml.CollectionStartEvent):
            if event.anchor is not None or event.tag is not None:
                self._refuse_properties(event)
            if len(self._open) >= MAX_DEPTH:
                self._mistake(event, f"nested deeper than {MAX_DEPTH} levels")
                return False
            self._open.append(_Open(isinstance(event, yaml.MappingStartEvent), *_place(event)))
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close(self._open.pop())
        elif isinstance(event, yaml.AliasEvent):
            self._mistake(event, "anchors and aliases are not supported; write it out")
            self._add(Broken(*_place(event)))
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._mistake(event, "a second document begins here; the file holds one")
                return False
        return True

    def _add(self, node: Node) -> None:
        if self._open:
            self._open[-1].children.append(node)
        else:
            self.root = node

    def _close(self, done: _Open) -> None:
        if not done.mapping:
            self._add(Items(tuple(done.children), done.line, done.column))
            return
        entries: dict[str, tuple[Scalar, Node]] = {}
        for key, value in zip(done.children[::2], done.children[1::2], strict=True):
            if not isinstance(key, Scalar):
                if not isinstance(key, Broken):
                    self._mistake(key, "a key must be text")
            elif key.plain and key.text == "<<":
                self._mistake(key, "merge keys are not supported; write it out")
            elif key.text in entries:
                first = entries[key.text][0]
                self._mistake(key, f"{shown(key.text)} is there twice; first on line {first.line}")
            else:
                entries[key.text] = (key, value)
        self._add(Mapping(tuple(entries.values()), done.line, done.column))

    def _refuse_properties(self, event: yaml.NodeEvent) -> None:
        if event.anchor is not None:
            self._mistake(event, "anchors and aliases are not supported; write it out")
        else:
            self._mistake(event, "tags are not supported; remove it")

    def _mistake(self, at: yaml.Event | Node, message: str) -> None:
        line, column = _place(at) if isinstance(at, yaml.Event) else (at.line, at.column)
        self.mistakes.append(Mistake(self.file, line, column, message))


def shown(text: str) -> str:
    """Quote a text for a message: on one line, and not longer than is useful."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _place(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)


def _not_yaml(error: yaml.MarkedYAMLError, text: str, file: str) -> Mistake:
    """Say libyaml's complaint in words, where it began: an unclosed quote is only noticed at the end of the file."""
    problem = error.problem or "cannot be read"
    mark = error.problem_mark or error.context_mark
    if problem == "found unexpected end of stream" and error.context_mark is not None:
        mark = error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    lines = text.split("\n")
    around = lines[line - 1][max(0, column - 2) : column] if line <= len(lines) else ""
    hint = _HINTS.get(problem)
    if around.endswith("\t"):
        hint = "a tab cannot indent; use spaces"
    elif around == "${" and problem.startswith("did not find expected ','"):
        closing = problem[-2]
        hint = f"a ',' or '{closing}' is missing; inside of {'{ }' if closing == '}' else '[ ]'} a ${{…}} stands in quotes"
    return Mistake(file, line, column, f"not YAML: {hint or problem}")
