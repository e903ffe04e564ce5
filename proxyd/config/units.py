"""How values are written: durations, sizes, amounts, and the words that YAML 1.1 and 1.2 read differently."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

NOTHING = ("none", "off", "forever")
"""The words for None, where a field has it."""

LONGEST = 10 * 365 * 86400.0
"""Seconds that a duration may be; ten years, for what is kept."""
DURATION = r"[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d)?"
SIZE = r"[0-9]+(?:\.[0-9]+)?(?:B|[kK]B|[MG]B|[KMG]iB)?"
SHARE = r"[0-9]{1,3}(?:\.[0-9]{1,3})?%"
MONEY = r"[0-9]+(?:\.[0-9]+)?"
COUNT = r"[0-9]+[kM]?"

_PERIODS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
_BYTES = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TRUTH = frozenset(("yes", "no", "on", "off", "true", "false"))
_NULL = frozenset(("", "~", "null"))
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_OTHER_NUMBER = re.compile(
    r"[-+]?0(?:[0-7_]+|b[01_]+|o[0-7]+|x[0-9a-fA-F_]+)|[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


def duration(text: str) -> float:
    """Read `30s 500ms 5m 2h 1d` or a bare number of seconds, up to LONGEST. Raises ValueError with what to write instead."""
    if not re.fullmatch(DURATION, text) or len(text) > 20:
        raise ValueError("is not a duration; write 30s, 500ms, 5m, 2h or 1d")
    number = text.rstrip("msdh")
    seconds = float(number) * _SECONDS[text[len(number) :]]
    if seconds > LONGEST:
        raise ValueError("is longer than ten years")
    return seconds


def size(text: str) -> int:
    """Read `32MiB 4MB 100KiB` or a bare number of bytes, up to 1 TiB. Raises ValueError with what to write instead."""
    if not re.fullmatch(SIZE, text) or len(text) > 20:
        raise ValueError("is not a size; write 32MiB, 4MB or 100KiB, or a number of bytes")
    number = text.rstrip("BkKMGi")
    count = float(number) * _BYTES[text[len(number) :]]
    if count > 2**40:
        raise ValueError("is larger than 1 TiB")
    if count != int(count):
        raise ValueError("is not a whole number of bytes")
    return int(count)


def money(text: str) -> float:
    """Read an amount in plain decimal, `0.075`. Raises ValueError with what to write instead."""
    if not re.fullmatch(MONEY, text) or len(text.replace(".", "").lstrip("0")) > 15 or len(text) > 24:
        raise ValueError("is not an amount; write it in plain decimal, without a currency: 0.15")
    return float(text)


def count(text: str) -> int:
    """Read a number of things: `1M`, `200k`, or in plain decimal. Raises ValueError with what to write instead."""
    if not re.fullmatch(COUNT, text) or len(text) > 12:
        raise ValueError("is not a number; write 1M, 200k or 1000000")
    return int(text.rstrip("kM")) * {"k": 1000, "M": 1_000_000}.get(text[-1], 1)


def since(text: str, now_us: int) -> int | None:
    """Read `90m`, `24h`, `7d` or `2w` before now, a UTC day, or `all` (None). Microseconds since the epoch. Raises ValueError."""
    if text == "all":
        return None
    if found := re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text):
        return max(0, now_us - int(found[1]) * _PERIODS[found[2]] * 1_000_000)
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise ValueError("is no moment; write 7d, 24h, 30m, a day as 2026-11-01, or all") from None
    return max(0, int(day.timestamp()) * 1_000_000)


def write_money(amount: float) -> str:
    """Write an amount in plain decimal; the inverse of `money`."""
    text = f"{Decimal(repr(amount)):f}"
    return text.removesuffix(".0")


def write_count(number: int) -> str:
    """Write a number as a person would; the inverse of `count`."""
    for unit, size_of_unit in (("M", 1_000_000), ("k", 1000)):
        if number and number % size_of_unit == 0:
            return f"{number // size_of_unit}{unit}"
    return str(number)


def share(text: str) -> float:
    """Read `80%` as 0.8. Raises ValueError with what to write instead."""
    if not re.fullmatch(SHARE, text) or (percent := float(text[:-1])) > 100:
        raise ValueError("is not a share; write it in percent, as in 80%")
    return percent / 100


def moment(text: str) -> int:
    """Read a day, `2027-01-31` (its first moment, UTC), or a time with its zone, as microseconds since the epoch. Raises ValueError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("is not a moment; write 2027-01-31 or 2027-01-31T18:00:00+01:00") from None
    if found.tzinfo is None:
        if len(text) > 10:
            raise ValueError("has no time zone; write 2027-01-31T18:00:00Z, or the day alone")
        found = found.replace(tzinfo=UTC)
    return int((found - _EPOCH) / timedelta(microseconds=1))


def write_share(part: float | None) -> str:
    """Write a share in percent."""
    return "none" if part is None else f"{part * 100:g}%"


def write_duration(seconds: float | None) -> str:
    """Write a duration as a person would; the inverse of `duration`, to the millisecond and beyond where it must be."""
    if seconds is None:
        return "none"
    if seconds and seconds == int(seconds):
        whole = int(seconds)
        if whole > 300 and whole % 60 == 0:
            unit = next(unit for unit in ("d", "h", "m") if whole % int(_SECONDS[unit]) == 0)
            return f"{whole // int(_SECONDS[unit])}{unit}"
        return f"{whole}s"
    if seconds * 1000 == int(seconds * 1000):
        return f"{int(seconds * 1000)}ms"
    return f"{seconds:f}s"


def write_size(count: int) -> str:
    """Write a size as a person would; the inverse of `size`."""
    for unit in ("GiB", "MiB", "KiB", "GB", "MB", "KB"):
        if count and count % _BYTES[unit] == 0:
            return f"{count // _BYTES[unit]}{unit}"
    return str(count)


@dataclass(frozen=True, slots=True)
class Unit:
    """How values of one kind are written: as a pattern, and both ways."""

    pattern: str
    read: Callable[[str], float]
    """Raises ValueError with what to write instead."""
    write: Callable[[Any], str]
    bare: str = "integer"
    """The type that JSON Schema has for one that stands unquoted."""


UNITS = {
    "duration": Unit(DURATION, duration, write_duration, bare="number"),
    "size": Unit(SIZE, size, write_size),
    "money": Unit(MONEY, money, write_money, bare="number"),
    "count": Unit(COUNT, count, write_count),
    "share": Unit(SHARE, share, write_share, bare="string"),
}
"""By the `unit` of a field of the schema."""


def trap(text: str) -> str | None:
    """Say what some YAML reader makes of an unquoted word that looks like text: None if all agree that it is text.

    YAML 1.1 (PyYAML, and half of the world) has truth values, octal, sexagesimal and underscored numbers that 1.2 has not.
    """
    if text.lower() in _TRUTH:
        return "a truth value"
    if text.lower() in _NULL:
        return "nothing"
    if _SEXAGESIMAL.fullmatch(text):
        return "a number of base 60"
    if _NUMBER.fullmatch(text) or _OTHER_NUMBER.fullmatch(text):
        return "a number"
    return None


def plain(text: str) -> object:
    """Read an unquoted value by the rules that YAML 1.1, 1.2 and JSON share: true, false, null, numbers, text.

    Raises ValueError with what to write instead where they differ, and for numbers that JSON lacks.
    """
    if text in ("true", "false"):
        return text == "true"
    if text in ("null", "~"):
        return None
    if text == "":
        raise ValueError("is empty; write null or quotes")
    if len(text) <= 40 and _INTEGER.fullmatch(text):
        return int(text)
    if len(text) <= 40 and _NUMBER.fullmatch(text) and not re.search(r"^\+|^-?\.|^-?0[0-9]|\.[eE]|\.$", text):
        number = float(text)
        if abs(number) == float("inf"):
            raise ValueError("is too large a number")
        return number
    read_as = trap(text)
    if read_as is not None:
        raise ValueError(f'is {read_as} to some YAML readers; write "{text}" for text, or a plain true, false or decimal number')
    return text


def whole(text: str) -> int:
    """Read a whole number in plain decimal. Raises ValueError with what to write instead."""
    if len(text) > 18 or not _INTEGER.fullmatch(text):
        raise ValueError("is not a whole number; write it in plain decimal")
    return int(text)
