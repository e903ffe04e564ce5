"""What `proxyd doctor` finds: how bad it is, what it is about, what is so, and what to do. Not a command itself."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.StrEnum):
    """How bad a finding is. `fail`: proxyd does not start, or an upstream does not answer, as things are."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. What is not ok has an advice."""

    level: Level
    about: str
    says: str
    advice: str = ""


def ok(about: str, says: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, about, says)


def warn(about: str, says: str, advice: str) -> Finding:
    """It works, and will not always."""
    return Finding(Level.WARN, about, says, advice)


def fail(about: str, says: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(Level.FAIL, about, says, advice)
