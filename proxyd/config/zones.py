"""Time zones, by the names of the system's database."""

from __future__ import annotations

from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError


def zone(name: str) -> tzinfo:
    """Find a time zone. UTC is there without a database. Raises ValueError; the message fits behind the name."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("is no time zone that this system knows; write UTC or one as Europe/Berlin (package tzdata)") from None
