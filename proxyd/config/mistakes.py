"""What is wrong with a file: where, and what to write instead."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """One thing to mend. Line and column count from 1, columns in characters. The message holds no secret."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        """`file:line:column: message`, as compilers say it and editors jump to it."""
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class ConfigError(Exception):
    """The file cannot be used. `mistakes` are all of them, in the order of the file; there is at least one."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(sorted(set(mistakes)))
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` that was most likely meant by `name`, whatever its case; None if none is near."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def meant(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or nothing if no name is near."""
    near = nearest(name, names)
    return f"; did you mean {near!r}?" if near else ""
